//! Values as text, paid for while they are written: lists share their items, so that a small value
//! may print endlessly, and the engine itself charges only for the text it gets.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Error, ErrorKind, State, filters};

use super::python::produced_bytes;

const BYTES_PER_FUEL: usize = 64;

/// Takes text for as long as there is fuel.
struct Paid<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    text: String,
}

impl Write for Paid<'_, '_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.state.consume_fuel(1 + (text.len() / BYTES_PER_FUEL) as u64).map_err(|_| fmt::Error)?;
        self.text.push_str(text);
        Ok(())
    }
}

pub(super) fn printed(state: &State, value: &Value) -> Result<String, Error> {
    let mut paid = Paid { state, text: String::new() };
    write!(paid, "{value}").map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    Ok(paid.text)
}

pub(super) fn string(state: &State, value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(_) => Ok(value),
        None => printed(state, &value).map(Value::from),
    }
}

/// `list | join(separator, attribute=...)`.
pub(super) fn join(
    state: &State,
    values: Value,
    separator: Option<String>,
    options: Kwargs,
) -> Result<String, Error> {
    let attribute = options.get::<Option<String>>("attribute")?;
    let separator = match separator {
        Some(separator) => separator,
        None => options.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    options.assert_all_used()?;
    let mut paid = Paid { state, text: String::new() };
    for (index, value) in values.try_iter()?.enumerate() {
        let value = match &attribute {
            Some(attribute) => value.get_attr(attribute)?,
            None => value,
        };
        let written = if index > 0 { paid.write_str(&separator) } else { Ok(()) };
        written.and_then(|()| write!(paid, "{value}")).map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    }
    Ok(paid.text)
}

type TextFilter = Box<dyn Fn(&mut State, Rest<Value>) -> Result<Value, Error> + Send + Sync>;

/// `text | indent(width, first, blank=...)`; the width may be a string.
pub(super) fn indent(
    state: &State,
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| options.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| options.get::<Option<bool>>("first"), |first| Ok(Some(first)))?;
    let blank = options.get::<Option<bool>>("blank")?;
    options.assert_all_used()?;
    let (first, blank) = (first.unwrap_or(false), blank.unwrap_or(false));
    let indentation = indentation(&width.unwrap_or_else(|| Value::from(4)))?;
    let mut paid = Paid { state, text: String::new() };
    for (index, line) in text.split('\n').enumerate() {
        let begun = if index > 0 { paid.write_str("\n") } else { Ok(()) };
        let indented = if index > 0 { blank || !line.is_empty() } else { first };
        let indented = begun.and_then(|()| paid.write_str(if indented { &indentation } else { "" }));
        indented.and_then(|()| paid.write_str(line)).map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    }
    Ok(paid.text)
}

/// Spaces of a number, or the text itself, up to 64 bytes.
pub(super) fn indentation(value: &Value) -> Result<String, Error> {
    const WIDEST: usize = 64;
    match (value.as_str(), value.as_usize()) {
        (Some(text), _) if text.len() <= WIDEST => Ok(text.to_owned()),
        (None, Some(width)) if width <= WIDEST => Ok(" ".repeat(width)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "indent must be a small number or a short string")),
    }
}

/// The engine's filters on text. They would print a list, so lists are refused.
pub(super) fn text_filters() -> [(&'static str, TextFilter); 6] {
    let guarded = |name: &'static str, filter: Value| -> (&'static str, TextFilter) {
        let call = move |state: &mut State, args: Rest<Value>| {
            if args.iter().any(|arg| arg.as_object().is_some() && !arg.is_kwargs()) {
                let detail = format!("the filter {name} expects text");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
            let read: usize = args.iter().filter_map(Value::as_str).map(str::len).sum();
            let made = match args.split_first() {
                Some((text, rest)) => produced_bytes(text.as_str().unwrap_or_default(), name, rest)?,
                None => 0,
            };
            state.consume_fuel((read.saturating_add(made) / BYTES_PER_FUEL) as u64)?;
            filter.call(state, &args)
        };
        (name, Box::new(call))
    };
    [
        guarded("upper", Value::from_function(filters::upper)),
        guarded("lower", Value::from_function(filters::lower)),
        guarded("title", Value::from_function(filters::title)),
        guarded("capitalize", Value::from_function(filters::capitalize)),
        guarded("trim", Value::from_function(filters::trim)),
        guarded("replace", Value::from_function(filters::replace)),
    ]
}
