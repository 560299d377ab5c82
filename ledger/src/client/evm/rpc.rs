//! JSON-RPC: what a chain's node is asked, over which wire, and how often.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::debug;

use crate::{
    client::Error,
    embedded::{Chain, RpcError},
};

/// A wire to one chain's node: HTTP, or a chain in the same process.
#[async_trait]
pub trait Rpc: Send + Sync {
    /// Asks once. `params` is an array.
    async fn request(&self, method: &str, params: Value) -> Result<Value, RpcFault>;
}

/// Why a request has no result.
#[derive(Clone, Debug, Error)]
pub enum RpcFault {
    /// No answer came, or one that says to come back later.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is none.
    #[error("{0}")]
    BadAnswer(String),
    /// The answer is longer than this many bytes, and was not read.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    /// The node answers with an error.
    #[error("{message} (code {code})")]
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// What it says.
        message: String,
        /// What it adds; of a refusing contract, its error.
        data: Option<Value>,
    },
}

/// First wait before a question is asked again; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Patience of those who come back by themselves: three attempts.
const BRIEF: Duration = Duration::from_millis(350);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// What nodes answer to those who ask too often, or that have just started (EIP-1474).
const PASSING_CODES: [i64; 3] = [429, -32002, -32005];

/// A wire that asks again.
#[derive(Clone)]
pub(super) struct Wire {
    rpc: Arc<dyn Rpc>,
    patience: Duration,
}

impl Wire {
    pub(super) fn new(rpc: Arc<dyn Rpc>, patience: Duration) -> Self {
        Self { rpc, patience }
    }

    /// The same, for those who come back by themselves: asks a few times, since what takes many questions would
    /// never be done over a bad line.
    pub(super) fn brief(&self) -> Self {
        Self { rpc: self.rpc.clone(), patience: BRIEF }
    }

    /// Asks, and asks again for a while where that may help. Only for what does no harm when done twice.
    pub(super) async fn ask<R: DeserializeOwned>(&self, method: &str, params: Value) -> Result<R, RpcFault> {
        let begun = Instant::now();
        let mut wait = FIRST_WAIT;
        loop {
            let fault = match self.once(method, params.clone()).await {
                // Of logs, it is the question that is too much.
                Err(fault @ RpcFault::Refused { .. }) if method == "eth_getLogs" => return Err(fault),
                Err(fault) if fault.is_passing() => fault,
                result => return result,
            };
            if begun.elapsed() + wait > self.patience {
                return Err(fault);
            }
            debug!(method, %fault, "asking again in {wait:?}");
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Asks once.
    pub(super) async fn once<R: DeserializeOwned>(&self, method: &str, params: Value) -> Result<R, RpcFault> {
        let result = self.rpc.request(method, params).await?;
        serde_json::from_value(result)
            .map_err(|error| RpcFault::BadAnswer(format!("the result of {method}: {error}")))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

/// The chain of this process. Asked on a thread of its own, since it computes and writes.
#[async_trait]
impl Rpc for Chain {
    async fn request(&self, method: &str, params: Value) -> Result<Value, RpcFault> {
        let (chain, method) = (self.clone(), method.to_owned());
        let asked = spawn_blocking(move || Chain::request(&chain, &method, &params)).await;
        let answer =
            asked.map_err(|_| RpcFault::Unreachable("the chain of this process failed".to_owned()))?;
        answer.map_err(|RpcError { code, message, data }| RpcFault::Refused { code, message, data })
    }
}

/// Up to a quarter less, so that many who wait for the same node do not come back together.
fn jittered(wait: Duration) -> Duration {
    // Without randomness nobody is spread, and nothing else is wrong.
    let random = getrandom::u32().unwrap_or(0);
    wait - wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
}

impl RpcFault {
    /// Whether the same question may be answered later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::BadAnswer(_) => true,
            Self::TooLong(_) => false,
            Self::Refused { code, .. } => PASSING_CODES.contains(code),
        }
    }
}

impl From<RpcFault> for Error {
    fn from(fault: RpcFault) -> Self {
        match fault {
            RpcFault::Unreachable(why) => Self::Unreachable(why),
            RpcFault::BadAnswer(why) => Self::BadAnswer(why),
            RpcFault::TooLong(_) => Self::BadAnswer(fault.to_string()),
            RpcFault::Refused { code, message, .. } if PASSING_CODES.contains(&code) => {
                Self::Unreachable(message)
            }
            RpcFault::Refused { code, message, .. } => Self::Node { code, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    /// Answers properly from some attempt on.
    #[derive(Debug)]
    struct Late {
        fault: RpcFault,
        attempts: AtomicUsize,
        until: usize,
    }

    #[async_trait]
    impl Rpc for Late {
        async fn request(&self, _: &str, _: Value) -> Result<Value, RpcFault> {
            let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
            if attempt < self.until { Err(self.fault.clone()) } else { Ok(json!(7)) }
        }
    }

    fn late(fault: RpcFault) -> (Wire, Arc<Late>) {
        let late = Arc::new(Late { fault, attempts: AtomicUsize::new(0), until: 5 });
        (Wire::new(late.clone(), Duration::from_secs(60)), late)
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_waited_for() {
        for fault in [
            RpcFault::Unreachable("nobody there".to_owned()),
            RpcFault::BadAnswer("<html>".to_owned()),
            RpcFault::Refused { code: -32005, message: "too often".to_owned(), data: None },
        ] {
            let (wire, _) = late(fault);
            assert_eq!(wire.ask::<u32>("eth_x", json!([])).await.unwrap(), 7);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_and_patience_ends() {
        let (wire, late_node) =
            late(RpcFault::Refused { code: -32000, message: "no".to_owned(), data: None });
        assert!(wire.ask::<u32>("eth_x", json!([])).await.is_err());
        assert_eq!(late_node.attempts.load(Ordering::Relaxed), 1);

        let (mut wire, late_node) = late(RpcFault::Unreachable("nobody there".to_owned()));
        wire.patience = BRIEF;
        let fault = wire.ask::<u32>("eth_x", json!([])).await.unwrap_err();
        assert!(matches!(fault, RpcFault::Unreachable(_)));
        assert_eq!(
            late_node.attempts.load(Ordering::Relaxed),
            3,
            "after 0.1 s and 0.3 s, and not after 0.7 s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_of_another_shape_is_no_answer() {
        let (mut wire, _) = late(RpcFault::Unreachable(String::new()));
        wire.patience = Duration::from_secs(60);
        let fault = wire.ask::<String>("eth_x", json!([])).await.unwrap_err();
        assert!(matches!(fault, RpcFault::BadAnswer(_)), "{fault}");
    }
}
