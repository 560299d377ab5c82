//! Activation rows as they travel between stages.

use kernels::backend::Profile;

use super::{MessageError, check::ensure};

/// Bytes of one activation row as it travels.
pub fn row_bytes(hidden: usize, profile: Profile) -> usize {
    match profile {
        Profile::Quantised => hidden * 2,
        Profile::F32 => hidden * 4,
    }
}

/// Activation rows as they travel: bf16 under `Quantised` (exact, since a layer's output is bf16), f32
/// under `F32`; little-endian.
pub fn encode_rows(values: &[f32], profile: Profile) -> Vec<u8> {
    match profile {
        Profile::Quantised => {
            values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        Profile::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The inverse of [`encode_rows`]; `out` is replaced. A partial value at the end is an error.
pub fn decode_rows(bytes: &[u8], profile: Profile, out: &mut Vec<f32>) -> Result<(), MessageError> {
    out.clear();
    match profile {
        Profile::Quantised => {
            let (pairs, rest) = bytes.as_chunks::<2>();
            ensure(rest.is_empty(), "half a value")?;
            out.extend(pairs.iter().map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)));
        }
        Profile::F32 => {
            let (words, rest) = bytes.as_chunks::<4>();
            ensure(rest.is_empty(), "part of a value")?;
            out.extend(words.iter().map(|&b| f32::from_le_bytes(b)));
        }
    }
    Ok(())
}
