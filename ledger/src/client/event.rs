//! What happened on the chain.

use serde::{Deserialize, Serialize};

use super::{action::Support, amount::Pod, audit::AuditEvent};
use crate::eip712::Address;

/// What a contract said of something that happened. Amounts are POD, times seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are called what they are, and the same in all events")]
#[non_exhaustive]
pub enum Event {
    /// POD came into the escrow.
    Deposited { account: Address, from: Address, amount: Pod },
    /// POD left the escrow.
    Withdrawn { account: Address, to: Address, amount: Pod },
    /// Money was locked for a plan, or more of it.
    Locked { payer: Address, collector: Address, plan: [u8; 32], amount: Pod },
    /// A lock began to thaw.
    LockThawing { payer: Address, collector: Address, plan: [u8; 32], thaws_at: u64 },
    /// A lock holds again.
    ThawCancelled { payer: Address, collector: Address, plan: [u8; 32] },
    /// What a lock had left is free.
    Released { payer: Address, collector: Address, plan: [u8; 32], amount: Pod },
    /// Stages were paid from a lock.
    Collected { payer: Address, collector: Address, plan: [u8; 32], payments: Vec<(Address, Pod)> },

    /// A signer speaks for a payer.
    SignerAuthorised { payer: Address, signer: Address },
    /// A signer's vouchers are taken until then.
    SignerRevoked { payer: Address, signer: Address, until: u64 },
    /// A voucher was collected.
    VoucherCollected {
        plan: [u8; 32],
        session: [u8; 32],
        payer: Address,
        total: Pod,
        paid: Pod,
        chunk: u64,
        commitments: [u8; 32],
    },
    /// A voucher of a batch was left out: its place, and the contract's error.
    Skipped { index: u64, session: [u8; 32], payer: Address, reason: String },

    /// A node was entered, or its entry changed. The proof is the node's signature, which nobody has checked.
    NodeRegistered {
        account: Address,
        node: [u8; 32],
        roles: u32,
        metadata: [u8; 32],
        endpoint: String,
        proof: [u8; 64],
    },
    /// A node was taken out.
    NodeRemoved { account: Address, node: [u8; 32] },
    /// A model was entered.
    ModelRegistered { model: [u8; 32], numerics: u32, layers: Vec<[u8; 32]>, name: String },
    /// No new plans should be made with a model.
    ModelRetired { model: [u8; 32] },

    /// POD was staked, behind no role.
    Staked { operator: Address, amount: Pod },
    /// Idle stake left.
    Unstaked { operator: Address, to: Address, amount: Pod },
    /// POD went behind a role.
    Provisioned { operator: Address, role: u32, owner: Address, amount: Pod, shares: u128 },
    /// Stake began to thaw.
    StakeThawing { operator: Address, role: u32, owner: Address, thaw: u64, amount: Pod, releases_at: u64 },
    /// Thawed stake left.
    StakeWithdrawn { thaw: u64, owner: Address, amount: Pod },
    /// Stake was taken.
    Slashed { operator: Address, role: u32, reporter: Address, active: Pod, thawing: Pod, reward: Pod },
    /// Withdrawals from a role wait.
    StakeHeld { operator: Address, role: u32, until: u64 },
    /// Proceeds of slashes were paid out.
    SlashesClaimed { account: Address, amount: Pod },

    /// A root of rewards was posted.
    RewardsPosted { root: [u8; 32], total: Pod, active_at: u64 },
    /// A root of rewards pays nothing any more.
    RewardsDisabled { root: [u8; 32] },
    /// An account was paid rewards.
    RewardsClaimed { account: Address, amount: Pod, cumulative: Pod },
    /// New POD was made for rewards.
    Emitted { amount: Pod },

    /// Something happened in an audit.
    Audit(AuditEvent),

    /// Something was put to the vote.
    Proposed { proposal: [u8; 32], proposer: Address, description: String, vote_start: u64, vote_end: u64 },
    /// A vote's end moved.
    VoteExtended { proposal: [u8; 32], vote_end: u64 },
    /// Somebody voted.
    Voted { proposal: [u8; 32], voter: Address, support: Support, votes: Pod, reason: String },
    /// A proposal waits in the timelock.
    Queued { proposal: [u8; 32], executable_at: u64 },
    /// A proposal was carried out.
    Executed { proposal: [u8; 32] },
    /// A proposal was taken back.
    Cancelled { proposal: [u8; 32] },
}

/// Names an event, also after a reorganisation has put its transaction into another block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId {
    /// Hash of the transaction.
    #[serde(with = "hash")]
    pub transaction: [u8; 32],
    /// Its number among the transaction's events of our contracts.
    pub number: u32,
}

/// An event and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its name.
    pub id: EventId,
    /// The block that it is in.
    pub block: u64,
    /// What happened.
    pub event: Event,
}

/// How far somebody has read the events. Whoever acts on events stores this with what came of them, in one
/// step: then each event is acted on once, whatever crashes in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The first block that was not read.
    pub(crate) next: u64,
    /// The last blocks that were read, oldest first, as far as they are remembered.
    pub(crate) blocks: Vec<ReadBlock>,
}

/// A block whose events were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadBlock {
    pub(crate) number: u64,
    #[serde(with = "hash")]
    pub(crate) hash: [u8; 32],
    pub(crate) events: Vec<EventId>,
}

impl Cursor {
    /// From a block on; a deployment's first is [`Deployment::block`](super::Deployment::block).
    pub fn from_block(block: u64) -> Self {
        Self { next: block, blocks: Vec::new() }
    }

    /// The first block that was not read.
    pub fn block(&self) -> u64 {
        self.next
    }
}

/// What one look for events has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Confirmed events that were not seen before, in order.
    pub events: Vec<Logged>,
    /// Events that were handed out and are on the chain no longer: a reorganisation went deeper than the
    /// confirmations. They come again if their transactions do.
    pub undone: Vec<EventId>,
    /// Where the next look begins.
    pub cursor: Cursor,
    /// Whether there are more confirmed blocks to look at already.
    pub more: bool,
}

/// 32 bytes in files, for `#[serde(with = "hash")]`.
pub(crate) mod hash {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("0x{}", hex::encode(hash)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut hash = [0; 32];
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        hex::decode_to_slice(digits, &mut hash).map_err(de::Error::custom)?;
        Ok(hash)
    }
}
