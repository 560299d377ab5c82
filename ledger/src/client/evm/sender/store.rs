//! The file in which a sender keeps what it has sent, so that a restart goes on with the same nonces.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::queue::Entry;
use crate::client::{Error, event::hash};

const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// A file of entries, and the lock that keeps others from it. Without a directory nothing is kept.
#[derive(Debug)]
pub(super) struct Store {
    place: Option<Place>,
    genesis: [u8; 32],
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Locked while this is there.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Hash of the chain's first block: a development chain that begins anew is another chain.
    #[serde(with = "hash")]
    genesis: [u8; 32],
    entries: Vec<Entry>,
}

impl Store {
    /// Opens the file called `name` in a directory, and reads what it holds for this chain. What it holds for
    /// another is put aside.
    pub(super) fn open(
        directory: Option<&Path>,
        name: &str,
        genesis: [u8; 32],
    ) -> Result<(Self, Vec<Entry>), Error> {
        let Some(directory) = directory else {
            return Ok((Self { place: None, genesis }, Vec::new()));
        };
        let path = directory.join(format!("{name}.json"));
        let lock_path = directory.join(format!("{name}.lock"));
        let lock = lock(directory, &lock_path).map_err(|error| failed(&lock_path, error))?;
        let saved = read(&path).map_err(|error| failed(&path, error))?;
        let entries = match saved {
            Some(saved) if saved.genesis == genesis => saved.entries,
            Some(_) => {
                let aside = path.with_extension("old.json");
                fs::rename(&path, &aside).map_err(|error| failed(&path, error))?;
                tracing::warn!("{} is another chain's, and put aside", path.display());
                Vec::new()
            }
            None => Vec::new(),
        };
        Ok((Self { place: Some(Place { path, _lock: lock }), genesis }, entries))
    }

    /// Writes all entries; after a crash the file holds these or those before.
    pub(super) fn save<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<(), Error> {
        let Some(Place { path, .. }) = &self.place else { return Ok(()) };
        let entries = entries.cloned().collect();
        let saved = Saved { version: VERSION, genesis: self.genesis, entries };
        write(path, &saved).map_err(|error| failed(path, error))
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::Store { path: path.display().to_string(), error }
}

fn lock(directory: &Path, path: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let why = "another process sends for this account";
            Err(io::Error::new(io::ErrorKind::WouldBlock, why))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read(path: &Path) -> io::Result<Option<Saved>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    let saved: Saved = serde_json::from_str(&text)?;
    if saved.version != VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another version"));
    }
    Ok(Some(saved))
}

fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let next = path.with_extension("next.json");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
    file.write_all(&serde_json::to_vec(saved)?)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
