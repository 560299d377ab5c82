//! One session as the scheduler sees it: what is known of it, what is on its way, what may come next.

use std::collections::VecDeque;

use kernels::backend::PAGE;

use super::flows::Flow;
use crate::message::{BlockHash, Draws, Segment, SessionId, UNTOLD};

/// Most drafted tokens kept for a session.
const MAX_DRAFT: usize = 256;

/// A session on its way into the scheduler.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The session.
    pub session: SessionId,
    /// Its prompt, at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to draw.
    pub max_tokens: u32,
    /// Root and whole blocks of the prompt; empty if nothing of it is kept for others.
    pub blocks: Vec<BlockHash>,
    /// Whose work it is.
    pub flow: Flow,
    /// Whether other stages may see tokens, which drafts need.
    pub told: bool,
}

/// A drawing segment on its way.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Its step.
    number: u64,
    /// Rows that draw.
    draws: u32,
}

/// What an answer taught about drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Drafted tokens that were sent along.
    pub offered: u32,
    /// How many of them were drawn.
    pub accepted: u32,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) session: SessionId,
    pub(super) flow: Flow,
    /// Prompt and drawn tokens; the token at index `i` stands at position `i`.
    tokens: Vec<u32>,
    prompt_length: usize,
    /// One past the last position it can reach.
    end: usize,
    blocks: Vec<BlockHash>,
    told: bool,
    /// Position of the next row to send; unknown until this stage has said what it holds.
    next: Option<usize>,
    /// What the tokens after the known ones may be.
    draft: VecDeque<u32>,
    windows: VecDeque<Window>,
    /// Reports of steps before this one speak of what was sent before the last cut.
    cut_at: u64,
    /// A stage took its pages; it waits until another session ends.
    pub(super) stalled: bool,
}

impl Sequence {
    pub(super) fn new(opening: Opening) -> Self {
        let Opening { session, prompt, max_tokens, blocks, flow, told } = opening;
        Self {
            session,
            flow,
            prompt_length: prompt.len(),
            end: prompt.len().saturating_add(max_tokens as usize),
            tokens: prompt,
            blocks,
            told,
            next: None,
            draft: VecDeque::new(),
            windows: VecDeque::new(),
            cut_at: 0,
            stalled: false,
        }
    }

    /// Known rows that can be sent now.
    pub(super) fn ready(&self) -> usize {
        match self.next {
            Some(next) if !self.stalled => self.tokens.len().saturating_sub(next),
            _ => 0,
        }
    }

    /// Whether it has a reply begun, or all but begun: it sends a row at a time.
    pub(super) fn decoding(&self) -> bool {
        self.next.is_some_and(|next| next + 1 >= self.tokens.len()) && !self.stalled
    }

    /// Drafted rows that could follow what is sent or ready.
    pub(super) fn drafted(&self) -> usize {
        let Some(next) = self.next.filter(|_| !self.stalled) else { return 0 };
        let sent = next.saturating_sub(self.tokens.len());
        // The last row draws the last token, so nothing is sent at the end itself.
        let room = self.end.saturating_sub(1).saturating_sub(next.max(self.tokens.len()));
        (self.draft.len() - sent.min(self.draft.len())).min(room)
    }

    /// Drawing segments that are not answered yet.
    pub(super) fn windows(&self) -> usize {
        self.windows.len()
    }

    pub(super) fn known(&self) -> &[u32] {
        &self.tokens
    }

    /// The draft beyond the known tokens, sent or not.
    pub(super) fn draft(&self) -> impl Iterator<Item = u32> {
        self.draft.iter().copied()
    }

    /// Takes a draft whose first token stands at `position`. Whatever contradicts the draft that is there
    /// is left: what has been sent cannot be changed, and the rest is as likely.
    pub(super) fn extend_draft(&mut self, position: usize, tokens: &[u32]) {
        let from = self.tokens.len() + self.draft.len();
        let overlap = from.saturating_sub(position).min(tokens.len());
        let agrees = (position..from.min(position + tokens.len()))
            .zip(tokens)
            .all(|(at, &token)| self.token(at) == Some(token));
        if self.told && position <= from && agrees {
            let room = MAX_DRAFT.saturating_sub(self.draft.len());
            self.draft.extend(tokens[overlap..].iter().take(room));
        }
    }

    /// Forgets the draft beyond what has been sent.
    pub(super) fn drop_unsent_draft(&mut self) {
        let sent = self.next.unwrap_or(0).saturating_sub(self.tokens.len());
        self.draft.truncate(sent);
    }

    fn token(&self, position: usize) -> Option<u32> {
        let drafted = || self.draft.get(position - self.tokens.len()).copied();
        self.tokens.get(position).copied().or_else(drafted)
    }

    /// The next segment of at most `rows` known rows and `drafted` drafted ones, and its tokens.
    pub(super) fn send(
        &mut self,
        number: u64,
        rows: usize,
        drafted: usize,
        tokens: &mut Vec<u32>,
    ) -> Option<Segment> {
        let from = self.next?;
        let known = self.ready().min(rows);
        let frontier = self.tokens.len();
        let drafted = if from + known >= frontier { drafted.min(self.drafted()) } else { 0 };
        let to = from + known + drafted;
        if to == from {
            return None;
        }
        let first_draw = (frontier - 1).clamp(from, to);
        let at = tokens.len();
        tokens.extend((from..to).filter_map(|position| self.token(position)));
        let drawn = match self.told {
            true => tokens[at + first_draw - from..].to_vec(),
            false => vec![UNTOLD; to - first_draw],
        };
        if !drawn.is_empty() {
            self.windows.push_back(Window { number, draws: drawn.len() as u32 });
        }
        self.next = Some(to);
        Some(Segment {
            session: self.session,
            from: from as u32,
            rows: (to - from) as u32,
            drawn,
            drafted: drafted as u32,
        })
    }

    /// Takes the tokens that step `number` drew. What the draws taught about drafts, if there were any.
    pub(super) fn drawn(&mut self, number: u64, draws: &Draws) -> Option<Verdict> {
        let mut sent = 0;
        while let Some(window) = self.windows.pop_front_if(|window| window.number <= number) {
            sent = window.draws;
        }
        let count = draws.tokens.len();
        if draws.position as usize != self.tokens.len() || self.tokens.len() + count > self.end {
            self.settle();
            return None;
        }
        for &token in &draws.tokens {
            if self.draft.front() == Some(&token) {
                self.draft.pop_front();
            } else {
                self.draft.clear();
                self.rewind(self.tokens.len());
            }
            self.tokens.push(token);
        }
        if count < sent as usize {
            // Rows after a token that was not drawn, or that a stage cut off, did not count.
            self.rewind(self.tokens.len() - 1);
        }
        self.settle();
        (sent > 1 && count > 0)
            .then(|| Verdict { offered: sent - 1, accepted: (count as u32 - 1).min(sent - 1) })
    }

    /// With no draw on its way the last known row is sent again: nothing else would bring the next token.
    fn settle(&mut self) {
        if self.windows.is_empty() {
            self.rewind(self.tokens.len() - 1);
        }
    }

    fn rewind(&mut self, to: usize) {
        self.next = self.next.map(|next| next.min(to));
    }

    /// This stage says what it holds of the session at its opening.
    pub(super) fn opened(&mut self, positions: u32) {
        // The last row of the prompt is always computed: the first token is drawn from it.
        self.next.get_or_insert((positions as usize).min(self.prompt_length - 1));
    }

    /// A stage has only so many positions left since step `number`; `now` is the next step's number.
    pub(super) fn cut(&mut self, positions: u32, number: u64, now: u64, preempted: bool) {
        if number < self.cut_at || self.next.is_none() {
            return;
        }
        let positions = positions as usize;
        if positions >= self.tokens.len() {
            // A drafted row did not go through; it must not be tried again and again.
            self.draft.truncate(positions - self.tokens.len());
        }
        self.windows.retain(|window| window.number <= number);
        self.rewind(positions);
        self.cut_at = now;
        self.stalled |= preempted;
    }

    /// Root and whole blocks of what every stage has worked through.
    pub(super) fn into_blocks(mut self) -> Vec<BlockHash> {
        let done = (self.tokens.len() - 1).min(self.next.unwrap_or(0));
        BlockHash::extend(&mut self.blocks, &self.tokens[..done]);
        self.blocks.truncate(1 + done / PAGE);
        self.blocks
    }
}
