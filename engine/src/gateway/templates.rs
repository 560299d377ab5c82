//! Chat templates, rendered as the Hugging Face ecosystem renders them, within limits.

mod clock;
mod json;
mod print;
mod python;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, State};
use thiserror::Error;

use super::params::ChatCall;

/// Instructions and 64-byte pieces of data that one rendering may cost: about a second, and some
/// hundred megabytes for a hostile template. A conversation of 1000 messages takes some 100 000.
///
/// One way around it is left: the engine prints the operands of `~`, and compares lists, without
/// paying on the way, and a list may contain another many times. A template comes with its model,
/// which the operator chose; callers cannot bring one.
const FUEL: u64 = 2_000_000;
const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_RECURSION: usize = 200;

/// For models that come without a template: the roles in plain words. Nothing was trained on it,
/// so replies are what a base model makes of it.
const PLAIN: &str = "\
{{- bos_token }}
{%- for message in messages %}
{{- message.role | capitalize }}: {{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}";

/// Why a template gave no prompt.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// The model is at fault: its template does not parse.
    #[error("it does not parse: {detail}")]
    Syntax {
        /// What the parser met, and where.
        detail: String,
    },
    /// The caller is at fault: the template itself refused the conversation.
    #[error("{message}")]
    Raised {
        /// What the template said.
        message: String,
    },
    /// The template, or a conversation of unusual size, took more than a rendering may cost.
    #[error("rendering took more work or memory than it may")]
    Limit,
    /// The template met a value it cannot use, mostly a message of a shape it does not know.
    #[error("it could not be rendered: {detail}")]
    Render {
        /// What happened, and where.
        detail: String,
    },
}

/// The mark that `raise_exception` leaves in an error.
#[derive(Debug, Error)]
#[error("{0}")]
struct Raised(String);

/// A compiled chat template; clones share it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special_tokens: Vec<(String, String)>,
    knows_developer: bool,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are further variables, such as `bos_token`.
    pub fn new<'a>(
        source: &str,
        special_tokens: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::Limit);
        }
        let mut environment = environment()?;
        let knows_developer = source.contains("developer");
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|error| TemplateError::Syntax { detail: describe(&error) })?;
        let own = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
        let special_tokens = special_tokens.into_iter().map(own).collect();
        Ok(Self { environment: Arc::new(environment), special_tokens, knows_developer })
    }

    /// What is used for models without a template: one line per message, `Role: content`, after the
    /// `bos_token` among `special_tokens`, and `Assistant:` at the end.
    pub fn plain<'a>(
        special_tokens: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TemplateError> {
        Self::new(PLAIN, special_tokens)
    }

    pub(super) fn render(&self, call: &ChatCall) -> Result<String, TemplateError> {
        let mut messages = call.messages.clone();
        if !self.knows_developer {
            messages.iter_mut().for_each(developer_to_system);
        }
        let special = self.special_tokens.iter().map(|(name, text)| (name.clone(), text.as_str().into()));
        let extra = call.template_kwargs.iter().map(|(name, value)| (name.clone(), json::to_value(value)));
        let fixed = [
            ("messages", messages.iter().map(json::to_value).collect()),
            ("tools", Value::from(())),
            ("documents", call.documents.as_ref().map_or_else(|| Value::from(()), json::to_value)),
            ("add_generation_prompt", call.add_generation_prompt.into()),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value));
        self.render_with(special.chain(extra).chain(fixed))
    }

    fn render_with(&self, variables: impl Iterator<Item = (String, Value)>) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").map_err(|error| render_error(&error))?;
        template.render(Value::from_pairs(variables)).map_err(|error| render_error(&error))
    }
}

fn developer_to_system(message: &mut serde_json::Value) {
    if message["role"] == "developer" {
        message["role"] = "system".into();
    }
}

fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax { detail: describe(&error) })?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, state, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&print::printed(state, value)?).map_err(Error::from),
    });
    environment.add_filter("string", print::string);
    environment.add_filter("join", print::join);
    environment.add_filter("indent", print::indent);
    for (name, filter) in print::text_filters() {
        environment.add_filter(name, filter);
    }
    // They print any value at any width and no chat template uses them.
    ["format", "pprint", "urlencode"].iter().for_each(|name| environment.remove_filter(name));
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |state: &State, format: &str| {
        // A clock before 1970 is not worth failing a request for.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        state.consume_fuel(format.len() as u64)?;
        Ok::<_, Error>(clock::strftime(format, now.as_secs()))
    });
    Ok(environment)
}

fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => format!("{error} (line {line})"),
        None => error.to_string(),
    }
}

fn render_error(error: &Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Limit,
        _ => TemplateError::Render { detail: describe(error) },
    }
}

/// Replaces `{% generation %}`, which marks what a trainer learns from, by a block that only opens
/// a scope, as the tag itself does when prompts are made.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        result.push_str(before);
        let Some(end) = tag[2..].find("%}").map(|at| at + 4) else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end - 2];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => result.push_str(&tag[..end].replace("generation", "with")),
            "endgeneration" => result.push_str(&tag[..end].replace("endgeneration", "endwith")),
            _ => result.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    result + rest
}

#[cfg(test)]
mod tests;
