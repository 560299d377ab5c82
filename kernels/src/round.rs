//! Conversions between binary32 and the 16-bit formats, on integers alone, so that no device's
//! conversion instruction (some flush subnormals) can change a bit.

/// Nearest bf16, ties to even, as bits. `x` is finite or infinite: a NaN may come out as anything,
/// and every caller reports it as a fault before.
#[inline(always)]
pub fn bf16_from_f32(x: f32) -> u16 {
    let u = x.to_bits();
    (u.wrapping_add(0x7fff + ((u >> 16) & 1)) >> 16) as u16
}

/// The value of bf16 bits.
#[inline(always)]
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Nearest f16, ties to even, subnormals kept, as bits. A NaN gives the quiet NaN of its sign.
#[inline(always)]
pub fn f16_from_f32(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let u = x.to_bits() & 0x7fff_ffff;
    let magnitude = if u > 0x7f80_0000 {
        0x7e00
    } else if u >= 0x477f_f000 {
        // 65520 is the midpoint between the largest f16 and 65536, and goes to even: infinity.
        0x7c00
    } else if u >= 0x3880_0000 {
        // Normal: move the exponent from bias 127 to 15; a carry out of the mantissa is right.
        let rebased = u - (112 << 23);
        (rebased + 0x0fff + ((rebased >> 13) & 1)) >> 13
    } else {
        // Below 2^-14 the unit is 2^-24; adding 0.5, whose unit is 2^-24 too, rounds in hardware.
        (f32::from_bits(u) + 0.5).to_bits() - 0x3f00_0000
    };
    sign | magnitude as u16
}

/// The value of f16 bits.
#[inline(always)]
pub fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let u = u32::from(bits & 0x7fff) << 13;
    let magnitude = if u >= 0x7c00 << 13 {
        u + (224 << 23)
    } else if u >= 0x0400 << 13 {
        u + (112 << 23)
    } else {
        // A multiple of 2^-24, exact in binary32.
        (f32::from(bits & 0x7fff) * f32::from_bits(0x3380_0000)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let value = f32_from_f16(bits);
            assert_eq!(value.to_bits(), half::f16::from_bits(bits).to_f32().to_bits() & quiet(value));
            if !value.is_nan() {
                assert_eq!(f16_from_f32(value), bits);
            }
            let value = f32_from_bf16(bits);
            if !value.is_nan() {
                assert_eq!(bf16_from_f32(value), bits);
            }
        }
    }

    /// `half` sets the quiet bit of a signalling NaN; the value is NaN either way.
    fn quiet(value: f32) -> u32 {
        if value.is_nan() { value.to_bits() } else { u32::MAX }
    }

    #[test]
    fn midpoints_go_to_even() {
        assert_eq!(f16_from_f32(65519.996), 0x7bff);
        assert_eq!(f16_from_f32(65520.0), 0x7c00);
        assert_eq!(f16_from_f32(f32::from_bits(0x3300_0000)), 0x0000);
        assert_eq!(f16_from_f32(f32::from_bits(0x3300_0001)), 0x0001);
        assert_eq!(f16_from_f32(-f32::from_bits(0x33c0_0000)), 0x8002);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bf16_from_f32(f32::from_bits(0x7f7f_8000)), 0x7f80);
    }
}
