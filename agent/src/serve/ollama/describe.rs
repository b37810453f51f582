//! `/api/tags`, `/api/ps` and `/api/show`: what the model is and where it lies.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde_json::{Value, json};

use super::answer;
use crate::serve::account::Account;
use crate::serve::error::Fault;
use crate::serve::fields::{Body, Fields};
use crate::serve::names::with_tag;
use crate::serve::worker::{Worker, WorkerState};

/// When a model is unloaded, as far as Ollama's clients know: never, its ModelDeployment says how long it stays.
const NEVER: &str = "2318-01-01T00:00:00Z";

/// `8.0B`, `134.52M`, as Ollama writes them.
fn parameter_size(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count >= 1e12 => format!("{:.1}T", count / 1e12),
        _ if count >= 1e9 => format!("{:.1}B", count / 1e9),
        _ if count >= 1e6 => format!("{:.2}M", count / 1e6),
        _ if count >= 1e3 => format!("{:.1}K", count / 1e3),
        _ => format!("{count}"),
    }
}

fn details(worker: &Worker) -> Value {
    let info = worker.generator().info();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": parameter_size(info.parameter_count),
        "quantization_level": info.quantization,
    })
}

/// One entry a name: a client that looks for a model by an alias finds it.
pub async fn tags(State(worker): State<WorkerState>) -> Json<Value> {
    let placement = &worker.config.placement;
    let entry = |name: &str| {
        let name = with_tag(name);
        json!({
            "name": name,
            "model": name,
            "modified_at": placement.modified_at,
            "size": placement.file_size,
            "digest": placement.digest,
            "details": details(&worker),
        })
    };
    Json(json!({"models": worker.names().short().into_iter().map(entry).collect::<Vec<_>>()}))
}

/// `processor` is said in so many words too, and `size_vram` over `size` gives the same shares.
pub async fn ps(State(worker): State<WorkerState>) -> Json<Value> {
    let placement = &worker.config.placement;
    let name = with_tag(&worker.names().name);
    Json(json!({"models": [{
        "name": name,
        "model": name,
        "size": placement.size,
        "size_vram": placement.size_vram,
        "digest": placement.digest,
        "details": details(&worker),
        "expires_at": NEVER,
        "context_length": worker.num_ctx(),
        "processor": placement.processor,
        "gpu_layers": placement.gpu_layers,
        "total_layers": placement.total_layers,
    }]}))
}

pub async fn show(State(worker): State<WorkerState>, headers: HeaderMap, body: Body) -> Response {
    let account = worker.account("ollama.show", &headers);
    let result = shown(&worker, &account, body);
    answer(&account, result)
}

fn shown(worker: &Worker, account: &Account, body: Body) -> Result<Response, Fault> {
    let mut fields = Fields::parse(body)?;
    let model = fields.model()?;
    // Answered while draining too: nothing is generated.
    worker.known(&model)?;
    account.model(worker.names().full());
    fields.boolean("verbose")?;
    fields.only("system", super::is_empty, "is not honoured: it is shown as the ModelDeployment has it")?;
    fields.only("template", super::is_empty, "is not honoured: it is shown as the ModelDeployment has it")?;
    fields.only("options", super::is_empty, "is not honoured: they are shown as the ModelDeployment has them")?;
    fields.finish()?;
    let info = worker.generator().info();
    let parameters = parameters(worker);
    let answer = json!({
        "modelfile": modelfile(worker, &parameters),
        "parameters": parameters,
        "template": info.chat_template,
        "system": worker.settings().defaults.system,
        "details": details(worker),
        "model_info": model_info(worker),
        "capabilities": capabilities(worker),
        "modified_at": worker.config.placement.modified_at,
        "processor": worker.config.placement.processor,
        "context_length": worker.num_ctx(),
    });
    account.finished();
    Ok(Json(answer).into_response())
}

/// What requests may ask of this model, in Ollama's words.
fn capabilities(worker: &Worker) -> Vec<&'static str> {
    if !worker.generator().info().generates {
        return vec!["embedding"];
    }
    let all = [("completion", true), ("tools", worker.takes_tools()), ("thinking", worker.thinks().is_some())];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// The header's, and the count that Ollama adds.
fn model_info(worker: &Worker) -> Value {
    let info = worker.generator().info();
    let mut all = json!(info.metadata);
    all["general.parameter_count"] = json!(info.parameter_count);
    all
}

/// As a Modelfile writes them, without the keyword: a name and a value a line.
fn parameters(worker: &Worker) -> String {
    let mut lines = vec![format!("{:<30} {}", "num_ctx", worker.num_ctx())];
    if let Ok(Value::Object(options)) = serde_json::to_value(&worker.settings().defaults.options) {
        for (name, value) in options {
            let values = if let Value::Array(values) = value { values } else { vec![value] };
            lines.extend(values.iter().map(|value| format!("{name:<30} {value}")));
        }
    }
    lines.join("\n")
}

fn modelfile(worker: &Worker, parameters: &str) -> String {
    let info = worker.generator().info();
    let mut lines = vec![format!("# {}", worker.deployment()), format!("FROM {}", worker.names().name)];
    lines.push(format!("TEMPLATE {:?}", info.chat_template));
    if !worker.settings().defaults.system.is_empty() {
        lines.push(format!("SYSTEM {:?}", worker.settings().defaults.system));
    }
    lines.extend(parameters.lines().map(|line| format!("PARAMETER {}", line.split_whitespace().collect::<Vec<_>>().join(" "))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::parameter_size;

    #[test]
    fn parameters_are_counted_as_ollama_counts_them() {
        assert_eq!([134_515_008, 8_030_261_248, 999].map(parameter_size), ["134.52M", "8.0B", "999"]);
    }
}
