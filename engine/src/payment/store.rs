//! Records that survive a crash: one file for each, replaced as a whole.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Longest record that is read.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Most records of a store.
const MAX_RECORDS: usize = 4096;

/// Why a store cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system does not do it.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process has it.
    #[error("another process uses {}", .0.display())]
    InUse(PathBuf),
    /// A file is no record: it stands for money, so it is not passed over.
    #[error("{path} is damaged: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are more than it keeps.
    #[error("{} holds {MAX_RECORDS} records already", .0.display())]
    Full(PathBuf),
}

/// Where records are kept: a directory that one process has at a time, or memory alone.
#[derive(Debug)]
pub struct Store {
    directory: Option<PathBuf>,
    _lock: Option<File>,
}

impl Store {
    /// A store that ends with the process.
    pub fn in_memory() -> Self {
        Self { directory: None, _lock: None }
    }

    /// Opens a directory, made on first use.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            |error| StoreError::File { path, error }
        };
        fs::create_dir_all(directory).map_err(at(directory))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: Some(directory.to_owned()), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => Err(at(&path)(error)),
        }
    }

    /// All records, by their names.
    pub fn read<T: DeserializeOwned>(&self) -> Result<HashMap<String, T>, StoreError> {
        match &self.directory {
            Some(directory) => read(directory),
            None => Ok(HashMap::new()),
        }
    }

    /// Writes a record; when this returns, it survives a crash. It blocks.
    pub fn put<T: Serialize>(&self, name: &str, record: &T) -> Result<(), StoreError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(format!("{name}.json"));
        let write = || {
            let text = serde_json::to_vec(record).map_err(io::Error::other)?;
            let fresh = directory.join(format!("{name}.new"));
            let mut file = File::create(&fresh)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|error| StoreError::File { path: path.clone(), error })
    }

    /// Forgets a record. It may come back after a crash.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(format!("{name}.json"));
        fs::remove_file(&path).map_err(|error| StoreError::File { path, error })
    }
}

/// Reads the records in a directory, whoever has it.
pub fn read<T: DeserializeOwned>(directory: &Path) -> Result<HashMap<String, T>, StoreError> {
    let failed = |path: &Path, error| StoreError::File { path: path.to_owned(), error };
    let mut records = HashMap::new();
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|n| n.strip_suffix(".json"));
        let Some(name) = name else { continue };
        if records.len() >= MAX_RECORDS {
            return Err(StoreError::Full(directory.to_owned()));
        }
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let length = fs::metadata(&path).map_err(|error| failed(&path, error))?.len();
        if length > MAX_RECORD_BYTES {
            return Err(damaged(format!("{length} bytes")));
        }
        let bytes = fs::read(&path).map_err(|error| failed(&path, error))?;
        let record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        records.insert(name.to_owned(), record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_the_process_and_one_process_has_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put("a", &(1, u128::MAX)).unwrap();
        store.put("a", &(2, u128::MAX)).unwrap();
        store.put("b", &(3, 0u128)).unwrap();
        store.remove("b").unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::InUse(_))));
        drop(store);
        // What a crash in the middle of writing leaves is no record.
        fs::write(directory.path().join("a.new"), b"{").unwrap();
        let store = Store::open(directory.path()).unwrap();
        let records: HashMap<String, (u32, u128)> = store.read().unwrap();
        assert_eq!(records, HashMap::from([("a".to_owned(), (2, u128::MAX))]));
        fs::write(directory.path().join("a.json"), b"{").unwrap();
        assert!(matches!(store.read::<(u32, u128)>(), Err(StoreError::Damaged { .. })));
    }
}
