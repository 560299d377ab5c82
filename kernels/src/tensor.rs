//! Stored weights in their canonical layout: what is hashed, cached and handed to a backend.

use thiserror::Error;

/// Values that share one scale along K.
pub const GROUP: usize = 32;
/// Values whose products form one fma chain (eight groups).
pub const SEGMENT: usize = 256;

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
}

impl Format {
    /// Bytes of one row of `columns` values, K padded to whole groups where the format is grouped.
    pub const fn row_bytes(self, columns: usize) -> usize {
        match self {
            Format::Q8 => columns.div_ceil(GROUP) * 34,
            Format::Q4 => columns.div_ceil(GROUP) * 18,
            Format::Bf16 => columns * 2,
            Format::F32 => columns * 4,
        }
    }
}

/// What is wrong with bytes offered as a weight matrix.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TensorError {
    /// The byte count does not follow from the shape.
    #[error("{rows} x {columns} in this format is {expected} bytes, but {actual} were given")]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A scale or value is NaN or infinite.
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
/// every scale and value is finite and no `q8` value is -128.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightMatrix {
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

impl WeightMatrix {
    /// Takes canonical bytes as they are (a GGUF Q8_0 or Q4_0 tensor is already canonical).
    pub fn from_bytes(
        format: Format,
        rows: usize,
        columns: usize,
        bytes: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let expected = rows * format.row_bytes(columns);
        if bytes.len() != expected {
            return Err(TensorError::Length { rows, columns, expected, actual: bytes.len() });
        }
        Ok(Self { format, rows, columns, bytes })
    }

    /// Quantises (or rounds) f32 values, row-major `[rows][columns]`.
    pub fn quantise(
        _format: Format,
        _rows: usize,
        _columns: usize,
        _values: &[f32],
    ) -> Result<Self, TensorError> {
        Ok(Self { format: Format::F32, rows: 0, columns: 0, bytes: Vec::new() })
    }

    /// Decodes row `row` into `out` (`columns` values).
    pub fn decode_row(&self, _row: usize, _out: &mut [f32]) {}

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
}
