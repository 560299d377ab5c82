//! One local file from pieces of remote ones: resumed, checked, and in place only when it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Seek, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    Event, Pull, PullError, Report,
    hub::{Hub, Remote},
};
use crate::weights::Pace;

/// Part of a remote file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index into [`Job::remotes`].
    pub(super) remote: usize,
    /// Bytes of it.
    pub(super) range: Range<u64>,
}

/// A local file to make: `prefix`, then the pieces.
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    pub(super) prefix: &'a [u8],
    pub(super) pieces: &'a [Piece],
    pub(super) remotes: &'a [&'a Remote],
    /// Hash of the whole, if known.
    pub(super) sha256: Option<[u8; 32]>,
    /// Version; a file begun for another version is not continued.
    pub(super) tag: &'a str,
}

impl Job<'_> {
    fn bytes(&self) -> u64 {
        let pieces: u64 = self.pieces.iter().map(|piece| piece.range.end - piece.range.start).sum();
        self.prefix.len() as u64 + pieces
    }

    /// The piece that position `at` of the local file lies in, and the position in its remote file.
    fn find(&self, at: u64) -> Option<(&Piece, u64)> {
        let mut start = self.prefix.len() as u64;
        for piece in self.pieces {
            let length = piece.range.end - piece.range.start;
            if at < start + length {
                return Some((piece, piece.range.start + (at - start)));
            }
            start += length;
        }
        None
    }
}

/// A file that grows.
struct Growing {
    path: PathBuf,
    writer: BufWriter<File>,
    hasher: Sha256,
    done: u64,
}

impl Growing {
    /// Takes up what is there for this version of the file.
    fn open(directory: &Path, job: &Job<'_>) -> Result<Self, PullError> {
        let version = blake3::hash(job.tag.as_bytes()).to_hex();
        let path = directory.join(format!("{}.{}.part", job.name, &version[..16]));
        let fail = |error| PullError::disk(&path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(fail)?;
        let present = file.metadata().map_err(fail)?.len();
        let usable = present >= job.prefix.len() as u64 && present <= job.bytes();
        let mut hasher = Sha256::new();
        let done = if usable { present } else { 0 };
        if usable {
            hash_file(&mut file, &mut hasher).map_err(fail)?;
        }
        let mut growing = Self { writer: BufWriter::with_capacity(1 << 20, file), path, hasher, done };
        if !usable {
            growing.restart()?;
        }
        if growing.done == 0 {
            growing.write(job.prefix)?;
        }
        Ok(growing)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.writer.write_all(bytes).map_err(|error| PullError::disk(&self.path, error))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), PullError> {
        let clear = |writer: &mut BufWriter<File>| {
            writer.rewind()?;
            writer.get_ref().set_len(0)
        };
        clear(&mut self.writer).map_err(|error| PullError::disk(&self.path, error))?;
        (self.hasher, self.done) = (Sha256::new(), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PullError> {
        self.writer.flush().map_err(|error| PullError::disk(&self.path, error))
    }
}

fn hash_file(file: &mut File, hasher: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Makes the file of `job` in the request's directory.
pub(super) async fn run(
    hub: &Hub,
    request: &Pull,
    job: &Job<'_>,
    report: &mut Report<'_>,
) -> Result<(), PullError> {
    let directory = &request.directory;
    if adopt(directory, job)? {
        return Ok(());
    }
    let mut growing = Growing::open(directory, job)?;
    report(Event::Started { file: job.name, bytes: job.bytes(), present: growing.done });
    let (mut patience, mut pace) = (hub.patience(), Pace::new(request.bandwidth));
    while let Some((piece, start)) = job.find(growing.done) {
        let before = growing.done;
        let outcome = stream((hub, job, piece), start, &mut growing, &mut pace, report).await;
        // What has come is kept whatever happens next.
        growing.flush()?;
        if growing.done > before {
            patience.renew(hub);
        }
        if let Err(error) = outcome {
            patience.wait(job.name, error, report).await?;
        }
    }
    finish(directory, job, growing)
}

/// Whether the finished file is here already, by its hash.
fn adopt(directory: &Path, job: &Job<'_>) -> Result<bool, PullError> {
    let path = directory.join(job.name);
    let Some(expected) = job.sha256 else { return Ok(false) };
    if !fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == job.bytes()) {
        return Ok(false);
    }
    let mut hasher = Sha256::new();
    let hashed = File::open(&path).and_then(|mut file| hash_file(&mut file, &mut hasher));
    hashed.map_err(|error| PullError::disk(&path, error))?;
    Ok(hasher.finalize().as_slice() == expected)
}

/// Appends what one request gives of a piece.
async fn stream(
    (hub, job, piece): (&Hub, &Job<'_>, &Piece),
    start: u64,
    growing: &mut Growing,
    pace: &mut Pace,
    report: &mut Report<'_>,
) -> Result<(), PullError> {
    let remote = job.remotes[piece.remote];
    let (response, at) = hub.open(remote, start, piece.range.end).await?;
    let mut wanted = piece.range.end - start;
    if at != start {
        if job.pieces.len() > 1 || piece.range != (0..remote.bytes) {
            return Err(PullError::protocol(job.name, "the hub does not send ranges"));
        }
        growing.restart()?;
        wanted = remote.bytes;
    }
    let mut body = response.bytes_stream();
    while wanted > 0 {
        let Some(chunk) = body.next().await else {
            return Err(PullError::network(job.name, &io::Error::other("the answer ended early")));
        };
        let chunk = chunk.map_err(|error| PullError::network(job.name, &error))?;
        if chunk.len() as u64 > wanted {
            return Err(PullError::protocol(job.name, "the hub sent more than was asked for"));
        }
        tokio::time::sleep_until(pace.take(chunk.len() as u32, Instant::now())).await;
        growing.write(&chunk)?;
        wanted -= chunk.len() as u64;
        report(Event::Advanced { file: job.name, done: growing.done });
    }
    Ok(())
}

/// Checks the hash and puts the file in its place.
fn finish(directory: &Path, job: &Job<'_>, mut growing: Growing) -> Result<(), PullError> {
    growing.flush()?;
    let Growing { path, writer, hasher, .. } = growing;
    let actual: [u8; 32] = hasher.finalize().into();
    if let Some(expected) = job.sha256.filter(|expected| *expected != actual) {
        drop(writer);
        fs::remove_file(&path).map_err(|error| PullError::disk(&path, error))?;
        let (expected, actual) = (hex::encode(expected), hex::encode(actual));
        return Err(PullError::Hash { file: job.name.to_owned(), expected, actual });
    }
    let target = directory.join(job.name);
    let placed = writer.get_ref().sync_all().and_then(|()| fs::rename(&path, &target));
    placed.map_err(|error| PullError::disk(&target, error))
}
