//! Keccak-256 over states whose words lie side by side in vectors, written once for every width.

use crate::DIGEST;

/// Bytes that are absorbed before each permutation.
const RATE: usize = 136;

const ROUND_CONSTANTS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// What the permutation needs of an instruction set with `N` words of 64 bits in a register. A value proves
/// that the processor has it.
pub(crate) trait Isa<const N: usize>: Copy {
    type Word: Copy;

    fn pack(self, words: [u64; N]) -> Self::Word;
    fn unpack(self, word: Self::Word) -> [u64; N];
    fn xor(self, a: Self::Word, b: Self::Word) -> Self::Word;
    fn xor3(self, a: Self::Word, b: Self::Word, c: Self::Word) -> Self::Word;
    /// `a ^ (!b & c)`.
    fn xor_and_not(self, a: Self::Word, b: Self::Word, c: Self::Word) -> Self::Word;
    /// Towards the high bits, by 1 to 63.
    fn rotate(self, a: Self::Word, by: u32) -> Self::Word;
}

/// The digests of messages that are as long as the first. To be inlined where the instructions are enabled.
#[inline(always)]
pub(crate) fn hash<I: Isa<N>, const N: usize>(isa: I, messages: &[&[u8]; N]) -> [[u8; DIGEST]; N] {
    let mut state = [isa.pack([0; N]); 25];
    let length = messages[0].len();
    let whole = length - length % RATE;
    for from in (0..whole).step_by(RATE) {
        let mut block = [&[0; RATE]; N];
        for lane in 0..N {
            block[lane] = messages[lane][from..].first_chunk().expect("a whole block is left");
        }
        absorb(isa, &mut state, block);
    }
    let mut last = [[0; RATE]; N];
    for lane in 0..N {
        let rest = &messages[lane][whole..];
        last[lane][..rest.len()].copy_from_slice(rest);
        last[lane][rest.len()] ^= 0x01;
        last[lane][RATE - 1] ^= 0x80;
    }
    absorb(isa, &mut state, last.each_ref());
    let mut digests = [[0; DIGEST]; N];
    for word in 0..DIGEST / 8 {
        let words = isa.unpack(state[word]);
        for lane in 0..N {
            digests[lane][word * 8..][..8].copy_from_slice(&words[lane].to_le_bytes());
        }
    }
    digests
}

#[inline(always)]
fn absorb<I: Isa<N>, const N: usize>(isa: I, state: &mut [I::Word; 25], block: [&[u8; RATE]; N]) {
    for word in 0..RATE / 8 {
        let mut words = [0; N];
        for lane in 0..N {
            let bytes = block[lane][word * 8..].first_chunk().expect("a block is a number of words");
            words[lane] = u64::from_le_bytes(*bytes);
        }
        state[word] = isa.xor(state[word], isa.pack(words));
    }
    permute(isa, state);
}

/// Keccak-f[1600]. The word of column `x` and row `y` is number `x + 5 y`.
#[inline(always)]
fn permute<I: Isa<N>, const N: usize>(isa: I, state: &mut [I::Word; 25]) {
    let mut a = *state;
    for constant in ROUND_CONSTANTS {
        let mut columns = [a[0]; 5];
        for x in 0..5 {
            let upper = isa.xor3(a[x], a[x + 5], a[x + 10]);
            columns[x] = isa.xor3(upper, a[x + 15], a[x + 20]);
        }
        for x in 0..5 {
            let (left, right) = (columns[(x + 4) % 5], isa.rotate(columns[(x + 1) % 5], 1));
            for y in 0..5 {
                a[x + 5 * y] = isa.xor3(a[x + 5 * y], left, right);
            }
        }
        let turned = |from: usize, by: u32| isa.rotate(a[from], by);
        let rows = [
            [a[0], turned(6, 44), turned(12, 43), turned(18, 21), turned(24, 14)],
            [turned(3, 28), turned(9, 20), turned(10, 3), turned(16, 45), turned(22, 61)],
            [turned(1, 1), turned(7, 6), turned(13, 25), turned(19, 8), turned(20, 18)],
            [turned(4, 27), turned(5, 36), turned(11, 10), turned(17, 15), turned(23, 56)],
            [turned(2, 62), turned(8, 55), turned(14, 39), turned(15, 41), turned(21, 2)],
        ];
        for y in 0..5 {
            for x in 0..5 {
                let row = rows[y];
                a[x + 5 * y] = isa.xor_and_not(row[x], row[(x + 1) % 5], row[(x + 2) % 5]);
            }
        }
        a[0] = isa.xor(a[0], isa.pack([constant; N]));
    }
    *state = a;
}
