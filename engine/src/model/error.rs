//! What can be wrong with a model on disk, and who has to mend it.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::tokenizer::TokenizerError;

/// A model could not be opened or loaded. Except for [`ModelError::Io`] the files are at fault, not
/// the machine.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// There is no model at the path.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// Path given by the caller.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// The structure of a file is broken.
    #[error("{file}: {reason}")]
    Malformed {
        /// File name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A configuration value is missing or out of its range.
    #[error("{file}: `{field}` {reason}")]
    Field {
        /// File name.
        file: String,
        /// Key of the value.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// The model needs something that this build does not have.
    #[error("{file}: {what} `{given}` is not supported (supported: {supported})")]
    Unsupported {
        /// File name.
        file: String,
        /// What kind of thing it is.
        what: &'static str,
        /// What the file asks for.
        given: String,
        /// What would be accepted.
        supported: String,
    },
    /// A tensor is missing, misplaced or has wrong contents.
    #[error("{file}: tensor `{tensor}` {fault}")]
    Tensor {
        /// File name.
        file: String,
        /// Tensor name as in the file.
        tensor: String,
        /// What is wrong.
        #[source]
        fault: TensorFault,
    },
    /// The tokenizer is missing or does not fit the model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The caller asked for layers that the model does not have.
    #[error("layers {start}..{end} were asked for, but the model has {layers}")]
    Layers {
        /// First layer asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// Layers of the model.
        layers: usize,
    },
}

/// What is wrong with one tensor.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TensorFault {
    /// The model needs it, the files do not have it.
    #[error("is missing")]
    Missing,
    /// Its shape does not follow from the configuration.
    #[error("has shape {actual:?}, but the configuration asks for {expected:?}")]
    Shape {
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },
    /// It is stored in a format that cannot be read.
    #[error("is stored as {dtype}; {advice}")]
    Dtype {
        /// Format in the file.
        dtype: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// Its bytes do not lie in the file, or overlap another tensor's.
    #[error("lies at bytes {start}..{end}, {reason}")]
    Range {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// What is wrong with the range.
        reason: String,
    },
    /// Its shape and element size do not make its byte count.
    #[error("has a shape whose size does not fit its {bytes} bytes")]
    Size {
        /// Bytes given to it.
        bytes: u64,
    },
    /// Its rows are not made of whole blocks of its format.
    #[error("has rows of {columns} values, which are no whole blocks of {block}")]
    Blocks {
        /// Values of a row.
        columns: usize,
        /// Values of a block.
        block: usize,
    },
    /// A weight or scale is NaN or infinite.
    #[error("has a value that is not finite at row {row}, column {column}")]
    NonFinite {
        /// Row of the value.
        row: usize,
        /// Column of the value, or the first its scale applies to.
        column: usize,
    },
    /// A Q8_0 weight is -128.
    #[error("has the value -128 at row {row}, column {column}, which `exact/1` does not admit")]
    OutOfRange {
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
    },
}

impl ModelError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }

    pub(crate) fn malformed(file: &str, reason: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), reason: reason.into() }
    }

    pub(crate) fn field(file: &str, field: &str, reason: impl Into<String>) -> Self {
        Self::Field { file: file.to_owned(), field: field.to_owned(), reason: reason.into() }
    }

    pub(crate) fn tensor(file: &str, tensor: &str, fault: TensorFault) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), fault }
    }

    pub(crate) fn unsupported(
        file: &str,
        what: &'static str,
        given: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported { file: file.to_owned(), what, given: given.into(), supported: supported.into() }
    }
}
