//! Output rows on disk, so that a stage can serve them to an auditor: its neighbour's input rows are here even
//! when the neighbour is gone.
//!
//! A file holds the rows of one chunk and is named by the chunk's root, so it proves itself: whoever reads it
//! hashes it. Sessions with a common prefix share files. Files appear by renaming; one that is torn does not
//! have its length and counts as missing. The oldest go when there are too many bytes, when they are older
//! than the window, and when the disk is full: keeping rows never stops a stage.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::plan::Digest;

/// Length of what stands before the rows: a mark, and how many bytes follow.
const HEADER_BYTES: usize = 24;
const MAGIC: &[u8; 16] = b"dolphin rows 01\n";
const EXTENSION: &str = "rows";

/// A directory of rows, bounded in size and age.
#[derive(Debug)]
pub struct RowStore {
    directory: PathBuf,
    limit_bytes: u64,
    window: Duration,
    state: Mutex<State>,
}

/// What the files take. Counted once at the start, and followed from there.
#[derive(Debug)]
struct State {
    bytes: u64,
    /// Files oldest first, as far as this process wrote or found them.
    files: Vec<(SystemTime, u64, PathBuf)>,
    known: HashSet<PathBuf>,
    full: bool,
}

impl RowStore {
    /// Opens the store; what was left half written is removed.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(directory: &Path, limit_bytes: u64, window: Duration) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let Ok(metadata) = fs::metadata(&path) else { continue };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(EXTENSION) if is_whole(&path, metadata.len()) => {
                    let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    files.push((written, metadata.len(), path));
                }
                Some(EXTENSION | "new") => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        files.sort();
        let bytes = files.iter().map(|(_, bytes, _)| bytes).sum();
        let known = files.iter().map(|(.., path)| path.clone()).collect();
        let state = Mutex::new(State { bytes, files, known, full: false });
        Ok(Self { directory: directory.to_owned(), limit_bytes, window, state })
    }

    /// Keeps the rows of a chunk. What cannot be kept is dropped, and the log says so.
    pub fn put(&self, root: &Digest, rows: &[Bytes]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(root);
        let bytes = HEADER_BYTES as u64 + rows.iter().map(|row| row.len() as u64).sum::<u64>();
        let now = SystemTime::now();
        while state
            .files
            .first()
            .is_some_and(|(written, ..)| now.duration_since(*written).is_ok_and(|age| age > self.window))
        {
            state.drop_oldest();
        }
        if bytes > self.limit_bytes || state.known.contains(&path) {
            return;
        }
        while state.bytes + bytes > self.limit_bytes && state.drop_oldest() {}
        let mut outcome = write(&path, rows);
        // A full disk is made room on: newer rows are asked for more likely than older ones.
        while outcome.is_err() && state.drop_oldest() {
            outcome = write(&path, rows);
        }
        match outcome {
            Ok(()) => {
                state.full = false;
                state.bytes += bytes;
                state.known.insert(path.clone());
                state.files.push((now, bytes, path));
            }
            Err(error) => {
                if !std::mem::replace(&mut state.full, true) {
                    tracing::warn!("{}: rows are not kept: {error}", self.directory.display());
                }
            }
        }
    }

    /// The rows of the chunk with this root, one after another, if they are here. Whoever uses them checks
    /// them against the root.
    pub fn get(&self, root: &Digest) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(root)).ok()?;
        if !has_header(&bytes, bytes.len() as u64) {
            return None;
        }
        Some(bytes.split_off(HEADER_BYTES))
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    fn path(&self, root: &Digest) -> PathBuf {
        self.directory.join(format!("{root}.{EXTENSION}"))
    }
}

impl State {
    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        if self.files.is_empty() {
            return false;
        }
        let (_, bytes, path) = self.files.remove(0);
        let _ = fs::remove_file(&path);
        self.known.remove(&path);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

fn write(path: &Path, rows: &[Bytes]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let written = File::create(&temporary).and_then(|mut file| {
        let bytes: u64 = rows.iter().map(|row| row.len() as u64).sum();
        let mut whole = Vec::with_capacity(HEADER_BYTES + bytes as usize);
        whole.extend_from_slice(MAGIC);
        whole.extend_from_slice(&bytes.to_le_bytes());
        rows.iter().for_each(|row| whole.extend_from_slice(row));
        file.write_all(&whole)
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

fn is_whole(path: &Path, length: u64) -> bool {
    let mut header = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut header));
    read.is_ok() && has_header(&header, length)
}

/// Whether bytes begin as a file of `length` bytes does.
fn has_header(bytes: &[u8], length: u64) -> bool {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let told = header.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    header.starts_with(MAGIC) && told.checked_add(HEADER_BYTES as u64) == Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREVER: Duration = Duration::from_secs(1 << 30);

    fn rows(fill: u8) -> Vec<Bytes> {
        (0..4).map(|_| Bytes::from(vec![fill; 250])).collect()
    }

    fn root(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn what_is_put_is_there_also_after_a_restart() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = RowStore::open(folder.path(), 1 << 20, FOREVER).expect("opens");
        store.put(&root(1), &rows(7));
        assert_eq!(store.get(&root(1)), Some(vec![7; 1000]));
        assert_eq!(store.get(&root(2)), None);
        let again = RowStore::open(folder.path(), 1 << 20, FOREVER).expect("opens");
        assert_eq!((again.bytes(), again.get(&root(1))), (1024, Some(vec![7; 1000])));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = RowStore::open(folder.path(), 3 * 1024, FOREVER).expect("opens");
        (0..5).for_each(|n| store.put(&root(n), &rows(n)));
        let there: Vec<bool> = (0..5).map(|n| store.get(&root(n)).is_some()).collect();
        assert_eq!(there, [false, false, true, true, true]);
        assert_eq!(store.bytes(), 3 * 1024);
    }

    #[test]
    fn what_is_older_than_the_window_goes() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = RowStore::open(folder.path(), 1 << 20, Duration::ZERO).expect("opens");
        store.put(&root(1), &rows(1));
        std::thread::sleep(Duration::from_millis(5));
        store.put(&root(2), &rows(2));
        assert_eq!(store.get(&root(1)), None);
        assert!(store.get(&root(2)).is_some());
    }

    #[test]
    fn torn_files_are_missing() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = RowStore::open(folder.path(), 1 << 20, FOREVER).expect("opens");
        store.put(&root(1), &rows(1));
        let path = folder.path().join(format!("{}.rows", root(1)));
        let whole = fs::read(&path).expect("read");
        for length in [0, 10, 24, 1023] {
            fs::write(&path, &whole[..length]).expect("written");
            assert_eq!(store.get(&root(1)), None, "{length}");
        }
        fs::write(folder.path().join("half.new"), b"dolphin").expect("written");
        let again = RowStore::open(folder.path(), 1 << 20, FOREVER).expect("opens");
        assert_eq!(again.bytes(), 0);
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
    }

    /// A directory that is gone stands for a disk that takes nothing.
    #[test]
    fn a_disk_that_takes_nothing_stops_nobody() {
        let folder = tempfile::tempdir().expect("a directory");
        let inside = folder.path().join("rows");
        let store = RowStore::open(&inside, 1 << 20, FOREVER).expect("opens");
        store.put(&root(1), &rows(1));
        fs::remove_dir_all(&inside).expect("removed");
        store.put(&root(2), &rows(2));
        assert_eq!((store.get(&root(1)), store.get(&root(2)), store.bytes()), (None, None, 0));
        fs::create_dir(&inside).expect("made");
        store.put(&root(3), &rows(3));
        assert!(store.get(&root(3)).is_some());
    }
}
