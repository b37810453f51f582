//! Embeddings, for both APIs.

use super::account::Account;
use super::error::{Fault, FaultKind};
use super::worker::WorkerState;

/// Most inputs in one request.
pub const MOST_INPUTS: usize = 2048;

/// One input: text, or tokens that the client made itself.
pub enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// The vectors, and the tokens that were read for them.
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    pub tokens: u64,
}

/// What becomes of an input that is longer than the context, and of the vectors.
pub struct EmbedOptions {
    pub truncate: bool,
    /// Vectors are cut to this length and normalised again.
    pub dimensions: Option<u32>,
}

pub async fn embed(worker: &WorkerState, account: &Account, inputs: Vec<Input>, options: EmbedOptions) -> Result<Embedded, Fault> {
    let width = worker.generator().info().embedding_length;
    if let Some(asked) = options.dimensions.filter(|asked| u64::from(*asked) > width) {
        return Err(Fault::field("dimensions", format!("`dimensions` is {asked}, and this model's vectors have {width}")));
    }
    if inputs.len() > MOST_INPUTS {
        return Err(Fault::field("input", format!("`input` has {} entries, and at most {MOST_INPUTS} are taken at once", inputs.len())));
    }
    let reader = worker.clone();
    let truncate = options.truncate;
    let read = tokio::task::spawn_blocking(move || tokens_of(&reader, inputs, truncate)).await;
    let inputs = read.map_err(|error| Fault::new(FaultKind::Failed, format!("the input could not be read: {error}")))??;
    let tokens = inputs.iter().map(|input| input.len() as u64).sum();
    let mut vectors = worker.generator().embed(inputs).await?;
    if let Some(dimensions) = options.dimensions {
        vectors.iter_mut().for_each(|vector| shorten(vector, dimensions as usize));
    }
    account.embedded(tokens);
    Ok(Embedded { vectors, tokens })
}

fn tokens_of(worker: &WorkerState, inputs: Vec<Input>, truncate: bool) -> Result<Vec<Vec<u32>>, Fault> {
    let most = worker.generator().info().longest_text;
    let mut all = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let mut tokens = match input {
            Input::Text(text) => worker.generator().tokenize(&text, false),
            Input::Tokens(tokens) => tokens,
        };
        let length = tokens.len() as u64;
        if length > most && !truncate {
            let message = format!("`input` {index} is {length} tokens long, and the longest text that this replica embeds has {most}");
            return Err(Fault { field: Some("input".into()), ..Fault::new(FaultKind::PromptTooLong, message) });
        }
        if length == 0 {
            return Err(Fault::field("input", format!("`input` {index} is empty: it has no tokens")));
        }
        tokens.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        all.push(tokens);
    }
    Ok(all)
}

/// Cuts a vector and gives it length 1 again.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    vector.truncate(dimensions);
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|value| *value /= norm);
    }
}
