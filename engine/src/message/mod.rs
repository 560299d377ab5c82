//! What nodes and gateways say to one another: the payload of a transport message.
//!
//! A message is its `postcard` encoding followed, for a [`Step`], a [`Piece`], a [`Shown`] and [`Padding`] alone, by a raw
//! body (token ids or activation rows, little-endian; bytes of files, of evidence or of nothing). Decoding never allocates beyond the bytes it was given, and
//! everything decoded is checked before it is believed.

mod block;
mod check;
mod offer;
mod pay;
mod rows;
mod show;
mod weights;

use bytes::Bytes;
use kernels::backend::Operation;
use ledger::account::Unpaid;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use transport::NodeId;

use crate::{
    audit::{commitment::Committed, plan::Terms},
    model::Shard,
    request::{Finish, Logprobs, Sampling},
};

pub use block::BlockHash;
pub(crate) use check::check_sampling;
pub use offer::{
    Cannot, Carried, KvMemory, LoadRefusal, MAX_PROBE_BYTES, Neighbour, Offer, Padding, Path, Probe,
};
pub use pay::{Paid, TabAnswer, TabOffer, TabRefusal, Tariff, VoucherNote};
pub use rows::{decode_rows, encode_rows, row_bytes};
pub use show::{Hidden, MAX_SHOWN_BYTES, Show, Shown, show_digest};
pub use weights::{Denial, Holder, MAX_HOLDERS, MAX_PIECE_BYTES, Part, Parts, Piece, Want};

/// Names one session everywhere, made by its gateway: milliseconds since 1970 in the upper half, the rest
/// at random. The order of ids is thus an order by age that all stages agree on, whatever reaches them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u128);

/// Names one route (a pipeline as one gateway uses it); drawn at random by its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteId(pub u128);

/// Stands for a drawing row's token where it is not told: nodes between private ends see no tokens, and
/// without drafts no row needs checking.
pub const UNTOLD: u32 = u32::MAX;
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
    Join(Box<Join>),
    /// Gateway to node: you are part of the swarm.
    Welcome,
    /// Either way: I refuse what you last asked, and why. The link ends.
    Refuse(String),
    /// Down the pipeline: a session begins.
    Open(Box<Open>),
    /// Down the pipeline: a session is over, free what it holds.
    Close(Close),
    /// Down the pipeline: rows to process; the body follows.
    Step(Step),
    /// Last stage to first: what became of a step.
    Results(Results),
    /// Last stage to gateway: drawn tokens.
    Tokens(Vec<TokenReport>),
    /// Any stage to gateway: a session cannot go on.
    Failed(Failed),
    /// Any stage to the first: what a session has left here; send again from there.
    Held(Held),
    /// Gateway to the first stage: tokens that a session may go on with.
    Draft(Draft),
    /// Node to gateway: how fast it is, when that has changed much.
    Pace(Pace),
    /// Gateway to a paid node: sessions of this plan are paid.
    Tab(Box<TabOffer>),
    /// Paid node to gateway: whether it serves under a tab.
    TabAnswer(TabAnswer),
    /// Gateway to a paid node: what the stages of a tab have earned so far.
    Voucher(VoucherNote),
    /// Paid node to gateway: it holds the voucher.
    Paid(Paid),
    /// Node to gateway: I hold what I held, and not what you assigned.
    Cannot(Cannot),
    /// Node to gateway: how near other nodes are, as my links to them show.
    Near(Vec<Neighbour>),
    /// Any stage to gateway and to the next: what it signs of a session.
    Committed(Box<Committed>),
    /// Node to gateway or node: give me these bytes of the model.
    Want(Want),
    /// The answer: here they are; the body follows.
    Piece(Piece),
    /// Auditor to node: show me what proves a leaf.
    Show(Show),
    /// Node to auditor: here is a part of it; the body follows.
    Shown(Shown),
    /// Node to node: send me bytes of nothing.
    Probe(Probe),
    /// Node to node: here they are; the body follows.
    Padding(Padding),
    /// Node to gateway: these parts I can give to other nodes.
    Shares(Parts),
    /// Node to gateway: who can give me these?
    Seek(Parts),
    /// The answer.
    Holders(Vec<Holder>),
    /// Gateway to node: give to this node, by its id, what it asks for.
    Lend([u8; 32]),
}

/// How fast a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Nanoseconds that one layer takes in steps of a few rows.
    pub layer_ns: u64,
}

/// A node that wants to be told its layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Fingerprint of the model it can load, at its quantisation.
    pub fingerprint: [u8; 32],
    /// What it lends.
    pub offer: Offer,
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
    /// What it asks for its work; nothing if `None`.
    pub tariff: Option<Tariff>,
    /// What it lends.
    pub offer: Offer,
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
    /// The reply as far as another route has drawn it, for the first stage; it does not travel on. The last stage
    /// draws it again, so nobody need believe it.
    pub begun: Vec<u32>,
    /// Most tokens to draw, with those.
    pub max_tokens: u32,
    /// Tokens that end the reply.
    pub stop_tokens: Vec<u32>,
    /// Sampling parameters for the last stage.
    pub sampling: Sampling,
    /// Most rows of one step that every stage takes.
    pub rows: u32,
    /// Root and whole blocks of the prompt, by which stages share keys and values; empty shares nothing.
    pub blocks: Vec<BlockHash>,
    /// Whom the work is for: tenants get equal shares of a busy pipeline at each priority.
    pub tenant: u64,
    /// Share within the pipeline.
    pub priority: Priority,
    /// Where drafts come from.
    pub drafts: Drafts,
    /// What is to be proved of it; nothing if `None`.
    pub terms: Option<Terms>,
    /// Hash of the plan by which its paid stages are paid.
    pub tab: Option<[u8; 32]>,
    /// The gateway's ed25519 signature over everything but the tokens: what a stage is asked to do, it is
    /// asked by a gateway it chose, whoever hands it on.
    pub signature: Vec<u8>,
}

impl Open {
    /// What the gateway signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let (prompt, begun, signature) = (Vec::new(), Vec::new(), Vec::new());
        let unsigned = Self { prompt, begun, signature, ..self.clone() };
        let mut bytes = OPEN_DOMAIN.to_vec();
        bytes.extend_from_slice(&Message::Open(Box::new(unsigned)).encode());
        bytes
    }

    /// Whether the gateway it names signed it.
    pub fn is_signed(&self) -> bool {
        let signature = <&[u8; 64]>::try_from(self.signature.as_slice());
        signature.is_ok_and(|signature| NodeId(self.gateway).verify(&self.signed_bytes(), signature))
    }

    /// Index of `node` among the hops.
    pub fn stage_of(&self, node: &[u8; 32]) -> Option<usize> {
        self.hops.iter().position(|hop| hop.node == *node)
    }

    /// Positions the session can reach.
    pub fn positions(&self) -> u32 {
        self.prompt_length.saturating_add(self.max_tokens)
    }
}

/// How much of a busy pipeline a session gets, beside others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    /// Half of the usual share.
    Low,
    /// The usual share.
    #[default]
    Normal,
    /// Twice the usual share.
    High,
}

/// Which drafts a session may be speculated with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drafts {
    /// Continuations found in what the tenant's sessions already said.
    pub lookup: bool,
    /// The gateway's draft model.
    pub model: bool,
}

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// The session.
    pub session: SessionId,
    /// Root and whole blocks of what it leaves to later sessions that begin alike.
    pub keep: Vec<BlockHash>,
    /// Positions whose rows stand, which every stage signs for if that was asked for; 0 if it broke off.
    pub end: u32,
}

impl Close {
    /// The end of a session that leaves nothing.
    pub fn abrupt(session: SessionId) -> Self {
        Self { session, keep: Vec::new(), end: 0 }
    }
}

/// Consecutive rows of one session within a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The session.
    pub session: SessionId,
    /// Position of the first row. The session's KV is cut back to it first.
    pub from: u32,
    /// Number of rows, at least one.
    pub rows: u32,
    /// Tokens of the last rows. From each of them the next token is drawn; the first draw that is not the
    /// next of these ends the segment's draws.
    pub drawn: Vec<u32>,
    /// How many of the last rows hold tokens that are only a draft.
    pub drafted: u32,
}

impl Segment {
    /// One past the position of the last row.
    pub fn to(&self) -> u32 {
        self.from.saturating_add(self.rows)
    }

    /// Takes `rows` off the end.
    pub fn shorten(&mut self, rows: u32) {
        self.rows -= rows.min(self.rows);
        self.drafted = self.drafted.saturating_sub(rows);
        self.drawn.truncate(self.drawn.len().saturating_sub(rows as usize));
    }
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
        self.segments.iter().map(|segment| segment.rows as usize).fold(0, usize::saturating_add)
    }
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The route.
    pub route: RouteId,
    /// Number of the step.
    pub number: u64,
    /// What was drawn for each session of the step that was to draw.
    pub draws: Vec<Draws>,
}

/// Tokens drawn for one session in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draws {
    /// The session.
    pub session: SessionId,
    /// Position of the first token.
    pub position: u32,
    /// The tokens; none if the rows followed a token that was not drawn.
    pub tokens: Vec<u32>,
    /// Whether the last of them ended the session.
    pub ended: bool,
}

/// What a session has left at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The route.
    pub route: RouteId,
    /// The step after which it is so.
    pub number: u64,
    /// The session.
    pub session: SessionId,
    /// Positions whose keys and values the stage has.
    pub positions: u32,
    /// Whether the stage took the rest away because it has no more pages: it will have some when another
    /// session ends.
    pub preempted: bool,
}

/// Tokens that a session may go on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The session.
    pub session: SessionId,
    /// Drafts of one chain follow one another without a gap. A new chain begins where one has failed, or
    /// with tokens that became known before they were guessed; the chain before it is void.
    pub chain: u32,
    /// Position of the first token.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
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
    /// The stage has served as much as it does without being paid.
    Unpaid(Unpaid),
    /// A peer that the session needs is out of reach.
    PeerLost {
        /// Its node id.
        node: [u8; 32],
        /// What the link said.
        reason: String,
    },
    /// Another token was drawn than on the route that began the reply.
    Contradicted {
        /// Its position.
        position: u32,
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
    /// Its kind, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Ask(_) => "Ask",
            Message::Assign(_) => "Assign",
            Message::Join(_) => "Join",
            Message::Welcome => "Welcome",
            Message::Refuse(_) => "Refuse",
            Message::Open(_) => "Open",
            Message::Close(_) => "Close",
            Message::Step(_) => "Step",
            Message::Results(_) => "Results",
            Message::Tokens(_) => "Tokens",
            Message::Failed(_) => "Failed",
            Message::Held(_) => "Held",
            Message::Draft(_) => "Draft",
            Message::Pace(_) => "Pace",
            Message::Cannot(_) => "Cannot",
            Message::Near(_) => "Near",
            Message::Committed(_) => "Committed",
            Message::Tab(_) => "Tab",
            Message::TabAnswer(_) => "TabAnswer",
            Message::Voucher(_) => "Voucher",
            Message::Paid(_) => "Paid",
            Message::Want(_) => "Want",
            Message::Piece(_) => "Piece",
            Message::Show(_) => "Show",
            Message::Shown(_) => "Shown",
            Message::Probe(_) => "Probe",
            Message::Padding(_) => "Padding",
            Message::Shares(_) => "Shares",
            Message::Seek(_) => "Seek",
            Message::Holders(_) => "Holders",
            Message::Lend(_) => "Lend",
        }
    }

    /// Bytes of the message, without its body.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a message holds no type that postcard cannot encode")
    }

    /// Reads a message; what follows one that has a body is that.
    pub fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        if bytes.len() > MAX_CONTROL_BYTES && !LONG_VARIANTS.contains(bytes.first().unwrap_or(&0)) {
            return Err(MessageError::Invalid("more bytes than its kind may have"));
        }
        let (mut message, rest) =
            postcard::take_from_bytes::<Message>(&bytes).map_err(|_| MessageError::Malformed)?;
        let rest = bytes.slice_ref(rest);
        match &mut message {
            Message::Step(step) => step.body = rest,
            Message::Piece(piece) => piece.body = rest,
            Message::Shown(shown) => shown.body = rest,
            Message::Padding(padding) => padding.body = rest,
            _ if !rest.is_empty() => return Err(MessageError::Malformed),
            _ => {}
        }
        message.check()?;
        Ok(message)
    }
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
            begun: Vec::new(),
            max_tokens: 1,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            rows: 1,
            blocks: Vec::new(),
            tenant: 0,
            priority: Priority::Normal,
            drafts: Drafts::default(),
            terms: None,
            tab: None,
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
