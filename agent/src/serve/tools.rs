//! The tools of a request: what the model is told of, and what of them its answer is held to.

use serde_json::{Value, json};
use stowage_engine::template::Json;
use stowage_engine::{Constraint, FramedJson};

use super::error::Fault;
use super::fields::Fields;
use super::worker::Worker;

/// Whether the model has to call one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    #[default]
    Auto,
    Required,
    /// This one.
    Named(String),
}

#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As the template is told of them.
    pub told: Vec<Json>,
    functions: Vec<Function>,
    pub choice: ToolChoice,
}

#[derive(Clone, Debug)]
pub struct Function {
    /// Where it stands in the request.
    pub path: String,
    pub name: String,
    /// A schema of its arguments.
    pub parameters: Json,
    /// A call of it has to meet the schema, also where the model is free not to call ([`super::strict`]).
    pub strict: bool,
}

impl Tools {
    /// `tools` of either API.
    pub fn read(fields: &mut Fields, worker: &Worker) -> Result<Tools, Fault> {
        let told = fields.array("tools")?.unwrap_or_default();
        if told.is_empty() {
            return Ok(Tools::default());
        }
        if !worker.takes_tools() {
            let why = "can't be honoured: this model's chat template tells it of no tools; spec.template of";
            return Err(fields.refuse("tools", format_args!("{why} {} can name one that does", worker.deployment())));
        }
        let path = fields.path("tools");
        let functions = told.iter().enumerate().map(|(index, tool)| function(&format!("{path}[{index}]"), tool.clone()));
        Ok(Tools { functions: functions.collect::<Result<_, _>>()?, told, choice: ToolChoice::Auto })
    }

    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    pub fn names(&self) -> Vec<String> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.functions.iter().any(|function| function.name == name)
    }

    /// What an answer is held to that is to be of a `format`, may call tools, or must.
    pub fn constraint(&self, format: Option<Constraint>) -> Option<Constraint> {
        match (&self.choice, format) {
            (ToolChoice::Auto, format) if self.is_empty() => format,
            (ToolChoice::Auto, None) => None,
            (ToolChoice::Auto, Some(Constraint::JsonSchema(schema))) => Some(self.calls_or(Some(schema))),
            (ToolChoice::Auto, Some(Constraint::JsonObject)) => Some(self.calls_or(Some(json!({"type": "object"}).into()))),
            // No API asks for others.
            (ToolChoice::Auto, other) => other,
            // A call is what is asked for, whatever other answers would be.
            (ToolChoice::Required | ToolChoice::Named(_), _) => Some(self.calls_or(None)),
        }
    }

    fn calls_or(&self, plain: Option<Json>) -> Constraint {
        let plain = plain.map(|schema| FramedJson { before: String::new(), schema, after: String::new() });
        let chosen = |function: &&Function| !matches!(&self.choice, ToolChoice::Named(name) if *name != function.name);
        Constraint::OneOf(plain.into_iter().chain(self.functions.iter().filter(chosen).map(Function::call)).collect())
    }
}

impl Function {
    /// A call as the bare object that [`super::tool_calls`] reads whichever way the model was trained to write them.
    fn call(&self) -> FramedJson {
        let before = format!(r#"{{"name": {}, "arguments": "#, Value::from(self.name.as_str()));
        FramedJson { before, schema: self.parameters.clone(), after: "}".into() }
    }
}

fn function(path: &str, tool: Json) -> Result<Function, Fault> {
    let mut fields = Fields::of(tool, path)?;
    // Ollama's clients leave it out.
    if fields.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(fields.refuse("type", "must be function"));
    }
    let Some(mut function) = fields.object("function")? else { return Err(fields.refuse("function", "is required")) };
    let Some(name) = function.string("name")?.filter(|name| !name.is_empty()) else { return Err(function.refuse("name", "is required")) };
    let parameters = match function.take_as_written("parameters") {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}).into(),
        Some(schema @ Json::Object(_)) => schema,
        Some(_) => return Err(function.refuse("parameters", "must be a JSON schema, which is an object")),
    };
    let strict = function.boolean("strict")?.unwrap_or(false);
    Ok(Function { path: format!("{path}.function"), name, parameters, strict })
}
