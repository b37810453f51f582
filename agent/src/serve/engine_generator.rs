//! The real generator: the engine.

use serde_json::{Map, Value};
use stowage_engine::template::{Json, RenderOptions};
use stowage_engine::{ChatMessage, Constraint, Engine, EngineError, GenerateEvent, GenerateRequest, ModelInfo};
use tokio::sync::mpsc;

use super::generator::{Constrained, Embeddings, Generator};

impl Generator for Engine {
    fn info(&self) -> &ModelInfo {
        Engine::info(self)
    }

    fn tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        Engine::tokenize(self, text, parse_special)
    }

    fn render_chat(&self, messages: &[ChatMessage], tools: &[Json], variables: Map<String, Value>) -> Result<String, EngineError> {
        let options = RenderOptions { extra: variables, ..RenderOptions::default() };
        Engine::render_chat_with(self, messages, tools, &options)
    }

    fn constrain(&self, constraint: Constraint) -> Constrained<'_> {
        Box::pin(Engine::constrain(self, constraint))
    }

    fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<GenerateEvent>, EngineError> {
        Engine::generate(self, request)
    }

    fn embed(&self, inputs: Vec<Vec<u32>>) -> Embeddings<'_> {
        Box::pin(async move { Engine::embed(self, &inputs).await })
    }
}
