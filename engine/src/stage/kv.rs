//! Which KV pages belong to which session. Pages are handed out when a session opens, for every
//! position it can reach, so that a running session never runs out.

use kernels::backend::PAGE;
use thiserror::Error;

/// A stage has not the pages a session can need.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the session can need {needed} KV pages, and {free} are free")]
pub struct NoPages {
    /// Pages the session can need.
    pub needed: usize,
    /// Pages free now.
    pub free: usize,
}

/// Pages that hold `positions` positions.
pub fn pages_for(positions: u32) -> usize {
    (positions as usize).div_ceil(PAGE)
}

/// The free pages of one stage.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
}

impl PagePool {
    /// A pool of pages `0..pages`.
    pub fn new(pages: usize) -> Self {
        Self { free: (0..pages as u32).rev().collect() }
    }

    /// Pages free now.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes the pages for `positions` positions.
    pub fn take(&mut self, positions: u32) -> Result<Vec<u32>, NoPages> {
        let needed = pages_for(positions);
        let rest = self.free.len().checked_sub(needed).ok_or(NoPages { needed, free: self.free.len() })?;
        Ok(self.free.split_off(rest))
    }

    /// Gives pages back.
    pub fn give(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_handed_out_once_and_come_back() {
        let mut pool = PagePool::new(5);
        let two = pool.take(65).unwrap();
        let three = pool.take(64 * 3).unwrap();
        let mut all: Vec<u32> = two.iter().chain(&three).copied().collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert_eq!(pool.take(1), Err(NoPages { needed: 1, free: 0 }));
        pool.give(two);
        assert_eq!(pool.free(), 2);
        assert_eq!(pool.take(u32::MAX), Err(NoPages { needed: 67_108_864, free: 2 }));
    }
}
