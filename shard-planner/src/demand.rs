//! What is asked of a plan.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The requests that a plan is for, and what is to be best about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// Format of the weights.
    pub format: String,
    /// Tokens of a prompt, on average.
    pub prompt: u32,
    /// Tokens of a reply, on average.
    pub output: u32,
    /// KV positions that a session takes, on average: at most `prompt + output`, more only to be safe.
    pub context: u32,
    /// Most replies at once.
    pub concurrency: u32,
    /// What is to be best.
    #[serde(default)]
    pub objective: Objective,
}

/// What is to be best about a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Least time per output token, with `concurrency` replies in one step.
    #[default]
    Latency,
    /// Most tokens per second.
    Throughput(Limits),
    /// Least price for each token.
    Cost(Limits),
}

/// Times that a plan has to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Longest time per output token in seconds.
    #[serde(default)]
    pub tpot_s: Option<f64>,
    /// Longest time to the first token in seconds.
    #[serde(default)]
    pub ttft_s: Option<f64>,
}

/// What is wrong with a demand.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DemandError {
    /// A count of zero.
    #[error("the demand's {0} must not be zero")]
    Zero(&'static str),
    /// A bound that is no time.
    #[error("the demand's {what} of {value} is no time")]
    Limit {
        /// Which.
        what: &'static str,
        /// As given.
        value: f64,
    },
}

impl Demand {
    /// Chat: prompts of 512 tokens, replies of 256, at `concurrency` replies.
    pub fn chat(format: &str, concurrency: u32, objective: Objective) -> Self {
        Self { format: format.to_owned(), prompt: 512, output: 256, context: 768, concurrency, objective }
    }

    /// Refuses what cannot be asked.
    pub fn check(&self) -> Result<(), DemandError> {
        let counts = [
            ("prompt", self.prompt),
            ("output", self.output),
            ("context", self.context),
            ("concurrency", self.concurrency),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(DemandError::Zero(name));
        }
        let Limits { tpot_s, ttft_s } = self.limits();
        for (what, value) in [("tpot_s", tpot_s), ("ttft_s", ttft_s)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(DemandError::Limit { what, value });
            }
        }
        Ok(())
    }

    /// Times that it has to keep.
    pub fn limits(&self) -> Limits {
        match self.objective {
            Objective::Latency => Limits::default(),
            Objective::Throughput(limits) | Objective::Cost(limits) => limits,
        }
    }
}
