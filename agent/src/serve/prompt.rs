//! From what a request says to the tokens that the engine reads.

use stowage_engine::ChatMessage;
use stowage_engine::template::Json;

use super::error::{Fault, FaultKind};
use super::thinking::{Held, Opening, Tags, Think};
use super::worker::{Worker, WorkerState};

/// What is done with a conversation that is longer than the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenTooLong {
    /// Ollama's default: the oldest turns go, the system messages and the last turn stay.
    DropOldest,
    Refuse,
}

/// A conversation to be rendered by the model's chat template.
pub struct Conversation {
    pub messages: Vec<ChatMessage>,
    pub tools: Vec<Json>,
    pub think: Think,
    /// The answer will be held to something.
    pub held: bool,
    pub when_too_long: WhenTooLong,
    /// Tokens that prompt and answer may take together.
    pub context: u64,
}

/// What the engine reads, and how its answer begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// What is thought before the answer is to be told from it.
    pub thinking: Option<(&'static Tags, Opening)>,
    /// The text after which the answer begins; `None`: it begins at once.
    pub answer_after: Option<String>,
}

impl Prompt {
    /// Of which all that follows is the answer.
    pub fn plain(tokens: Vec<u32>) -> Prompt {
        Prompt { tokens, thinking: None, answer_after: None }
    }
}

/// Rendering and tokenising take a while for long prompts, and so get a thread of their own.
pub async fn of_conversation(worker: &WorkerState, conversation: Conversation) -> Result<Prompt, Fault> {
    let worker = worker.clone();
    on_a_thread(move || conversation_tokens(&worker, conversation)).await
}

/// A prompt that is not a conversation, as it stands.
pub async fn of_text(worker: &WorkerState, text: String, context: u64) -> Result<Prompt, Fault> {
    let worker = worker.clone();
    on_a_thread(move || within(Prompt::plain(worker.generator().tokenize(&text, true)), context)).await
}

async fn on_a_thread(work: impl FnOnce() -> Result<Prompt, Fault> + Send + 'static) -> Result<Prompt, Fault> {
    let failed = |error| Fault::new(FaultKind::Failed, format!("the prompt could not be read: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// The prompt, if it leaves room for at least one more token.
pub fn within(prompt: Prompt, context: u64) -> Result<Prompt, Fault> {
    let length = prompt.tokens.len() as u64;
    if length == 0 {
        return Err(Fault::new(FaultKind::InvalidRequest, "the prompt is empty: it has no tokens"));
    }
    if length < context { Ok(prompt) } else { Err(too_long(length, context)) }
}

fn too_long(length: u64, context: u64) -> Fault {
    // Clients' frameworks know OpenAI's error by its first words.
    let message = format!(
        "this model's maximum context length is {context} tokens (num_ctx), which must hold prompt and answer, and the prompt is \
         {length} tokens long; shorten the prompt, or raise spec.parameters.num_ctx of the ModelDeployment"
    );
    Fault::new(FaultKind::PromptTooLong, message)
}

/// What stays the same however many messages are rendered.
struct Rendering<'a> {
    worker: &'a Worker,
    tools: Vec<Json>,
    think: Think,
    held: bool,
}

impl Rendering<'_> {
    fn prompt(&self, messages: &[ChatMessage]) -> Result<Prompt, Fault> {
        let generator = self.worker.generator();
        if !generator.info().has_chat_template {
            // A model without a template was not trained on turns: it continues what it reads.
            let text = messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
            return Ok(Prompt::plain(generator.tokenize(&text, true)));
        }
        let ability = self.worker.thinks();
        let variables = ability.map(|ability| ability.variables(&self.think)).unwrap_or_default();
        let mut text = generator.render_chat(messages, &self.tools, variables)?;
        let held = match self.held {
            false => Held::No,
            true if self.tools.is_empty() => Held::Yes,
            true => Held::WithCalls,
        };
        let opening = ability.map(|ability| ability.open(&mut text, &self.think, held));
        Ok(Prompt {
            tokens: generator.tokenize(&text, true),
            thinking: ability.map(|ability| ability.tags).zip(opening),
            answer_after: ability.zip(opening).and_then(|(ability, opening)| ability.answer_after(opening)),
        })
    }
}

fn conversation_tokens(worker: &Worker, conversation: Conversation) -> Result<Prompt, Fault> {
    let Conversation { mut messages, tools, think, held, when_too_long, context } = conversation;
    let system = &worker.settings().defaults.system;
    if !system.is_empty() && !messages.iter().any(|message| message.role == "system") {
        messages.insert(0, ChatMessage { role: "system".into(), content: system.clone(), ..Default::default() });
    }
    let rendering = Rendering { worker, tools, think, held };
    let all = rendering.prompt(&messages)?;
    if (all.tokens.len() as u64) < context || when_too_long == WhenTooLong::Refuse {
        return within(all, context);
    }
    shortened(&rendering, &messages, context)
}

/// The conversation from the earliest turn from which on it fits. A turn begins with the user's message and is never cut, so that an answer
/// keeps its question and a tool's result its call.
fn shortened(rendering: &Rendering<'_>, messages: &[ChatMessage], context: u64) -> Result<Prompt, Fault> {
    let turns: Vec<usize> = (0..messages.len()).filter(|index| messages[*index].role == "user").collect();
    let from = |turn: usize| -> Result<Prompt, Fault> {
        let start = turns.get(turn).copied().unwrap_or(0);
        let kept = messages.iter().enumerate().filter(|(index, message)| *index >= start || message.role == "system");
        let kept: Vec<ChatMessage> = kept.map(|(_, message)| message.clone()).collect();
        rendering.prompt(&kept)
    };
    // The last turn stays whatever happens; where even that is too long, both numbers are said.
    let mut most_dropped = turns.len().saturating_sub(1);
    let mut best = within(from(most_dropped)?, context)?;
    let mut least_dropped = 1;
    while least_dropped < most_dropped {
        let middle = (least_dropped + most_dropped) / 2;
        let prompt = from(middle)?;
        if (prompt.tokens.len() as u64) < context {
            best = prompt;
            most_dropped = middle;
        } else {
            least_dropped = middle + 1;
        }
    }
    Ok(best)
}
