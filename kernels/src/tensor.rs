//! Stored weights in their canonical layout: what is hashed, cached and handed to a backend.

pub(crate) mod kquants;

use std::{fmt, str::FromStr};

use thiserror::Error;

use self::kquants::{Q4K, Q4K_BYTES, Q6K, Q6K_BYTES};
use crate::round::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};

/// Values that share one scale along K.
pub const GROUP: usize = 32;
/// Values whose products form one fma chain (eight groups), or one super-block.
pub const SEGMENT: usize = 256;
/// Bytes of a `q8` group: its scale and 32 values.
pub(crate) const Q8_BYTES: usize = 2 + GROUP;
/// Bytes of a `q4` group: its scale and 16 pairs of values.
pub(crate) const Q4_BYTES: usize = 2 + GROUP / 2;

/// How a weight matrix is stored along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Groups of 32: one little-endian f16 scale, then 32 int8 in [-127, 127] (34 bytes).
    Q8,
    /// Groups of 32: one little-endian f16 scale, then 16 bytes; byte `i` holds value `i` in its low
    /// and value `i + 16` in its high nibble (18 bytes).
    Q4,
    /// Little-endian bfloat16.
    Bf16,
    /// Little-endian binary32.
    F32,
    /// Super-blocks of 256, byte for byte GGUF's Q4_K: f16 scale and f16 scale of the minima, a 6-bit
    /// scale and a 6-bit minimum for each 32 values, 4-bit values (144 bytes).
    Q4K,
    /// Super-blocks of 256, byte for byte GGUF's Q6_K: 6-bit values, an int8 scale for each 16 of them, an
    /// f16 scale (210 bytes).
    Q6K,
}

impl Format {
    /// Every format, in the order of the enumeration.
    pub const ALL: [Self; 6] = [Self::Q8, Self::Q4, Self::Bf16, Self::F32, Self::Q4K, Self::Q6K];

    /// Bytes of one row of `columns` values, K padded to whole groups where the format is grouped.
    pub const fn row_bytes(self, columns: usize) -> usize {
        match self {
            Format::Q8 => columns.div_ceil(GROUP) * Q8_BYTES,
            Format::Q4 => columns.div_ceil(GROUP) * Q4_BYTES,
            Format::Bf16 => columns * 2,
            Format::F32 => columns * 4,
            Format::Q4K => columns.div_ceil(SEGMENT) * Q4K_BYTES,
            Format::Q6K => columns.div_ceil(SEGMENT) * Q6K_BYTES,
        }
    }

    /// Whether rows are made of super-blocks of 256, before which activations have one scale for 256 values.
    pub const fn is_wide(self) -> bool {
        matches!(self, Format::Q4K | Format::Q6K)
    }

    /// Whether a row can have `columns` values: super-blocks are never padded.
    pub const fn fits(self, columns: usize) -> bool {
        !self.is_wide() || columns.is_multiple_of(SEGMENT)
    }

    /// Whether activations stay unquantised before such weights.
    pub const fn is_float(self) -> bool {
        matches!(self, Format::Bf16 | Format::F32)
    }

    /// The name used in manifests and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Q8 => "q8",
            Format::Q4 => "q4",
            Format::Bf16 => "bf16",
            Format::F32 => "f32",
            Format::Q4K => "q4_k",
            Format::Q6K => "q6_k",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no weight format.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a weight format (q8, q4, bf16, f32, q4_k, q6_k)")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// What is wrong with bytes or values offered as a weight matrix.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TensorError {
    /// A dimension is zero, or the size does not fit the address space.
    #[error("{rows} x {columns} is no shape of a matrix")]
    Shape {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// Rows of a format that has super-blocks do not consist of whole ones.
    #[error("{columns} columns are no whole number of {format} super-blocks of {SEGMENT}")]
    Blocks {
        /// The format.
        format: Format,
        /// Columns of the matrix.
        columns: usize,
    },
    /// The byte count (or value count, when quantising) does not follow from the shape.
    #[error("{rows} x {columns} takes {expected} bytes or values, but {actual} were given")]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Count the shape asks for.
        expected: usize,
        /// Count given.
        actual: usize,
    },
    /// A scale or value is NaN or infinite, or so large that its scale would be.
    #[error("row {row}, column {column}: a value or scale is not finite")]
    NonFinite {
        /// Row of the value.
        row: usize,
        /// First column the value or scale applies to.
        column: usize,
    },
    /// A `q8` weight is -128, which `exact/1` does not admit.
    #[error("row {row}, column {column}: -128 is not a q8 value")]
    OutOfRange {
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
    },
}

/// A weight matrix `W[rows][columns]` in canonical bytes, row after row. Valid by construction:
/// neither dimension is zero, every scale and value is finite and no `q8` value is -128.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightMatrix {
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

impl WeightMatrix {
    /// Takes canonical bytes as they are (a GGUF Q8_0, Q4_0, Q4_K or Q6_K tensor is already canonical).
    pub fn from_bytes(
        format: Format,
        rows: usize,
        columns: usize,
        bytes: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let expected = byte_count(format, rows, columns)?;
        if bytes.len() != expected {
            return Err(TensorError::Length { rows, columns, expected, actual: bytes.len() });
        }
        for (row, bytes) in bytes.chunks_exact(format.row_bytes(columns)).enumerate() {
            check_row(format, row, bytes)?;
        }
        Ok(Self { format, rows, columns, bytes })
    }

    /// Quantises (or rounds) f32 values, row-major `[rows][columns]`.
    pub fn quantise(
        format: Format,
        rows: usize,
        columns: usize,
        values: &[f32],
    ) -> Result<Self, TensorError> {
        let capacity = byte_count(format, rows, columns)?;
        let expected = rows.checked_mul(columns).ok_or(TensorError::Shape { rows, columns })?;
        if values.len() != expected {
            return Err(TensorError::Length { rows, columns, expected, actual: values.len() });
        }
        let mut bytes = Vec::with_capacity(capacity);
        for (row, values) in values.chunks_exact(columns).enumerate() {
            if let Some(column) = values.iter().position(|value| !value.is_finite()) {
                return Err(TensorError::NonFinite { row, column });
            }
            encode_row(format, values, &mut bytes)
                .map_err(|column| TensorError::NonFinite { row, column })?;
        }
        Ok(Self { format, rows, columns, bytes })
    }

    /// Decodes row `row` into `out` (`columns` values).
    ///
    /// # Panics
    /// If `row` or the length of `out` does not fit the shape.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "the output holds one row");
        let bytes = self.row(row);
        match self.format {
            Format::Q8 => {
                for (group, out) in bytes.chunks_exact(Q8_BYTES).zip(out.chunks_mut(GROUP)) {
                    let scale = scale_of(group);
                    for (out, &q) in out.iter_mut().zip(&group[2..]) {
                        *out = f32::from(q as i8) * scale;
                    }
                }
            }
            Format::Q4 => {
                for (group, out) in bytes.chunks_exact(Q4_BYTES).zip(out.chunks_mut(GROUP)) {
                    let scale = scale_of(group);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f32::from(q4_value(&group[2..], i)) * scale;
                    }
                }
            }
            Format::Bf16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = f32_from_bf16(u16::from_le_bytes([bytes[0], bytes[1]]));
                }
            }
            Format::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Format::Q4K => {
                for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                    Q4K(block).decode(out);
                }
            }
            Format::Q6K => {
                for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                    Q6K(block).decode(out);
                }
            }
        }
    }

    /// Storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs, K).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The canonical bytes of row `row`.
    pub fn row(&self, row: usize) -> &[u8] {
        let size = self.format.row_bytes(self.columns);
        &self.bytes[row * size..][..size]
    }
}

/// The scale at the head of a `q8` or `q4` group.
pub(crate) fn scale_of(group: &[u8]) -> f32 {
    f32_from_f16(u16::from_le_bytes([group[0], group[1]]))
}

/// Value `i` of a `q4` group, given its 16 bytes of nibbles.
pub(crate) fn q4_value(nibbles: &[u8], i: usize) -> i8 {
    let byte = nibbles[i % (GROUP / 2)];
    (if i < GROUP / 2 { byte & 15 } else { byte >> 4 }) as i8 - 8
}

/// Bytes of the matrix, or why there is no such matrix. Bounded by `isize::MAX` less a margin, so that
/// a backend's padding cannot overflow either.
fn byte_count(format: Format, rows: usize, columns: usize) -> Result<usize, TensorError> {
    let shape = TensorError::Shape { rows, columns };
    if rows == 0 || columns == 0 || columns > isize::MAX as usize / 64 {
        return Err(shape);
    }
    if !format.fits(columns) {
        return Err(TensorError::Blocks { format, columns });
    }
    match rows.checked_mul(format.row_bytes(columns)) {
        Some(count) if count <= isize::MAX as usize / 64 => Ok(count),
        _ => Err(shape),
    }
}

/// Refuses scales and values that the arithmetic does not admit.
fn check_row(format: Format, row: usize, bytes: &[u8]) -> Result<(), TensorError> {
    let non_finite = |column| Err(TensorError::NonFinite { row, column });
    match format {
        Format::Q8 | Format::Q4 => {
            let size = if format == Format::Q8 { Q8_BYTES } else { Q4_BYTES };
            for (index, group) in bytes.chunks_exact(size).enumerate() {
                if !scale_of(group).is_finite() {
                    return non_finite(index * GROUP);
                }
                if format == Format::Q8
                    && let Some(i) = group[2..].iter().position(|&q| q == 0x80)
                {
                    return Err(TensorError::OutOfRange { row, column: index * GROUP + i });
                }
            }
        }
        Format::Bf16 => {
            // The exponent sits in the upper byte and the top bit of the lower.
            let bad = |b: &[u8]| b[1] & 0x7f == 0x7f && b[0] & 0x80 != 0;
            if let Some(column) = bytes.chunks_exact(2).position(bad) {
                return non_finite(column);
            }
        }
        Format::F32 => {
            let bad = |b: &[u8]| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite();
            if let Some(column) = bytes.chunks_exact(4).position(bad) {
                return non_finite(column);
            }
        }
        Format::Q4K => {
            if let Some(t) = bytes.as_chunks().0.iter().position(|block| !Q4K(block).is_finite()) {
                return non_finite(t * SEGMENT);
            }
        }
        Format::Q6K => {
            if let Some(t) = bytes.as_chunks().0.iter().position(|block| !Q6K(block).is_finite()) {
                return non_finite(t * SEGMENT);
            }
        }
    }
    Ok(())
}

/// Appends one row of finite values in `format`; the error is the column of a value or group that the
/// format cannot hold.
fn encode_row(format: Format, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    match format {
        Format::Q8 | Format::Q4 => {
            for (index, chunk) in values.chunks(GROUP).enumerate() {
                let mut group = [0.0; GROUP];
                group[..chunk.len()].copy_from_slice(chunk);
                let encode = if format == Format::Q8 { encode_q8 } else { encode_q4 };
                encode(&group, bytes).ok_or(index * GROUP)?;
            }
        }
        Format::Bf16 => {
            for (column, &value) in values.iter().enumerate() {
                let bits = bf16_from_f32(value);
                if bits & 0x7fff >= 0x7f80 {
                    return Err(column);
                }
                bytes.extend_from_slice(&bits.to_le_bytes());
            }
        }
        Format::F32 => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
        Format::Q4K => {
            for (t, values) in values.as_chunks().0.iter().enumerate() {
                bytes.extend(kquants::encode_q4k(values).ok_or(t * SEGMENT)?);
            }
        }
        Format::Q6K => {
            for (t, values) in values.as_chunks().0.iter().enumerate() {
                bytes.extend(kquants::encode_q6k(values).ok_or(t * SEGMENT)?);
            }
        }
    }
    Ok(())
}

/// `None` if the scale leaves f16.
fn encode_q8(values: &[f32; GROUP], bytes: &mut Vec<u8>) -> Option<()> {
    let amax = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let bits = f16_from_f32(amax / 127.0);
    let scale = f32_from_f16(bits);
    if !scale.is_finite() {
        return None;
    }
    bytes.extend_from_slice(&bits.to_le_bytes());
    bytes.extend(values.map(|value| {
        let q = if scale == 0.0 { 0.0 } else { (value / scale).round_ties_even() };
        q.clamp(-127.0, 127.0) as i8 as u8
    }));
    Some(())
}

/// `None` if the scale leaves f16.
fn encode_q4(values: &[f32; GROUP], bytes: &mut Vec<u8>) -> Option<()> {
    let mut largest = values[0];
    for &value in values {
        if value.abs() > largest.abs() {
            largest = value;
        }
    }
    let d = largest / -8.0;
    let bits = f16_from_f32(d);
    let scale = f32_from_f16(bits);
    if !scale.is_finite() {
        return None;
    }
    bytes.extend_from_slice(&bits.to_le_bytes());
    let inverse = 1.0 / d;
    let nibble =
        |value: f32| -> u8 { if scale == 0.0 { 8 } else { (value * inverse + 8.5).clamp(0.0, 15.0) as u8 } };
    bytes.extend((0..GROUP / 2).map(|i| nibble(values[i]) | nibble(values[i + GROUP / 2]) << 4));
    Some(())
}

#[cfg(test)]
mod tests;
