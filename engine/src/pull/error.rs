//! Why a pull ended early, and whose fault it is.

use std::{io, path::PathBuf, time::Duration};

use reqwest::StatusCode;
use thiserror::Error;

use crate::model::ModelError;

/// A pull failed.
#[derive(Debug, Error)]
pub enum PullError {
    /// The caller's reference is none.
    #[error("`{given}` is not a repository (owner/name or owner/name@revision)")]
    Reference {
        /// What was given.
        given: String,
    },
    /// The caller's directory is missing.
    #[error("there is no cache directory to put the model in: say where with --to")]
    NoDirectory,
    /// The caller's file is not in the repository.
    #[error("the repository has no GGUF file `{file}`")]
    NoFile {
        /// What was given.
        file: String,
    },
    /// The caller has to choose.
    #[error("the repository has several GGUF files, choose one with --file: {}", files.join(", "))]
    SeveralFiles {
        /// The first of them.
        files: Vec<String>,
    },
    /// The repository has no weights that can be read.
    #[error("the repository has neither model.safetensors nor a GGUF file")]
    NoWeights,
    /// Layers of a GGUF file were asked for.
    #[error("single layers can be fetched from safetensors only")]
    PartialGguf,
    /// The hub does not know the repository, revision or file.
    #[error("{what} was not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The hub does not let this token have it.
    #[error("{what} needs access: set HF_TOKEN to a token that has it ({status})")]
    Denied {
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: StatusCode,
    },
    /// The hub asks for patience.
    #[error("the hub allows no more requests for now")]
    RateLimited {
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The hub failed.
    #[error("the hub answered {status} to the request for {what}")]
    Status {
        /// What was asked for.
        what: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The hub's answer makes no sense.
    #[error("{what}: {reason}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The network failed.
    #[error("the connection for {what} broke: {reason}")]
    Network {
        /// What was asked for.
        what: String,
        /// What the client said.
        reason: String,
    },
    /// What came is not what the hub announced.
    #[error("{file} has SHA-256 {actual}, but the hub states {expected}; what was fetched is deleted")]
    Hash {
        /// File name.
        file: String,
        /// Stated by the hub.
        expected: String,
        /// Of the bytes that came.
        actual: String,
    },
    /// The disk is full. What was fetched stays.
    #[error("{}: the disk is full; make room and pull again", path.display())]
    DiskFull {
        /// File being written.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("{}: {error}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The files make no model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl PullError {
    pub(super) fn disk(path: &std::path::Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Disk { path, error },
        }
    }

    pub(super) fn network(what: &str, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            reason = format!("{reason}: {error}");
            source = error.source();
        }
        Self::Network { what: what.to_owned(), reason }
    }

    pub(super) fn protocol(what: &str, reason: impl Into<String>) -> Self {
        Self::Protocol { what: what.to_owned(), reason: reason.into() }
    }

    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Network { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT,
            _ => false,
        }
    }
}
