//! The engine as the agent sees it: a loaded model that tokenizes, renders chats, generates and embeds.

mod info;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::api::{
    ChatMessage, Constraint, EngineError, GenerateEvent, GenerateRequest, LoadProgress, LoadRequest, MeasuredDevice, MeasuredSpeed,
    ModelInfo,
};
use crate::backend::cpu::Computing;
use crate::constraint::{Constraints, Grammar};
use crate::model::LoadedModel;
use crate::schedule::{MAX_QUEUE, Model, Occupancy, Scheduler, generates_no_text};
use crate::template::{ChatTemplate, Json, RenderOptions};
use crate::tokenizer::Tokenizer;

/// One loaded replica. Clones share it. When the last is dropped, or [`Engine::shutdown`] is called, it finishes what it has and frees the model.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    info: ModelInfo,
    measured: Vec<MeasuredDevice>,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    scheduler: Scheduler,
    /// `None` where the model generates no text.
    constraints: Option<Constraints>,
}

impl Engine {
    /// Loads a model. Blocks for as long as reading the file takes: call it on a thread of its own (`spawn_blocking`).
    pub fn load(request: LoadRequest, mut progress: impl FnMut(LoadProgress)) -> Result<Engine, EngineError> {
        let (mut model, tokenizer) = LoadedModel::load_beside(&request, Computing::default(), &mut progress, Tokenizer::from_header)?;
        let (header, tokenizer) = (model.take_header(), Arc::new(tokenizer?));
        let from_file = header.string("tokenizer.chat_template")?;
        let template = ChatTemplate::new(from_file, &request.template, tokenizer.bos_text(), tokenizer.eos_text())?;
        let info = info::describe(&header, &request, template.exists(), &model)?;
        drop(header);
        let measured = model.measured().to_vec();
        Engine::start(Box::new(model), tokenizer, template, info, measured)
    }

    /// An engine around any model: what [`Engine::load`] does after loading.
    fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        template: ChatTemplate,
        info: ModelInfo,
        measured: Vec<MeasuredDevice>,
    ) -> Result<Engine, EngineError> {
        let constraints = model.generates().then(|| Constraints::new(&tokenizer)).transpose()?;
        let scheduler = Scheduler::start(model, Arc::clone(&tokenizer), MAX_QUEUE)?;
        Ok(Engine { inner: Arc::new(Inner { info, measured, tokenizer, template, scheduler, constraints }) })
    }

    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// What each device of the plan holds for this replica, as allocated.
    pub fn measured(&self) -> Vec<MeasuredDevice> {
        self.inner.measured.clone()
    }

    /// How many sequences are being answered, and how many requests wait.
    pub fn occupancy(&self) -> Occupancy {
        self.inner.scheduler.occupancy()
    }

    /// Reads a short prompt and looks at what comes out.
    pub async fn self_test(&self) -> Result<(), EngineError> {
        self.inner.scheduler.self_test().await
    }

    /// How fast the model reads and generates, measured as soon as all weights are in memory and nobody wants anything.
    pub async fn measure_speed(&self) -> Result<MeasuredSpeed, EngineError> {
        self.inner.scheduler.measure_speed().await
    }

    /// The text as the model reads it, BOS first where the model wants one. With `parse_special`, special tokens spelled out in the text are taken as such.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        // Encoding fails only on the crate's internal errors; a text of which nothing can be read has no tokens.
        self.inner.tokenizer.encode_prompt(text, parse_special).unwrap_or_else(|error| {
            tracing::error!("{error}");
            Vec::new()
        })
    }

    /// The text of some tokens; bytes that are no UTF-8 are replaced.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        self.inner.tokenizer.decode(tokens)
    }

    /// The chat as the model's template writes it, ready for [`Engine::tokenize`] with `parse_special`.
    pub fn render_chat(&self, messages: &[ChatMessage], tools: &[Json]) -> Result<String, EngineError> {
        self.render_chat_with(messages, tools, &RenderOptions::default())
    }

    /// The same with more that the template is told, such as `enable_thinking`.
    pub fn render_chat_with(&self, messages: &[ChatMessage], tools: &[Json], options: &RenderOptions) -> Result<String, EngineError> {
        self.inner.template.render(messages, tools, options)
    }

    /// A constraint, compiled for answers of this model.
    ///
    /// Errors: InvalidRequest where it is none, is not supported, can't be met, or is too large.
    pub async fn constrain(&self, constraint: Constraint) -> Result<Grammar, EngineError> {
        match &self.inner.constraints {
            Some(constraints) => constraints.compile(constraint).await,
            None => Err(generates_no_text()),
        }
    }

    /// Queues a generation. At once an error where the prompt does not fit, the queue is full ([`EngineError::is_busy`]) or the replica drains.
    pub fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<GenerateEvent>, EngineError> {
        self.inner.scheduler.generate(request)
    }

    /// One mean-pooled, normalised vector for each input.
    pub async fn embed(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.inner.scheduler.embed(inputs).await
    }

    /// Takes no new work, finishes what is running or queued, then frees the model. Returns when that is done.
    pub async fn shutdown(&self) {
        self.inner.scheduler.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
