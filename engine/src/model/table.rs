//! Where the tensors of a model lie: names, formats, shapes and byte ranges over one or more files.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use kernels::tensor::{Format, GROUP, SEGMENT};

use super::error::{ModelError, TensorFault};

/// Element format of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names that GGUF gives its formats")]
pub enum Dtype {
    /// binary32.
    F32,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// GGUF: groups of 32 int8 with an f16 scale.
    Q8_0,
    /// GGUF: groups of 32 4-bit values with an f16 scale.
    Q4_0,
    /// GGUF: super-blocks of 256 4-bit values, scales and minima of 6 bits.
    Q4_K,
    /// GGUF: super-blocks of 256 6-bit values, scales of 8 bits.
    Q6_K,
    /// A format that is listed but cannot be read; the name is for the error message.
    Other(&'static str),
}

impl Dtype {
    /// Bytes of a row of `columns` values; `None` for a format that cannot be read, for a grouped
    /// format with a broken last group, and on overflow.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let grouped = |group: usize, bytes: usize| {
            columns.is_multiple_of(group).then(|| (columns / group).checked_mul(bytes)).flatten()
        };
        match self {
            Dtype::F32 => columns.checked_mul(4),
            Dtype::F16 | Dtype::Bf16 => columns.checked_mul(2),
            Dtype::Q8_0 => grouped(GROUP, 34),
            Dtype::Q4_0 => grouped(GROUP, 18),
            Dtype::Q4_K => grouped(SEGMENT, 144),
            Dtype::Q6_K => grouped(SEGMENT, 210),
            Dtype::Other(_) => None,
        }
    }

    /// Whether its bytes are already canonical in `format`.
    pub(crate) fn is_canonical(self, format: Format) -> bool {
        matches!(
            (self, format),
            (Dtype::Q8_0, Format::Q8)
                | (Dtype::Q4_0, Format::Q4)
                | (Dtype::Q4_K, Format::Q4K)
                | (Dtype::Q6_K, Format::Q6K)
                | (Dtype::F32, Format::F32)
        )
    }

    /// The format that a matrix stored like this keeps whatever it is to be quantised to: what was rounded
    /// to few bits once gains nothing by being rounded again.
    pub(crate) fn kept(self) -> Option<Format> {
        match self {
            Dtype::Q4_0 => Some(Format::Q4),
            Dtype::Q4_K => Some(Format::Q4K),
            Dtype::Q6_K => Some(Format::Q6K),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Other(_) => None,
        }
    }

    /// Values that share a block, which rows are made of.
    pub(crate) fn block(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Other(_) => 1,
            Dtype::Q8_0 | Dtype::Q4_0 => GROUP,
            Dtype::Q4_K | Dtype::Q6_K => SEGMENT,
        }
    }

    /// The format that [`fmt::Display`] spells `name`.
    pub(crate) fn named(name: &str) -> Self {
        let known = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K, Dtype::Q6_K];
        known
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
            .unwrap_or(Dtype::Other("another element type"))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_K => "Q4_K",
            Dtype::Q6_K => "Q6_K",
            Dtype::Other(name) => name,
        })
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Index into the files of the table.
    pub file: usize,
    /// Element format.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Bytes that tensors lie in.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// A file.
    File(PathBuf),
    /// Part of the program.
    Embedded(&'static [u8]),
}

impl Storage {
    /// Name for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Storage::File(path) => {
                path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
            Storage::Embedded(_) => "embedded model".to_owned(),
        }
    }
}

/// All tensors of a model.
#[derive(Clone, Debug, Default)]
pub struct TensorTable {
    /// What the tensors' `file` counts through.
    pub(crate) files: Vec<Storage>,
    /// By name.
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    /// Tensors that the model has, but in bytes that are not here.
    pub(crate) absent: BTreeMap<String, Absent>,
}

/// A tensor of the model that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    /// Where it is.
    pub(crate) file: String,
    /// Format and shape, where they are known.
    pub(crate) stored: Option<(Dtype, Vec<usize>)>,
}

impl TensorTable {
    /// The tensor `name` if it is there with `shape` and a readable format.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] naming the tensor and its file.
    pub(crate) fn checked(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, ModelError> {
        let fail = |file: &str, fault| Err(ModelError::tensor(file, name, fault));
        let Some(info) = self.tensors.get(name) else {
            let first = || self.files.first().map(Storage::name).unwrap_or_default();
            let file = self.absent.get(name).map(|absent| absent.file.clone()).unwrap_or_else(first);
            return fail(&file, TensorFault::Missing);
        };
        let file = self.files[info.file].name();
        if info.shape != shape {
            let fault = TensorFault::Shape { expected: shape.to_vec(), actual: info.shape.clone() };
            return fail(&file, fault);
        }
        if let Dtype::Other(dtype) = info.dtype {
            let advice = "convert the model to F32, F16 or BF16 safetensors, or to a GGUF in Q4_K_M, Q6_K, Q4_0 \
                          or Q8_0";
            return fail(&file, TensorFault::Dtype { dtype: dtype.to_owned(), advice });
        }
        Ok(info)
    }
}
