//! A chat as the text that the model was trained on, by the chat template in its GGUF file or the one that replaces it.
//!
//! Templates are Jinja as `transformers` runs it: Python's string methods, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps` writes.
//! They come from strangers, with the model: how much one may compute is bounded.

mod python_json;

use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use stowage_placement::Reason;

use crate::api::{ChatMessage, EngineError};

/// Instructions that one rendering may take: a long conversation takes some tens of thousands.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat template";

/// A compiled chat template.
pub struct ChatTemplate {
    kind: Kind,
    bos: String,
    eos: String,
}

enum Kind {
    Jinja(Box<Environment<'static>>),
    /// The model has none: see [`ChatTemplate::render`].
    None,
    /// The file's own can't be used. Whoever renders no chat is not disturbed by that.
    Unusable(EngineError),
}

/// What stops a template by its own will.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// `from_file` is `tokenizer.chat_template`; `override_with` replaces it where it isn't empty. `bos` and `eos` are the texts of those tokens.
    ///
    /// Errors: InvalidRequest where the overriding template is written in Go's template language or is no valid Jinja.
    pub fn new(from_file: Option<&str>, override_with: &str, bos: &str, eos: &str) -> Result<ChatTemplate, EngineError> {
        let kind = match (override_with.trim().is_empty(), from_file) {
            (false, _) => {
                refuse_go(override_with)?;
                let invalid =
                    |error| EngineError::new(Reason::InvalidRequest, format!("the template is no valid Jinja chat template: {error}"));
                Kind::Jinja(Box::new(compile(override_with).map_err(invalid)?))
            }
            (true, Some(source)) => match compile(source) {
                Ok(environment) => Kind::Jinja(Box::new(environment)),
                Err(error) => Kind::Unusable(EngineError::new(
                    Reason::EngineCannotRun,
                    format!("the model file's chat template can't be compiled ({error}); set `template` to one that can"),
                )),
            },
            (true, None) => Kind::None,
        };
        Ok(ChatTemplate { kind, bos: bos.into(), eos: eos.into() })
    }

    pub fn exists(&self) -> bool {
        !matches!(self.kind, Kind::None)
    }

    /// The conversation, and the beginning of the assistant's turn. Tools are JSON schemas as OpenAI's API has them; `extra` are more variables of the
    /// template, such as `enable_thinking`.
    ///
    /// A model without a template is a base model, which knows no roles: its prompt is the contents of the messages, a line each.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, EngineError> {
        let environment = match &self.kind {
            Kind::Jinja(environment) => environment,
            Kind::None => return Ok(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")),
            Kind::Unusable(error) => return Err(error.clone()),
        };
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        let variables = context! {
            messages => Value::from(Serde(messages)),
            tools => tools,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..Value::from(Serde(extra))
        };
        environment.get_template(NAME).and_then(|template| template.render(variables)).map_err(|error| not_rendered(&error))
    }
}

fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let formatted = jiff::fmt::strtime::format(&format, &jiff::Zoned::now());
        formatted.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    });
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        let indent: Option<usize> = options.get("indent")?;
        let _: Option<bool> = options.get("ensure_ascii")?;
        options.assert_all_used()?;
        let json = python_json::to_string(&value, indent);
        json.map(Value::from_safe_string).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
    });
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

fn not_rendered(error: &Error) -> EngineError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return EngineError::new(Reason::InvalidRequest, format!("the model's chat template refuses these messages: {message}"));
        }
        source = cause.source();
    }
    EngineError::new(Reason::InvalidRequest, format!("rendering the messages with the model's chat template: {error}"))
}

/// Ollama's templates are Go's, whose expressions begin with a dot or a Go keyword; Jinja's can't.
fn refuse_go(source: &str) -> Result<(), EngineError> {
    const KEYWORDS: [&str; 7] = ["if", "range", "with", "end", "else", "define", "block"];
    for (begin, _) in source.match_indices("{{") {
        let inside = source[begin + 2..].trim_start_matches('-').trim_start();
        let word: &str = inside.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        if inside.starts_with(['.', '$']) || KEYWORDS.contains(&word) {
            let end = source[begin..].find("}}").map_or(source.len(), |end| begin + end + 2);
            let shown: String = source[begin..end].chars().take(40).collect();
            return Err(EngineError::new(
                Reason::InvalidRequest,
                format!(
                    "the template is written in Go's template language, as Ollama's are (`{shown}` at byte {begin}); write a Jinja chat template instead, \
                     such as {{% for message in messages %}}{{{{ message.role }}}}: {{{{ message.content }}}}{{% endfor %}}, or leave `template` out to use the model file's own"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
