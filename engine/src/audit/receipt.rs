//! What a client gets for a reply: everything that was promised and signed about it.

use std::io::Read;

use ledger::eip712::keccak;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    commitment::{Chunk, Signature},
    plan::{Digest, Plan},
};
use crate::{message::MAX_TEXT_BYTES, request::Finish};

/// Longest receipt that is read.
pub const MAX_RECEIPT_BYTES: u64 = 64 << 20;
/// Most positions of a session with a receipt.
pub const MAX_POSITIONS: u32 = 1 << 20;
const VERSION: u32 = 1;
const RECEIPT_DOMAIN: &[u8] = b"dolphin/receipt/1";

/// A receipt, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version of the format.
    pub version: u32,
    /// Name of the model, for people.
    pub model_name: String,
    /// Who computed what, of which model, prompt and seed.
    pub plan: Plan,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the reply.
    pub reply: Vec<u32>,
    /// How the reply ended; `None` if the client ended it.
    pub finish: Option<Finish>,
    /// What each stage signed, in the order of the stages.
    pub stages: Vec<Vec<Chunk>>,
    /// The gateway's signature over all of it.
    pub signature: Signature,
}

/// Why a receipt cannot be read.
#[derive(Debug, Error)]
pub enum ReceiptError {
    /// It cannot be read at all.
    #[error("the receipt cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is not JSON of the right shape.
    #[error("the receipt is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// It is longer than any receipt.
    #[error("the receipt is longer than {MAX_RECEIPT_BYTES} bytes")]
    TooLong,
    /// It says something that no receipt may say.
    #[error("the receipt has {0}")]
    Invalid(&'static str),
}

impl Receipt {
    /// A receipt that its gateway has not signed yet.
    pub fn unsigned(
        model_name: String,
        plan: Plan,
        prompt: Vec<u32>,
        reply: Vec<u32>,
        finish: Option<Finish>,
        stages: Vec<Vec<Chunk>>,
    ) -> Self {
        let signature = Signature([0; 64]);
        Self { version: VERSION, model_name, plan, prompt, reply, finish, stages, signature }
    }

    /// Reads a receipt and checks that it is within its bounds. It says nothing yet about its truth.
    ///
    /// # Errors
    /// [`ReceiptError`], whatever the bytes are.
    pub fn read(source: impl Read) -> Result<Self, ReceiptError> {
        let mut bytes = Vec::new();
        source.take(MAX_RECEIPT_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::TooLong);
        }
        let receipt: Self = serde_json::from_slice(&bytes)?;
        receipt.check()?;
        Ok(receipt)
    }

    /// Rows that were computed: of every token but the last.
    pub fn rows(&self) -> u32 {
        (self.prompt.len() + self.reply.len()).saturating_sub(1) as u32
    }

    /// What the gateway signs.
    pub fn digest(&self) -> Digest {
        let mut bytes = RECEIPT_DOMAIN.to_vec();
        bytes.extend_from_slice(&self.plan.hash().0);
        for tokens in [&self.prompt, &self.reply] {
            bytes.extend_from_slice(&(tokens.len() as u32).to_be_bytes());
            bytes.extend(tokens.iter().flat_map(|token| token.to_be_bytes()));
        }
        bytes.push(match self.finish {
            None => 0,
            Some(Finish::Stop) => 1,
            Some(Finish::Length) => 2,
        });
        for chunks in &self.stages {
            bytes.extend_from_slice(&(chunks.len() as u32).to_be_bytes());
            chunks.iter().for_each(|chunk| bytes.extend_from_slice(&chunk.signature.0));
        }
        Digest(keccak(&bytes))
    }

    fn check(&self) -> Result<(), ReceiptError> {
        let ensure =
            |holds: bool, otherwise| if holds { Ok(()) } else { Err(ReceiptError::Invalid(otherwise)) };
        let plan = &self.plan;
        ensure(self.version == VERSION, "another version than this program reads")?;
        ensure(!self.prompt.is_empty() && !self.reply.is_empty(), "an empty prompt or reply")?;
        let tokens = self.prompt.len().saturating_add(self.reply.len());
        ensure(tokens <= MAX_POSITIONS as usize, "more tokens than a session may have")?;
        ensure(plan.prompt_length as usize == self.prompt.len(), "a prompt of another length than its plan")?;
        ensure(self.reply.len() <= plan.max_tokens as usize, "a longer reply than its plan")?;
        // People see it on a terminal.
        let plain = self.model_name.len() <= MAX_TEXT_BYTES && !self.model_name.chars().any(char::is_control);
        ensure(plain, "a model name that is too long or has control characters")?;
        ensure(self.stages.len() == plan.stages.len(), "signatures of other stages than its plan's")?;
        plan.check().map_err(ReceiptError::Invalid)
    }
}
