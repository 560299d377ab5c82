//! Methods of Python's strings, lists and dicts, with their work charged to the template.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

const BYTES_PER_FUEL: usize = 64;
/// Longest run of digits in a format string: a width of a million characters has seven.
const MAX_FORMAT_DIGITS: usize = 4;

/// The engine charges for what a method returns; what it reads, and what it allocates before it
/// returns, is charged here.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len().saturating_add(produced_bytes(text, name, args)?))?,
        // Maps hand out lazy views; a list is searched item by item.
        None if value.kind() == ValueKind::Seq => {
            charge(state, value.len().unwrap_or(0).saturating_mul(BYTES_PER_FUEL))?;
        }
        None => {}
    }
    unknown_method_callback(state, value, name, args)
}

fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// Bytes that a method may allocate beyond what it reads.
pub(super) fn produced_bytes(text: &str, name: &str, args: &[Value]) -> Result<usize, Error> {
    match (name, args) {
        ("replace", [old, new, ..]) => {
            let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
            Ok(text.matches(old).count().saturating_mul(new.len()))
        }
        ("join", [values, ..]) => {
            let mut bytes = 0_usize;
            for value in values.try_iter()? {
                let Some(item) = value.as_str() else {
                    return Err(Error::new(ErrorKind::InvalidOperation, "join expects strings"));
                };
                bytes = bytes.saturating_add(item.len()).saturating_add(text.len());
            }
            Ok(bytes)
        }
        ("format", args) => {
            let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            if digits > MAX_FORMAT_DIGITS {
                return Err(Error::new(ErrorKind::InvalidOperation, "the format is too wide"));
            }
            let fields = text.matches('{').count();
            let longest = args.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0);
            Ok(fields.saturating_mul(longest.max(10_usize.pow(MAX_FORMAT_DIGITS as u32))))
        }
        _ => Ok(0),
    }
}
