//! What a header says of its model, for those who ask over HTTP.

use stowage_placement::gguf::{Header, Value};
use stowage_placement::{Bytes, ModelSummary, Reason};

use crate::api::{EngineError, LoadRequest, ModelInfo};
use crate::model::LoadedModel;

/// The model's description; names and counts are those that `placement` shows, so that they read the same in status.
pub fn describe(header: &Header, request: &LoadRequest, has_chat_template: bool, model: &LoadedModel) -> Result<ModelInfo, EngineError> {
    let unreadable = |error| EngineError::new(Reason::ModelNotFound, format!("looking at {}: {error}", request.path.display()));
    let size = Bytes(std::fs::metadata(&request.path).map_err(unreadable)?.len());
    let summary = ModelSummary::from_header(header, size).map_err(|error| EngineError::new(error.reason(), error.to_string()))?;
    let from_file = header.string("tokenizer.chat_template")?.unwrap_or_default();
    let chat_template = if request.template.trim().is_empty() { from_file } else { &request.template };
    Ok(ModelInfo {
        num_ctx: request.request.num_ctx.0,
        longest_text: model.longest_text().into(),
        generates: model.generates(),
        embedding_length: summary.shape.embedding,
        trained_context: summary.trained_context.0,
        architecture: summary.architecture,
        name: summary.name,
        quantization: summary.quantization,
        parameter_count: summary.parameter_count,
        has_chat_template,
        chat_template: chat_template.to_owned(),
        metadata: header.metadata.iter().filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect(),
    })
}

/// A scalar as JSON; arrays are left out, and numbers that JSON does not have.
fn scalar(value: &Value) -> Option<serde_json::Value> {
    match value {
        Value::String(text) => Some(text.clone().into()),
        Value::Bool(value) => Some((*value).into()),
        Value::I8(value) => Some((*value).into()),
        Value::I16(value) => Some((*value).into()),
        Value::I32(value) => Some((*value).into()),
        Value::I64(value) => Some((*value).into()),
        Value::F32(_) | Value::F64(_) => serde_json::Number::from_f64(value.as_f64()?).map(Into::into),
        Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => value.as_u64().map(Into::into),
        Value::Array(_) | Value::SkippedString(_) => None,
    }
}
