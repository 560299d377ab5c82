//! A generation request as the pipeline sees it (token ids, sampling, limits), and what comes back.

use std::time::Duration;

use ledger::account::Unpaid;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::{audit::store::ReceiptId, message::Priority};

/// How tokens are drawn (section 10 of the numerics). The defaults are greedy-free: temperature 1
/// and no truncation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k heaviest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix of this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the heaviest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted per earlier occurrence in the reply.
    pub frequency_penalty: f32,
    /// Subtracted once if the token stands in the reply.
    pub presence_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
    /// Which of the request's `n` replies this is; enters the draw.
    pub choice: u32,
    /// Number of most likely tokens to report at each position; `None` reports no log-probabilities.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
            logprobs: None,
        }
    }
}

/// One reply to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Prompt token ids, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least one.
    pub max_tokens: u32,
    /// Tokens that end the reply; the token itself is reported, then [`Finish::Stop`].
    pub stop_tokens: Vec<u32>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Whom the reply is for. Tenants share no keys and values, and get equal shares of a busy pipeline at
    /// each priority.
    pub tenant: u64,
    /// Share within the pipeline.
    pub priority: Priority,
    /// The reply fails with [`Failure::Deadline`] when it takes longer.
    pub deadline: Duration,
}

/// Log-probabilities at one position, natural logarithm, of the unmodified distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Of the drawn token.
    pub chosen: f32,
    /// The most likely tokens, heaviest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a reply ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// A stop token was drawn.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
}

/// What a running request reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A drawn token.
    Token {
        /// Token id.
        token: u32,
        /// Present if the request asked for them.
        logprobs: Option<Logprobs>,
    },
    /// The reply is complete; nothing follows.
    Finished(Finish),
    /// The reply broke off; nothing follows.
    Failed(Failure),
}

/// Why a running request broke off.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// A node that held a stage of the pipeline is gone, and no other route took the reply on.
    #[error("node {node} left the pipeline: {reason}")]
    NodeLost {
        /// Short id of the node.
        node: String,
        /// What the link said.
        reason: String,
    },
    /// The arithmetic met a NaN or an infinity.
    #[error(
        "the model produced a value that is not finite at position {position}, layer {layer} ({operation})"
    )]
    Fault {
        /// Position in the session.
        position: u32,
        /// Layer of the model.
        layer: u32,
        /// Operation that saw it.
        operation: String,
    },
    /// A stage serves no more before it is paid.
    #[error("node {node} stopped serving: {unpaid}")]
    Unpaid {
        /// Short id of the node.
        node: String,
        /// What it says.
        unpaid: Unpaid,
    },
    /// A stage refused the session.
    #[error("node {node} refused the session: {reason}")]
    Refused {
        /// Short id of the node.
        node: String,
        /// Its reason.
        reason: String,
    },
    /// Another token was drawn than on the route that began the reply: a node of one of them computes wrongly.
    #[error("the nodes that went on with the reply drew another token at position {position}")]
    Contradicted {
        /// Its position.
        position: u32,
    },
    /// The request took longer than it may.
    #[error("the request took longer than its deadline")]
    Deadline,
    /// The gateway is stopping.
    #[error("the gateway is shutting down")]
    Shutdown,
}

/// Why a request was not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Too many requests at once.
    #[error("every slot is taken")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// No set of nodes covers the model.
    #[error("no node serves {missing}")]
    NoPipeline {
        /// Layers (or ends) that nobody holds.
        missing: String,
    },
    /// The request asks for something the pipeline does not do.
    #[error("{parameter}: {reason}")]
    Unsupported {
        /// The parameter of the request.
        parameter: &'static str,
        /// Why not, in words for the caller.
        reason: &'static str,
    },
    /// The prompt and the reply do not fit the context.
    #[error("{requested} tokens were requested, but the context holds {limit}")]
    TooLong {
        /// Prompt plus least reply.
        requested: u32,
        /// Positions a session may have.
        limit: u32,
    },
    /// There is not enough money for the request.
    #[error("{0}")]
    NoMoney(String),
    /// The nodes that serve cannot be paid.
    #[error("{0}")]
    Unpayable(String),
    /// The prompt is longer than nodes serve before they are paid.
    #[error("the prompt has {prompt} tokens, and the nodes give credit for {limit}")]
    Credit {
        /// Tokens of the prompt.
        prompt: u64,
        /// Most that the credit allows.
        limit: u64,
    },
    /// The gateway is stopping.
    #[error("the gateway is shutting down")]
    Shutdown,
}

/// A running request. Dropping it cancels: its slot and KV are freed at once.
#[derive(Debug)]
pub struct Generation {
    /// What happens, ending with [`Event::Finished`] or [`Event::Failed`].
    pub events: mpsc::Receiver<Event>,
    /// Name of the receipt that there will be.
    pub receipt: Option<ReceiptId>,
    /// Wei of POD for a token of prompt or reply; 0 if nobody asks for pay.
    pub price: u64,
}

/// A request on its way to the pipeline.
#[derive(Debug)]
pub struct Submission {
    /// The request.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Generation, Refusal>>,
}

/// Where the gateway hands in requests; whoever owns the receiving end runs the pipelines.
#[derive(Clone, Debug)]
pub struct Submitter {
    queue: mpsc::Sender<Submission>,
}

impl Submitter {
    /// A submitter and its receiving end, which holds at most `depth` unanswered submissions.
    pub fn channel(depth: usize) -> (Self, mpsc::Receiver<Submission>) {
        let (queue, submissions) = mpsc::channel(depth);
        (Self { queue }, submissions)
    }

    /// Submits a request; answered once it is admitted or refused, not when it is done.
    pub async fn submit(&self, request: Request) -> Result<Generation, Refusal> {
        let (reply, answer) = oneshot::channel();
        let submission = Submission { request, reply };
        if let Err(error) = self.queue.try_send(submission) {
            return Err(match error {
                mpsc::error::TrySendError::Full(_) => Refusal::Busy { retry_after: Duration::from_secs(1) },
                mpsc::error::TrySendError::Closed(_) => Refusal::Shutdown,
            });
        }
        answer.await.unwrap_or(Err(Refusal::Shutdown))
    }
}
