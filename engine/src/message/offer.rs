//! What nodes say for the gateway's planner.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shard_planner::cluster::Profile;
use thiserror::Error;
use transport::PathKind;

use super::{
    MAX_STAGES, MAX_TEXT_BYTES, MessageError,
    check::{check_text, ensure},
};
use crate::model::Shard;

/// Most counts of a measured curve.
const MAX_COUNTS: usize = 64;

/// What a node lends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Bytes for weights.
    pub weight_bytes: u64,
    /// Bytes for KV.
    pub kv: KvMemory,
    /// Whether it loads other layers when it is told to.
    pub movable: bool,
    /// Bytes of weights that it loads in a second, once it has loaded some.
    pub load_rate: Option<u64>,
    /// How fast it is at a layer, where that was measured.
    pub profile: Option<Box<Profile>>,
}

/// Where a node has room for KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvMemory {
    /// So many bytes beside those for weights.
    Own(u64),
    /// What weights leave of so many bytes.
    Shared(u64),
}

impl fmt::Display for KvMemory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(bytes) => write!(out, "{bytes} for KV"),
            Self::Shared(bytes) => write!(out, "{bytes} for both"),
        }
    }
}

impl Default for KvMemory {
    fn default() -> Self {
        Self::Own(u64::MAX)
    }
}

/// Layers that a node was told to hold, and does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cannot {
    /// What it was told.
    pub shard: Shard,
    /// Why it does not.
    pub reason: LoadRefusal,
}

/// Why a node does not hold what it was told to.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadRefusal {
    /// Whoever runs it chose its layers, or several gateways share it.
    #[error("its layers are not this gateway's to choose")]
    Fixed,
    /// It is loading already.
    #[error("it is loading already")]
    Busy,
    /// The model has no such layers.
    #[error("the model has no such layers")]
    Unknown,
    /// It lends less memory than that.
    #[error("it lends {lent} bytes, and the layers have {needed}")]
    TooLarge {
        /// Bytes of the layers.
        needed: u64,
        /// Bytes that it lends.
        lent: u64,
    },
    /// The model's files there are at fault.
    #[error("its files: {0}")]
    Files(String),
    /// Its device, or the memory of it, is.
    #[error("its device: {0}")]
    Device(String),
}

/// How near another node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its id.
    pub node: [u8; 32],
    /// Microseconds there and back.
    pub rtt_us: u32,
    /// The way there.
    pub path: Path,
    /// What came from there was seen to arrive at.
    pub inward: Option<Carried>,
    /// Kilobits per second that congestion control lets out to there.
    pub outward_kbit: Option<u32>,
}

/// What a link was seen to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Kilobits per second.
    pub kbit: u32,
    /// Seconds since.
    pub age_s: u32,
}

/// Asks another node for bytes of nothing, which show what the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How many, at most [`MAX_PROBE_BYTES`].
    pub bytes: u32,
}

/// The answer: as many, or none where the other has better things to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Padding {
    /// Nothing of meaning.
    #[serde(skip)]
    pub body: Bytes,
}

/// Most bytes that a probe may ask for.
pub const MAX_PROBE_BYTES: u32 = 1_000_000;

/// [`PathKind`] as it travels and is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "documented at transport::PathKind")]
pub enum Path {
    Direct,
    Punched,
    Relayed,
}

impl From<PathKind> for Path {
    fn from(path: PathKind) -> Self {
        match path {
            PathKind::Direct => Self::Direct,
            PathKind::Punched => Self::Punched,
            PathKind::Relayed => Self::Relayed,
        }
    }
}

impl Offer {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        ensure(self.load_rate != Some(0), "weights that never load")?;
        let Some(profile) = &self.profile else { return Ok(()) };
        let Profile { format, layer_bytes, decode, prefill } = &**profile;
        ensure(format.len() <= MAX_TEXT_BYTES && *layer_bytes > 0, "a profile of nothing")?;
        let counts = decode.counts().count().max(prefill.counts().count());
        ensure(counts <= MAX_COUNTS && decode.at(1.0) > 0.0, "a profile that cannot be")
    }
}

impl Cannot {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        match &self.reason {
            LoadRefusal::Files(text) | LoadRefusal::Device(text) => check_text(text),
            _ => Ok(()),
        }
    }
}

pub(super) fn check_near(near: &[Neighbour]) -> Result<(), MessageError> {
    ensure(near.len() <= MAX_STAGES, "more neighbours than a node can have")
}
