//! Integer products of the tensor cores.

use super::{
    Flow, Machine, Outcome,
    clock::Kind,
    race::Access,
    registers::{LANES, Words, lanes},
    warp::Warp,
};
use crate::program::{LoadMatrix, Mma, MmaShape, Space, W};

/// Rows of A, columns of B, and the length of the products, at their largest.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const LENGTH: usize = 32;

/// A by rows.
pub(super) type A = [[i16; LENGTH]; ROWS];
/// B by pairs along k: those of each column.
pub(super) type B = [[i16; 2 * COLUMNS]; LENGTH / 2];
pub(super) type Sums = [[i32; COLUMNS]; ROWS];

impl Machine<'_> {
    /// In each register of A and B lie four values along k; lane `4 g + t` holds those of row (column) g from 4 t on.
    /// The further registers of A: row g + 8, then k + 16. Of C and D it holds columns 2 t and 2 t + 1 of row g,
    /// then of row g + 8.
    pub(super) fn mma(&mut self, warp: &mut Warp, mma: &Mma, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(warp, mask)? {
            return Ok(Flow::Put);
        }
        let (rows, length) = match mma.shape {
            MmaShape::M8N8K16 => (8, 16),
            MmaShape::M16N8K16 => (16, 16),
            MmaShape::M16N8K32 => (16, 32),
        };
        self.counts.mma_products += (rows * COLUMNS * length) as u64;
        let registers = &mut warp.registers;
        let (mut a, mut b) = ([[0_i16; LENGTH]; ROWS], [[0_i16; 2 * COLUMNS]; LENGTH / 2]);
        let tall = rows / 8;
        for half in 0..length / 16 {
            for upper in 0..tall {
                let values = registers.w(mma.a[half * tall + upper]);
                spread(values, mma.signed[0], |g, k, value| a[g + 8 * upper][k + 16 * half] = value);
            }
            spread(registers.w(mma.b[half]), mma.signed[1], |g, k, value| {
                b[k / 2 + 8 * half][2 * g + k % 2] = value;
            });
        }
        let sums = self.isa.products(&a, &b, rows);
        for i in 0..2 * tall {
            let c = *registers.w(mma.c[i]);
            let d: Words = std::array::from_fn(|lane| {
                let sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
                c[lane].wrapping_add(sum as u32)
            });
            registers.set_w(mma.d[i], &d, mask);
        }
        Ok(Flow::Next)
    }

    /// Lane i of each eight gives the address of row i of a matrix; lane `4 g + t` gets elements 2 t and 2 t + 1 of
    /// row g, or of column g.
    pub(super) fn load_matrix(&mut self, warp: &mut Warp, load: &LoadMatrix, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(warp, mask)? {
            return Ok(Flow::Put);
        }
        let addresses = warp.registers.addresses(&load.address);
        let count = usize::from(load.count);
        let givers = u32::MAX >> (LANES - 8 * count);
        let rows = self.read::<16>(warp, Space::Shared, &addresses, givers, Access::Read(Kind::Plain))?;
        for matrix in 0..count {
            let element = |row: usize, column: usize| {
                let row = &rows[8 * matrix + row];
                u32::from(u16::from_le_bytes([row[2 * column], row[2 * column + 1]]))
            };
            let values = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                if load.transposed {
                    element(2 * t, g) | element(2 * t + 1, g) << 16
                } else {
                    element(g, 2 * t) | element(g, 2 * t + 1) << 16
                }
            });
            warp.registers.set_w(load.d[matrix], &values, mask);
        }
        Ok(Flow::Next)
    }

    /// Transposes a matrix that lies in registers as [`Self::load_matrix`] leaves it.
    pub(super) fn move_matrix(&mut self, warp: &mut Warp, d: W, a: W, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(warp, mask)? {
            return Ok(Flow::Put);
        }
        let from = *warp.registers.w(a);
        let element = |row: usize, column: usize| from[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
        let values = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            element(2 * t, g) | element(2 * t + 1, g) << 16
        });
        warp.registers.set_w(d, &values, mask);
        Ok(Flow::Next)
    }
}

/// Gives each byte of a fragment, with its row (or column) and its place along k.
fn spread(values: &Words, signed: bool, mut put: impl FnMut(usize, usize, i16)) {
    for lane in lanes(u32::MAX) {
        for (i, byte) in values[lane].to_le_bytes().into_iter().enumerate() {
            let value = if signed { i16::from(byte as i8) } else { i16::from(byte) };
            put(lane / 4, 4 * (lane % 4) + i, value);
        }
    }
}

/// The products of rows of A and columns of B.
#[inline(always)]
pub(super) fn products(a: &A, b: &B, rows: usize) -> Sums {
    let mut sums = [[0; COLUMNS]; ROWS];
    for (sums, a) in sums.iter_mut().zip(a).take(rows) {
        for (a, b) in a.chunks_exact(2).zip(b) {
            let a = [i32::from(a[0]), i32::from(a[1])];
            for (sum, b) in sums.iter_mut().zip(b.chunks_exact(2)) {
                *sum += a[0] * i32::from(b[0]) + a[1] * i32::from(b[1]);
            }
        }
    }
    sums
}
