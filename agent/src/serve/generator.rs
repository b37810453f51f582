//! What the HTTP API needs of inference, as a trait, so that its shapes can be tested without a model.

use std::future::Future;
use std::pin::Pin;

use serde_json::{Map, Value};
use stowage_engine::template::Json;
use stowage_engine::{ChatMessage, Constraint, EngineError, GenerateEvent, GenerateRequest, Grammar, ModelInfo};
use tokio::sync::mpsc;

/// The vectors of some inputs, or why there are none.
pub type Embeddings<'a> = Pin<Box<dyn Future<Output = Result<Vec<Vec<f32>>, EngineError>> + Send + 'a>>;

/// A constraint made ready for answers, or why it can't be.
pub type Constrained<'a> = Pin<Box<dyn Future<Output = Result<Grammar, EngineError>> + Send + 'a>>;

/// One loaded model. [`stowage_engine::Engine`] is the one that counts.
pub trait Generator: Send + Sync + 'static {
    fn info(&self) -> &ModelInfo;

    /// The text as token ids, BOS first where the model wants one; with `parse_special`, special tokens spelled out in it are taken as such.
    fn tokenize(&self, text: &str, parse_special: bool) -> Vec<u32>;

    /// The chat as the model's template writes it, ready for [`Generator::tokenize`] with `parse_special`. `variables` are told to the template beside it.
    fn render_chat(&self, messages: &[ChatMessage], tools: &[Json], variables: Map<String, Value>) -> Result<String, EngineError>;

    /// Compiles what answers are to be held to.
    fn constrain(&self, constraint: Constraint) -> Constrained<'_>;

    /// Queues a generation; dropping the receiver ends it.
    fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<GenerateEvent>, EngineError>;

    /// One normalised vector for each input.
    fn embed(&self, inputs: Vec<Vec<u32>>) -> Embeddings<'_>;
}
