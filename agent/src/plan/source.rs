//! What `agent plan` is asked about: a GGUF file, a URL of one, or a ModelDeployment that names one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::ModelSource;
use stowage_placement::gguf::{Header, Keep};
use stowage_placement::{Asked, Bytes, ModelSummary, Refusal, SummaryError};
use stowage_sources::{AddressPolicy, SourceError, hugging_face};

use crate::model_header::{self, Data, HeaderError};

/// A ModelDeployment is far smaller; etcd takes no object beyond 1.5 MiB.
const LARGEST_YAML: u64 = 4 << 20;

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("reading {path}: {source}")]
    Io { path: String, source: std::io::Error },
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
}

/// `hub` is the Hugging Face hub's address.
pub(super) async fn read(source: &str, hub: &str) -> Result<Model, PlanError> {
    if is_url(source) {
        return Ok(Model { summary: remote_summary(source).await?, asked: Asked::default() });
    }
    let path = Path::new(source);
    let io = |error| PlanError::Io { path: source.to_owned(), source: error };
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    if magic == b"GGUF" || has_extension(path, &["gguf"]) {
        return Ok(Model { summary: local_summary(path)?, asked: Asked::default() });
    }
    let not_understood = |message: String| PlanError::NotUnderstood { path: source.to_owned(), message };
    if size > LARGEST_YAML {
        return Err(not_understood(format!("it begins with {magic:02x?}, not with \"GGUF\", and has {}", Bytes(size))));
    }
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => not_understood("it is no text".into()),
        _ => io(error),
    })?;
    of_deployment(path, &deployment(path, &text)?, hub).await
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| extensions.contains(&extension))
}

fn deployment(path: &Path, text: &str) -> Result<ModelDeployment, PlanError> {
    let name = path.display().to_string();
    let wrong = |message: String| match has_extension(path, &["yaml", "yml", "json"]) {
        true => PlanError::Deployment { path: name.clone(), message },
        false => PlanError::NotUnderstood { path: name.clone(), message },
    };
    let documents: Vec<serde_json::Value> = stowage_crds::yaml::documents(text).map_err(|error| wrong(error.to_string()))?;
    let mut deployments = documents.into_iter().filter(|document| document.get("kind").is_some_and(|kind| kind == "ModelDeployment"));
    let found = deployments.next().ok_or_else(|| wrong("it has no document of kind ModelDeployment".into()))?;
    if deployments.next().is_some() {
        return Err(wrong("it has more than one ModelDeployment; plan them one by one".into()));
    }
    serde_json::from_value(found).map_err(|error| wrong(format!("its ModelDeployment: {error}")))
}

async fn of_deployment(path: &Path, deployment: &ModelDeployment, hub: &str) -> Result<Model, PlanError> {
    let wrong = |message: &str| PlanError::Deployment { path: path.display().to_string(), message: message.to_owned() };
    let summary = match &deployment.spec.model {
        ModelSource { path: Some(model), http: None, hugging_face: None } => local_summary(&beside(path, model))?,
        ModelSource { path: None, http: Some(http), hugging_face: None } => remote_summary(&http.url).await?,
        ModelSource { path: None, http: None, hugging_face: Some(file) } => {
            // As the operator does: what is read in several requests must be of one commit.
            let commit = hugging_face::commit(hub, &file.repository, &file.revision, &anywhere()?).await?;
            remote_summary(&hugging_face::file_url(hub, &file.repository, &commit, &file.file)?).await?
        }
        _ => return Err(wrong("spec.model needs exactly one source: huggingFace, http or path")),
    };
    Ok(Model { summary, asked: deployment.spec.asked() })
}

/// A `path` source is a file in the agents' model directory; here it is looked for beside the YAML.
fn beside(yaml: &Path, model: &str) -> PathBuf {
    yaml.parent().unwrap_or(Path::new("")).join(model)
}

/// What placement needs of a file on this machine, which may end after its header, or of the files of a split model.
fn local_summary(path: &Path) -> Result<ModelSummary, PlanError> {
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
