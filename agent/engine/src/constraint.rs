//! Answers held to a grammar: before each token is sampled, those that the grammar does not allow there are left out.
//!
//! The matching is the `llguidance` crate's. Here is what it needs of a model (every token's bytes, in a trie), how much work and memory a request may
//! have of it, and how what it refuses is said. The trie is built when a model is loaded, so that no request makes a replica grow by it.
//!
//! A grammar is compiled on a thread of its own, one at a time; the thread that has the model only advances it. What that costs there is bounded by
//! [`limits`]: of a step some milliseconds at the very most, of memory the lexer's states.

mod alternatives;
mod place;
mod schema;
mod tokens;

use std::fmt;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use stowage_placement::Reason;
use tokio::sync::{Semaphore, oneshot};
use toktrie::{InferenceCapabilities, SimpleVob};

use crate::api::{Constraint, EngineError};
use crate::tokenizer::Tokenizer;

/// Longest text of a schema, an expression or a grammar, in bytes. What people write has some hundred to some thousand.
pub const LONGEST_TEXT: usize = 64 << 10;

/// Brackets within brackets of a grammar. Its parser is recursive.
const DEEPEST: usize = 100;

/// Stack of the thread that compiles, in bytes: schemas are as deep as JSON may be (128), and each level takes some kilobytes.
const STACK: usize = 32 << 20;

/// Tokens that are looked at once, and not for each mask: those that may stand within a JSON string, also where it may be so long only. Each kind has tries
/// of its own: with that of all tokens, 14 MiB and 85 ms for the 49 152 tokens of SmolLM2, on one core. With that alone (5 MiB) a token within a string
/// whose length is bounded takes 540 µs, with these 40; `what_constraints_cost` measures it. Source: `json_slices` of llguidance.
const SLICES: [&str; 3] = [r#"[^"\\\x00-\x1F\x7F]{1,10}"#, r#"[^"\\\x00-\x1F\x7F]{1,30}"#, r#"[^"\\\x00-\x1F\x7F]+"#];

/// What one constraint may cost.
fn limits() -> ParserLimits {
    ParserLimits {
        // At 50 000 a millisecond: 20 ms, when it is compiled.
        initial_lexer_fuel: 1_000_000,
        // At 14 000 a millisecond: 15 ms, for a token.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // At 1 to 2 kB each: 40 MB for an answer that needs them all.
        max_lexer_states: 20_000,
        max_grammar_size: 50_000,
        precompute_large_lexemes: true,
        // They would say what the answer was so far.
        verbose_errors: false,
    }
}

/// A model's tokens, against which constraints are compiled.
pub struct Constraints {
    shared: Arc<Shared>,
    /// One is compiled at a time.
    turn: Arc<Semaphore>,
}

struct Shared {
    factory: ParserFactory,
    /// Tokens that stand for text, and those that end an answer.
    sayable: Arc<SimpleVob>,
}

/// A constraint compiled for one model. Clones share it.
#[derive(Clone)]
pub struct Grammar {
    constraint: Arc<Constraint>,
    start: Arc<Matcher>,
    sayable: Arc<SimpleVob>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Grammar").field(&self.constraint).finish()
    }
}

impl Constraints {
    /// Of a model's own tokens. Takes a few hundred milliseconds for the largest vocabularies.
    ///
    /// Errors: EngineCannotRun where the vocabulary has more tokens or bytes than a trie can have.
    pub fn new(tokenizer: &Tokenizer) -> Result<Constraints, EngineError> {
        let vocabulary = tokenizer.vocabulary();
        Constraints::of(&tokens::said(tokenizer), &vocabulary.ends.iter().copied().collect::<Vec<_>>())
    }

    /// Of tokens by their bytes, none where a token stands for no text; `ends` end an answer.
    pub fn of(tokens: &[Vec<u8>], ends: &[u32]) -> Result<Constraints, EngineError> {
        let (environment, sayable) = tokens::environment(tokens, ends)?;
        let slices: Vec<String> = SLICES.iter().map(|slice| (*slice).to_owned()).collect();
        let build = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = build.map_err(|error| tokens::unusable(format!("building its tries: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let shared = Shared { factory, sayable: Arc::new(sayable) };
        Ok(Constraints { shared: Arc::new(shared), turn: Arc::new(Semaphore::new(1)) })
    }

    /// Compiles a constraint on a thread of its own, after those that were asked for before.
    ///
    /// Errors: InvalidRequest where it is none, is not supported, can't be met, or is too large.
    pub async fn compile(&self, constraint: Constraint) -> Result<Grammar, EngineError> {
        let failed = |why: &dyn fmt::Display| EngineError::new(Reason::InferenceFailed, format!("compiling a constraint: {why}"));
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|error| failed(&error))?;
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let compile = move || {
            // Held until it is done, though whoever asked may be gone.
            let _turn = turn;
            reply.send(shared.compile(constraint)).ok();
        };
        let thread = std::thread::Builder::new().name("constraint".into()).stack_size(STACK).spawn(compile);
        thread.map_err(|error| failed(&error))?;
        answer.await.map_err(|_| failed(&"its thread ended unexpectedly"))?
    }
}

impl Shared {
    fn compile(&self, constraint: Constraint) -> Result<Grammar, EngineError> {
        let (what, grammar) = top_level(&constraint)?;
        let parser = self.factory.create_parser(grammar).map_err(|error| {
            let place =
                if let Constraint::JsonSchema(schema) = &constraint { place::of(&error, schema.clone().into()) } else { String::new() };
            refused(what, &place, &error)
        })?;
        // What can't be begun is refused now, and what the first step needs is there for all that share it.
        let mut start = Matching { matcher: Matcher::new(Ok(parser)), sayable: Arc::clone(&self.sayable) };
        start.allowed().map_err(|error| refused(what, "", &error))?;
        Ok(Grammar { constraint: Arc::new(constraint), start: Arc::new(start.matcher), sayable: start.sayable })
    }
}

/// What it is called in errors, and as llguidance takes it.
fn top_level(constraint: &Constraint) -> Result<(&'static str, TopLevelGrammar), EngineError> {
    let any_object = || serde_json::json!({"type": "object"});
    match constraint {
        Constraint::JsonObject => Ok(("JSON", TopLevelGrammar::from_json_schema(schema::with_options(any_object())))),
        Constraint::JsonSchema(json) => Ok(("the JSON schema", TopLevelGrammar::from_json_schema(schema::prepared(json)?))),
        Constraint::Regex(text) => {
            short_enough("the regular expression", text.len())?;
            Ok(("the regular expression", TopLevelGrammar::from_regex(text)))
        }
        Constraint::Lark(text) => {
            short_enough("the grammar", text.len())?;
            shallow_enough(text)?;
            Ok(("the grammar", TopLevelGrammar::from_lark(text.clone())))
        }
        Constraint::OneOf(alternatives) => {
            let grammar = schema::one_of(alternatives)?;
            short_enough("what is allowed", grammar.len())?;
            Ok(("what is allowed", TopLevelGrammar::from_lark(grammar)))
        }
    }
}

fn short_enough(what: &str, length: usize) -> Result<(), EngineError> {
    if length <= LONGEST_TEXT {
        return Ok(());
    }
    Err(invalid(format!("{what} has {length} bytes; it may have {LONGEST_TEXT} at most")))
}

fn shallow_enough(grammar: &str) -> Result<(), EngineError> {
    let (mut depth, mut deepest) = (0usize, 0usize);
    for byte in grammar.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        deepest = deepest.max(depth);
    }
    if deepest <= DEEPEST {
        return Ok(());
    }
    Err(invalid(format!("the grammar has brackets {deepest} deep; they may be {DEEPEST} deep at most")))
}

fn invalid(message: String) -> EngineError {
    EngineError::new(Reason::InvalidRequest, message)
}

fn refused(what: &str, place: &str, error: &dyn fmt::Display) -> EngineError {
    invalid(format!("{what} is refused{place}: {}", said(error)))
}

/// What llguidance says, without where in its own code that was.
fn said(error: &dyn fmt::Display) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<backtrace>").next().unwrap_or_default().trim();
    text.strip_prefix("panic: ").map_or_else(|| text.to_owned(), |panic| format!("llguidance failed at it ({panic})"))
}

impl Grammar {
    pub fn constraint(&self) -> &Constraint {
        &self.constraint
    }

    /// For an answer of which nothing was said yet.
    pub fn begin(&self) -> Matching {
        Matching { matcher: self.start.deep_clone(), sayable: Arc::clone(&self.sayable) }
    }
}

/// One answer, as far as it was said.
pub struct Matching {
    matcher: Matcher,
    sayable: Arc<SimpleVob>,
}

/// Tokens that may come next.
pub struct Allowed(SimpleVob);

impl Allowed {
    pub fn has(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

impl Matching {
    /// Never empty. An end of the answer is among them where the grammar may stop.
    ///
    /// Errors: InvalidRequest where the grammar is too complex at this place, or no token says what it wants.
    pub fn allowed(&mut self) -> Result<Allowed, EngineError> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(|error| stuck(&said(&error)))?;
        allowed.and(&self.sayable);
        if allowed.is_zero() {
            return Err(stuck("no token of this model's vocabulary says what it allows here"));
        }
        Ok(Allowed(allowed))
    }

    /// Notes a token that was allowed. Whether nothing but the end can follow.
    pub fn take(&mut self, token: u32) -> Result<bool, EngineError> {
        self.matcher.consume_token(token).map_err(|error| stuck(&said(&error)))?;
        Ok(self.matcher.is_stopped())
    }
}

fn stuck(why: &str) -> EngineError {
    invalid(format!("the answer's constraint can't be followed any further: {why}"))
}

#[cfg(test)]
mod tests;
