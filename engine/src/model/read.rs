//! Reading byte ranges of model files in order, several in flight: with io_uring where the kernel
//! allows it, with plain positioned reads elsewhere.

use std::{fs::File, io, io::Read, path::Path};

use super::{error::ModelError, table::Storage};

/// A piece of a file, read in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    /// Index into the table's files.
    pub(crate) file: usize,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: usize,
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn whole(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let fail = |error| ModelError::io(path, error);
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(ModelError::malformed(&name, format!("is larger than the {limit} bytes allowed")));
    }
    Ok(bytes)
}

/// Hands the bytes of every range to `sink`, in order.
pub(crate) fn stream(
    files: &[Storage],
    ranges: &[ByteRange],
    sink: &mut dyn FnMut(Vec<u8>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    #[cfg(target_os = "linux")]
    if ranges.iter().any(|range| matches!(files[range.file], Storage::File(_))) && uring::allowed() {
        return uring::stream(files, ranges, sink);
    }
    plain(files, ranges, sink)
}

/// The bytes of one range.
pub(crate) fn range(files: &[Storage], range: ByteRange) -> Result<Vec<u8>, ModelError> {
    let mut read = Vec::new();
    plain(files, &[range], &mut |bytes| {
        read = bytes;
        Ok(())
    })?;
    Ok(read)
}

fn plain(
    files: &[Storage],
    ranges: &[ByteRange],
    sink: &mut dyn FnMut(Vec<u8>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut opened: Option<(usize, File)> = None;
    for range in ranges {
        match &files[range.file] {
            Storage::Embedded(bytes) => sink(embedded(bytes, range)?)?,
            Storage::File(path) => {
                if opened.as_ref().is_none_or(|(index, _)| *index != range.file) {
                    opened =
                        Some((range.file, File::open(path).map_err(|error| ModelError::io(path, error))?));
                }
                let Some((_, file)) = &opened else { continue };
                let mut buffer = vec![0; range.length];
                read_at(file, &mut buffer, range.offset).map_err(|error| ModelError::io(path, error))?;
                sink(buffer)?;
            }
        }
    }
    Ok(())
}

fn embedded(bytes: &[u8], range: &ByteRange) -> Result<Vec<u8>, ModelError> {
    let start = usize::try_from(range.offset).ok();
    let piece = start.and_then(|start| bytes.get(start..start.checked_add(range.length)?));
    piece.map(<[u8]>::to_vec).ok_or_else(|| ModelError::malformed("embedded model", "is cut short"))
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}

#[cfg(target_os = "linux")]
mod uring {
    //! A thread of its own runs the io_uring runtime; a bounded channel carries the buffers over.

    use std::{
        collections::{HashMap, VecDeque},
        io,
        path::PathBuf,
        rc::Rc,
        sync::{OnceLock, mpsc},
        thread,
    };

    use tokio_uring::{buf::BoundedBuf, fs::File};

    use super::{ByteRange, ModelError, Storage, embedded};

    /// Reads in flight. Each is a few MiB, enough for a fast disk to be busy.
    const IN_FLIGHT: usize = 8;
    /// Buffers waiting for the consumer.
    const WAITING: usize = 2;

    type Piece = Result<Vec<u8>, ModelError>;

    /// Whether the kernel lets this process use io_uring; asked once, answered in the log.
    pub(super) fn allowed() -> bool {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        *ALLOWED.get_or_init(|| {
            let probe = thread::spawn(|| runtime().map(drop));
            match probe.join().unwrap_or_else(|_| Err(io::Error::other("the probe failed"))) {
                Ok(()) => tracing::info!("weights are read with io_uring"),
                Err(error) => {
                    tracing::info!("io_uring is not available ({error}): weights are read with pread");
                    return false;
                }
            }
            true
        })
    }

    fn runtime() -> io::Result<tokio_uring::Runtime> {
        tokio_uring::Runtime::new(tokio_uring::builder().entries(64))
    }

    pub(super) fn stream(
        files: &[Storage],
        ranges: &[ByteRange],
        sink: &mut dyn FnMut(Vec<u8>) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let (sender, receiver) = mpsc::sync_channel::<Piece>(WAITING);
        thread::scope(|scope| {
            scope.spawn(move || {
                let outcome = match runtime() {
                    Ok(runtime) => runtime.block_on(produce(files, ranges, &sender)),
                    Err(error) => Err(ModelError::io(&PathBuf::from("io_uring"), error)),
                };
                if let Err(error) = outcome {
                    // A consumer that is gone has an error of its own.
                    let _ = sender.send(Err(error));
                }
            });
            for piece in receiver {
                sink(piece?)?;
            }
            Ok(())
        })
    }

    async fn produce(
        files: &[Storage],
        ranges: &[ByteRange],
        sender: &mpsc::SyncSender<Piece>,
    ) -> Result<(), ModelError> {
        let mut opened: HashMap<usize, Rc<File>> = HashMap::new();
        let mut flying: VecDeque<tokio::task::JoinHandle<Piece>> = VecDeque::new();
        for &range in ranges {
            if flying.len() == IN_FLIGHT && !deliver(&mut flying, sender).await? {
                break;
            }
            let task = match &files[range.file] {
                Storage::Embedded(bytes) => {
                    let piece = embedded(bytes, &range);
                    tokio_uring::spawn(async move { piece })
                }
                Storage::File(path) => {
                    let file = match opened.get(&range.file) {
                        Some(file) => file.clone(),
                        None => {
                            let file = File::open(path).await.map_err(|error| ModelError::io(path, error))?;
                            opened.entry(range.file).or_insert(Rc::new(file)).clone()
                        }
                    };
                    tokio_uring::spawn(read(file, path.clone(), range))
                }
            };
            flying.push_back(task);
        }
        while !flying.is_empty() && deliver(&mut flying, sender).await? {}
        Ok(())
    }

    async fn read(file: Rc<File>, path: PathBuf, range: ByteRange) -> Piece {
        let buffer = Vec::with_capacity(range.length);
        let (result, slice) = file.read_exact_at(buffer.slice(..range.length), range.offset).await;
        result.map_err(|error| ModelError::io(&path, error))?;
        Ok(slice.into_inner())
    }

    /// Sends the oldest piece; false if nobody listens any more.
    async fn deliver(
        flying: &mut VecDeque<tokio::task::JoinHandle<Piece>>,
        sender: &mpsc::SyncSender<Piece>,
    ) -> Result<bool, ModelError> {
        let Some(oldest) = flying.pop_front() else { return Ok(true) };
        let piece = oldest
            .await
            .map_err(|error| ModelError::io(&PathBuf::from("io_uring"), io::Error::other(error)))?;
        Ok(sender.send(Ok(piece?)).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Stream = fn(
        &[Storage],
        &[ByteRange],
        &mut dyn FnMut(Vec<u8>) -> Result<(), ModelError>,
    ) -> Result<(), ModelError>;

    /// The ways of reading that this machine allows.
    fn ways() -> Vec<(&'static str, Stream)> {
        #[cfg(target_os = "linux")]
        if uring::allowed() {
            return vec![("pread", plain), ("io_uring", uring::stream)];
        }
        eprintln!("skipped: no io_uring");
        vec![("pread", plain)]
    }

    /// Two files and part of the program, with their contents.
    fn storages(directory: &Path) -> (Vec<Storage>, Vec<Vec<u8>>) {
        static PROGRAM: [u8; 100] = [42; 100];
        let contents: Vec<Vec<u8>> =
            [200_000_u32, 70_000].map(|n| (0..n).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()).to_vec();
        let mut storages = Vec::new();
        for (number, bytes) in contents.iter().enumerate() {
            let path = directory.join(number.to_string());
            std::fs::write(&path, bytes).expect("a file");
            storages.push(Storage::File(path));
        }
        storages.push(Storage::Embedded(&PROGRAM));
        (storages, contents.into_iter().chain([PROGRAM.to_vec()]).collect())
    }

    #[test]
    fn pieces_come_in_order() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (storages, contents) = storages(directory.path());
        let range =
            |i: usize| ByteRange { file: i % 3, offset: (i * 7 % 50) as u64, length: 1 + i * 13 % 50 };
        let ranges: Vec<_> = (0..100).map(range).collect();
        for (way, stream) in ways() {
            let mut read = Vec::new();
            stream(&storages, &ranges, &mut |bytes| {
                read.push(bytes);
                Ok(())
            })
            .expect(way);
            let piece =
                |range: &ByteRange| contents[range.file][range.offset as usize..][..range.length].to_vec();
            assert_eq!(read, ranges.iter().map(piece).collect::<Vec<_>>(), "{way}");
        }
    }

    #[test]
    fn failures_on_either_side_end_the_reading() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (mut storages, _) = storages(directory.path());
        let range = ByteRange { file: 0, offset: 0, length: 1000 };
        for (way, stream) in ways() {
            let mut count = 0;
            let stopped = stream(&storages, &[range; 64], &mut |_| {
                count += 1;
                if count == 3 { Err(ModelError::malformed("test", "enough")) } else { Ok(()) }
            });
            assert!(stopped.is_err() && count == 3, "{way}");
            let beyond = ByteRange { offset: 199_500, ..range };
            let short = stream(&storages, &[range, beyond, range], &mut |_| Ok(())).expect_err(way);
            assert!(matches!(short, ModelError::Io { .. }), "{way}: {short}");
        }
        storages[0] = Storage::File(directory.path().join("nowhere"));
        for (way, stream) in ways() {
            assert!(stream(&storages, &[range], &mut |_| Ok(())).is_err(), "{way}");
        }
    }

    #[test]
    fn files_larger_than_allowed_are_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("file");
        std::fs::write(&path, [0; 100]).expect("a file");
        assert_eq!(whole(&path, 100).expect("fits").len(), 100);
        assert!(whole(&path, 99).is_err());
    }
}
