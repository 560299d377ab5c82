//! What happens to query and key heads between their projection and the attention: the per-head norm, the
//! rotation, and for keys and values the way into the cache.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    kv::{Element, write},
    math::rms_norm,
    parts::Window,
    rows::floats,
    simd::{Full, LANES, Op, Simd, load_part, store_part},
};
use crate::{
    backend::{PAGE, RmsNorm, Row},
    rope::RopeTable,
};

/// The heads of some rows.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) head_dim: usize,
    pub(crate) q_norm: Option<&'a RmsNorm>,
    pub(crate) k_norm: Option<&'a RmsNorm>,
    pub(crate) rope: &'a RopeTable,
    /// Where each row stands in its session.
    pub(crate) rows: &'a [Row],
    /// Page tables of all sessions.
    pub(crate) pages: &'a [u32],
    /// Projected V of all KV heads, `[rows][stride]` vectors.
    pub(crate) v: &'a [Full],
    pub(crate) stride: usize,
    /// Of each row, whether K or V is not finite once rounded.
    pub(crate) faulty: &'a [AtomicBool],
}

/// A KV head with the query heads that share it, in every row.
pub(crate) struct PlaceHead<'a, E> {
    pub(crate) heads: Heads<'a>,
    pub(crate) kv_head: usize,
    /// Projected queries, `[rows][query heads of the KV head]`.
    pub(crate) q: Window<'a>,
    /// Projected keys, `[rows][head_dim]`.
    pub(crate) k: Window<'a>,
    /// The head's K in each page.
    pub(crate) keys: Window<'a, E>,
    /// The head's V in each page.
    pub(crate) values: Window<'a, E>,
}

impl<E: Element> Op for PlaceHead<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Heads { head_dim, rows, pages, stride, .. } = self.heads;
        for (row, place) in rows.iter().enumerate() {
            let position = place.position as usize;
            let (cos, sin) = self.heads.rope.at(position);
            for head in self.q.row(row).chunks_exact_mut(head_dim) {
                turn(s, head, self.heads.q_norm, cos, sin);
            }
            let k = self.k.row(row);
            turn(s, k, self.heads.k_norm, cos, sin);
            let v = &floats(&self.heads.v[row * stride..][..stride])[self.kv_head * head_dim..][..head_dim];
            let page = pages[place.pages.clone()][position / PAGE] as usize;
            if !write(s, position % PAGE, k, v, self.keys.row(page), self.values.row(page)) {
                self.heads.faulty[row].store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Norms and rotates a head.
#[inline(always)]
fn turn<S: Simd>(s: S, head: &mut [f32], norm: Option<&RmsNorm>, cos: &[f32], sin: &[f32]) {
    if let Some(norm) = norm {
        rms_norm(s, head, &norm.weight, norm.eps);
    }
    rotate(s, head, cos, sin);
}

/// `reference::rotate`.
#[inline(always)]
fn rotate<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = head.split_at_mut(cos.len());
    let pairs = first.chunks_mut(LANES).zip(rest[..cos.len()].chunks_mut(LANES));
    for ((a, b), (cos, sin)) in pairs.zip(cos.chunks(LANES).zip(sin.chunks(LANES))) {
        let (x, y) = (load_part(s, a), load_part(s, b));
        let (cos, sin) = (load_part(s, cos), load_part(s, sin));
        store_part(s, s.sub(s.mul(x, cos), s.mul(y, sin)), a);
        store_part(s, s.add(s.mul(y, cos), s.mul(x, sin)), b);
    }
}
