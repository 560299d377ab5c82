//! The `messages` of a chat request, brought into the shape that templates expect.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, invalid, unsupported, wrong_type};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Checks each message, joins text parts to one string and opens the arguments of tool calls.
pub(super) fn parse(list: &[Value]) -> Result<Vec<Value>, ApiError> {
    if list.is_empty() {
        return Err(invalid("messages", "at least one message is needed"));
    }
    list.iter().enumerate().map(|(index, value)| message(value, &format!("messages[{index}]"))).collect()
}

fn message(value: &Value, path: &str) -> Result<Value, ApiError> {
    let Some(source) = value.as_object() else { return Err(wrong_type(path, "an object", value)) };
    let role = source.get("role").unwrap_or(&Value::Null);
    let Some(name) = role.as_str() else {
        return Err(wrong_type(format!("{path}.role"), "a string", role));
    };
    if !ROLES.contains(&name) {
        let reason = format!("expected one of {}", ROLES.map(|role| format!("'{role}'")).join(", "));
        return Err(invalid(format!("{path}.role"), reason));
    }
    let calls = Fields(source).value("tool_calls");
    let content = content(source.get("content"), path, name == "assistant" && calls.is_some())?;
    let mut message: Map<String, Value> =
        source.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    message.insert("content".to_owned(), content);
    if let Some(calls) = calls {
        message.insert("tool_calls".to_owned(), tool_calls(calls, path)?);
    }
    Ok(Value::Object(message))
}

fn content(value: Option<&Value>, path: &str, optional: bool) -> Result<Value, ApiError> {
    let path = format!("{path}.content");
    match value {
        Some(Value::String(text)) => Ok(Value::from(text.as_str())),
        Some(Value::Array(parts)) => {
            let texts: Result<Vec<&str>, ApiError> =
                parts.iter().enumerate().map(|(index, part)| text_part(part, &path, index)).collect();
            Ok(Value::from(texts?.join("\n")))
        }
        None | Some(Value::Null) if optional => Ok(Value::Null),
        other => Err(wrong_type(path, "a string or an array of text parts", other.unwrap_or(&Value::Null))),
    }
}

fn text_part<'a>(part: &'a Value, path: &str, index: usize) -> Result<&'a str, ApiError> {
    let path = format!("{path}[{index}]");
    let Some(fields) = part.as_object() else { return Err(wrong_type(path, "an object", part)) };
    match fields.get("type").and_then(Value::as_str) {
        Some("text") => {
            let text = fields.get("text").unwrap_or(&Value::Null);
            text.as_str().ok_or_else(|| wrong_type(format!("{path}.text"), "a string", text))
        }
        _ => Err(unsupported(format!("{path}.type"), "only parts of type 'text' are available")),
    }
}

/// OpenAI carries the arguments of a call as a string of JSON; templates print them as an object.
fn tool_calls(value: &Value, path: &str) -> Result<Value, ApiError> {
    let Some(calls) = value.as_array() else {
        return Err(wrong_type(format!("{path}.tool_calls"), "an array", value));
    };
    let mut calls = calls.clone();
    for call in &mut calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let opened = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        if let Some(opened @ Value::Object(_)) = opened {
            *arguments = opened;
        }
    }
    Ok(Value::Array(calls))
}
