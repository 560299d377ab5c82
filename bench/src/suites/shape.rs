//! What the suites that measure one stage prefill and decode.

use anyhow::ensure;
use clap::Args;
use engine::stage::{StageLimits, kv::pages_for};
use serde_json::{Value, json};

use crate::{machine::cores, rig::positions};

/// Prompts, contexts and batches.
#[derive(Args, Clone, Debug)]
pub struct Shape {
    /// Threads that compute, and that measure limits [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Sessions that decode together
    #[arg(long, alias = "batches", value_delimiter = ',', default_value = "1,8,32")]
    pub batch: Vec<usize>,
    /// Tokens of the prompt that is prefilled
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Positions that a session has before it decodes
    #[arg(long, default_value_t = 128)]
    pub context: usize,
    /// Tokens that a session decodes in a repetition
    #[arg(long, default_value_t = 32)]
    pub tokens: usize,
    /// Repetitions of each measurement
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
    /// Most rows of one step of prefill
    #[arg(long, default_value_t = 256)]
    pub rows: usize,
}

impl Shape {
    /// Refuses what measures nothing.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let counts = [self.prompt, self.context, self.tokens, self.repetitions, self.rows];
        ensure!(!counts.contains(&0) && !self.batch.contains(&0), "every count must be at least 1");
        ensure!(!self.batch.is_empty(), "--batch needs a number");
        Ok(())
    }

    /// Threads in use.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores)
    }

    /// Sessions of the largest batch.
    pub(super) fn sessions(&self) -> usize {
        self.batch.iter().copied().max().unwrap_or(0)
    }

    /// Positions that a decoding session reaches.
    pub(super) fn reached(&self) -> usize {
        self.context + self.tokens
    }

    /// Positions whose keys and values a decoding step reads, on average.
    pub(super) fn read(&self) -> usize {
        self.context + self.tokens / 2
    }

    /// Room for every decoding session and one more that is prefilled.
    pub(super) fn limits(&self) -> anyhow::Result<StageLimits> {
        let (decoding, prompt) = (positions(self.reached())?, positions(self.prompt)?);
        Ok(StageLimits {
            rows: self.rows.max(self.sessions()),
            pages: self.sessions() * pages_for(decoding) + pages_for(prompt),
            sessions: self.sessions() + 1,
            positions: decoding.max(prompt),
        })
    }

    /// For a report, beside `more`.
    pub(super) fn parameters(&self, more: Value) -> Value {
        let mut all = json!({
            "threads": self.threads(), "batch": self.batch, "prompt": self.prompt, "context": self.context,
            "tokens": self.tokens, "repetitions": self.repetitions, "step_rows": self.rows,
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
            all.extend(more);
        }
        all
    }
}
