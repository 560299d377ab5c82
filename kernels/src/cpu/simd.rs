//! The vector the kernels are written over: sixteen lanes on every instruction set, so that one
//! source serves them all and a packed weight block has one layout.

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A cache line of weights: 4 consecutive values of K for each of 16 rows (`q8`), or two such sets in
/// the low and the high nibbles (`q4`).
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Sixteen f32 on one cache line.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Full(pub(crate) [f32; LANES]);

/// Sixteen f16 or bf16 as bits.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub(crate) struct Half(pub(crate) [u16; LANES]);

/// Operations on sixteen lanes. A value of an implementing type proves that the CPU has the
/// instructions. Every operation rounds as its scalar namesake does.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Sixty-four bytes.
    type B: Copy;
    /// Sums of a few products that wait for their scale: 32 bits a lane, or two times 16.
    type P: Copy;

    /// What packing adds to a `q8` weight: 128 where the dot product wants it unsigned, else 0.
    const Q8_BIAS: i32;
    /// Vectors that the CPU's registers hold, which bounds what a tile keeps in them.
    const REGISTERS: usize;
    /// Whether [`Simd::P`] has 16 bits.
    const NARROW_SUMS: bool;

    /// Runs `op` compiled for this instruction set.
    fn dispatch<O: Op>(self, op: O) -> O::Out;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Reads a vector.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Writes a vector.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Reads f16 values.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Reads bf16 values.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// Rounds to f16, ties to even.
    fn store_f16(self, x: Self::F, to: &mut [u16; LANES]);
    /// Rounds to bf16 on integers; the result is widened again.
    fn round_bf16(self, x: Self::F) -> Self::F;

    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a * b - c, rounded once.
    fn fms(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger, of numbers.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, of numbers.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The sign bit cleared.
    fn abs(self, x: Self::F) -> Self::F;
    /// `a < b ? x : y`, lane by lane; false where a NaN is compared.
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// `a` is a NaN `? a : y`.
    fn keep_nan(self, a: Self::F, y: Self::F) -> Self::F;
    /// `bits(p) + (bits(t) << 23)`, the last step of exp.
    fn scale_exp(self, p: Self::F, t: Self::F) -> Self::F;
    /// Halving tree over the lanes: 8, 4, 2, 1.
    fn sum_tree(self, x: Self::F) -> f32;
    /// The largest lane, of numbers.
    fn max_lane(self, x: Self::F) -> f32;

    /// The bits without the sign.
    fn magnitude(self, x: Self::F) -> Self::I;
    /// Unsigned maximum.
    fn max_u(self, a: Self::I, b: Self::I) -> Self::I;
    /// The largest lane, unsigned.
    fn max_lane_u(self, x: Self::I) -> u32;
    /// Rounds to the nearest integer, ties to even; `|x| <= 127`. Returns the sum of the lanes as well.
    fn store_i8(self, x: Self::F, to: &mut [i8; LANES]) -> i32;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reads integers.
    fn load_i(self, from: &[i32; LANES]) -> Self::I;
    /// a + b, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lanes as f32, rounded to nearest even (exact for `|x| <= 2^24`).
    fn to_f32(self, x: Self::I) -> Self::F;
    /// Asks for the cache line `bytes` past `from`, which need not exist.
    fn prefetch<T>(self, from: &T, bytes: usize);
    /// Reads a line of weights.
    fn line(self, from: &Line) -> Self::B;
    /// The low and the high nibbles of every byte.
    fn nibbles(self, x: Self::B) -> (Self::B, Self::B);
    /// Lane `l`: `acc[l]` + dot of the four (biased) `q8` weights of row `l` and the four int8 of `x`.
    fn dot_q8(self, acc: Self::I, w: Self::B, x: i32) -> Self::I;
    /// The same for weights in 0..=15.
    fn dot_q4(self, acc: Self::I, w: Self::B, x: i32) -> Self::I;

    /// Each byte and `mask`.
    fn and(self, x: Self::B, mask: u8) -> Self::B;
    /// a | b.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Shifts bytes left. What leaves a byte may be found in the next one: mask it.
    fn shl<const N: u32>(self, x: Self::B) -> Self::B;
    /// Shifts bytes right. What leaves a byte may be found in the one before: mask it.
    fn shr<const N: u32>(self, x: Self::B) -> Self::B;
    /// No products.
    fn splat_p(self) -> Self::P;
    /// Lane `l`: `acc[l]` + dot of four weights of row `l` and the four int8 of `x`. Before the sums are
    /// scaled, up to 8 such words of weights in 0..=15 may be added, or 4 of weights in 0..=63 (2 in narrow sums).
    fn dot_p(self, acc: Self::P, w: Self::B, x: i32) -> Self::P;
    /// Byte `J` of each lane, an int8, as [`Simd::add_scaled`] takes it.
    fn factor<const J: u32>(self, x: Self::B) -> Self::I;
    /// `acc` + `sums` * `factor`.
    fn add_scaled(self, acc: Self::I, sums: Self::P, factor: Self::I) -> Self::I;
    /// Bytes 0 and 2 and bytes 1 and 3 of each lane, int8 widened to 16 bits.
    fn pairs(self, x: Self::B) -> (Self::I, Self::I);
    /// Lane `l`: `acc[l]` + dot of the two 16-bit numbers of `pairs[l]` and those of `x`.
    fn dot_pairs(self, acc: Self::I, pairs: Self::I, x: i32) -> Self::I;
}

/// A piece of work that [`Simd::dispatch`] compiles for each instruction set. `run` and all it calls must be
/// `#[inline(always)]`, or it is compiled for none.
pub(crate) trait Op {
    /// Result.
    type Out;
    /// Does the work.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// The first 16 values, or fewer and zeros.
#[inline(always)]
pub(crate) fn load_part<S: Simd>(s: S, from: &[f32]) -> S::F {
    match from.first_chunk() {
        Some(full) => s.load(full),
        None => {
            let mut padded = [0.0; LANES];
            padded[..from.len()].copy_from_slice(from);
            s.load(&padded)
        }
    }
}

/// Writes the first 16 values, or as many as there is room for.
#[inline(always)]
pub(crate) fn store_part<S: Simd>(s: S, x: S::F, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(full) => s.store(x, full),
        None => {
            let mut padded = [0.0; LANES];
            s.store(x, &mut padded);
            let len = to.len();
            to.copy_from_slice(&padded[..len]);
        }
    }
}

/// Memory that is asked for a few lines at a time, in the steps of a loop that reads other memory.
pub(crate) struct Fetch<'a, E> {
    from: &'a [E],
    /// Bytes of a step.
    bytes: usize,
}

impl<'a, E> Fetch<'a, E> {
    #[inline(always)]
    pub(crate) fn new(from: &'a [E], steps: usize) -> Self {
        Self { from, bytes: size_of_val(from).div_ceil(steps.max(1)).next_multiple_of(64) }
    }

    #[inline(always)]
    pub(crate) fn step<S: Simd>(&self, s: S, step: usize) {
        let Some(first) = self.from.first() else { return };
        let start = step * self.bytes;
        let end = (start + self.bytes).min(size_of_val(self.from));
        let mut at = start;
        while at < end {
            s.prefetch(first, at);
            at += 64;
        }
    }
}
