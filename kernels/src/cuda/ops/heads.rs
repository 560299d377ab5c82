//! Query, key and value heads between their product and attention (`heads.cuh`, `heads.cu`), and where K and V stand.

use bytemuck::{Pod, Zeroable};

use crate::{
    backend::{KvShape, PAGE, Profile},
    cuda::launch::{DevicePtr, Launch, Source},
};

/// Heads of a block, one warp each.
const HEADS: u32 = 8;

/// The device's KV store: layer by layer, page by page, KV head by KV head: K, then V (`kv.cuh`). It must be zero when
/// it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Bytes of one layer.
    pub layer_bytes: usize,
    /// Bytes of one page of one layer.
    pub page_bytes: usize,
    /// Bytes of all layers.
    pub bytes: usize,
}

impl KvLayout {
    /// The layout of a store.
    pub const fn of(shape: &KvShape) -> Self {
        let element = match shape.profile {
            Profile::Quantised => 2,
            Profile::F32 => 4,
        };
        let page_bytes = shape.kv_heads * head_bytes(shape.head_dim, element);
        let layer_bytes = shape.pages * page_bytes;
        Self { layer_bytes, page_bytes, bytes: shape.layers * layer_bytes }
    }
}

/// Bytes of K and V of one head in one page.
pub(super) const fn head_bytes(head_dim: usize, element: usize) -> usize {
    2 * PAGE * head_dim.next_multiple_of(8) * element
}

/// What every head of a launch shares: part of the parameter block of each kernel that makes q, k and v.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Heads {
    /// `{u32 position, u32 first_page}` of each row.
    pub rows: DevicePtr,
    /// u32: the page lists.
    pub pages: DevicePtr,
    /// u32 `[rows]`.
    pub faults: DevicePtr,
    /// f32 `[heads * head_dim]`, or 0.
    pub q_bias: DevicePtr,
    /// f32 `[kv_heads * head_dim]`, or 0.
    pub k_bias: DevicePtr,
    /// f32 `[kv_heads * head_dim]`, or 0.
    pub v_bias: DevicePtr,
    /// f32 `[head_dim]`, or 0.
    pub q_norm: DevicePtr,
    /// f32 `[head_dim]`, or 0.
    pub k_norm: DevicePtr,
    /// f32 `[positions][pairs]`.
    pub cos: DevicePtr,
    /// f32 `[positions][pairs]`.
    pub sin: DevicePtr,
    /// f32 `[rows][heads * head_dim]`: the queries, rotated, not scaled.
    pub q: DevicePtr,
    /// The pages of the layer ([`KvLayout`]).
    pub kv: DevicePtr,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Rotated dimensions / 2.
    pub pairs: u32,
    /// 0: pairs `(i, i + pairs)`; 1: pairs `(2 i, 2 i + 1)`.
    pub adjacent: u32,
    /// 0: K and V are f16; 1: f32 ([`Profile::F32`]).
    pub wide: u32,
    /// For faults.
    pub layer: u32,
    /// Of `q_norm`.
    pub q_eps: f32,
    /// Of `k_norm`.
    pub k_eps: f32,
    /// Nothing.
    pub zero: u32,
}

/// Parameters of [`place`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Place {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// f32 `[rows][(heads + 2 * kv_heads) * head_dim]`: W x of q, k and v of each row, without bias.
    pub products: DevicePtr,
    /// The heads.
    pub heads: Heads,
}

/// Bias, norm, RoPE; q to its buffer, k and v to their pages. `rows` is the bucket.
pub fn place(params: Place, rows: u32) -> Launch {
    let Heads { heads, kv_heads, head_dim, .. } = params.heads;
    let grid = [(heads + 2 * kv_heads).div_ceil(HEADS), rows, 1];
    Launch::new(Source::Heads, "place_heads", grid, HEADS * 32, HEADS * head_dim * 4, &params)
}
