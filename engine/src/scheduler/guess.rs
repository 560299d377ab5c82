//! Guesses at what a session says next: where they come from, how many go out, and what became of them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use transport::NodeId;

use crate::{
    message::Draft,
    speculation::{
        clock::RingClock,
        controller::{Controller, MOST_ROWS, Outcome, Source},
        lookup::{Lookup, Shared},
    },
};

/// Most guesses of the draft model that are kept for a session.
const MOST_FROM_MODEL: usize = 256;
/// Tokens at the end of a text that other texts are searched for.
const CONTEXT: usize = 64;
/// Tenants whose texts are remembered.
const TENANTS: usize = 16;
/// Bytes of the texts of one tenant, and what finds them.
const TENANT_BYTES: usize = 4 << 20;

/// A tenant, and the gateway whose it is.
pub type Owner = (NodeId, u64);

/// What the sessions of each tenant said, those of the latest tenants of a node.
#[derive(Debug, Default)]
pub struct Memories {
    tenants: VecDeque<Memory>,
}

#[derive(Debug)]
struct Memory {
    tenant: Owner,
    texts: Shared,
    /// What the latest session saw of guesses.
    controller: Controller,
}

impl Memories {
    /// Takes in a session that has ended.
    pub(super) fn insert(&mut self, tenant: Owner, tokens: &[u32], guesses: &Guesses) {
        let controller = guesses.controller.clone();
        let known = self.tenants.iter().position(|memory| memory.tenant == tenant);
        let texts = known.and_then(|place| self.tenants.remove(place)).map(|memory| memory.texts);
        let mut texts = texts.unwrap_or_else(|| Shared::new(TENANT_BYTES));
        texts.insert(tokens);
        self.tenants.push_front(Memory { tenant, texts, controller });
        self.tenants.truncate(TENANTS);
    }

    /// For a tenant's next session.
    pub(super) fn controller(&self, tenant: Owner) -> Controller {
        self.of(tenant).map_or_else(Controller::new, |memory| memory.controller.successor())
    }

    fn of(&self, tenant: Owner) -> Option<&Memory> {
        self.tenants.iter().find(|memory| memory.tenant == tenant)
    }
}

/// What the draft model has said of a session beyond its known tokens.
#[derive(Debug, Default)]
struct FromModel {
    /// The chain that the guesses are of.
    chain: u32,
    /// Whether the chain has failed.
    void: bool,
    /// Position of the first guess.
    position: usize,
    guesses: VecDeque<u32>,
}

impl FromModel {
    /// The guess at a position.
    fn at(&self, position: usize) -> Option<u32> {
        self.guesses.get(position.checked_sub(self.position)?).copied()
    }

    /// Guesses after `known` positions and a tail of guesses already sent, if it agrees with the tail.
    fn after(&self, known: usize, tail: &[u32]) -> impl Iterator<Item = u32> {
        let agrees = (known..).zip(tail).all(|(position, &token)| self.at(position) == Some(token));
        let next = known + tail.len();
        (next..).map_while(move |position| self.at(position).filter(|_| agrees))
    }
}

/// A session's guesses. Each known token is taken in once.
#[derive(Debug)]
pub(super) struct Guesses {
    lookup: Option<Lookup>,
    model: Option<FromModel>,
    controller: Controller,
    /// When the last known token became known, if the draft model has not yet guessed at the next.
    asked: Option<Instant>,
    /// How long the session may wait for that.
    until: Option<Instant>,
    /// When it began to.
    since: Option<Instant>,
    scratch: Vec<u32>,
}

impl Guesses {
    /// For a session with this prompt; `lookup` and `model` say which sources it has.
    pub(super) fn new(prompt: &[u32], lookup: bool, model: bool, controller: Controller) -> Self {
        Self {
            lookup: lookup.then(|| Lookup::new(prompt)),
            model: model.then(FromModel::default),
            controller,
            asked: None,
            until: None,
            since: None,
            scratch: Vec::new(),
        }
    }

    /// The token at `position` is known now.
    pub(super) fn known(&mut self, position: usize, token: u32) {
        if let Some(lookup) = &mut self.lookup {
            lookup.push(token);
        }
        if let Some(model) = &mut self.model {
            match model.at(position) {
                Some(guess) if guess == token => {
                    let passed = position + 1 - model.position;
                    model.guesses.drain(..passed);
                    model.position = position + 1;
                }
                Some(_) => {
                    model.guesses.clear();
                    model.void = true;
                }
                None => {}
            }
        }
    }

    /// The session could send a row for the token after its `known` ones.
    pub(super) fn ask(&mut self, known: usize, clock: &RingClock, now: Instant) {
        let Some(model) = &self.model else { return };
        if model.at(known).is_some() {
            self.controller.observe_delay(Duration::ZERO);
            (self.asked, self.until) = (None, None);
        } else {
            self.asked = Some(now);
            let wait = self.controller.wait(clock, MOST_ROWS);
            self.until = (!wait.is_zero()).then(|| now + wait);
            self.since = self.until.map(|_| now);
        }
    }

    /// Ends a wait that has been long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.until.take_if(|until| *until <= now).is_some()
            && let Some(since) = self.since
        {
            // A draft model that says nothing is a slow one.
            self.controller.observe_delay(2 * (now - since));
        }
    }

    /// How long the session has waited for what it sends now.
    pub(super) fn waited(&mut self, now: Instant) -> Duration {
        self.since.take().map_or(Duration::ZERO, |since| now - since)
    }

    /// Until when the session waits for the draft model.
    pub(super) fn waits(&self) -> Option<Instant> {
        self.until
    }

    /// The draft model's guesses after what it took for known. They may come when some of their positions
    /// are, and then have failed or go on after them.
    pub(super) fn hear(&mut self, tokens: &[u32], draft: &Draft, now: Instant) {
        let Some(model) = &mut self.model else { return };
        if draft.chain != model.chain {
            (model.chain, model.void) = (draft.chain, false);
            model.guesses.clear();
        }
        let (known, position) = (tokens.len(), draft.position as usize);
        let passed = known.saturating_sub(position).min(draft.tokens.len());
        let agrees = tokens.get(position..).unwrap_or(&[]).iter().zip(&draft.tokens).all(|(a, b)| a == b);
        model.void |= !agrees;
        let (next, fresh) = (position + passed, &draft.tokens[passed..]);
        if model.guesses.is_empty() {
            model.position = known;
        }
        if model.void || fresh.is_empty() || next != model.position + model.guesses.len() {
            return;
        }
        let room = MOST_FROM_MODEL.saturating_sub(model.guesses.len());
        model.guesses.extend(fresh.iter().take(room));
        if let Some(asked) = self.asked.take_if(|_| model.at(known).is_some()) {
            self.controller.observe_delay(now - asked);
            self.until = None;
        }
    }

    /// What to send after `known` tokens of which `tail` are guesses on their way, at most `room` rows, in
    /// `windows` windows already; the guesses are in `out`, and their source is told.
    pub(super) fn choose(
        &mut self,
        clock: &RingClock,
        (tenant, memories): (Owner, &Memories),
        (tokens, tail): (&[u32], &[u32]),
        (room, windows): (usize, usize),
        out: &mut Vec<u32>,
    ) -> Option<Source> {
        out.clear();
        let most = room.min(MOST_ROWS);
        let mut offers = Vec::with_capacity(3);
        let mut proposals: [Vec<u32>; 3] = Default::default();
        if let Some(lookup) = &self.lookup {
            let matched = lookup.propose(tail, most, &mut proposals[0]);
            offers.push((Source::Own { matched }, proposals[0].len()));
            let memory = memories.of(tenant);
            let matched = memory.map_or(0, |memory| {
                self.scratch.clear();
                self.scratch.extend_from_slice(&tokens[tokens.len().saturating_sub(CONTEXT)..]);
                self.scratch.extend_from_slice(tail);
                let from = self.scratch.len().saturating_sub(CONTEXT);
                memory.texts.propose(&self.scratch[from..], most, &mut proposals[1])
            });
            offers.push((Source::Shared { matched }, proposals[1].len()));
        }
        if let Some(model) = &self.model {
            let place = offers.len();
            proposals[place].extend(model.after(tokens.len(), tail).take(most));
            offers.push((Source::Model, proposals[place].len()));
        }
        offers.iter().any(|offer| offer.1 > 0).then_some(())?;
        // What is on its way counts as offered.
        offers.iter_mut().for_each(|offer| offer.1 += if offer.1 > 0 { tail.len() } else { 0 });
        let (place, plan) = self.controller.choose(clock, &offers)?;
        if windows >= plan.windows {
            return None;
        }
        std::mem::swap(out, &mut proposals[place]);
        // Windows of a chain are equally long, and the later ones have no known row.
        out.truncate(plan.draft + usize::from(windows > 0));
        (!out.is_empty()).then_some(offers[place].0)
    }

    /// What became of a window.
    pub(super) fn observe(&mut self, clock: &RingClock, outcome: &Outcome) {
        self.controller.observe(clock, outcome);
    }
}
