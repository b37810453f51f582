//! `options`: those that sample are honoured, those that load belong to the ModelDeployment.

use serde_json::Value;

use crate::serve::defaults::RequestOptions;
use crate::serve::error::Fault;
use crate::serve::fields::{Fields, is_empty};
use crate::serve::worker::{LargestContexts, Worker};

/// The options, completed from the deployment's, and the context that holds prompt and answer.
pub fn read(options: Option<Fields>, worker: &Worker) -> Result<(RequestOptions, u64), Fault> {
    let defaults = &worker.settings().defaults.options;
    let Some(mut fields) = options else { return Ok((defaults.clone(), worker.num_ctx())) };
    let context = num_ctx(&mut fields, worker)?;
    load_options(&mut fields, worker)?;
    unsupported(&mut fields)?;
    let request = RequestOptions {
        num_predict: fields.integer("num_predict", -2..=i64::from(u32::MAX))?,
        temperature: fields.number("temperature", 0.0..=100.0)?,
        // Ollama takes a negative top_k for "all", which is what 0 means to the engine.
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|value| u32::try_from(value).unwrap_or(0)),
        top_p: fields.number("top_p", 0.0..=1.0)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?,
        repeat_last_n: fields.integer("repeat_last_n", -1..=i64::from(i32::MAX))?.and_then(|value| i32::try_from(value).ok()),
        repeat_penalty: fields.number("repeat_penalty", 0.0..=100.0)?,
        presence_penalty: fields.number("presence_penalty", -100.0..=100.0)?,
        frequency_penalty: fields.number("frequency_penalty", -100.0..=100.0)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        stop: fields.strings("stop")?.unwrap_or_default().into_iter().filter(|stop| !stop.is_empty()).collect(),
    };
    fields.finish()?;
    Ok((request.or(defaults), context))
}

/// A smaller context than the replica's is kept to; a larger one takes a new placement.
fn num_ctx(fields: &mut Fields, worker: &Worker) -> Result<u64, Fault> {
    let most = worker.num_ctx();
    let Some(asked) = fields.integer("num_ctx", 0..=i64::MAX)?.and_then(|asked| u64::try_from(asked).ok()).filter(|asked| *asked > 0)
    else {
        return Ok(most);
    };
    if asked <= most {
        return Ok(asked);
    }
    let (deployment, fits) = (worker.deployment(), fits(worker.config.placement.largest_contexts));
    let why =
        format!("is {asked}, and this replica was placed for {most}: set spec.parameters.num_ctx of {deployment} to have more; {fits}");
    Err(fields.refuse("num_ctx", why))
}

/// What a larger context can be. It says of when: others may have come to the node, or have left it, since the replica was placed.
fn fits(largest: Option<LargestContexts>) -> String {
    let Some(LargestContexts { on_gpu, anywhere }) = largest else {
        return "`maxNumCtx` in its status.fit is the largest that would fit".to_owned();
    };
    let whole = match on_gpu {
        0 => String::new(),
        _ if on_gpu == anywhere => ", with the whole model on GPU".to_owned(),
        _ => format!(", and up to {on_gpu} with the whole model on GPU"),
    };
    format!("when it was placed, up to {anywhere} fitted on its node{whole}")
}

/// Taken where they ask for what is so anyway.
fn load_options(fields: &mut Fields, worker: &Worker) -> Result<(), Fault> {
    let request = &worker.config.request;
    let placement = &worker.config.placement;
    let decided = |name: &str| format!("is decided when the model is placed: set spec.parameters.{name} of {}", worker.deployment());
    let gpu = |value: &Value| {
        let asked = value.as_i64();
        let all = placement.gpu_layers == placement.total_layers && asked.is_some_and(|asked| asked >= i64::from(placement.total_layers));
        all || asked == Some(-1) || asked == Some(request.num_gpu) || asked == Some(i64::from(placement.gpu_layers))
    };
    fields.only("num_gpu", gpu, decided("num_gpu"))?;
    fields.only("num_batch", |value| value.as_u64() == Some(u64::from(request.num_batch)), decided("num_batch"))?;
    let threads = worker.config.num_thread;
    fields.only(
        "num_thread",
        |value| matches!(value.as_u64(), Some(asked) if asked == 0 || asked == u64::from(threads)),
        decided("num_thread"),
    )?;
    let ours = "is decided when the model is placed, by its ModelDeployment; leave it out";
    for name in ["main_gpu", "low_vram", "numa", "use_mlock", "vocab_only", "logits_all", "embedding_only"] {
        fields.only(name, is_empty, ours)?;
    }
    for name in ["use_mmap", "f16_kv"] {
        fields.only(name, |value| value == &Value::Bool(true), ours)?;
    }
    Ok(())
}

/// Samplers and context shifting that the engine does not have.
fn unsupported(fields: &mut Fields) -> Result<(), Fault> {
    fields.only("mirostat", is_empty, "is not honoured: the engine has no mirostat sampling; leave it out, or set it to 0")?;
    if let Some(name) = ["mirostat_tau", "mirostat_eta"].into_iter().find(|name| fields.take(name).is_some()) {
        return Err(fields.refuse(name, "is not honoured: the engine has no mirostat sampling; leave it out"));
    }
    fields.only("tfs_z", |value| value.as_f64() == Some(1.0), "is not honoured: the engine has no tail-free sampling; leave it out")?;
    fields.only("penalize_newline", |value| value == &Value::Bool(true), "is not honoured: line breaks are penalised like any token")?;
    fields.only("num_keep", |_| false, "is not honoured: the engine does not shift its context, so nothing needs to be kept")
}

/// Whether the model is to be unloaded at once. Checked, and otherwise without effect: how long a replica stays is its ModelDeployment's to say.
pub fn keep_alive(fields: &mut Fields) -> Result<bool, Fault> {
    match fields.take("keep_alive") {
        None => Ok(false),
        Some(Value::Number(seconds)) => Ok(seconds.as_f64() == Some(0.0)),
        Some(Value::String(duration)) => Ok(is_zero(&duration)),
        Some(_) => Err(fields.refuse("keep_alive", "must be a number of seconds or a duration such as \"5m\"")),
    }
}

/// `0`, `0s`, `0m0.0s`
fn is_zero(duration: &str) -> bool {
    let mut digits = duration.chars().filter(char::is_ascii_digit).peekable();
    digits.peek().is_some() && digits.all(|digit| digit == '0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_of_nothing_is_told_from_others() {
        assert_eq!(["0", "0s", "0m0.0s", "-0s"].map(is_zero), [true; 4]);
        assert_eq!(["5m", "-1", "10s", "", "s", "0.5s"].map(is_zero), [false; 6]);
    }

    #[test]
    fn what_would_fit_says_how_much_of_it_is_on_gpu() {
        let fits = |on_gpu, anywhere| fits(Some(LargestContexts { on_gpu, anywhere }));
        assert_eq!(fits(0, 8192), "when it was placed, up to 8192 fitted on its node");
        assert_eq!(fits(8192, 8192), "when it was placed, up to 8192 fitted on its node, with the whole model on GPU");
        assert_eq!(fits(2048, 8192), "when it was placed, up to 8192 fitted on its node, and up to 2048 with the whole model on GPU");
        assert!(super::fits(None).contains("`maxNumCtx`"));
    }
}
