//! Values that tests are made of, from a seed that a failure prints.

/// SplitMix64.
pub(crate) struct Rng(pub u64);

/// What values look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flavour {
    /// Between -1 and 1.
    Plain,
    /// Magnitudes from 2^-40 to 2^8, a few exact powers of two.
    Wide,
    /// Signed zeros, subnormals, and a few plain values among them.
    Tiny,
}

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    fn plain(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn value(&mut self, flavour: Flavour) -> f32 {
        match (flavour, self.below(8)) {
            (Flavour::Plain, _) => self.plain(),
            (Flavour::Wide, 0) => 2f32.powi(self.below(48) as i32 - 40),
            (Flavour::Wide, _) => self.plain() * 2f32.powi(self.below(48) as i32 - 40),
            (Flavour::Tiny, 0..2) => 0.0,
            (Flavour::Tiny, 2..4) => -0.0,
            (Flavour::Tiny, 4..6) => f32::from_bits(self.bits() as u32 & 0x807f_ffff),
            (Flavour::Tiny, _) => self.plain(),
        }
    }

    pub(crate) fn values(&mut self, count: usize, flavour: Flavour) -> Vec<f32> {
        (0..count).map(|_| self.value(flavour)).collect()
    }
}
