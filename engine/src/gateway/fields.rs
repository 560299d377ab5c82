//! Typed access to the fields of a JSON request; errors name the parameter.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, type_name};

/// The fields of a request body. `null` stands for absent, as in OpenAI's own API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn value(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn required(self, name: &'static str) -> Result<&'a Value, ApiError> {
        self.value(name).ok_or(ApiError::MissingParameter { param: name })
    }

    fn typed<T>(
        self,
        name: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| wrong_type(name, expected, value))
    }

    pub(super) fn boolean(self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    pub(super) fn string(self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn array(self, name: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(name, "an array", Value::as_array)
    }

    pub(super) fn object(self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.typed(name, "an object", Value::as_object)
    }

    pub(super) fn number(self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.typed(name, "a number", Value::as_f64)? else { return Ok(None) };
        if !range.contains(&value) {
            return Err(out_of_range(name, value, range.start(), range.end()));
        }
        Ok(Some(value as f32))
    }

    pub(super) fn integer(self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.typed(name, "an integer", whole)? else { return Ok(None) };
        if !range.contains(&value) {
            return Err(out_of_range(name, value, range.start(), range.end()));
        }
        Ok(Some(value))
    }
}

/// The integer a JSON number stands for; clients in languages without integers send `5.0`.
pub(super) fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let saturated = || value.as_u64().map(|_| i64::MAX);
    let from_float = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT).map(|x| x as i64);
    value.as_i64().or_else(saturated).or_else(from_float)
}

pub(super) fn wrong_type(param: impl Into<String>, expected: &'static str, found: &Value) -> ApiError {
    ApiError::InvalidType { param: param.into(), expected, found: type_name(found) }
}

pub(super) fn invalid(param: impl Into<String>, reason: impl Into<String>) -> ApiError {
    ApiError::InvalidValue { param: param.into(), reason: reason.into() }
}

pub(super) fn unsupported(param: impl Into<String>, reason: impl Into<String>) -> ApiError {
    ApiError::UnsupportedValue { param: param.into(), reason: reason.into() }
}

fn out_of_range<T: std::fmt::Display>(name: &str, value: T, low: &T, high: &T) -> ApiError {
    invalid(name, format!("expected a value between {low} and {high}, but got {value}"))
}
