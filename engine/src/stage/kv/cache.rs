//! Full blocks of KV that outlive their sessions, found again by the hash of all tokens up to their end.
//!
//! The blocks of a route form trees: a block hangs below the one before it. A session that uses a block
//! uses everything above it, so a block without users has none below it either, and taking leaves alone
//! frees all of them in the end.

use std::collections::{BTreeSet, HashMap};

use crate::message::{BlockHash, RouteId};

/// A block as its own gateway names it: nobody else's sessions find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) route: RouteId,
    pub(super) hash: BlockHash,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) page: u32,
    /// `None` for the first block of a session. Always in the cache.
    pub(super) parent: Option<Key>,
    pub(super) children: u32,
    /// Open sessions that have the page in their table.
    pub(super) users: u32,
    /// When the last user left.
    pub(super) left: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    pub(super) blocks: HashMap<Key, Block>,
    /// Blocks without users and children, those whose user left first in front.
    pub(super) leaves: BTreeSet<(u64, Key)>,
    /// Blocks without users.
    idle: usize,
    /// Counts the times that a block lost its last user.
    clock: u64,
}

impl PrefixCache {
    /// Blocks without users: pages that [`PrefixCache::evict`] can give.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// Gives a block one more user and tells its page. A block below another parent is another block.
    pub(super) fn pin(&mut self, key: Key, parent: Option<Key>) -> Option<u32> {
        let block = self.blocks.get_mut(&key).filter(|block| block.parent == parent)?;
        if block.users == 0 {
            self.idle -= 1;
            self.leaves.remove(&(block.left, key));
        }
        block.users += 1;
        Some(block.page)
    }

    /// Makes `page` the block's, unless it has one, and gives it one more user; tells the block's page.
    /// The caller uses the parent. `None` if the key stands below another parent.
    pub(super) fn insert(&mut self, key: Key, parent: Option<Key>, page: u32) -> Option<u32> {
        if self.blocks.contains_key(&key) {
            return self.pin(key, parent);
        }
        if let Some(parent) = parent {
            self.blocks.get_mut(&parent)?.children += 1;
        }
        self.blocks.insert(key, Block { page, parent, children: 0, users: 1, left: 0 });
        Some(page)
    }

    /// Takes a user from a block; its users below must have left it before.
    pub(super) fn unpin(&mut self, key: Key) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        block.users -= 1;
        if block.users == 0 {
            self.clock += 1;
            self.idle += 1;
            block.left = self.clock;
            if block.children == 0 {
                self.leaves.insert((block.left, key));
            }
        }
    }

    /// Forgets the leaf that was left first and gives its page.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, key) = self.leaves.pop_first()?;
        let block = self.blocks.remove(&key)?;
        self.idle -= 1;
        if let Some(key) = block.parent
            && let Some(parent) = self.blocks.get_mut(&key)
        {
            parent.children -= 1;
            if parent.children == 0 && parent.users == 0 {
                self.leaves.insert((parent.left, key));
            }
        }
        Some(block.page)
    }
}
