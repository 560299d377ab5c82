//! Paged K and V. A page of one layer and head holds K transposed by sixteen keys, `[4][head_dim][16]`, so
//! that scores run over keys, and V as `[64][head_dim]` padded to whole vectors, so that outputs run over
//! dimensions. A page that is not full is read as far as it is filled.

use std::sync::atomic::AtomicBool;

use super::{
    linear::CHUNK,
    memory::{Memory, Slab},
    parts::{Tiles, Window},
    rows::allocate,
    simd::{Full, LANES, Simd, load_part},
};
use crate::backend::{BackendError, KvShape, PAGE, Profile};

/// Largest head, which bounds the stack of an attention task.
pub(crate) const MAX_HEAD_DIM: usize = 512;
/// Rows whose K and V wait for their page at a time, a multiple of the rows of a pass over the weights.
pub(crate) const STAGED_ROWS: usize = CHUNK;

/// An element of the cache.
pub(crate) trait Element: bytemuck::Pod + Send + Sync {
    /// Reads sixteen.
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
    /// Rounds sixteen; false if one of the results is not finite.
    fn store<S: Simd>(s: S, x: S::F, to: &mut [Self; LANES]) -> bool;
}

impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, to: &mut [u16; LANES]) -> bool {
        s.store_f16(x, to);
        // 65520 and above round to infinity.
        s.max_lane_u(s.magnitude(x)) < 65520f32.to_bits()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, to: &mut [f32; LANES]) -> bool {
        s.store(x, to);
        s.max_lane_u(s.magnitude(x)) < 0x7f80_0000
    }
}

/// K and V in one element type.
#[derive(Debug)]
pub(crate) struct Store<E> {
    pub(crate) keys: Slab<E>,
    pub(crate) values: Slab<E>,
}

/// Both element types.
#[derive(Debug)]
pub(crate) enum Stores {
    Half(Store<u16>),
    Full(Store<f32>),
}

/// A KV store with the staging rows of its projections.
#[derive(Debug)]
pub struct Kv {
    pub(crate) shape: KvShape,
    pub(crate) stores: Stores,
    /// K and V rows on their way to the pages, `[STAGED_ROWS][stride]`.
    pub(crate) staged: [Vec<Full>; 2],
    /// Of each staged row, whether a rounded value is not finite.
    pub(crate) faulty: Vec<AtomicBool>,
}

impl<E: Element> Store<E> {
    fn new(shape: &KvShape, memory: &Memory) -> Result<Self, BackendError> {
        let heads = shape.layers.checked_mul(shape.pages).and_then(|n| n.checked_mul(shape.kv_heads));
        let size = |width: usize| heads.and_then(|heads| heads.checked_mul(PAGE * width));
        let what = "the KV pages";
        let keys = memory.allocate(size(shape.head_dim), what)?;
        Ok(Self { keys, values: memory.allocate(size(value_stride(shape.head_dim)), what)? })
    }

    /// K of one page, layer and head, `[4][head_dim][16]`.
    pub(crate) fn keys(&self, head: usize, head_dim: usize) -> &[E] {
        &self.keys[head * head_dim * PAGE..][..head_dim * PAGE]
    }

    /// V of one page, layer and head, `[64][value_stride]`.
    pub(crate) fn values(&self, head: usize, head_dim: usize) -> &[E] {
        let size = value_stride(head_dim) * PAGE;
        &self.values[head * size..][..size]
    }

    /// K and V of one layer, cut by heads; the rows of a part are its pages.
    pub(crate) fn heads_mut(&mut self, shape: &KvShape, layer: usize) -> (Tiles<'_, E>, Tiles<'_, E>) {
        (by_heads(&mut self.keys, shape, layer), by_heads(&mut self.values, shape, layer))
    }
}

fn by_heads<'a, E>(values: &'a mut [E], shape: &KvShape, layer: usize) -> Tiles<'a, E> {
    let size = values.len() / shape.layers;
    let layer = &mut values[layer * size..][..size];
    let page = size / shape.pages;
    Tiles::new(Window::new(layer, page), shape.pages, page / shape.kv_heads)
}

/// Elements from one V row of a page to the next.
pub(crate) fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

impl Kv {
    pub(crate) fn new(shape: KvShape, memory: &Memory) -> Result<Self, BackendError> {
        if shape.head_dim > MAX_HEAD_DIM {
            let wide = format!("heads of {} are wider than {MAX_HEAD_DIM}", shape.head_dim);
            return Err(BackendError::Device(wide));
        }
        let stores = match shape.profile {
            Profile::Quantised => Stores::Half(Store::new(&shape, memory)?),
            Profile::F32 => Stores::Full(Store::new(&shape, memory)?),
        };
        let staged = || allocate(Some(STAGED_ROWS * staged_stride(&shape)), "rows of K and V");
        let faulty = (0..STAGED_ROWS).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { shape, stores, staged: [staged()?, staged()?], faulty })
    }

    /// Index of the K and V of one page, layer and head.
    pub(crate) fn head(&self, layer: usize, page: u32, kv_head: usize) -> usize {
        let KvShape { layers, pages, kv_heads, .. } = self.shape;
        assert!(
            layer < layers && (page as usize) < pages && kv_head < kv_heads,
            "the head lies in the store"
        );
        (layer * pages + page as usize) * kv_heads + kv_head
    }
}

/// Vectors from one staged row to the next.
pub(crate) fn staged_stride(shape: &KvShape) -> usize {
    (shape.kv_heads * shape.head_dim).div_ceil(LANES)
}

/// Rounds one row's K and V of a head into slot `slot` of its page; tells whether all was finite.
#[inline(always)]
pub(crate) fn write<S: Simd, E: Element>(
    s: S,
    slot: usize,
    k: &[f32],
    v: &[f32],
    keys: &mut [E],
    values: &mut [E],
) -> bool {
    let head_dim = k.len();
    let mut finite = true;
    let mut rounded = [E::zeroed(); LANES];
    let keys = &mut keys[slot / LANES * head_dim * LANES..][..head_dim * LANES];
    for (part, keys) in k.chunks(LANES).zip(keys.chunks_mut(LANES * LANES)) {
        finite &= E::store(s, load_part(s, part), &mut rounded);
        for (key, keys) in rounded.iter().zip(keys.chunks_exact_mut(LANES)) {
            keys[slot % LANES] = *key;
        }
    }
    let stride = value_stride(head_dim);
    let values = &mut values[slot * stride..][..stride];
    for (part, values) in v.chunks(LANES).zip(values.as_chunks_mut().0) {
        finite &= E::store(s, load_part(s, part), values);
    }
    finite
}
