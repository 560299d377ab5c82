//! What nodes and gateways say to one another: the payload of a transport message.
//!
//! A message is its `postcard` encoding followed, for a [`Step`] alone, by a raw body (token ids or
//! activation rows, little-endian). Decoding never allocates beyond the bytes it was given, and
//! everything decoded is checked before it is believed.

use bytes::Bytes;
use kernels::backend::{Operation, Profile};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use transport::NodeId;

use crate::{
    model::Shard,
    request::{Finish, Logprobs, Sampling},
};

/// Names one session everywhere; drawn at random by its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u128);

/// Names one route (a pipeline as one gateway uses it); drawn at random by its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteId(pub u128);

/// Stands for the first `64 i` tokens of a session: a hash over all of them and its gateway's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockHash(pub [u8; 16]);

/// Most stages of one pipeline.
pub const MAX_STAGES: usize = 256;
/// Most layers of a model.
pub const MAX_LAYERS: usize = 4096;
/// Most segments of one step.
pub const MAX_SEGMENTS: usize = 1024;
/// Most entries of a request's lists: biases, stop tokens.
pub const MAX_LIST: usize = 1024;
/// Most tokens reported beside a drawn one.
pub const MAX_TOP_LOGPROBS: usize = 255;
/// Longest text a peer may send: an address, a device, a reason.
pub const MAX_TEXT_BYTES: usize = 512;
/// Longest encoding of a message that is neither an opening nor a step.
const MAX_CONTROL_BYTES: usize = 1 << 20;
/// Encoded variants of [`Message`] that may be longer.
const LONG_VARIANTS: [u8; 2] = [5, 7];
/// Separates signatures over openings from every other use of a node's key.
const OPEN_DOMAIN: &[u8] = b"dolphin/open/1";

/// A message between a node and a gateway or another node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Node to gateway: which layers shall I hold?
    Ask(Ask),
    /// Gateway to node: hold these.
    Assign(Assign),
    /// Node to gateway: this is what I hold.
    Join(Join),
    /// Gateway to node: you are part of the swarm.
    Welcome,
    /// Either way: I refuse what you last asked, and why. The link ends.
    Refuse(String),
    /// Down the pipeline: a session begins.
    Open(Box<Open>),
    /// Down the pipeline: a session is over, free what it holds.
    Close(SessionId),
    /// Down the pipeline: rows to process; the body follows.
    Step(Step),
    /// Last stage to first: what became of a step.
    Results(Results),
    /// Last stage to gateway: drawn tokens.
    Tokens(Vec<TokenReport>),
    /// Any stage to gateway: a session cannot go on.
    Failed(Failed),
}

/// A node that wants to be told its layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Fingerprint of the model it can load, at its quantisation.
    pub fingerprint: [u8; 32],
    /// Bytes it lends for weights.
    pub weight_bytes: u64,
}

/// Layers given to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Part of the model.
    pub shard: Shard,
}

/// A node that is ready to serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// Fingerprint of the model it loaded, at its quantisation.
    pub fingerprint: [u8; 32],
    /// What it holds.
    pub shard: Shard,
    /// Where other nodes reach it, `host:port`.
    pub address: String,
    /// KV pages (64 positions each) it has for sessions.
    pub kv_pages: u32,
    /// Most sessions at once.
    pub sessions: u32,
    /// Longest session in positions.
    pub positions: u32,
    /// Most rows of one step.
    pub rows: u32,
    /// Bytes of weights it loaded.
    pub weight_bytes: u64,
    /// What it computes on, for people.
    pub device: String,
}

/// One stage of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Id of the node.
    pub node: [u8; 32],
    /// Where it listens, `host:port`.
    pub address: String,
    /// The layers it runs on this route.
    pub shard: Shard,
}

/// The beginning of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The session.
    pub session: SessionId,
    /// The route it takes; sessions of one route share steps.
    pub route: RouteId,
    /// The stages in order.
    pub hops: Vec<Hop>,
    /// The gateway's node id.
    pub gateway: [u8; 32],
    /// Fingerprint every stage must have loaded.
    pub fingerprint: [u8; 32],
    /// Prompt for the first stage. It travels on only where the sampler needs it.
    pub prompt: Vec<u32>,
    /// Length of the prompt.
    pub prompt_length: u32,
    /// Most tokens to draw.
    pub max_tokens: u32,
    /// Tokens that end the reply.
    pub stop_tokens: Vec<u32>,
    /// Sampling parameters for the last stage.
    pub sampling: Sampling,
    /// Most rows of one step that every stage takes.
    pub rows: u32,
    /// The gateway's ed25519 signature over everything but the prompt: what a stage is asked to do, it is
    /// asked by a gateway it chose, whoever hands it on.
    pub signature: Vec<u8>,
}

impl Open {
    /// What the gateway signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let unsigned = Self { prompt: Vec::new(), signature: Vec::new(), ..self.clone() };
        let mut bytes = OPEN_DOMAIN.to_vec();
        bytes.extend_from_slice(&Message::Open(Box::new(unsigned)).encode());
        bytes
    }

    /// Whether the gateway it names signed it.
    pub fn is_signed(&self) -> bool {
        let signature = <&[u8; 64]>::try_from(self.signature.as_slice());
        signature.is_ok_and(|signature| NodeId(self.gateway).verify(&self.signed_bytes(), signature))
    }

    /// Positions the session can reach.
    pub fn positions(&self) -> u32 {
        self.prompt_length.saturating_add(self.max_tokens)
    }
}

/// Consecutive rows of one session within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The session.
    pub session: SessionId,
    /// Position of the first row. The session's KV is cut back to it first.
    pub from: u32,
    /// Number of rows, at least one.
    pub rows: u32,
    /// Whether a token is drawn from the last row.
    pub draw: bool,
}

/// One batch through one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The route.
    pub route: RouteId,
    /// The first stage's number of the step.
    pub number: u64,
    /// What the rows are.
    pub segments: Vec<Segment>,
    /// The rows: u32 token ids into the first stage, activation rows into the others.
    #[serde(skip)]
    pub body: Bytes,
}

impl Step {
    /// Rows over all segments.
    pub fn rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.rows as usize).sum()
    }
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The route.
    pub route: RouteId,
    /// Number of the step.
    pub number: u64,
    /// Drawn tokens, and whether each ended its session.
    pub tokens: Vec<(SessionId, u32, bool)>,
}

/// A drawn token on its way to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenReport {
    /// The session.
    pub session: SessionId,
    /// The token.
    pub token: u32,
    /// Log-probabilities if asked for.
    pub logprobs: Option<Logprobs>,
    /// Set on the last token.
    pub finish: Option<Finish>,
}

/// Why a stage cannot go on with a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The session.
    pub session: SessionId,
    /// The reason.
    pub reason: FailedReason,
}

/// See [`Failed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailedReason {
    /// The stage does not take the session.
    Refused(String),
    /// A value was not finite: a committed outcome.
    Fault {
        /// Position of the row.
        position: u32,
        /// Layer of the model (the number of layers stands for the head).
        layer: u32,
        /// Where it was seen.
        operation: FaultOperation,
    },
    /// A peer that the session needs is out of reach.
    PeerLost {
        /// Its node id.
        node: [u8; 32],
        /// What the link said.
        reason: String,
    },
}

/// [`Operation`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at kernels::backend::Operation")]
pub enum FaultOperation {
    Quantise,
    FloatLinear,
    KvRound,
    LayerOutput,
    Logits,
}

impl From<Operation> for FaultOperation {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Quantise => Self::Quantise,
            Operation::FloatLinear => Self::FloatLinear,
            Operation::KvRound => Self::KvRound,
            Operation::LayerOutput => Self::LayerOutput,
            Operation::Logits => Self::Logits,
        }
    }
}

/// Bytes that are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Not a valid encoding.
    #[error("the peer sent bytes that are not a message")]
    Malformed,
    /// A well-formed message with a value out of its range.
    #[error("the peer sent a message with {0}")]
    Invalid(&'static str),
}

impl Message {
    /// Bytes of the message, without the body of a step.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a message holds no type that postcard cannot encode")
    }

    /// Reads a message; what follows a step is its body.
    pub fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        if bytes.len() > MAX_CONTROL_BYTES && !LONG_VARIANTS.contains(bytes.first().unwrap_or(&0)) {
            return Err(MessageError::Invalid("more bytes than its kind may have"));
        }
        let (mut message, rest) =
            postcard::take_from_bytes::<Message>(&bytes).map_err(|_| MessageError::Malformed)?;
        let rest = bytes.slice_ref(rest);
        match &mut message {
            Message::Step(step) => step.body = rest,
            _ if !rest.is_empty() => return Err(MessageError::Malformed),
            _ => {}
        }
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), MessageError> {
        match self {
            Message::Open(open) => open.check(),
            Message::Step(step) => step.check(),
            Message::Assign(assign) => check_shard(&assign.shard),
            Message::Join(join) => join.check(),
            Message::Tokens(tokens) => check_tokens(tokens),
            Message::Results(results) => ensure(results.tokens.len() <= MAX_SEGMENTS, "too many tokens"),
            Message::Refuse(reason) => check_text(reason),
            Message::Failed(failed) => failed.check(),
            Message::Ask(_) | Message::Welcome | Message::Close(_) => Ok(()),
        }
    }
}

fn ensure(holds: bool, otherwise: &'static str) -> Result<(), MessageError> {
    if holds { Ok(()) } else { Err(MessageError::Invalid(otherwise)) }
}

fn check_shard(shard: &Shard) -> Result<(), MessageError> {
    ensure(shard.layers.start <= shard.layers.end, "layers that run backwards")?;
    ensure(shard.layers.end <= MAX_LAYERS, "more layers than a model may have")
}

/// A text as it may travel: cut to the limit, without control characters.
pub fn clip(text: &str) -> String {
    let mut clipped = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if clipped.len() + c.len_utf8() > MAX_TEXT_BYTES {
            break;
        }
        clipped.push(c);
    }
    clipped
}

fn check_text(text: &str) -> Result<(), MessageError> {
    let sound = text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
    ensure(sound, "a text that is too long or has control characters")
}

fn check_tokens(tokens: &[TokenReport]) -> Result<(), MessageError> {
    ensure(tokens.len() <= MAX_SEGMENTS, "too many tokens")?;
    let bounded = |report: &TokenReport| {
        report.logprobs.as_ref().is_none_or(|logprobs| logprobs.top.len() <= MAX_TOP_LOGPROBS)
    };
    ensure(tokens.iter().all(bounded), "too many log-probabilities")
}

impl Failed {
    fn check(&self) -> Result<(), MessageError> {
        match &self.reason {
            FailedReason::Refused(reason) | FailedReason::PeerLost { reason, .. } => check_text(reason),
            FailedReason::Fault { .. } => Ok(()),
        }
    }
}

impl Join {
    fn check(&self) -> Result<(), MessageError> {
        check_shard(&self.shard)?;
        check_text(&self.address)?;
        check_text(&self.device)?;
        ensure(self.rows > 0, "steps without rows")
    }
}

impl Open {
    /// Whether a stage would accept the values; a gateway asks before it sends.
    pub fn check(&self) -> Result<(), MessageError> {
        ensure(!self.hops.is_empty() && self.hops.len() <= MAX_STAGES, "no stages or too many")?;
        self.hops
            .iter()
            .try_for_each(|hop| check_shard(&hop.shard).and_then(|()| check_text(&hop.address)))?;
        ensure(self.rows > 0, "steps without rows")?;
        let chained = self.hops.windows(2).all(|pair| pair[0].shard.layers.end == pair[1].shard.layers.start);
        let mut nodes: Vec<_> = self.hops.iter().map(|hop| hop.node).collect();
        nodes.sort_unstable();
        ensure(nodes.windows(2).all(|pair| pair[0] != pair[1]), "one node twice on a route")?;
        ensure(chained && self.hops[0].shard.layers.start == 0, "stages that do not follow one another")?;
        ensure(self.prompt_length > 0 && self.max_tokens > 0, "an empty prompt or reply")?;
        let prompt = self.prompt.len();
        ensure(
            prompt == 0 || prompt == self.prompt_length as usize,
            "a prompt of another length than it says",
        )?;
        ensure(self.stop_tokens.len() <= MAX_LIST, "too many stop tokens")?;
        check_sampling(&self.sampling)
    }

    /// Index of `node` among the hops.
    pub fn stage_of(&self, node: &[u8; 32]) -> Option<usize> {
        self.hops.iter().position(|hop| hop.node == *node)
    }
}

fn check_sampling(s: &Sampling) -> Result<(), MessageError> {
    let in_range = |value: f32, low: f32, high: f32| value >= low && value <= high;
    ensure(in_range(s.temperature, 0.0, 100.0), "a temperature out of range")?;
    ensure(in_range(s.top_p, 0.0, 1.0) && in_range(s.min_p, 0.0, 1.0), "top_p or min_p out of range")?;
    ensure(in_range(s.repetition_penalty, 1e-3, 1e3), "a repetition penalty out of range")?;
    ensure(in_range(s.frequency_penalty, -100.0, 100.0), "a frequency penalty out of range")?;
    ensure(in_range(s.presence_penalty, -100.0, 100.0), "a presence penalty out of range")?;
    ensure(s.logit_bias.len() <= MAX_LIST, "too many logit biases")?;
    ensure(s.logit_bias.iter().all(|b| in_range(b.1, -1e4, 1e4)), "a logit bias out of range")
}

impl Step {
    fn check(&self) -> Result<(), MessageError> {
        ensure(self.segments.len() <= MAX_SEGMENTS, "too many segments")?;
        let sound = |s: &Segment| s.rows > 0 && s.from.checked_add(s.rows).is_some();
        ensure(self.segments.iter().all(sound), "a segment without rows or past the last position")?;
        let mut sessions: Vec<SessionId> = self.segments.iter().map(|s| s.session).collect();
        sessions.sort_unstable();
        ensure(sessions.windows(2).all(|pair| pair[0] != pair[1]), "two segments of one session")
    }
}

/// Bytes of one activation row as it travels.
pub fn row_bytes(hidden: usize, profile: Profile) -> usize {
    match profile {
        Profile::Quantised => hidden * 2,
        Profile::F32 => hidden * 4,
    }
}

/// Activation rows as they travel: bf16 under `Quantised` (exact, since a layer's output is bf16), f32
/// under `F32`; little-endian.
pub fn encode_rows(values: &[f32], profile: Profile) -> Vec<u8> {
    match profile {
        Profile::Quantised => {
            values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        Profile::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The inverse of [`encode_rows`]; `out` is replaced. A partial value at the end is an error.
pub fn decode_rows(bytes: &[u8], profile: Profile, out: &mut Vec<f32>) -> Result<(), MessageError> {
    out.clear();
    match profile {
        Profile::Quantised => {
            let (pairs, rest) = bytes.as_chunks::<2>();
            ensure(rest.is_empty(), "half a value")?;
            out.extend(pairs.iter().map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)));
        }
        Profile::F32 => {
            let (words, rest) = bytes.as_chunks::<4>();
            ensure(rest.is_empty(), "part of a value")?;
            out.extend(words.iter().map(|&b| f32::from_le_bytes(b)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_openings_and_steps() {
        let open = Open {
            session: SessionId(1),
            route: RouteId(2),
            hops: Vec::new(),
            gateway: [0; 32],
            fingerprint: [0; 32],
            prompt: Vec::new(),
            prompt_length: 1,
            max_tokens: 1,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            rows: 1,
            signature: Vec::new(),
        };
        let step = Step { route: RouteId(2), number: 0, segments: Vec::new(), body: Bytes::new() };
        let first = |message: Message| message.encode()[0];
        assert_eq!([first(Message::Open(Box::new(open))), first(Message::Step(step))], LONG_VARIANTS);
        let mut long = Message::Tokens(Vec::new()).encode();
        long.resize(MAX_CONTROL_BYTES + 1, 0);
        assert!(matches!(Message::decode(long.into()), Err(MessageError::Invalid(_))));
    }

    #[test]
    fn texts_that_could_write_on_a_terminal_are_refused() {
        let refuse = Message::Refuse("\u{1b}[2J".into()).encode();
        assert!(matches!(Message::decode(refuse.into()), Err(MessageError::Invalid(_))));
        let refuse = Message::Refuse("x".repeat(MAX_TEXT_BYTES + 1)).encode();
        assert!(matches!(Message::decode(refuse.into()), Err(MessageError::Invalid(_))));
    }
}
