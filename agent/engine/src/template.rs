//! A chat as the text that the model was trained on, by the chat template in its GGUF file or the one that replaces it.
//!
//! Templates are Jinja as `transformers` runs it: Python's string methods, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps` writes.
//! They come from strangers, with the model: how much one may compute is bounded.

mod json;
mod python_json;
mod variables;

use std::error::Error as _;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use stowage_placement::Reason;

use crate::api::{ChatMessage, EngineError};
pub use json::Json;
use variables::ReasoningField;

/// Instructions that one rendering may take: a long conversation takes some tens of thousands.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat template";

/// A compiled chat template.
pub struct ChatTemplate {
    kind: Kind,
    bos: String,
    eos: String,
    reasoning: ReasoningField,
}

/// What a template is told beside messages and tools.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Whether the assistant's turn is begun after the last message.
    pub add_generation_prompt: bool,
    /// More variables, such as `enable_thinking`; they go before those that every template is told.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The time for templates that write the date; `None`: now, in the host's time zone.
    pub now: Option<Zoned>,
}

impl Default for RenderOptions {
    /// For a conversation that is to be answered.
    fn default() -> RenderOptions {
        RenderOptions { add_generation_prompt: true, extra: serde_json::Map::new(), now: None }
    }
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
        let reasoning = ReasoningField::of(if override_with.trim().is_empty() { from_file.unwrap_or_default() } else { override_with });
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
        Ok(ChatTemplate { kind, bos: bos.into(), eos: eos.into(), reasoning })
    }

    pub fn exists(&self) -> bool {
        !matches!(self.kind, Kind::None)
    }

    /// The conversation as the template writes it. Tools are JSON schemas as OpenAI's API has them.
    ///
    /// A model without a template is a base model, which knows no roles: its prompt is the contents of the messages, a line each.
    ///
    /// Errors: InvalidRequest where the template refuses the messages, with its message, or can't be carried out on them; EngineCannotRun where the file's
    /// template can't be compiled.
    pub fn render(&self, messages: &[ChatMessage], tools: &[Json], options: &RenderOptions) -> Result<String, EngineError> {
        let environment = match &self.kind {
            Kind::Jinja(environment) => environment,
            Kind::None => return Ok(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")),
            Kind::Unusable(error) => return Err(error.clone()),
        };
        let variables = self.variables(messages, tools, options);
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
    // In Python nothing can be read off `None`: templates ask this of `tools`, which is `None` where there are none.
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// As `transformers` has it: without Jinja's escapes for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::BadSerialization, "what is undefined can't be written as JSON"));
    }
    let style = python_json::Style::from_arguments(&options)?;
    let json = style.write(&value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(json))
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
