//! The narrow waist between the agent and inference: load, generate, embed. No tensor crosses it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use stowage_placement::{Bytes, DevicePlan, Reason, Request};

use crate::constraint::Grammar;
use crate::template::Json;

/// What to load, and exactly where. Nothing here is decided by the engine.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// A GGUF file.
    pub path: PathBuf,
    pub start: Start,
    /// Layers and bytes by device; the engine allocates this and no more.
    pub plan: DevicePlan,
    /// The resolved parameters that `plan` was made for.
    pub request: Request,
    /// Threads of the CPU backend; 0: one for each physical core that the cgroup's quota allows.
    pub num_thread: u32,
    /// Replaces the file's chat template where it is not empty.
    pub template: String,
    pub backend: BackendChoice,
}

/// Where the weights of the host are when loading is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// In memory, packed.
    #[default]
    InMemory,
    /// In files, out of which the first steps read them: whoever serves brings them over between steps, see [`crate::LoadedModel::bring_over`].
    InFiles {
        /// What [`crate::packed_file::pack`] made of the model before; without it, or where it is of no use, the model's own file.
        packed: Option<PathBuf>,
    },
}

/// What computes the layers that the plan puts on the host. GPU layers are computed by what the device is: CUDA, or a simulated GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    #[default]
    Cpu,
    /// candle-core tensors in f32: slow, and what every other backend is compared to.
    Reference,
}

/// Reported while a model loads, in bytes of the file's tensors.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    pub loaded: Bytes,
    pub total: Bytes,
}

/// What a device really holds for this replica, by kind, as the arenas were allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredDevice {
    /// The device's id in the plan.
    pub id: String,
    pub weights: Bytes,
    pub kv_cache: Bytes,
    pub state: Bytes,
    pub checkpoint: Bytes,
    pub compute: Bytes,
    pub overhead: Bytes,
}

impl MeasuredDevice {
    pub fn total(&self) -> Bytes {
        [self.weights, self.kv_cache, self.state, self.checkpoint, self.compute, self.overhead].into_iter().sum()
    }
}

/// How fast a loaded model computed, in tokens a second of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeasuredSpeed {
    /// Reading a prompt, as long as 50 ms allow: longer ones are read faster.
    pub prefill: f64,
    /// Generating token after token; `None` for a model that generates none.
    pub decode: Option<f64>,
    /// That computed.
    pub threads: u32,
}

/// What the agent may say of a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub architecture: String,
    pub name: String,
    pub quantization: String,
    pub parameter_count: u64,
    pub trained_context: u64,
    pub num_ctx: u64,
    /// The longest text that is embedded, in tokens: the context, or a batch where that must be a whole text.
    pub longest_text: u64,
    pub embedding_length: u64,
    /// Whether it generates text; what does not turns texts into vectors.
    pub generates: bool,
    pub has_chat_template: bool,
    /// The chat template as text, for `/api/show`.
    pub chat_template: String,
    /// The file's scalar metadata, arrays left out, for `/api/show`.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// One turn of a conversation, in the shape that chat templates expect.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    /// What the model thought before it said this. Templates decide what of it the model sees again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// As they are handed to the template: most want a call's arguments as an object, not as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// Sampling options, with Ollama's names, meanings and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    pub repeat_last_n: i32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// `None`: a fresh one a request.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_last_n: 64,
            repeat_penalty: 1.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }
}

/// What an answer must be. JSON is written with little space: at most one blank, or an end of line with an indentation, between its parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// A JSON object of any shape: Ollama's `"json"`, OpenAI's `json_object`.
    JsonObject,
    /// JSON that meets a schema, an object's fields in the order in which the schema has them.
    JsonSchema(Json),
    /// A text that a regular expression matches from end to end. In the syntax of the `regex` crate, without assertions.
    Regex(String),
    /// A text of a context-free grammar, in llguidance's kind of Lark.
    Lark(String),
    /// One of these.
    OneOf(Vec<FramedJson>),
}

/// JSON that meets a schema, with texts around it: how a model writes a tool call, for instance.
#[derive(Clone, Debug, PartialEq)]
pub struct FramedJson {
    pub before: String,
    pub schema: Json,
    pub after: String,
}

#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// Token ids, from [`crate::Engine::tokenize`].
    pub prompt: Vec<u32>,
    pub sampling: SamplingOptions,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// Most tokens to generate; `None`: until the model ends or the context is full.
    pub max_tokens: Option<u32>,
    /// Alternatives to report for each token; `None`: no log probabilities.
    pub top_logprobs: Option<u32>,
    /// What the answer is held to; from [`crate::Engine::constrain`].
    pub grammar: Option<Grammar>,
    /// The text after which `grammar` holds, such as the end of what a model thinks before it answers; until it has come, the answer can't end by
    /// itself. `None`: the grammar holds from the first token on.
    pub grammar_after: Option<String>,
    /// What the answer may come to and need not. Of no effect where there is a `grammar`.
    pub occasions: Vec<Occasion>,
}

/// Where an answer comes to something that is held, such as the arguments of a tool call. The first that it comes to counts, and the answer ends with it.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// Texts that come one after the other, whatever is between them. What follows on the last of them is held.
    pub after: Vec<String>,
    /// From [`crate::Engine::constrain`].
    pub grammar: Grammar,
}

/// What a generation sends, in order: any number of `Text`, then one `Done` or one `Failed`. Dropping the receiver ends the generation within a step.
#[derive(Clone, Debug)]
pub enum GenerateEvent {
    /// Valid UTF-8, held back where it could be the start of a stop string or of a character.
    Text {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    Done(Finish),
    Failed(EngineError),
}

#[derive(Clone, Debug)]
pub struct TokenLogprob {
    pub id: u32,
    pub text: String,
    /// Natural logarithm of the probability, before temperature and truncation, and before anything was left out by a grammar.
    pub logprob: f32,
    pub top: Vec<(u32, String, f32)>,
}

#[derive(Clone, Debug)]
pub struct Finish {
    pub reason: FinishReason,
    pub prompt_tokens: u32,
    /// Of the prompt, tokens whose cache was still there.
    pub cached_tokens: u32,
    /// Of the prompt, tokens that were read again although an earlier prompt had them: layers with a window had let go of what they look back on.
    pub lost_tokens: u32,
    pub generated_tokens: u32,
    /// Waiting for a slot.
    pub queued: Duration,
    pub prefill: Duration,
    pub decode: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string was met.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// Why the engine did not do what was asked. `reason` is what goes into status.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    pub reason: Reason,
    pub message: String,
}

impl EngineError {
    pub fn new(reason: Reason, message: impl Into<String>) -> EngineError {
        EngineError { reason, message: message.into() }
    }

    /// The queue is full or the replica is draining: the same request may succeed elsewhere or later (HTTP 503).
    pub fn is_busy(&self) -> bool {
        matches!(self.reason, Reason::QueueFull | Reason::Draining)
    }

    /// The request itself can't be served, here or elsewhere (HTTP 400).
    pub fn is_callers_fault(&self) -> bool {
        matches!(self.reason, Reason::InvalidRequest | Reason::PromptTooLong)
    }
}
