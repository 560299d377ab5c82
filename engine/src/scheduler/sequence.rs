//! One session as the scheduler sees it: what is known of it, what is on its way, what may come next.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use kernels::backend::PAGE;

use super::{
    Tally,
    flows::Flow,
    guess::{Guesses, Memories, Owner},
};
use crate::{
    message::{BlockHash, Draft, Drafts, Draws, Segment, SessionId, UNTOLD},
    speculation::{
        clock::RingClock,
        controller::{Outcome, Source},
    },
};

/// A session on its way into the scheduler.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The session.
    pub session: SessionId,
    /// Its prompt, at least one token.
    pub prompt: Vec<u32>,
    /// The reply as far as another route has drawn it; it is drawn again, all at once.
    pub begun: Vec<u32>,
    /// Most tokens to draw.
    pub max_tokens: u32,
    /// Root and whole blocks of the prompt; empty if nothing of it is kept for others.
    pub blocks: Vec<BlockHash>,
    /// Whose work it is.
    pub flow: Flow,
    /// Whose texts its guesses may come from.
    pub owner: Owner,
    /// Where guesses at its tokens may come from.
    pub drafts: Drafts,
}

/// A drawing segment on its way.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Its step.
    number: u64,
    /// Rows that draw.
    draws: u32,
    /// Rows that hold guesses, and where those come from.
    guesses: u32,
    source: Source,
    /// Whether it begins with a guess, and of which chain it is.
    chained: bool,
    chain: u64,
    /// How long it waited for its guesses.
    waited: Duration,
    /// Whether it has rows of a reply that was begun elsewhere: it tells nothing of guesses.
    replayed: bool,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) session: SessionId,
    pub(super) flow: Flow,
    owner: Owner,
    /// Prompt and drawn tokens; the token at index `i` stands at position `i`.
    tokens: Vec<u32>,
    prompt_length: usize,
    /// What another route drew after the prompt. Until it is drawn here as well it counts as guessed, though it goes
    /// out as a prompt does.
    begun: Vec<u32>,
    /// The first position at which something else was drawn here.
    pub(super) contradicted: Option<u32>,
    /// One past the last position it can reach.
    end: usize,
    blocks: Vec<BlockHash>,
    /// Position of the next row to send; unknown until this stage has said what it holds.
    next: Option<usize>,
    /// Guesses that were sent, after the known tokens.
    tail: Vec<u32>,
    windows: VecDeque<Window>,
    /// Counts the windows that began with a known row: chains.
    chain: u64,
    /// Whether a window of the latest chain has failed, so that those after it say nothing.
    broken: bool,
    guesses: Option<Box<Guesses>>,
    /// Reports of steps before this one speak of what was sent before the last cut.
    cut_at: u64,
    /// A stage took its pages; it waits until another session ends, or a while.
    pub(super) stalled: bool,
}

impl Sequence {
    pub(super) fn new(opening: Opening, memories: &Memories) -> Self {
        let Opening { session, prompt, begun, max_tokens, blocks, flow, owner, drafts } = opening;
        let Drafts { lookup, model } = drafts;
        let guesses = (lookup || model)
            .then(|| Box::new(Guesses::new(&prompt, lookup, model, memories.controller(owner))));
        Self {
            session,
            flow,
            owner,
            prompt_length: prompt.len(),
            begun,
            contradicted: None,
            end: prompt.len().saturating_add(max_tokens as usize),
            tokens: prompt,
            blocks,
            next: None,
            tail: Vec::new(),
            windows: VecDeque::new(),
            chain: 0,
            broken: false,
            guesses,
            cut_at: 0,
            stalled: false,
        }
    }

    /// Tokens that are known, or were drawn on another route.
    fn given(&self) -> usize {
        self.tokens.len().max(self.prompt_length + self.begun.len())
    }

    /// Whether what another route drew is yet to be drawn here.
    fn replays(&self) -> bool {
        self.tokens.len() < self.given()
    }

    /// Given rows that can be sent now.
    pub(super) fn ready(&self) -> usize {
        match self.next {
            Some(next) if !self.stalled && self.waits().is_none() => self.given().saturating_sub(next),
            _ => 0,
        }
    }

    /// Whether it has a reply under way, or all but: it sends a row at a time.
    pub(super) fn decoding(&self) -> bool {
        self.next.is_some_and(|next| next + 1 >= self.given()) && !self.stalled
    }

    /// Until when it waits for guesses.
    pub(super) fn waits(&self) -> Option<Instant> {
        self.guesses.as_ref()?.waits()
    }

    /// Ends a wait that has been long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        if let Some(guesses) = &mut self.guesses {
            guesses.expire(now);
        }
    }

    /// Leaves what the session said to later ones of its tenant, if it takes part.
    pub(super) fn remember(&self, memories: &mut Memories) {
        if let Some(guesses) = &self.guesses {
            memories.insert(self.owner, &self.tokens, guesses);
        }
    }

    /// Guesses to send with at most `room` rows: after the last known row if that is ready, or after
    /// guesses that are on their way; their source is told.
    pub(super) fn guess(
        &mut self,
        clock: &RingClock,
        memories: &Memories,
        room: usize,
        out: &mut Vec<u32>,
    ) -> Option<Source> {
        out.clear();
        let next = self.next.filter(|_| self.decoding() && !self.replays())?;
        // The last row draws the last token, so nothing is sent at the end itself.
        let room = room.min(self.end.saturating_sub(1).saturating_sub(next.max(self.tokens.len())));
        let windows = if next < self.tokens.len() { 0 } else { self.windows.len().max(1) };
        // What was sent before a cut may still count; guesses wait until that is known.
        let unclear = self.windows.front().is_some_and(|window| window.number < self.cut_at);
        if room == 0 || unclear || (windows > 0 && self.broken) {
            return None;
        }
        let guesses = self.guesses.as_mut()?;
        guesses.choose(clock, (self.owner, memories), (&self.tokens, &self.tail), (room, windows), out)
    }

    /// The next segment of at most `rows` given rows and then `guesses`, which come from `source`, and its
    /// tokens.
    pub(super) fn send(
        &mut self,
        number: u64,
        rows: usize,
        (source, guesses): (Source, &[u32]),
        tokens: &mut Vec<u32>,
        now: Instant,
    ) -> Option<Segment> {
        let from = self.next?;
        let given = from + self.ready().min(rows);
        let frontier = self.tokens.len();
        let guesses = if given >= self.given() { guesses } else { &[] };
        let to = given + guesses.len();
        if to == from {
            return None;
        }
        let at = tokens.len();
        tokens.extend(self.tokens.get(from..given.min(frontier)).unwrap_or(&[]));
        let unsure = from.max(frontier)..given;
        let replayed = !unsure.is_empty();
        if replayed {
            let (first, last) = (unsure.start - self.prompt_length, unsure.end - self.prompt_length);
            tokens.extend(&self.begun[first..last]);
            self.tail.extend(&self.begun[first..last]);
        }
        tokens.extend(guesses);
        self.tail.extend(guesses);
        self.next = Some(to);
        let first_draw = (frontier - 1).clamp(from, to);
        let drawn = match self.guesses {
            Some(_) => tokens[at + first_draw - from..].to_vec(),
            None => vec![UNTOLD; to - first_draw],
        };
        if !drawn.is_empty() {
            let chained = from >= frontier;
            if !chained {
                (self.chain, self.broken) = (self.chain + 1, false);
            }
            let chain = self.chain;
            let waited = self.guesses.as_mut().map_or(Duration::ZERO, |guesses| guesses.waited(now));
            let (draws, guesses) = (drawn.len() as u32, guesses.len() as u32);
            self.windows.push_back(Window {
                number,
                draws,
                guesses,
                source,
                chained,
                chain,
                waited,
                replayed,
            });
        }
        let (rows, drafted) = ((to - from) as u32, to.saturating_sub(from.max(frontier)) as u32);
        Some(Segment { session: self.session, from: from as u32, rows, drawn, drafted })
    }

    /// Takes the tokens that step `number` drew; what became of the guesses in it.
    pub(super) fn drawn(&mut self, number: u64, draws: &Draws, clock: &RingClock, now: Instant) -> Tally {
        let mut sent = None;
        while let Some(window) = self.windows.front().copied().filter(|window| window.number <= number) {
            sent = Some(window).filter(|window| window.number == number);
            self.windows.pop_front();
        }
        let valid = draws.position as usize == self.tokens.len()
            && self.tokens.len() + draws.tokens.len() <= self.end;
        let tokens: &[u32] = if valid { &draws.tokens } else { &[] };
        for &token in tokens {
            self.take(token);
        }
        let tally = sent.map_or_else(Tally::default, |sent| self.judge(&sent, tokens.len() as u32, clock));
        if self.windows.is_empty() {
            // With no draw on its way the last known row is sent again: nothing else would bring the next
            // token.
            self.rewind(self.tokens.len() - 1);
        }
        if !tokens.is_empty() && !self.replays() && self.next.is_some_and(|next| next < self.tokens.len()) {
            let known = self.tokens.len();
            if let Some(guesses) = &mut self.guesses {
                guesses.ask(known, clock, now);
            }
        }
        tally
    }

    /// The next token is known.
    fn take(&mut self, token: u32) {
        let position = self.tokens.len();
        if self.begun.get(position - self.prompt_length).is_some_and(|&begun| begun != token) {
            self.contradicted.get_or_insert(position as u32);
        }
        if self.tail.first() == Some(&token) {
            self.tail.remove(0);
        } else {
            self.rewind(position);
        }
        self.tokens.push(token);
        if let Some(guesses) = &mut self.guesses {
            guesses.known(position, token);
        }
    }

    /// A window was answered with `count` tokens.
    fn judge(&mut self, window: &Window, count: u32, clock: &RingClock) -> Tally {
        if count < window.draws && count > 0 {
            // Rows after a token that was not drawn, or that a stage cut off, did not count.
            self.rewind(self.tokens.len() - 1);
        }
        let latest = window.chain == self.chain;
        let telling = latest && (count > 0 || (window.chained && !self.broken));
        self.broken |= latest && count < window.draws;
        if window.replayed {
            return Tally::default();
        }
        let Window { source, chained, waited, guesses: offered, .. } = *window;
        let accepted = count.saturating_sub(u32::from(!chained)).min(offered);
        if let Some(guesses) = self.guesses.as_mut().filter(|_| telling) {
            let (offered, accepted) = (offered as usize, accepted as usize);
            guesses.observe(clock, &Outcome { source, offered, accepted, chained, waited });
        }
        Tally { offered: offered.into(), accepted: accepted.into() }
    }

    /// Rows from position `to` on are to be sent again.
    fn rewind(&mut self, to: usize) {
        self.next = self.next.map(|next| next.min(to));
        self.tail.truncate(to.saturating_sub(self.tokens.len()));
    }

    /// The draft model's guesses.
    pub(super) fn hear(&mut self, draft: &Draft, now: Instant) {
        if let Some(guesses) = &mut self.guesses {
            guesses.hear(&self.tokens, draft, now);
        }
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
        self.broken = true;
        // The last known row at least goes out again: the next answer then tells of any other loss.
        self.rewind((positions as usize).min(self.tokens.len() - 1));
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
