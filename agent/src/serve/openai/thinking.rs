//! `reasoning_effort`, and the switch that servers of open models have.

use crate::serve::error::Fault;
use crate::serve::fields::Fields;
use crate::serve::thinking::{self, Think};
use crate::serve::worker::Worker;

const EFFORT: &str = "reasoning_effort";

/// Not OpenAI's: vLLM, SGLang and llama.cpp take variables of the chat template by this name. Of them, the switch is honoured.
const VARIABLES: &str = "chat_template_kwargs";

pub fn read(fields: &mut Fields, worker: &Worker) -> Result<Think, Fault> {
    let switch = switch(fields, worker)?;
    let effort = match fields.string(EFFORT)?.as_deref() {
        None => return Ok(switch),
        Some("none") => Think::Off,
        Some(level @ ("low" | "medium" | "high")) => Think::Level(level.to_owned()),
        Some(_) => return Err(fields.refuse(EFFORT, "must be none, low, medium or high")),
    };
    thinking::checked(effort, worker.thinks(), EFFORT, fields)
}

fn switch(fields: &mut Fields, worker: &Worker) -> Result<Think, Fault> {
    const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];
    let Some(mut variables) = fields.object(VARIABLES)? else { return Ok(Think::Unsaid) };
    let mut think = Think::Unsaid;
    for name in SWITCHES {
        if let Some(on) = variables.boolean(name)? {
            think = thinking::checked(if on { Think::On } else { Think::Off }, worker.thinks(), name, &variables)?;
        }
    }
    variables.finish()?;
    Ok(think)
}
