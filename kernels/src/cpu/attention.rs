//! Attention over paged K and V (section 7).
//!
//! A task owns the query heads that share one KV head, over a few rows. Rows of the same session go
//! through the pages together, up to [`TILE`] queries at a time, so that a prompt reads each page once
//! for several queries. Scores and outputs live in registers; between blocks only the running output
//! of each query is kept, on the stack.

use std::ops::Range;

use super::{
    kv::{Element, Kv, MAX_HEAD_DIM, Store, Stores, value_stride},
    math::exp,
    parts::Window,
    rows::Buffer,
    simd::{Fetch, LANES, Op, Simd, store_part},
};
use crate::{
    backend::{AttentionShape, PAGE, Row},
    reference,
};

/// Rows of a task.
pub(crate) const TASK_ROWS: usize = 8;
/// Queries that share each load of K and V, where their scores fit the registers.
const TILE: usize = 4;
/// Vectors of a block of scores.
const VECTORS: usize = PAGE / LANES;

/// The outputs of one KV head's query heads over a few rows.
pub(crate) struct Attend<'a> {
    pub(crate) shape: &'a AttentionShape,
    pub(crate) q: &'a Buffer,
    pub(crate) kv: &'a Kv,
    pub(crate) rows: &'a [Row],
    /// Page tables of all sessions.
    pub(crate) pages: &'a [u32],
    pub(crate) layer: usize,
    /// Rows of the batch by columns of the query heads.
    pub(crate) out: Window<'a>,
}

impl Op for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let kv = self.kv;
        match &kv.stores {
            Stores::Half(store) => self.rows(s, store),
            Stores::Full(store) => self.rows(s, store),
        }
    }
}

impl Attend<'_> {
    /// Cuts the rows into runs of one session.
    #[inline(always)]
    fn rows<S: Simd, E: Element>(&mut self, s: S, store: &Store<E>) {
        let rows = self.rows;
        let mut start = self.out.rows().start;
        while start < self.out.rows().end {
            let same = |row: &usize| rows[*row].pages == rows[start].pages;
            let end = start + (start..self.out.rows().end).take_while(same).count();
            self.session(s, store, start..end);
            start = end;
        }
    }

    #[inline(always)]
    fn session<S: Simd, E: Element>(&mut self, s: S, store: &Store<E>, rows: Range<usize>) {
        let group = self.shape.heads / self.shape.kv_heads;
        let queries = rows.len() * group;
        let mut done = 0;
        while done < queries {
            let query = |i: usize| (rows.start + (done + i) / group, (done + i) % group);
            done += match queries - done {
                TILE.. if S::REGISTERS >= 32 => self.tile::<S, E, TILE>(s, store, std::array::from_fn(query)),
                2.. if S::REGISTERS >= 32 => self.tile::<S, E, 2>(s, store, std::array::from_fn(query)),
                _ => self.tile::<S, E, 1>(s, store, std::array::from_fn(query)),
            };
        }
    }

    /// `T` queries of one session, each a row and a head within the window; returns `T`.
    #[inline(always)]
    fn tile<S: Simd, E: Element, const T: usize>(
        &mut self,
        s: S,
        store: &Store<E>,
        queries: [(usize, usize); T],
    ) -> usize {
        let AttentionShape { heads, kv_heads, head_dim, scale, window } = *self.shape;
        let columns = self.out.columns();
        let kv_head = columns.start / (heads / kv_heads * head_dim);
        let mut tile = Tile::<T>::new(queries.map(|(row, _)| {
            let last = self.rows[row].position as usize;
            window.map_or(0, |window| (last + 1).saturating_sub(window as usize))..last + 1
        }));
        for (q, (row, head)) in tile.q.iter_mut().zip(queries) {
            let from = &self.q.row(row)[columns.start + head * head_dim..][..head_dim];
            q.iter_mut().zip(from).for_each(|(q, from)| *q = from * scale);
        }
        let pages = &self.pages[self.rows[queries[0].0].pages.clone()];
        let first = tile.visible.iter().map(|visible| visible.start).min().unwrap_or(0);
        let end = tile.visible.iter().map(|visible| visible.end).max().unwrap_or(0);
        let pages = &pages[..end.div_ceil(PAGE)];
        for (block, &page) in pages.iter().enumerate().skip(first / PAGE) {
            let at = |page| self.kv.head(self.layer, page, kv_head);
            let next = pages.get(block + 1).map(|&page| store.keys(at(page), head_dim));
            let (keys, values) = (store.keys(at(page), head_dim), store.values(at(page), head_dim));
            tile.block(s, block, head_dim, keys, values, next);
        }
        for (t, (row, head)) in queries.into_iter().enumerate() {
            let out = &mut self.out.row(row)[head * head_dim..][..head_dim];
            let sum = s.splat(tile.sum[t]);
            for (out, values) in out.chunks_mut(LANES).zip(tile.out[t].as_chunks().0) {
                store_part(s, s.div(s.load(values), sum), out);
            }
        }
        T
    }
}

/// `T` queries on their way through the blocks.
struct Tile<const T: usize> {
    /// Positions each query sees.
    visible: [Range<usize>; T],
    /// Queries times the scale.
    q: [[f32; MAX_HEAD_DIM]; T],
    started: [bool; T],
    max: [f32; T],
    sum: [f32; T],
    out: [[f32; MAX_HEAD_DIM]; T],
}

impl<const T: usize> Tile<T> {
    #[inline(always)]
    fn new(visible: [Range<usize>; T]) -> Self {
        Self {
            visible,
            q: [[0.0; MAX_HEAD_DIM]; T],
            started: [false; T],
            max: [0.0; T],
            sum: [0.0; T],
            out: [[0.0; MAX_HEAD_DIM]; T],
        }
    }

    /// Takes in one block for every query that sees some of it.
    #[inline(always)]
    fn block<S: Simd, E: Element>(
        &mut self,
        s: S,
        block: usize,
        head_dim: usize,
        keys: &[E],
        values: &[E],
        next: Option<&[E]>,
    ) {
        let visible: [Range<usize>; T] = std::array::from_fn(|t| {
            let clip = |position: usize| position.clamp(block * PAGE, (block + 1) * PAGE) - block * PAGE;
            clip(self.visible[t].start)..clip(self.visible[t].end)
        });
        // What is read next is fetched meanwhile: V during the scores, the next page's K during the outputs.
        let end = visible.iter().map(|visible| visible.end).max().unwrap_or(0);
        let stride = value_stride(head_dim);
        let ahead = &values[..end * stride];
        let mut weights = match end {
            0..=16 => self.scores::<S, E, 1>(s, head_dim, keys, ahead),
            17..=32 => self.scores::<S, E, 2>(s, head_dim, keys, ahead),
            _ => self.scores::<S, E, 4>(s, head_dim, keys, ahead),
        };
        let ahead = next.map_or(&[][..], |keys| &keys[..self.keys_read(block + 1, head_dim)]);
        let mut folds = [Scale::Skip; T];
        for t in 0..T {
            if !visible[t].is_empty() {
                folds[t] = self.soften(s, t, visible[t].clone(), &mut weights[t]);
            }
        }
        let mut d = 0;
        while d < stride {
            let rows = Rows { values, first: d, stride };
            let ahead = if d == 0 { ahead } else { &[] };
            d += match stride - d {
                64.. => self.outputs::<S, E, 4>(s, rows, &visible, &weights, &folds, ahead),
                32.. => self.outputs::<S, E, 2>(s, rows, &visible, &weights, &folds, ahead),
                _ => self.outputs::<S, E, 1>(s, rows, &visible, &weights, &folds, ahead),
            };
        }
    }

    /// Elements of K that page `block` takes part with.
    #[inline(always)]
    fn keys_read(&self, block: usize, head_dim: usize) -> usize {
        let end = self.visible.iter().map(|visible| visible.end).max().unwrap_or(0);
        let slots = end.saturating_sub(block * PAGE).min(PAGE);
        slots.next_multiple_of(LANES) * head_dim
    }

    /// Scores of the first `16 V` slots; those of masked slots mean nothing.
    #[inline(always)]
    fn scores<S: Simd, E: Element, const V: usize>(
        &self,
        s: S,
        head_dim: usize,
        keys: &[E],
        ahead: &[E],
    ) -> [[f32; PAGE]; T] {
        let mut acc = [[s.splat(0.0); V]; T];
        let (vectors, _) = keys.as_chunks::<LANES>();
        let vectors: [&[[E; LANES]]; V] = std::array::from_fn(|v| &vectors[v * head_dim..][..head_dim]);
        let fetch = Fetch::new(ahead, head_dim);
        for d in 0..head_dim {
            fetch.step(s, d);
            let mut keys = [s.splat(0.0); V];
            for v in 0..V {
                keys[v] = E::load(s, &vectors[v][d]);
            }
            for (acc, q) in acc.iter_mut().zip(&self.q) {
                chain(s, acc, q[d], keys);
            }
        }
        let mut scores = [[0.0; PAGE]; T];
        for (acc, scores) in acc.into_iter().zip(&mut scores) {
            for (acc, scores) in acc.into_iter().zip(scores.as_chunks_mut().0) {
                s.store(acc, scores);
            }
        }
        scores
    }

    /// Turns the scores of query `t` into weights and updates its maximum and sum.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, s: S, t: usize, visible: Range<usize>, scores: &mut [f32; PAGE]) -> Scale {
        // exp(-inf) is the +0 that a masked slot counts with.
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..].fill(f32::NEG_INFINITY);
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        let mut p: [S::F; VECTORS] = load_all(s, vectors);
        let max = s.max_lane(s.max(s.max(p[0], p[1]), s.max(p[2], p[3])));
        for (p, scores) in p.iter_mut().zip(vectors) {
            *p = exp(s, s.sub(*p, s.splat(max)));
            s.store(*p, scores);
        }
        let sum = s.sum_tree(s.add(s.add(p[0], p[2]), s.add(p[1], p[3])));
        if !self.started[t] {
            (self.started[t], self.max[t], self.sum[t]) = (true, max, sum);
            return Scale::First;
        }
        let larger = reference::max(self.max[t], max);
        let old = reference::exp(self.max[t] - larger);
        let new = reference::exp(max - larger);
        self.max[t] = larger;
        self.sum[t] = sum.mul_add(new, self.sum[t] * old);
        Scale::Fold { old, new }
    }

    /// The first `16 C` of the dimensions of `rows` in the outputs; returns `16 C`.
    #[inline(always)]
    fn outputs<S: Simd, E: Element, const C: usize>(
        &mut self,
        s: S,
        rows: Rows<'_, E>,
        visible: &[Range<usize>; T],
        weights: &[[f32; PAGE]; T],
        folds: &[Scale; T],
        ahead: &[E],
    ) -> usize {
        let mut acc = [[s.splat(0.0); C]; T];
        // What every query sees is read once for all; the ragged ends, query by query, keep each
        // chain in ascending order.
        let start = visible.iter().map(|visible| visible.start).max().unwrap_or(0);
        let end = visible.iter().map(|visible| visible.end).min().unwrap_or(0).max(start);
        for ((acc, visible), weights) in acc.iter_mut().zip(visible).zip(weights) {
            rows.chain(s, visible.start..start.min(visible.end), acc, weights);
        }
        let fetch = Fetch::new(ahead, end - start);
        for j in start..end {
            fetch.step(s, j - start);
            let values = rows.load(s, j);
            for (acc, weights) in acc.iter_mut().zip(weights) {
                chain(s, acc, weights[j], values);
            }
        }
        for ((acc, visible), weights) in acc.iter_mut().zip(visible).zip(weights) {
            rows.chain(s, end.max(visible.start)..visible.end, acc, weights);
        }
        for ((acc, out), fold) in acc.into_iter().zip(&mut self.out).zip(folds) {
            for (acc, out) in acc.into_iter().zip(out[rows.first..][..C * LANES].as_chunks_mut().0) {
                match *fold {
                    Scale::Skip => {}
                    Scale::First => s.store(acc, out),
                    Scale::Fold { old, new } => {
                        let scaled = s.mul(s.load(out), s.splat(old));
                        s.store(s.fma(acc, s.splat(new), scaled), out);
                    }
                }
            }
        }
        C * LANES
    }
}

/// The V rows of a page from one dimension on.
struct Rows<'a, E> {
    values: &'a [E],
    first: usize,
    stride: usize,
}

impl<E: Element> Rows<'_, E> {
    #[inline(always)]
    fn load<S: Simd, const C: usize>(&self, s: S, j: usize) -> [S::F; C] {
        load_all(s, self.values[j * self.stride + self.first..][..C * LANES].as_chunks().0)
    }

    /// One query's chain over the rows `slots`.
    #[inline(always)]
    fn chain<S: Simd, const C: usize>(
        &self,
        s: S,
        slots: Range<usize>,
        acc: &mut [S::F; C],
        weights: &[f32; PAGE],
    ) {
        for j in slots {
            chain(s, acc, weights[j], self.load(s, j));
        }
    }
}

#[inline(always)]
fn load_all<S: Simd, E: Element, const C: usize>(s: S, from: &[[E; LANES]]) -> [S::F; C] {
    let mut out = [s.splat(0.0); C];
    for (out, from) in out.iter_mut().zip(from) {
        *out = E::load(s, from);
    }
    out
}

#[inline(always)]
fn chain<S: Simd, const C: usize>(s: S, acc: &mut [S::F; C], weight: f32, values: [S::F; C]) {
    let weight = s.splat(weight);
    for (acc, value) in acc.iter_mut().zip(values) {
        *acc = s.fma(weight, value, *acc);
    }
}

/// How a block joins the running output.
#[derive(Clone, Copy)]
enum Scale {
    /// The query sees none of it.
    Skip,
    /// It is the query's first.
    First,
    /// Factors of the running output and of the block.
    Fold { old: f32, new: f32 },
}
