//! Every accepted transaction and every block, on disk before it is acknowledged.
//!
//! A file that only grows. It begins with [`MAGIC`] and a random mark; each record is
//!
//! ```text
//! mark (16 bytes), length (u32, little-endian), record (postcard), seal (16 bytes)
//! ```
//!
//! where the seal is a hash over the seal before it, the length and the record. A record is synced before the next
//! is begun. So if the file ends in something that is no record, that was never acknowledged, and is cut off. If
//! a mark comes after it, a later record was begun, and the file was damaged: that is an error. The mark is known
//! to nobody else, so no transaction can hold it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{error::RpcError, evm::Environment, genesis::Genesis};

const MAGIC: &[u8; 16] = b"dolphin chain 1\n";
const MARK: usize = 16;
const SEAL: usize = 16;
/// Longest record, encoded; no block comes near.
const RECORD_BYTES: usize = 64 << 20;

/// Why a chain in a directory cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by another process", path = path.display())]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// The directory or a file in it cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no chain, or one of another version.
    #[error("{path} is no chain that this version can read", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was damaged after it was written.
    #[error("{path} is damaged at byte {offset}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the first record that cannot be read begins.
        offset: u64,
    },
    /// The chain began with another genesis than was asked for.
    #[error("{path} holds a chain with another genesis", path = path.display())]
    OtherGenesis {
        /// The file.
        path: PathBuf,
    },
    /// A block gave another result than when it was made.
    #[error("block {number} does not come out as it did: {reason}")]
    Differs {
        /// The block.
        number: u64,
        /// In which way.
        reason: String,
    },
}

/// What is kept. Transactions are encoded as they were sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    Genesis(Genesis),
    /// A transaction was accepted that is in no block yet.
    Waiting(Vec<u8>),
    /// A block was made.
    Block(BlockRecord),
}

/// All that it takes to make a block again, and what must come out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlockRecord {
    pub(super) number: u64,
    pub(super) timestamp: u64,
    pub(super) base_fee: u64,
    pub(super) gas_limit: u64,
    pub(super) coinbase: [u8; 20],
    pub(super) randomness: [u8; 32],
    pub(super) transactions: Vec<Vec<u8>>,
    pub(super) hash: [u8; 32],
}

impl BlockRecord {
    pub(super) fn environment(&self) -> Environment {
        Environment {
            number: self.number,
            timestamp: self.timestamp,
            base_fee: self.base_fee,
            gas_limit: self.gas_limit,
            coinbase: self.coinbase.into(),
            randomness: self.randomness.into(),
        }
    }
}

/// The file, open for writing.
pub(super) struct Journal {
    file: File,
    mark: [u8; MARK],
    seal: [u8; SEAL],
    failed: bool,
    _lock: File,
}

/// The file, while what it holds is read.
pub(super) struct Replay {
    path: PathBuf,
    file: BufReader<File>,
    mark: [u8; MARK],
    seal: [u8; SEAL],
    offset: u64,
    length: u64,
    lock: File,
}

impl Journal {
    /// Syncs a record to the disk. After a failure every later one fails too: what the disk holds is not known
    /// until the file is opened anew.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), RpcError> {
        if self.failed {
            return Err(RpcError::internal("the chain's file could not be written before; open it anew"));
        }
        let written = encode(&self.mark, &self.seal, record).and_then(|(bytes, seal)| {
            self.file.write_all(&bytes)?;
            self.file.sync_data()?;
            Ok(seal)
        });
        match written {
            Ok(seal) => {
                self.seal = seal;
                Ok(())
            }
            Err(error) => {
                self.failed = true;
                Err(RpcError::internal(format!("the chain's file cannot be written: {error}")))
            }
        }
    }
}

impl Replay {
    /// Opens the chain in `directory`, or begins one there. Nobody else can as long as this one lives.
    pub(super) fn open(directory: &Path, genesis: &Genesis) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        create_directory(directory).map_err(at(directory))?;
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: lock_path }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: lock_path, source }),
        }
        let path = directory.join("chain");
        if !path.try_exists().map_err(at(&path))? {
            create(directory, &path, genesis).map_err(at(&path))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(at(&path))?;
        let length = file.metadata().map_err(at(&path))?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let (mut magic, mut mark) = ([0; MAGIC.len()], [0; MARK]);
        let begins = file.read_exact(&mut magic).and_then(|()| file.read_exact(&mut mark));
        if begins.is_err() || magic != *MAGIC {
            return Err(OpenError::Foreign { path });
        }
        let offset = (MAGIC.len() + MARK) as u64;
        let mut replay = Self { path, file, mark, seal: [0; SEAL], offset, length, lock };
        match replay.next()? {
            Some(Record::Genesis(held)) if held == *genesis => Ok(replay),
            Some(Record::Genesis(_)) => Err(OpenError::OtherGenesis { path: replay.path }),
            _ => Err(OpenError::Foreign { path: replay.path }),
        }
    }

    /// The next record, or `None` where the file ends or what follows was never acknowledged.
    pub(super) fn next(&mut self) -> Result<Option<Record>, OpenError> {
        if self.offset == self.length {
            return Ok(None);
        }
        let begin = self.offset;
        let read = self.read().map_err(|source| OpenError::Io { path: self.path.clone(), source })?;
        if read.is_some() {
            return Ok(read);
        }
        self.offset = begin;
        let damaged = self.is_begun_after(begin + 1);
        match damaged.map_err(|source| OpenError::Io { path: self.path.clone(), source })? {
            true => Err(OpenError::Damaged { path: self.path.clone(), offset: begin }),
            false => {
                self.length = begin;
                Ok(None)
            }
        }
    }

    /// Goes on to writing; cuts off what was never acknowledged.
    pub(super) fn finish(self) -> Result<Journal, OpenError> {
        let at = |source| OpenError::Io { path: self.path.clone(), source };
        let mut file = self.file.into_inner();
        file.set_len(self.length).map_err(at)?;
        file.seek(SeekFrom::Start(self.length)).map_err(at)?;
        file.sync_all().map_err(at)?;
        Ok(Journal { file, mark: self.mark, seal: self.seal, failed: false, _lock: self.lock })
    }

    /// Reads a record if there is one.
    fn read(&mut self) -> io::Result<Option<Record>> {
        let mut head = [0; MARK + 4];
        let left = (self.length - self.offset).saturating_sub((head.len() + SEAL) as u64);
        if left == 0 {
            return Ok(None);
        }
        self.file.read_exact(&mut head)?;
        let (mark, length) = head.split_at(MARK);
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if mark != self.mark || length as u64 > left || length > RECORD_BYTES {
            return Ok(None);
        }
        let (mut body, mut seal) = (vec![0; length], [0; SEAL]);
        self.file.read_exact(&mut body)?;
        self.file.read_exact(&mut seal)?;
        if seal != seal_of(&self.seal, &body) {
            return Ok(None);
        }
        let Ok(record) = postcard::from_bytes(&body) else { return Ok(None) };
        self.seal = seal;
        self.offset += (head.len() + length + SEAL) as u64;
        Ok(Some(record))
    }

    /// Whether a mark stands at `offset` or after it.
    fn is_begun_after(&mut self, offset: u64) -> io::Result<bool> {
        self.file.seek(SeekFrom::Start(offset))?;
        let mut window = Vec::new();
        loop {
            let held = window.len();
            let read = self.file.by_ref().take(1 << 16).read_to_end(&mut window)?;
            if window.windows(MARK).any(|bytes| bytes == self.mark) {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            let keep = (held + read).saturating_sub(MARK - 1);
            window.drain(..keep);
        }
    }
}

/// Creates a directory and those above it, each synced into the one that holds it.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directory(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// Writes a file with nothing but a genesis, whole or not at all.
fn create(directory: &Path, path: &Path, genesis: &Genesis) -> io::Result<()> {
    let mut mark = [0; MARK];
    getrandom::fill(&mut mark).map_err(|error| io::Error::other(error.to_string()))?;
    let (record, _) = encode(&mark, &[0; SEAL], &Record::Genesis(genesis.clone()))?;
    let draft = directory.join("chain.new");
    let mut file = File::create(&draft)?;
    file.write_all(MAGIC)?;
    file.write_all(&mark)?;
    file.write_all(&record)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(directory)?.sync_all()
}

fn encode(mark: &[u8; MARK], before: &[u8; SEAL], record: &Record) -> io::Result<(Vec<u8>, [u8; SEAL])> {
    let body = postcard::to_stdvec(record).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= RECORD_BYTES);
    let length = length.ok_or_else(|| io::Error::other("the record is too long"))?;
    let seal = seal_of(before, &body);
    let bytes = [mark.as_slice(), &length.to_le_bytes(), &body, &seal].concat();
    Ok((bytes, seal))
}

fn seal_of(before: &[u8; SEAL], body: &[u8]) -> [u8; SEAL] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&(body.len() as u64).to_le_bytes()).update(body);
    let mut seal = [0; SEAL];
    hasher.finalize_xof().fill(&mut seal);
    seal
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use tempfile::{TempDir, tempdir};

    use super::*;

    /// A file with a genesis and `records`, and where each record ends.
    fn written(records: &[Record]) -> (TempDir, Vec<u64>) {
        let directory = tempdir().expect("a directory can be made");
        let mut journal = reopen(&directory).expect("it is new").1;
        let length = || fs::metadata(file(&directory)).expect("it is there").len();
        let mut ends = vec![length()];
        for record in records {
            journal.append(record).expect("it is written");
            ends.push(length());
        }
        (directory, ends)
    }

    fn file(directory: &TempDir) -> PathBuf {
        directory.path().join("chain")
    }

    fn reopen(directory: &TempDir) -> Result<(Vec<Record>, Journal), OpenError> {
        let mut replay = Replay::open(directory.path(), &Genesis::default())?;
        let mut records = Vec::new();
        while let Some(record) = replay.next()? {
            records.push(record);
        }
        Ok((records, replay.finish()?))
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let bytes = || vec(any::<u8>(), 0..200);
        let block = (any::<(u64, u64, u64, [u8; 20], [u8; 32])>(), vec(bytes(), 0..4));
        let block = block.prop_map(|((number, timestamp, base_fee, coinbase, hash), transactions)| {
            let (gas_limit, randomness) = (number ^ timestamp, hash);
            Record::Block(BlockRecord {
                number,
                timestamp,
                base_fee,
                gas_limit,
                coinbase,
                randomness,
                transactions,
                hash,
            })
        });
        vec(prop_oneof![bytes().prop_map(Record::Waiting), block], 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_torn_end_is_cut_off(list in records(), cut: prop::sample::Index, tail in vec(any::<u8>(), 0..99)) {
            let (directory, ends) = written(&list);
            let last = *ends.last().expect("a genesis is written");
            let first = ends[0];
            let length = first + cut.index((last - first) as usize + 1) as u64;
            let kept = ends.iter().filter(|end| **end <= length).count() - 1;
            let mut handle = OpenOptions::new().write(true).open(file(&directory)).expect("it is there");
            handle.set_len(length).expect("it can be cut");
            handle.seek(SeekFrom::End(0)).expect("it has an end");
            handle.write_all(&tail).expect("it can be written");
            let (held, mut journal) = reopen(&directory).expect("an end that is torn is no fault");
            prop_assert_eq!(&held, &list[..kept]);
            journal.append(&Record::Waiting(vec![1])).expect("it goes on");
            drop(journal);
            let (held, _) = reopen(&directory).expect("it opens again");
            prop_assert_eq!(held.len(), kept + 1);
            prop_assert_eq!(&held[..kept], &list[..kept]);
        }

        #[test]
        fn damage_is_found(list in records(), place: prop::sample::Index, flip in 1u8..) {
            let (directory, ends) = written(&list);
            let mut bytes = fs::read(file(&directory)).expect("it is there");
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            fs::write(file(&directory), bytes).expect("it can be written");
            match reopen(&directory) {
                // What is wrong with the last record cannot be told from a torn end.
                Ok((held, _)) => {
                    let last = ends.len().checked_sub(2).expect("the genesis cannot be torn");
                    prop_assert!(place as u64 >= ends[last]);
                    prop_assert_eq!(&held, &list[..last]);
                }
                Err(OpenError::Damaged { offset, .. }) => {
                    prop_assert!(offset <= place as u64);
                    let begins = ends.contains(&offset) || offset == (MAGIC.len() + MARK) as u64;
                    prop_assert!(begins);
                }
                Err(OpenError::Foreign { .. }) => prop_assert!((place as u64) < ends[0]),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let directory = tempdir().expect("a directory can be made");
        for text in
            ["", "something else", "dolphin chain 1\n", "dolphin chain 2\n................................"]
        {
            fs::write(file(&directory), text).expect("it can be written");
            assert!(matches!(reopen(&directory), Err(OpenError::Foreign { .. })), "{text}");
            assert_eq!(fs::read_to_string(file(&directory)).expect("it is there"), text);
        }
    }

    #[test]
    fn directories_are_made() {
        let directory = tempdir().expect("a directory can be made");
        let inner = directory.path().join("a/b/c");
        Replay::open(&inner, &Genesis::default()).map(drop).expect("nothing is in the way");
        assert!(inner.join("chain").is_file());
        let occupied = Replay::open(&inner.join("chain/d"), &Genesis::default()).map(drop);
        assert!(matches!(occupied, Err(OpenError::Io { .. })), "{occupied:?}");
    }

    #[test]
    fn after_a_failure_nothing_more_is_written() {
        let (directory, _) = written(&[]);
        let (_, mut journal) = reopen(&directory).expect("it opens");
        journal.file = File::open(file(&directory)).expect("it can be read");
        let first = journal.append(&Record::Waiting(vec![1])).expect_err("it is not writable");
        assert_eq!(first.code, RpcError::INTERNAL);
        journal.file = OpenOptions::new().append(true).open(file(&directory)).expect("it is there");
        journal.append(&Record::Waiting(vec![2])).expect_err("the disk may hold a part of the first");
    }
}
