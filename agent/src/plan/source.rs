//! What `agent plan` is asked about: a GGUF file, a URL of one, or a ModelDeployment that names one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use stowage_crds::model_deployment::ModelSource;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::gguf::{Header, Keep};
use stowage_placement::{Asked, Bytes, ModelSummary, Refusal, SummaryError};
use stowage_sources::{AddressPolicy, SourceError, hugging_face};

use crate::model_header::{self, Data, HeaderError};

/// A ModelDeployment is far smaller; etcd takes no object beyond 1.5 MiB.
const LARGEST_YAML: u64 = 4 << 20;
/// What is wrong with a ModelDeployment that names none, or several.
pub(crate) const ONE_SOURCE: &str = "spec.model needs exactly one source: huggingFace, http or path";

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("reading {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("writing the chart to {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("{path} is neither a GGUF file nor a ModelDeployment's YAML: {message}")]
    NotUnderstood { path: String, message: String },
    #[error("{0}")]
    Header(#[from] HeaderError),
    #[error("{path}: {source}")]
    Summary { path: String, source: SummaryError },
    #[error("{0}")]
    Remote(#[from] SourceError),
    #[error("{path}: {message}")]
    Deployment { path: String, message: String },
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("writing the plan as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("writing the plan as YAML: {0}")]
    Yaml(#[from] stowage_crds::yaml::Error),
}

/// A model, and what is asked for it.
#[derive(Debug)]
pub(super) struct Model {
    pub summary: ModelSummary,
    pub asked: Asked,
    /// Where it was a ModelDeployment that was asked about.
    pub deployment: Option<ModelDeployment>,
}

impl Model {
    fn alone(summary: ModelSummary) -> Model {
        Model { summary, asked: Asked::default(), deployment: None }
    }
}

/// What a source turns out to be.
#[derive(Debug)]
pub(crate) enum Input {
    /// A file, or what a URL leads to.
    Model(Box<ModelSummary>),
    Deployment(Box<ModelDeployment>),
}

/// `hub` is the Hugging Face hub's address. A model of the agents' model directory is known to the `node` that has it.
pub(super) async fn read(source: &str, hub: &str, node: Option<&ModelNode>) -> Result<Model, PlanError> {
    match open(source).await? {
        Input::Model(summary) => Ok(Model::alone(*summary)),
        Input::Deployment(deployment) => of_deployment(Path::new(source), *deployment, hub, node).await,
    }
}

/// Reads a file, or the header behind a URL.
pub(crate) async fn open(source: &str) -> Result<Input, PlanError> {
    if is_url(source) {
        return Ok(Input::Model(remote_summary(source).await?.into()));
    }
    let path = Path::new(source);
    let io = |error| PlanError::Io { path: source.to_owned(), source: error };
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    if magic == b"GGUF" || has_extension(path, &["gguf"]) {
        return Ok(Input::Model(local_summary(path)?.into()));
    }
    let not_understood = |message: String| PlanError::NotUnderstood { path: source.to_owned(), message };
    if size > LARGEST_YAML {
        return Err(not_understood(format!("it begins with {magic:02x?}, not with \"GGUF\", and has {}", Bytes(size))));
    }
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => not_understood("it is no text".into()),
        _ => io(error),
    })?;
    Ok(Input::Deployment(Box::new(document(path, &text, "ModelDeployment")?)))
}

/// The only ModelNode of a YAML file.
pub(super) fn model_node(path: &Path) -> Result<ModelNode, PlanError> {
    let text = std::fs::read_to_string(path).map_err(|source| PlanError::Io { path: path.display().to_string(), source })?;
    document(path, &text, "ModelNode")
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| extensions.contains(&extension))
}

/// The only document of this kind.
fn document<K: DeserializeOwned>(path: &Path, text: &str, kind: &str) -> Result<K, PlanError> {
    let name = path.display().to_string();
    let wrong = |message: String| match has_extension(path, &["yaml", "yml", "json"]) {
        true => PlanError::Deployment { path: name.clone(), message },
        false => PlanError::NotUnderstood { path: name.clone(), message },
    };
    let documents: Vec<serde_json::Value> = stowage_crds::yaml::documents(text).map_err(|error| wrong(error.to_string()))?;
    let mut objects = documents.into_iter().filter(|document| document.get("kind").is_some_and(|found| found == kind));
    let found = objects.next().ok_or_else(|| wrong(format!("it has no document of kind {kind}")))?;
    if objects.next().is_some() {
        return Err(wrong(format!("it has more than one {kind}; plan with one at a time")));
    }
    serde_json::from_value(found).map_err(|error| wrong(format!("its {kind}: {error}")))
}

async fn of_deployment(path: &Path, deployment: ModelDeployment, hub: &str, node: Option<&ModelNode>) -> Result<Model, PlanError> {
    let wrong = |message: &str| PlanError::Deployment { path: path.display().to_string(), message: message.to_owned() };
    let summary = match (&deployment.spec.model, node) {
        (ModelSource { path: Some(model), http: None, hugging_face: None }, Some(node)) => {
            published(node, model).map_err(|message| wrong(&message))?
        }
        (ModelSource { path: Some(model), http: None, hugging_face: None }, None) => local_summary(&beside(path, model))?,
        (source, _) => downloaded(source, hub).await?.ok_or_else(|| wrong(ONE_SOURCE))?,
    };
    Ok(Model { summary, asked: deployment.spec.asked(), deployment: Some(deployment) })
}

/// The model behind a source that is downloaded, of which only the header is read; `None` where the source is no such one.
pub(crate) async fn downloaded(source: &ModelSource, hub: &str) -> Result<Option<ModelSummary>, PlanError> {
    match source {
        ModelSource { path: None, http: Some(http), hugging_face: None } => remote_summary(&http.url).await.map(Some),
        ModelSource { path: None, http: None, hugging_face: Some(file) } => {
            // As the operator does: what is read in several requests must be of one commit.
            let commit = hugging_face::commit(hub, &file.repository, &file.revision, &anywhere()?).await?;
            remote_summary(&hugging_face::file_url(hub, &file.repository, &commit, &file.file)?).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// The summary that the node's agent published of a file in its model directory, or why there is none.
fn published(node: &ModelNode, model: &str) -> Result<ModelSummary, String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let files = node.status.as_ref().map(|status| status.models.as_slice()).unwrap_or_default();
    let Some(file) = files.iter().find(|file| file.path == model) else {
        let there: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        return Err(format!("node {name} has no {model} in its model directory; it has {}", there.join(", ")));
    };
    file.summary.clone().ok_or_else(|| format!("{model} on node {name}: {}", file.message))
}

/// A `path` source is a file in the agents' model directory; here it is looked for beside the YAML.
pub(crate) fn beside(yaml: &Path, model: &str) -> PathBuf {
    yaml.parent().unwrap_or(Path::new("")).join(model)
}

/// What placement needs of a file on this machine, which may end after its header, or of the files of a split model.
pub(crate) fn local_summary(path: &Path) -> Result<ModelSummary, PlanError> {
    let joined = model_header::read(path, Data::MayBeMissing)?;
    summarise(&joined.header, joined.size(), path.display().to_string())
}

fn summarise(header: &Header, file_size: Bytes, path: String) -> Result<ModelSummary, PlanError> {
    ModelSummary::from_header(header, file_size).map_err(|error| PlanError::Summary { path, source: error })
}

/// The same of a file behind a URL, of which only the header is read.
async fn remote_summary(url: &str) -> Result<ModelSummary, PlanError> {
    let remote = stowage_sources::header_alone(url, Keep::Sizing, &anywhere()?).await?;
    // The query may hold a secret.
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    summarise(&remote.header, remote.size, shown.to_owned())
}

/// Whoever types the command may read what their machine may, so no address is kept from them.
fn anywhere() -> Result<AddressPolicy, SourceError> {
    AddressPolicy::parse(["0.0.0.0/0", "::/0"])
}
