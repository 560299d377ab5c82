//! What an auditor must not lose: its answers, written before it commits to them; the evidence of those that differ,
//! until nobody can dispute them; and how far it has read the chain.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::known::Saved;
use crate::{
    audit::{evidence::Evidence, plan::Digest},
    payment::store::{Store, StoreError},
};

/// Longest file of what was read of the chain.
const MOST_SAVED_BYTES: u64 = 256 << 20;

/// An answer that was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The case.
    pub(super) case: Digest,
    /// The result; zeros if the node gave nothing to compute it from.
    pub(super) roots: Digest,
}

/// See the module. One process has a directory at a time.
#[derive(Clone, Debug)]
pub struct Desk {
    answers: Arc<Store>,
    directory: PathBuf,
}

impl Desk {
    /// Opens a directory, made on first use.
    ///
    /// # Errors
    /// [`StoreError`], also if another process has it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let answers = Arc::new(Store::open(&directory.join("answers"))?);
        let evidence = directory.join("evidence");
        fs::create_dir_all(&evidence).map_err(|error| StoreError::File { path: evidence, error })?;
        Ok(Self { answers, directory: directory.to_owned() })
    }

    /// All answers that were not forgotten.
    pub(super) fn answers(&self) -> Result<HashMap<[u8; 32], [u8; 32]>, StoreError> {
        let kept = self.answers.read::<Kept>()?.into_values();
        Ok(kept.map(|Kept { case, roots }| (case.0, roots.0)).collect())
    }

    /// Writes an answer, and what it takes to defend it; when this returns, both survive a crash. It blocks.
    pub(super) fn put(&self, kept: &Kept, evidence: Option<&Evidence>) -> Result<(), StoreError> {
        if let Some(evidence) = evidence {
            write(&self.evidence_path(&kept.case), &evidence.encode())?;
        }
        self.answers.put(&kept.case.to_string(), kept)
    }

    /// The evidence of an answer that differs. It blocks.
    pub fn evidence(&self, case: &[u8; 32]) -> Option<Evidence> {
        let bytes = fs::read(self.evidence_path(&Digest(*case))).ok()?;
        Evidence::decode(&bytes).ok()
    }

    /// Where that is.
    pub(super) fn evidence_path(&self, case: &Digest) -> PathBuf {
        self.directory.join("evidence").join(case.to_string())
    }

    /// Forgets a case that is over. What cannot be removed stays, and does no harm.
    pub(super) fn forget(&self, case: &[u8; 32]) {
        let case = Digest(*case);
        if let Err(error) = self.answers.remove(&case.to_string()) {
            tracing::debug!(%error, "an answer stays on disk");
        }
        let path = self.evidence_path(&case);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "evidence stays on disk");
        }
    }

    /// Remembers what was read of the chain. It blocks.
    pub(super) fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let path = self.directory.join("chain.json");
        let text = serde_json::to_vec(saved).map_err(io::Error::other);
        write(&path, &text.map_err(|error| StoreError::File { path: path.clone(), error })?)
    }

    /// What was saved; nothing if it cannot be read, since the chain has all of it.
    pub(super) fn saved(&self) -> Option<Saved> {
        let path = self.directory.join("chain.json");
        let length = fs::metadata(&path).ok()?.len();
        let text = (length <= MOST_SAVED_BYTES).then(|| fs::read(&path).ok()).flatten()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Replaces a file as a whole.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&fresh)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| StoreError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_outlive_the_process_until_they_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let desk = Desk::open(directory.path()).unwrap();
        let kept = |n: u8| Kept { case: Digest([n; 32]), roots: Digest([n + 1; 32]) };
        desk.put(&kept(1), None).unwrap();
        desk.put(&kept(2), None).unwrap();
        desk.forget(&[1; 32]);
        desk.forget(&[7; 32]);
        assert!(matches!(Desk::open(directory.path()), Err(StoreError::InUse(_))));
        assert!(desk.saved().is_none());
        desk.save(&Saved { block: 9, ..Saved::default() }).unwrap();
        drop(desk);
        let desk = Desk::open(directory.path()).unwrap();
        assert_eq!(desk.answers().unwrap(), HashMap::from([([2; 32], [3; 32])]));
        assert_eq!(desk.saved().unwrap().block, 9);
        assert_eq!(desk.evidence(&[2; 32]), None);
        // A file that another version wrote, or that is damaged, is read from the chain again.
        fs::write(directory.path().join("chain.json"), b"{").unwrap();
        assert!(desk.saved().is_none());
    }
}
