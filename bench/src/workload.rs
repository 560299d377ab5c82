//! Prompts to send.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Ids that nearly every vocabulary has and that mark no structure in it.
const PLAIN_IDS: std::ops::Range<u32> = 16..256;

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Random token ids, so that no two requests share a prefix.
    Random {
        /// Length of each prompt.
        tokens: usize,
        /// Seed of the ids.
        seed: u64,
    },
    /// Texts, in turn.
    Texts(Vec<String>),
}

impl Workload {
    /// Texts from a file, one on each line; empty lines are left out.
    ///
    /// # Errors
    /// If the file cannot be read or has no text.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines: Vec<String> =
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        ensure!(!lines.is_empty(), "{} has no prompt", path.display());
        Ok(Self::Texts(lines))
    }

    /// The prompt of request `index`, as `/v1/completions` takes it.
    pub fn prompt(&self, index: usize) -> Value {
        match self {
            Self::Random { tokens, seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(index as u64);
                (0..*tokens).map(|_| Value::from(rng.random_range(PLAIN_IDS))).collect()
            }
            Self::Texts(texts) => texts[index % texts.len()].clone().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_prompts_differ_and_come_again() {
        let workload = Workload::Random { tokens: 12, seed: 3 };
        let prompts: Vec<Value> = (0..4).map(|index| workload.prompt(index)).collect();
        assert_eq!(prompts[2], workload.prompt(2));
        assert!(prompts.iter().all(|prompt| prompt.as_array().is_some_and(|ids| ids.len() == 12)));
        assert!(prompts.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn texts_come_in_turn() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "one\n\n  \ntwo\n").expect("written");
        let workload = Workload::from_file(file.path()).expect("two prompts");
        assert_eq!([workload.prompt(0), workload.prompt(1), workload.prompt(2)], ["one", "two", "one"]);
        std::fs::write(file.path(), "\n").expect("written");
        assert!(Workload::from_file(file.path()).is_err());
    }
}
