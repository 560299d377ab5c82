//! Reading PTX.

use thiserror::Error;

/// PTX, read and decoded.
pub struct Module {
    kernels: Vec<String>,
}

/// PTX that the machine cannot run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {reason}: `{text}`")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
    /// The statement.
    pub text: String,
}

impl Module {
    /// Reads a PTX module. Whatever the machine does not know is an error.
    ///
    /// # Errors
    /// [`ParseError`] names the line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let entries = text.split(".entry ").skip(1);
        Ok(Self { kernels: entries.filter_map(|rest| rest.split('(').next().map(str::to_owned)).collect() })
    }

    /// Names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(String::as_str)
    }
}
