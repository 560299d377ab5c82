//! The tile unit of AMX-int8. The compiler knows nothing of tiles, so that they keep their contents from one
//! instruction to the next on a thread.

use std::arch::{asm, x86_64::__cpuid_count};

use super::{
    matrix::Q8_LINES,
    rows::Group,
    simd::{LANES, Line},
    tiles::{Dots, Emulated, TILE_ROWS, TileUnit},
};
use crate::tensor::GROUP;

/// Proof that the CPU has AMX-int8, that the system lets this process use it and that it computes what
/// [`Emulated`] does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx {
    /// Rows of activations the tiles are configured for.
    rows: usize,
}

/// Shapes of the tiles: the palette in byte 0, the bytes of a row as u16 from byte 16 on, the rows from byte
/// 48 on.
#[repr(align(64))]
struct Config([u8; 64]);

impl Amx {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        let amx = Self { rows: 0 };
        (has_amx() && permitted() && agrees(amx)).then_some(amx)
    }
}

/// Whether the CPU has AMX-int8.
fn has_amx() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let flags = __cpuid_count(7, 0).edx;
    __cpuid_count(0, 0).eax >= 7 && flags & TILE != 0 && flags & INT8 != 0
}

/// Asks the system for the tile data of this process, which it keeps no state for unasked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes what this process may do and nothing in its memory; the registers that
    // the kernel overwrites are declared.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Whether full and partial tiles of all kinds of values come out as the manual says.
fn agrees(mut amx: Amx) -> bool {
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
    let mut groups = [Group::ZERO; 2 * TILE_ROWS];
    for (r, group) in groups.iter_mut().enumerate() {
        group.q = std::array::from_fn(|i| byte(r * GROUP + i) as i8);
    }
    let weights: [Line; Q8_LINES] =
        std::array::from_fn(|i| Line(std::array::from_fn(|b| byte(77_777 + i * 64 + b))));
    let mut agree = true;
    for rows in [TILE_ROWS, 5, 1] {
        let (mut expected, mut actual) = (Dots([[7; LANES]; TILE_ROWS]), Dots([[7; LANES]; TILE_ROWS]));
        twice(&mut Emulated::new(), rows, &groups, &weights, &mut expected);
        twice(&mut amx, rows, &groups, &weights, &mut actual);
        agree &= expected == actual;
    }
    agree
}

/// The products of every second group, added up two times.
fn twice(
    unit: &mut impl TileUnit,
    rows: usize,
    groups: &[Group],
    weights: &[Line; Q8_LINES],
    dots: &mut Dots,
) {
    unit.configure(rows);
    unit.zero();
    unit.load_rows(groups, 2);
    unit.load_weights(weights);
    unit.dot();
    unit.dot();
    unit.store(dots);
    unit.release();
}

/// An instruction that `self` proves to be there.
macro_rules! tile {
    ($($asm:tt)*) => {
        // SAFETY: the receiver is a proof that the CPU has the instruction; it reads and writes tiles,
        // which belong to this thread, and the memory of the arguments, whose size was checked.
        unsafe { asm!($($asm)*, options(nostack)) }
    };
}

impl TileUnit for Amx {
    #[inline(always)]
    fn configure(&mut self, rows: usize) {
        assert!((1..=TILE_ROWS).contains(&rows), "a tile has 1 to 16 rows");
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for (tile, bytes) in [4 * LANES, GROUP, 4 * LANES].into_iter().enumerate() {
            config.0[16 + 2 * tile] = bytes as u8;
        }
        config.0[48..51].copy_from_slice(&[rows as u8, rows as u8, Q8_LINES as u8]);
        tile!("ldtilecfg [{}]", in(reg) config.0.as_ptr());
        self.rows = rows;
    }

    #[inline(always)]
    fn release(&mut self) {
        tile!("tilerelease");
        self.rows = 0;
    }

    #[inline(always)]
    fn zero(&mut self) {
        tile!("tilezero tmm0");
    }

    #[inline(always)]
    fn load_rows(&mut self, from: &[Group], stride: usize) {
        assert!(self.rows > 0 && from.len() > (self.rows - 1) * stride, "the rows lie in the slice");
        let bytes = stride * size_of::<Group>();
        tile!("tileloadd tmm1, [{} + {}*1]", in(reg) from.as_ptr(), in(reg) bytes);
    }

    #[inline(always)]
    fn load_weights(&mut self, from: &[Line; Q8_LINES]) {
        tile!("tileloadd tmm2, [{} + {}*1]", in(reg) from.as_ptr(), in(reg) size_of::<Line>());
    }

    #[inline(always)]
    fn dot(&mut self) {
        tile!("tdpbsud tmm0, tmm1, tmm2");
    }

    #[inline(always)]
    fn store(&mut self, to: &mut Dots) {
        tile!("tilestored [{} + {}*1], tmm0", in(reg) to.0.as_mut_ptr(), in(reg) 4 * LANES);
    }
}
