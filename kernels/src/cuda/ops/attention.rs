//! Attention over paged K and V (`attention.cu`).

use bytemuck::{Pod, Zeroable};

use super::{heads::head_bytes, norm::Activation};
use crate::{
    backend::{AttentionShape, PAGE, Profile},
    cuda::launch::{DevicePtr, Launch, Source},
};

/// Warps of a block at most.
const WARPS: u32 = 8;

/// Values of a head that a lane holds: the kernels are made for heads of up to 32 times that.
const LANE_VALUES: [u32; 4] = [2, 4, 8, 16];

/// What a launch needs to know of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
}

/// Parameters of every kernel of attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Attention {
    /// u32: rows in use.
    pub step: DevicePtr,
    /// `{u32 position, u32 first_page}` of each row.
    pub rows: DevicePtr,
    /// u32: the page lists.
    pub pages: DevicePtr,
    /// u32 `[rows]`.
    pub faults: DevicePtr,
    /// f32 `[rows][heads * head_dim]`.
    pub q: DevicePtr,
    /// The pages of the layer ([`KvLayout`](super::heads::KvLayout)).
    pub kv: DevicePtr,
    /// [`Plan::partial_bytes`] of scratch.
    pub partials: DevicePtr,
    /// [`Plan::counters`] words, zero when allocated; every launch leaves them zero.
    pub counters: DevicePtr,
    /// f32 `[rows][heads * head_dim]`: scratch.
    pub raw: DevicePtr,
    /// Where the rows go.
    pub out: Activation,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Sliding window, or 0.
    pub window: u32,
    /// Factor on the queries.
    pub scale: f32,
    /// For faults.
    pub layer: u32,
    /// Blocks that share the keys of a row; set by [`Plan::launch`].
    pub splits: u32,
    /// Key blocks that `partials` holds of each head; set by [`Plan::launch`].
    pub slots: u32,
}

/// How attention is launched for a bucket of rows: fixed by shapes alone, so a captured graph may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    splits: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rows: u32,
}

impl Plan {
    /// For rows of which each sees its own keys: one block of threads takes the query heads of one KV head of one
    /// row over a run of key blocks. `context` is the most positions of a session.
    ///
    /// # Panics
    /// If heads are wider than 512 or the head counts do not divide.
    pub fn decode(shape: &AttentionShape, profile: Profile, rows: u32, context: u32, card: Card) -> Self {
        let base = Self::of(shape, rows);
        let group = base.heads / base.kv_heads;
        // Few rows leave multiprocessors idle: then each warp takes fewer queries, and more warps share a key.
        let units = rows * base.kv_heads;
        let one = profile == Profile::F32 || base.head_dim > 256 || units * 2 <= card.multiprocessors;
        let queries = if one { 1 } else { group.next_power_of_two().min(4) };
        let blocks = context.div_ceil(PAGE as u32);
        let splits = (card.multiprocessors * 3 / units.max(1)).clamp(1, blocks.max(1));
        let round = (2 * WARPS / group.div_ceil(queries)).max(1);
        let dim = base.head_dim.next_multiple_of(8);
        Self {
            kernel: decode_kernel(profile, base.head_dim, queries),
            grid: [splits, base.kv_heads, rows],
            threads: WARPS * 32,
            shared: 4 * (group.next_multiple_of(queries) * dim + WARPS * PAGE as u32 * queries),
            splits,
            slots: if splits == 1 { round } else { blocks },
            ..base
        }
    }

    /// For many rows of few sessions: one block of threads takes a tile of rows and the query heads of one KV head.
    /// It serves any batch.
    ///
    /// # Panics
    /// If heads are wider than 512 or the head counts do not divide.
    pub fn prefill(shape: &AttentionShape, profile: Profile, rows: u32, card: Card) -> Self {
        let base = Self::of(shape, rows);
        let dim = base.head_dim.next_multiple_of(8);
        // Queries of a warp, and the stride of their weights in shared memory.
        let most = if profile == Profile::F32 { 128 } else { 256 };
        let (queries, stride) = if base.head_dim > most { (4, 4) } else { (8, 12) };
        let warp_bytes = 4 * (queries * dim + PAGE as u32 * stride);
        let staged = head_bytes(base.head_dim as usize, 2) as u32;
        let fits = |warps: u32, staged: u32| warps * warp_bytes + staged <= card.shared_bytes;
        let group = base.heads / base.kv_heads;
        let least = group.div_ceil(queries);
        assert!(least <= WARPS, "the query heads of a KV head are at most {}", WARPS * queries);
        let stageable = profile == Profile::Quantised && base.head_dim <= 256;
        let wide = (stageable && fits(WARPS, staged)).then_some((WARPS, staged));
        let narrow = (stageable && least <= 4 && fits(4, staged)).then_some((4, staged));
        let unstaged = || ((least..=WARPS).rev().find(|&warps| fits(warps, 0)).unwrap_or(least), 0);
        let (warps, staged) = wide.or(narrow).unwrap_or_else(unstaged);
        Self {
            kernel: prefill_kernel(profile, base.head_dim, staged > 0),
            grid: [rows.div_ceil(warps * queries / group), base.kv_heads, 1],
            threads: warps * 32,
            shared: warps * warp_bytes + staged,
            ..base
        }
    }

    fn of(shape: &AttentionShape, rows: u32) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        assert!(kv_heads > 0 && heads % kv_heads == 0, "KV heads divide the query heads");
        assert!(0 < head_dim && head_dim <= 512, "heads are at most 512 wide");
        Self {
            kernel: "",
            grid: [0; 3],
            threads: 0,
            shared: 0,
            splits: 1,
            slots: 0,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rows,
        }
    }

    /// Bytes of [`Attention::partials`].
    pub fn partial_bytes(&self) -> usize {
        let stride = self.head_dim.next_multiple_of(8) as usize + 4;
        self.rows as usize * self.heads as usize * (self.slots as usize + 1) * stride * 4
    }

    /// Words of [`Attention::counters`].
    pub fn counters(&self) -> usize {
        self.rows as usize * (self.kv_heads as usize + 1)
    }

    /// Bytes of dynamic shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared
    }

    /// The launch.
    pub fn launch(&self, params: Attention) -> Launch {
        let params = Attention { splits: self.splits, slots: self.slots, ..params };
        Launch::new(Source::Attention, self.kernel, self.grid, self.threads, self.shared, &params)
    }
}

/// Values that a lane holds of a head.
fn lane_values(head_dim: u32) -> u32 {
    LANE_VALUES.into_iter().find(|&values| head_dim <= 32 * values).unwrap_or(LANE_VALUES[3])
}

fn decode_kernel(profile: Profile, head_dim: u32, queries: u32) -> &'static str {
    match (profile, queries, lane_values(head_dim)) {
        (Profile::Quantised, 1, 2) => "decode_f16_1_2",
        (Profile::Quantised, 1, 4) => "decode_f16_1_4",
        (Profile::Quantised, 1, 8) => "decode_f16_1_8",
        (Profile::Quantised, 1, _) => "decode_f16_1_16",
        (Profile::Quantised, 2, 2) => "decode_f16_2_2",
        (Profile::Quantised, 2, 4) => "decode_f16_2_4",
        (Profile::Quantised, 2, _) => "decode_f16_2_8",
        (Profile::Quantised, _, 2) => "decode_f16_4_2",
        (Profile::Quantised, _, 4) => "decode_f16_4_4",
        (Profile::Quantised, _, _) => "decode_f16_4_8",
        (Profile::F32, _, 2 | 4) => "decode_f32_1_4",
        (Profile::F32, _, _) => "decode_f32_1_16",
    }
}

fn prefill_kernel(profile: Profile, head_dim: u32, staged: bool) -> &'static str {
    match (profile, staged, lane_values(head_dim)) {
        (Profile::Quantised, true, 2) => "prefill_staged_f16_2",
        (Profile::Quantised, true, 4) => "prefill_staged_f16_4",
        (Profile::Quantised, true, _) => "prefill_staged_f16_8",
        (Profile::Quantised, false, 2 | 4 | 8) => "prefill_f16_8",
        (Profile::Quantised, false, _) => "prefill_f16_16",
        (Profile::F32, _, 2 | 4) => "prefill_f32_4",
        (Profile::F32, _, _) => "prefill_f32_16",
    }
}
