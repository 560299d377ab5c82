//! What a decoded message must hold before it is believed.

use kernels::backend::PAGE;

use super::{
    Failed, FailedReason, Join, MAX_LAYERS, MAX_LIST, MAX_PROBE_BYTES, MAX_SEGMENTS, MAX_STAGES,
    MAX_TEXT_BYTES, MAX_TOP_LOGPROBS, Message, MessageError, Open, Segment, SessionId, Step, TokenReport,
    offer::check_near, pay::Tariff, weights::check_holders,
};
use crate::{model::Shard, request::Sampling};

impl Message {
    pub(super) fn check(&self) -> Result<(), MessageError> {
        match self {
            Message::Open(open) => open.check(),
            Message::Step(step) => step.check(),
            Message::Assign(assign) => check_shard(&assign.shard),
            Message::Join(join) => join.check(),
            Message::Tokens(tokens) => check_tokens(tokens),
            Message::Results(results) => ensure(results.draws.len() <= MAX_SEGMENTS, "too many draws"),
            Message::Draft(draft) => ensure(draft.tokens.len() <= MAX_LIST, "a draft that is too long"),
            Message::Refuse(reason) => check_text(reason),
            Message::Failed(failed) => failed.check(),
            Message::Pace(pace) => ensure(pace.layer_ns > 0, "a layer that takes no time"),
            Message::Tab(tab) => tab.check(),
            Message::TabAnswer(answer) => answer.check(),
            Message::Voucher(voucher) => voucher.check(),
            Message::Paid(_) => Ok(()),
            Message::Ask(ask) => ask.offer.check(),
            Message::Cannot(cannot) => check_shard(&cannot.shard).and_then(|()| cannot.check()),
            Message::Near(near) => check_near(near),
            Message::Welcome
            | Message::Close(_)
            | Message::Held(_)
            | Message::Committed(_)
            | Message::Want(_)
            | Message::Lend(_) => Ok(()),
            Message::Piece(piece) => piece.check(),
            Message::Show(show) => show.check(),
            Message::Shown(shown) => shown.check(),
            Message::Probe(probe) => ensure(probe.bytes <= MAX_PROBE_BYTES, "a probe that is too long"),
            Message::Padding(padding) => {
                ensure(padding.body.len() <= MAX_PROBE_BYTES as usize, "padding that is too long")
            }
            Message::Shares(parts) | Message::Seek(parts) => parts.check(),
            Message::Holders(holders) => check_holders(holders),
        }
    }
}

pub(super) fn ensure(holds: bool, otherwise: &'static str) -> Result<(), MessageError> {
    if holds { Ok(()) } else { Err(MessageError::Invalid(otherwise)) }
}

fn check_shard(shard: &Shard) -> Result<(), MessageError> {
    ensure(shard.layers.start <= shard.layers.end, "layers that run backwards")?;
    ensure(shard.layers.end <= MAX_LAYERS, "more layers than a model may have")
}

pub(super) fn check_text(text: &str) -> Result<(), MessageError> {
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
            FailedReason::Fault { .. } | FailedReason::Unpaid(_) | FailedReason::Contradicted { .. } => {
                Ok(())
            }
        }
    }
}

impl Join {
    fn check(&self) -> Result<(), MessageError> {
        check_shard(&self.shard)?;
        check_text(&self.address)?;
        check_text(&self.device)?;
        self.tariff.as_ref().map_or(Ok(()), Tariff::check)?;
        self.offer.check()?;
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
        let begun = prompt > 0 || self.begun.is_empty();
        ensure(begun && self.begun.len() < self.max_tokens as usize, "a reply that is begun and over")?;
        ensure(self.stop_tokens.len() <= MAX_LIST, "too many stop tokens")?;
        let blocks = 1 + self.prompt_length as usize / PAGE;
        ensure(self.blocks.is_empty() || self.blocks.len() == blocks, "blocks of another prompt")?;
        check_sampling(&self.sampling)
    }
}

pub(crate) fn check_sampling(s: &Sampling) -> Result<(), MessageError> {
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
        let within = |s: &Segment| s.drawn.len() <= s.rows as usize && s.drafted <= s.rows;
        ensure(self.segments.iter().all(within), "a segment that draws from more rows than it has")?;
        let mut sessions: Vec<SessionId> = self.segments.iter().map(|s| s.session).collect();
        sessions.sort_unstable();
        ensure(sessions.windows(2).all(|pair| pair[0] != pair[1]), "two segments of one session")
    }
}
