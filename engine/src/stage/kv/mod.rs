//! Which KV pages belong to which session: handed out as positions are reached, shared where sessions
//! begin alike, kept for later ones until somebody needs them, and taken from the youngest when there are
//! not enough. Pure bookkeeping: the pages themselves are the device's.
//!
//! Every page is free, a block of the cache, or in the table of exactly one session. The first blocks
//! of a table may be the cache's; no row is ever written to those.

mod cache;

use std::collections::{HashMap, HashSet};

use kernels::backend::PAGE;

use super::{OpenError, StageLimits, StepError};
use crate::message::{BlockHash, RouteId, Segment, SessionId};
use cache::{Key, PrefixCache};

const BLOCK: u32 = PAGE as u32;

/// Pages that hold `positions` positions.
pub fn pages_for(positions: u32) -> usize {
    (positions as usize).div_ceil(PAGE)
}

/// What an opening says of its prompt, so that its KV can be shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    /// Tokens of the prompt.
    pub length: u32,
    /// Entry 0 is the root, entry `i` the hash after `i` full blocks. Empty if nothing is to be shared.
    pub blocks: &'a [BlockHash],
}

/// A session that has to compute positions anew, or has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// The session.
    pub session: SessionId,
    /// Its route.
    pub route: RouteId,
    /// Positions it has here. A segment that begins at or before them lacked pages.
    pub held: u32,
    /// Whether it lost its pages just now.
    pub preempted: bool,
}

/// How a stage's KV is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvUsage {
    /// All pages.
    pub pages: usize,
    /// Pages with nothing in them.
    pub free: usize,
    /// Pages kept for later sessions and used by none: given up when they are needed.
    pub cached: usize,
    /// Open sessions.
    pub sessions: usize,
}

/// Pages that are in no session's table alone.
#[derive(Debug)]
struct Store {
    free: Vec<u32>,
    cache: PrefixCache,
}

impl Store {
    /// Pages that can be had without taking any from a session.
    fn available(&self) -> usize {
        self.free.len() + self.cache.idle()
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.cache.evict())
    }
}

/// What a session has in the store.
#[derive(Debug)]
struct Holding {
    route: RouteId,
    /// Page of each block.
    table: Vec<u32>,
    /// Hashes of the first blocks of `table`: those that are the cache's.
    shared: Vec<BlockHash>,
    /// Positions computed; never fewer than the shared blocks have.
    held: u32,
}

impl Holding {
    fn shared_positions(&self) -> u32 {
        self.shared.len() as u32 * BLOCK
    }

    /// The key of a block that follows the shared ones, and its parent's.
    fn next_key(&self, hash: BlockHash) -> (Key, Option<Key>) {
        let key = |hash| Key { route: self.route, hash };
        (key(hash), self.shared.last().copied().map(key))
    }

    /// Adds cached blocks of `hashes`, those of the blocks after the table's, as long as there are any.
    fn find(&mut self, hashes: &[BlockHash], store: &mut Store) {
        for &hash in hashes {
            let (key, parent) = self.next_key(hash);
            let Some(page) = store.cache.pin(key, parent) else { break };
            self.table.push(page);
            self.shared.push(hash);
        }
        self.held = self.shared_positions();
    }

    /// Gives the full blocks after the shared ones to the cache; `hashes` are those of the blocks from
    /// the first on. What the cache has already takes the place of the session's own page: equal tokens
    /// make equal bytes.
    fn share(&mut self, hashes: &[BlockHash], store: &mut Store) {
        let full = (self.held / BLOCK) as usize;
        for (index, &hash) in hashes.iter().enumerate().take(full).skip(self.shared.len()) {
            let own = self.table[index];
            let (key, parent) = self.next_key(hash);
            let Some(page) = store.cache.insert(key, parent, own) else { break };
            if page != own {
                self.table[index] = page;
                store.free.push(own);
            }
            self.shared.push(hash);
        }
    }

    /// Gives up the blocks from `blocks` on, the last first.
    fn cut(&mut self, blocks: usize, store: &mut Store) {
        while self.table.len() > blocks {
            let page = self.table.pop();
            if self.table.len() < self.shared.len() {
                if let Some(hash) = self.shared.pop() {
                    store.cache.unpin(Key { route: self.route, hash });
                }
            } else {
                store.free.extend(page);
            }
        }
        self.held = self.held.min(self.table.len() as u32 * BLOCK);
    }
}

#[derive(Debug)]
struct Session {
    /// Positions it can reach.
    positions: u32,
    /// Hashes of the prompt's full blocks.
    prompt: Vec<BlockHash>,
    /// How many of them may be found instead of computed: the last token's row is always computed.
    reusable: usize,
    holding: Holding,
}

impl Session {
    /// The session has lost positions before `from`, or never had them: looks for its blocks again.
    fn recover(&mut self, from: u32, store: &mut Store) {
        let known = self.holding.shared.len();
        let wanted = self.reusable.min((from / BLOCK) as usize);
        if self.holding.table.len() == known && known < wanted {
            self.holding.find(&self.prompt[known..wanted], store);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pager {
    limits: StageLimits,
    store: Store,
    sessions: HashMap<SessionId, Session>,
}

impl Pager {
    /// All pages are free.
    pub(super) fn new(limits: StageLimits) -> Self {
        let store = Store { free: (0..limits.pages as u32).rev().collect(), cache: PrefixCache::default() };
        Self { limits, store, sessions: HashMap::new() }
    }

    pub(super) fn is_open(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    pub(super) fn usage(&self) -> KvUsage {
        KvUsage {
            pages: self.limits.pages,
            free: self.store.free.len(),
            cached: self.store.cache.idle(),
            sessions: self.sessions.len(),
        }
    }

    /// Pages of a session's blocks.
    pub(super) fn table(&self, session: SessionId) -> &[u32] {
        self.sessions.get(&session).map_or(&[], |session| &session.holding.table)
    }

    /// Begins a session with what the cache has of its prompt; tells the positions it holds.
    pub(super) fn open(
        &mut self,
        session: SessionId,
        route: RouteId,
        positions: u32,
        prompt: Prompt<'_>,
    ) -> Result<u32, OpenError> {
        let room = u32::try_from(self.limits.pages * PAGE).unwrap_or(u32::MAX);
        let limit = self.limits.positions.min(room);
        if positions > limit {
            return Err(OpenError::TooLong { requested: positions, limit });
        }
        if self.sessions.len() >= self.limits.sessions {
            return Err(OpenError::TooManySessions { limit: self.limits.sessions });
        }
        if self.is_open(session) {
            return Err(OpenError::Exists);
        }
        let length = prompt.length.min(positions);
        let blocks = prompt.blocks.iter().skip(1).take((length / BLOCK) as usize).copied();
        let holding = Holding { route, table: Vec::new(), shared: Vec::new(), held: 0 };
        let prompt: Vec<BlockHash> = blocks.collect();
        let reusable = prompt.len().min((length.saturating_sub(1) / BLOCK) as usize);
        let mut opened = Session { positions, prompt, reusable, holding };
        opened.recover(length, &mut self.store);
        let held = opened.holding.held;
        self.sessions.insert(session, opened);
        Ok(held)
    }

    /// Ends a session. `keep` has its root and the hashes of the verified blocks; those that are full here
    /// stay in the cache.
    pub(super) fn close(&mut self, session: SessionId, keep: &[BlockHash]) {
        let Some(mut session) = self.sessions.remove(&session) else { return };
        let holding = &mut session.holding;
        let hashes = keep.get(1..).unwrap_or(&[]);
        if hashes.starts_with(&holding.shared) {
            holding.share(hashes, &mut self.store);
        }
        holding.cut(0, &mut self.store);
    }

    /// Gives the sessions of a step the pages it writes, the oldest first; see `Stage::reserve`.
    pub(super) fn reserve(&mut self, segments: &[Segment], short: &mut Vec<Short>) {
        short.clear();
        let mut order: Vec<&Segment> = segments.iter().collect();
        order.sort_unstable_by_key(|segment| segment.session);
        for segment in order {
            if short.iter().any(|short| short.session == segment.session) {
                continue;
            }
            if let Err(held) = self.reserve_one(segment, short) {
                let Some(session) = self.sessions.get(&segment.session) else { continue };
                let (session, route) = (segment.session, session.holding.route);
                short.push(Short { session, route, held, preempted: false });
            }
        }
    }

    /// The error tells the positions held. A segment that breaks the rules is left to [`Pager::check`].
    fn reserve_one(&mut self, segment: &Segment, short: &mut Vec<Short>) -> Result<(), u32> {
        let Some(session) = self.sessions.get_mut(&segment.session) else { return Ok(()) };
        let (from, to) = (segment.from, segment.from.saturating_add(segment.rows));
        if to > session.positions {
            return Ok(());
        }
        if from > session.holding.held {
            session.recover(from, &mut self.store);
        }
        let holding = &mut session.holding;
        if from > holding.held {
            return Err(holding.held);
        }
        if from < holding.shared_positions() {
            // A shared block is not written: this and what follows is computed into pages of the session's own.
            holding.cut((from / BLOCK) as usize, &mut self.store);
            if from > holding.held {
                return Err(holding.held);
            }
        }
        holding.cut(pages_for(to), &mut self.store);
        holding.held = from;
        let missing = pages_for(to) - holding.table.len();
        if !self.make_room(missing, segment.session, short) {
            return Err(from);
        }
        if let Some(session) = self.sessions.get_mut(&segment.session) {
            session.holding.table.extend((0..missing).map_while(|_| self.store.take()));
        }
        Ok(())
    }

    /// Sees to it that `pages` pages are available, at the cost of sessions younger than the one that asks
    /// if it must be; if that would not be enough either, nothing is changed.
    fn make_room(&mut self, pages: usize, asking: SessionId, short: &mut Vec<Short>) -> bool {
        if self.store.available() >= pages {
            return true;
        }
        let staying = self.sessions.iter().filter(|(id, _)| **id <= asking);
        let kept: HashSet<u32> =
            staying.flat_map(|(_, session)| session.holding.table.iter().copied()).collect();
        if self.limits.pages - kept.len() < pages {
            return false;
        }
        while self.store.available() < pages {
            let younger = self.sessions.iter_mut().filter(|(id, _)| **id > asking);
            let holding = younger.filter(|(_, session)| !session.holding.table.is_empty());
            let Some((&id, youngest)) = holding.max_by_key(|(id, _)| **id) else { return false };
            youngest.holding.cut(0, &mut self.store);
            short.push(Short { session: id, route: youngest.holding.route, held: 0, preempted: true });
        }
        true
    }

    /// Whether a segment's pages are there and its own.
    pub(super) fn check(&self, segment: &Segment) -> Result<(), StepError> {
        let session = self.sessions.get(&segment.session).ok_or(StepError::Unknown)?;
        let Holding { table, held, .. } = &session.holding;
        let (from, to) = (segment.from, segment.from.saturating_add(segment.rows));
        if from == *held && to <= session.positions && pages_for(to) <= table.len() {
            Ok(())
        } else {
            Err(StepError::Positions { from, to, held: *held })
        }
    }

    /// Rows up to `held` are computed. Full blocks of the prompt can be shared from now on.
    pub(super) fn advance(&mut self, session: SessionId, held: u32) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        session.holding.held = held;
        session.holding.share(&session.prompt, &mut self.store);
    }

    /// Forgets the positions from `held` on; where that cuts a shared block, all of its positions.
    pub(super) fn truncate(&mut self, session: SessionId, held: u32) {
        let Some(Session { holding, .. }) = self.sessions.get_mut(&session) else { return };
        let in_shared = held < holding.shared_positions();
        let held = if in_shared { held / BLOCK * BLOCK } else { held.min(holding.held) };
        holding.cut(pages_for(held), &mut self.store);
        holding.held = held;
    }
}

#[cfg(test)]
mod tests;
