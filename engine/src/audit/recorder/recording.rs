//! One session at one stage: rows that may yet be replaced, roots of those that stand, chunks that are signed.
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use super::{
    super::{
        commitment::{Chain, Chunk, CommitmentError, Committed, Follower, Signer},
        plan::Digest,
        rows::{Boundary, CHUNK, chunk_end, chunk_root, row_roots, token_leaves},
    },
    Block, Place,
};
use crate::message::{BlockHash, Segment};

/// Commitments of the stage before that may wait for this stage's rows.
const MAX_HEARD: usize = 1 << 12;

/// Why a stage does not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum NotSigned {
    /// The stage before signed other rows than it sent.
    #[error("the stage before signed other rows of {from}..{to} than it sent")]
    Disagreement {
        /// First position.
        from: u32,
        /// One past the last position.
        to: u32,
    },
    /// The stage before cut the chunk elsewhere.
    #[error("the stage before signed up to position {theirs}, where {ours} is the end of the chunk")]
    Cut {
        /// Where it cut.
        theirs: u32,
        /// Where it should have.
        ours: u32,
    },
    /// It is no commitment of the stage before.
    #[error(transparent)]
    Commitment(#[from] CommitmentError),
    /// More commitments than rows.
    #[error("the stage before signed far more than it sent")]
    Ahead,
}

/// What one stage signed and the hash of it.
struct Heard {
    to: u32,
    out_root: Digest,
    hash: Digest,
}

/// A signed chunk.
pub(super) struct Closed {
    pub(super) chunk: Chunk,
    /// What the stage before committed to.
    pub(super) before: Digest,
    /// What was signed.
    pub(super) commitment: Digest,
    /// The root of the rows that went out, without tokens.
    pub(super) sent_root: Digest,
    /// What came in, if that is to be kept and is less than a block.
    pub(super) came: Option<Vec<Bytes>>,
}

/// What came into a block: its root, and the rows unless another session had them.
pub(super) type Came = (Digest, Option<Vec<Bytes>>);

pub(super) struct Recording {
    /// What comes in: rows, or tokens at the first stage.
    input: Option<Boundary>,
    output: Boundary,
    head: bool,
    prompt_length: u32,
    /// Roots of the rows that came in (at the first stage: leaves of tokens) and went out, from position 0.
    ins: Vec<[u8; 32]>,
    outs: Vec<[u8; 32]>,
    /// Rows after them, each of which stands once it is known to be right.
    tentative: BTreeMap<u32, (Bytes, Bytes)>,
    /// Positions that are known to be right.
    known: u32,
    /// Tokens that the last stage drew.
    drawn: Vec<u32>,
    end: Option<u32>,
    chain: Chain,
    previous: Option<Follower>,
    heard: VecDeque<Heard>,
    /// What came in, as it travels, and is hashed and not handed out; none of shared blocks.
    came: Option<BTreeMap<u32, Bytes>>,
    /// Roots of the blocks of what came in, as far as they were handed out.
    blocks_in: Vec<Digest>,
    /// Blocks that were shared with later sessions.
    shared: usize,
}

impl Recording {
    pub(super) fn new(place: &Place, keep_input: bool) -> Self {
        let (plan, index) = (&place.plan, place.stage);
        let (hash, model) = (plan.hash(), plan.terms.model);
        let stage = &plan.stages[index];
        let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let previous =
            index.checked_sub(1).map(|before| Follower::new(hash, number(before), plan.stages[before].node));
        Self {
            input: (!stage.embedding).then_some(Boundary { model, layer: stage.from }),
            output: Boundary { model, layer: stage.to },
            head: stage.head,
            prompt_length: plan.prompt_length,
            ins: Vec::new(),
            outs: Vec::new(),
            tentative: BTreeMap::new(),
            known: 0,
            drawn: Vec::new(),
            end: None,
            chain: Chain::new(hash, number(index)),
            previous,
            heard: VecDeque::new(),
            came: keep_input.then(BTreeMap::new),
            blocks_in: Vec::new(),
            shared: 0,
        }
    }

    /// The last stage drew `tokens`, the first for `position`.
    pub(super) fn drawn(&mut self, position: u32, tokens: &[u32]) {
        if position.checked_sub(self.prompt_length) == Some(self.drawn.len() as u32) {
            self.drawn.extend_from_slice(tokens);
        }
    }

    /// Rows of a segment that came in and went out. They replace what was there from the first on: whatever
    /// is sent again begins where something was wrong or lost.
    pub(super) fn pass(&mut self, segment: &Segment, input: Bytes, output: Bytes) {
        self.tentative.split_off(&segment.from);
        let rows = segment.rows as usize;
        let (wide_in, wide_out) = (input.len() / rows.max(1), output.len() / rows.max(1));
        for row in 0..rows {
            let position = segment.from + row as u32;
            if position as usize >= self.outs.len() {
                let (a, b) = (row * wide_in, row * wide_out);
                self.tentative.insert(position, (input.slice(a..a + wide_in), output.slice(b..b + wide_out)));
            }
        }
        // A row that is no guess says that everything before it was right.
        if segment.drafted < segment.rows {
            self.stands(segment.to() - segment.drafted);
        }
    }

    /// So many positions are right.
    pub(super) fn stands(&mut self, positions: u32) {
        self.known = self.known.max(positions);
    }

    /// Nothing comes any more; `end` positions stand.
    pub(super) fn end(&mut self, end: u32) {
        self.stands(end);
        self.end = Some(end);
    }

    /// The first position that stands and whose row did not come.
    pub(super) fn missing(&self) -> Option<u32> {
        let position = self.outs.len() as u32;
        (position < self.known && !self.tentative.contains_key(&position)).then_some(position)
    }

    /// Takes the rest of the block of the first missing position from another session.
    pub(super) fn fill(&mut self, block: &Block) {
        let from = self.outs.len() % CHUNK as usize;
        self.ins.extend_from_slice(&block.ins[from..]);
        self.outs.extend_from_slice(&block.outs[from..]);
        let next = self.outs.len() as u32;
        self.tentative = self.tentative.split_off(&next);
    }

    /// The stage before signed what it sent.
    pub(super) fn heard(&mut self, committed: &Committed) -> Result<(), NotSigned> {
        let Some(previous) = &mut self.previous else { return Ok(()) };
        if self.heard.len() >= MAX_HEARD {
            return Err(NotSigned::Ahead);
        }
        let hash = previous.take(&committed.chunk, &committed.before)?;
        self.heard.push_back(Heard { to: committed.chunk.to, out_root: committed.chunk.out_root, hash });
        Ok(())
    }

    /// Hashes the rows that stand, on at most `threads` threads.
    pub(super) fn hash(&mut self, threads: usize) {
        let (first, mut ready) = (self.outs.len() as u32, Vec::new());
        while first + (ready.len() as u32) < self.known {
            let Some(rows) = self.tentative.remove(&(first + ready.len() as u32)) else { break };
            ready.push(rows);
        }
        let (model, tokens) = (self.output.model, self.input.is_none());
        let hashed = in_shares(&ready, threads, |index, rows: &[(Bytes, Bytes)]| {
            let (ins, outs): (Vec<&[u8]>, Vec<&[u8]>) = rows.iter().map(|(i, o)| (&i[..], &o[..])).unzip();
            if tokens {
                let token = |bytes: &&[u8]| bytes.first_chunk().map_or(u32::MAX, |&b| u32::from_le_bytes(b));
                let tokens: Vec<u32> = ins.iter().map(token).collect();
                let ins = token_leaves(&model, first + index as u32, &tokens);
                return ins.into_iter().zip(row_roots(&outs)).collect();
            }
            // Both at once, so that one row of each fills more lanes.
            let mut ins = row_roots(&[ins, outs].concat());
            let outs = ins.split_off(rows.len());
            ins.into_iter().zip(outs).collect()
        });
        let (ins, outs): (Vec<_>, Vec<_>) = hashed.into_iter().unzip();
        self.ins.extend(ins);
        self.outs.extend(outs);
        // The step that a row came with is not to stay in memory for it.
        if let Some(came) = &mut self.came {
            came.extend((first..).zip(ready.iter().map(|(input, _)| Bytes::copy_from_slice(input))));
        }
    }

    /// The next whole block of what came in, if that is to be kept and all of it is hashed.
    pub(super) fn next_came(&mut self) -> Option<Came> {
        let from = self.blocks_in.len() as u32 * CHUNK;
        let to = from + CHUNK;
        let came = self.came.as_mut().filter(|_| self.ins.len() >= to as usize)?;
        let rest = came.split_off(&to);
        let rows: Vec<Bytes> = std::mem::replace(came, rest).into_values().collect();
        let root = chunk_root(&self.leaves_in(from, to));
        self.blocks_in.push(root);
        Some((root, Some(rows).filter(|rows| rows.len() == CHUNK as usize)))
    }

    /// The next whole block that was not shared before, whose name is among `names` after the root.
    pub(super) fn next_shared(&mut self, names: &[BlockHash]) -> Option<(BlockHash, Block)> {
        let name = names.get(self.shared + 1)?;
        let range = self.shared * CHUNK as usize..(self.shared + 1) * CHUNK as usize;
        let (ins, outs) = (self.ins.get(range.clone())?.to_vec(), self.outs.get(range)?.to_vec());
        self.shared += 1;
        Some((*name, Block { ins, outs }))
    }

    /// Signs the next chunk if everything in it is there and the stage before has signed it.
    pub(super) fn close_chunk(&mut self, signer: &Signer) -> Result<Option<Closed>, NotSigned> {
        let from = self.chain.position();
        let to = chunk_end(from, self.end.unwrap_or(u32::MAX));
        let drawn = !self.head || self.prompt_length as usize + self.drawn.len() > to as usize;
        let drawn = drawn || to < self.prompt_length;
        if to <= from || (self.outs.len() as u64) < u64::from(to) || !drawn {
            return Ok(None);
        }
        let block = self.blocks_in.get((from / CHUNK) as usize).filter(|_| to - from == CHUNK);
        let in_root = block.copied().unwrap_or_else(|| chunk_root(&self.leaves_in(from, to)));
        let mut before = Digest::default();
        if self.previous.is_some() {
            let Some(heard) = self.heard.front() else { return Ok(None) };
            if heard.to != to {
                // One that waits for the end of a reply signs less than 64 positions.
                return match self.end {
                    None if heard.to < to => Ok(None),
                    _ => Err(NotSigned::Cut { theirs: heard.to, ours: to }),
                };
            }
            if heard.out_root != in_root {
                return Err(NotSigned::Disagreement { from, to });
            }
            before = heard.hash;
            self.heard.pop_front();
        }
        let out_root = chunk_root(&self.leaves_out(from, to, self.head));
        let sent_root = if self.head { chunk_root(&self.leaves_out(from, to, false)) } else { out_root };
        let commitment = self.chain.next(to, &in_root, &out_root, &before);
        self.chain.push(to, commitment);
        let came = self.came.as_ref().filter(|_| to - from < CHUNK);
        let came = came.map(|came| came.range(from..to).map(|(_, row)| row.clone()).collect());
        let came = came.filter(|came: &Vec<Bytes>| came.len() == (to - from) as usize);
        let chunk = Chunk { from, to, in_root, out_root, signature: signer.sign(&commitment) };
        Ok(Some(Closed { chunk, before, commitment, sent_root, came }))
    }

    /// Whether all that stands is signed.
    pub(super) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.chain.position() >= end)
    }

    fn leaves_in(&self, from: u32, to: u32) -> Vec<[u8; 32]> {
        let roots = &self.ins[from as usize..to as usize];
        match &self.input {
            Some(boundary) => boundary.rows(from, roots),
            None => roots.to_vec(),
        }
    }

    /// Of what went out, with the tokens that were drawn or without.
    fn leaves_out(&self, from: u32, to: u32, drawn: bool) -> Vec<[u8; 32]> {
        let roots = &self.outs[from as usize..to as usize];
        if !drawn {
            return self.output.rows(from, roots);
        }
        self.output.drawn(from, roots, |position| {
            let index = (position + 1).checked_sub(self.prompt_length)?;
            self.drawn.get(index as usize).copied()
        })
    }
}

/// Rows that are worth a thread.
const THREAD_ROWS: usize = 64;

/// What `hash` makes of shares of the rows, in order; it is told the index of the first.
fn in_shares<T: Sync, R: Send>(
    rows: &[T],
    threads: usize,
    hash: impl Fn(usize, &[T]) -> Vec<R> + Sync,
) -> Vec<R> {
    let share = rows.len().div_ceil(threads.max(1)).max(THREAD_ROWS);
    let part = |(number, rows): (usize, &[T])| hash(number * share, rows);
    if rows.len() <= share {
        return part((0, rows));
    }
    std::thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> =
            rows.chunks(share).enumerate().map(|rows| scope.spawn(move || part(rows))).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_hashed_in_order_on_any_number_of_threads() {
        let rows: Vec<usize> = (0..1000).collect();
        for threads in [0, 1, 3, 7, 200] {
            let hashed = in_shares(&rows, threads, |first, rows| {
                rows.iter().enumerate().map(|(index, row)| (first + index, row * 2)).collect()
            });
            assert_eq!(hashed, (0..1000).map(|n| (n, n * 2)).collect::<Vec<_>>(), "{threads}");
        }
        assert!(in_shares(&[], 4, |_, rows: &[u8]| rows.to_vec()).is_empty());
    }
}
