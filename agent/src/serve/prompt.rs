//! From what a request says to the tokens that the engine reads.

use stowage_engine::ChatMessage;
use stowage_engine::template::Json;

use super::error::{Fault, FaultKind};
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
    pub when_too_long: WhenTooLong,
    /// Tokens that prompt and answer may take together.
    pub context: u64,
}

/// Rendering and tokenising take a while for long prompts, and so get a thread of their own.
pub async fn of_conversation(worker: &WorkerState, conversation: Conversation) -> Result<Vec<u32>, Fault> {
    let worker = worker.clone();
    on_a_thread(move || conversation_tokens(&worker, conversation)).await
}

/// A prompt that is not a conversation, as it stands.
pub async fn of_text(worker: &WorkerState, text: String, context: u64) -> Result<Vec<u32>, Fault> {
    let worker = worker.clone();
    on_a_thread(move || within(worker.generator().tokenize(&text, true), context)).await
}

async fn on_a_thread(work: impl FnOnce() -> Result<Vec<u32>, Fault> + Send + 'static) -> Result<Vec<u32>, Fault> {
    let failed = |error| Fault::new(FaultKind::Failed, format!("the prompt could not be read: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// The tokens, if they leave room for at least one more.
pub fn within(tokens: Vec<u32>, context: u64) -> Result<Vec<u32>, Fault> {
    let length = tokens.len() as u64;
    if length == 0 {
        return Err(Fault::new(FaultKind::InvalidRequest, "the prompt is empty: it has no tokens"));
    }
    if length < context { Ok(tokens) } else { Err(too_long(length, context)) }
}

fn too_long(length: u64, context: u64) -> Fault {
    let message = format!(
        "the prompt is {length} tokens long and the context is {context} tokens (num_ctx), which must hold prompt and answer; \
         shorten the prompt, or raise spec.parameters.num_ctx of the ModelDeployment"
    );
    Fault::new(FaultKind::PromptTooLong, message)
}

fn render(worker: &Worker, messages: &[ChatMessage], tools: &[Json]) -> Result<Vec<u32>, Fault> {
    let text = if worker.generator().info().has_chat_template {
        worker.generator().render_chat(messages, tools)?
    } else {
        // A model without a template was not trained on turns: it continues what it reads.
        messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    };
    Ok(worker.generator().tokenize(&text, true))
}

fn conversation_tokens(worker: &Worker, conversation: Conversation) -> Result<Vec<u32>, Fault> {
    let Conversation { mut messages, tools, when_too_long, context } = conversation;
    let system = &worker.settings().defaults.system;
    if !system.is_empty() && !messages.iter().any(|message| message.role == "system") {
        messages.insert(0, ChatMessage { role: "system".into(), content: system.clone(), ..Default::default() });
    }
    let all = render(worker, &messages, &tools)?;
    if (all.len() as u64) < context || when_too_long == WhenTooLong::Refuse {
        return within(all, context);
    }
    shortened(worker, &messages, &tools, context)
}

/// The conversation from the earliest turn from which on it fits. A turn begins with the user's message and is never cut, so that an answer
/// keeps its question and a tool's result its call.
fn shortened(worker: &Worker, messages: &[ChatMessage], tools: &[Json], context: u64) -> Result<Vec<u32>, Fault> {
    let turns: Vec<usize> = (0..messages.len()).filter(|index| messages[*index].role == "user").collect();
    let from = |turn: usize| -> Result<Vec<u32>, Fault> {
        let start = turns.get(turn).copied().unwrap_or(0);
        let kept = messages.iter().enumerate().filter(|(index, message)| *index >= start || message.role == "system");
        let kept: Vec<ChatMessage> = kept.map(|(_, message)| message.clone()).collect();
        render(worker, &kept, tools)
    };
    // The last turn stays whatever happens; where even that is too long, both numbers are said.
    let mut most_dropped = turns.len().saturating_sub(1);
    let mut best = within(from(most_dropped)?, context)?;
    let mut least_dropped = 1;
    while least_dropped < most_dropped {
        let middle = (least_dropped + most_dropped) / 2;
        let tokens = from(middle)?;
        if (tokens.len() as u64) < context {
            best = tokens;
            most_dropped = middle;
        } else {
            least_dropped = middle + 1;
        }
    }
    Ok(best)
}
