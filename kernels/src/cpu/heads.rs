//! What happens to query and key heads between their projection and the attention: the per-head norm
//! and the rotation.

use super::{
    Cpu,
    math::rms_norm,
    parts::{Indexed, Runs},
    rows::floats_mut,
    simd::{Full, LANES, Op, Simd, load_part, store_part},
};
use crate::{
    backend::{RmsNorm, Row},
    rope::RopeTable,
};

/// Values worth waking a worker for.
const PARALLEL: usize = 1 << 15;

/// The heads of a projection.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) head_dim: usize,
    pub(crate) norm: Option<&'a RmsNorm>,
    pub(crate) rope: &'a RopeTable,
    /// Where each row stands in its session.
    pub(crate) rows: &'a [Row],
}

impl Heads<'_> {
    /// Norms and rotates every head of `values`, `[rows][stride]` vectors of which the first `width`
    /// values count.
    pub(crate) fn run(self, cpu: &Cpu, values: &mut [Full], stride: usize, width: usize) {
        let parallel = values.len() * LANES >= PARALLEL;
        // A row's run is told from the others by its place, which the index carries.
        let rows = Indexed(Runs::new(values, stride));
        cpu.pool().split(rows, parallel, |(row, values)| {
            let row =
                RotateRow { heads: self, row: &self.rows[row], values: &mut floats_mut(values)[..width] };
            cpu.proof().dispatch(row);
        });
    }
}

struct RotateRow<'a> {
    heads: Heads<'a>,
    row: &'a Row,
    values: &'a mut [f32],
}

impl Op for RotateRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cos, sin) = self.heads.rope.at(self.row.position as usize);
        for head in self.values.chunks_exact_mut(self.heads.head_dim) {
            if let Some(norm) = self.heads.norm {
                rms_norm(s, head, &norm.weight, norm.eps);
            }
            rotate(s, head, cos, sin);
        }
    }
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
