//! What a ModelDeployment asks for, in the planner's terms. The API server has checked the spec already, so nothing here can fail.

use kube::ResourceExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::{ContextPolicy, HuggingFaceSource, ModelSource, PlacementSpec, Resolved};
use stowage_placement::{Asked, Tokens};

use crate::cache::Key;

/// What is wanted of a ModelDeployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub key: Key,
    pub uid: String,
    /// Changes with whatever needs the model loaded anew.
    pub revision: String,
    pub replicas: usize,
    pub max_surge: usize,
    pub max_unavailable: usize,
    pub origin: Origin,
    /// As in the spec; [`Wanted::asked`] has the context that was settled.
    pub spec_asked: Asked,
    pub placement: PlacementSpec,
}

/// Where the model file is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the agents' model directory.
    Path(String),
    Http {
        url: String,
        sha256: Option<String>,
    },
    HuggingFace {
        repository: String,
        revision: String,
        file: String,
    },
}

impl Origin {
    pub fn of(model: &ModelSource) -> Origin {
        if let Some(path) = &model.path {
            return Origin::Path(path.clone());
        }
        if let Some(http) = &model.http {
            return Origin::Http { url: http.url.clone(), sha256: http.sha256.clone() };
        }
        let HuggingFaceSource { repository, revision, file } = model.hugging_face.clone().unwrap_or_default();
        Origin::HuggingFace { repository, revision, file }
    }
}

impl Origin {
    /// Of the model of this ModelDeployment: at the commit that was settled for its revision, whatever its branch has come to be since.
    pub fn settled(deployment: &ModelDeployment) -> Origin {
        let origin = Origin::of(&deployment.spec.model);
        let resolved = deployment.status.as_ref().and_then(|status| status.resolved.as_ref());
        let source = resolved.filter(|resolved| resolved.revision == revision(deployment)).and_then(|resolved| resolved.source.as_ref());
        match source {
            Some(source) => origin.at(&source.commit),
            None => origin,
        }
    }

    /// The same at this commit, where there is one.
    pub fn at(self, commit: &str) -> Origin {
        match self {
            Origin::HuggingFace { repository, file, .. } if !commit.is_empty() => {
                Origin::HuggingFace { repository, revision: commit.to_owned(), file }
            }
            other => other,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Path(path) => f.write_str(path),
            // The query may hold a secret.
            Origin::Http { url, .. } => f.write_str(url.split(['?', '#']).next().unwrap_or_default()),
            Origin::HuggingFace { repository, revision, file } => write!(f, "{repository}@{revision}/{file}"),
        }
    }
}

impl Wanted {
    pub fn of(deployment: &ModelDeployment) -> Wanted {
        let spec = &deployment.spec;
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Wanted {
            key: Key::of(deployment),
            uid: deployment.uid().unwrap_or_default(),
            revision: revision(deployment),
            replicas: count(spec.replicas),
            max_surge: count(spec.update_strategy.max_surge),
            max_unavailable: count(spec.update_strategy.max_unavailable),
            origin: Origin::settled(deployment),
            spec_asked: spec.asked(),
            placement: spec.placement.clone(),
        }
    }

    /// What was settled for this very revision before.
    pub fn settled<'a>(&self, deployment: &'a ModelDeployment) -> Option<&'a Resolved> {
        let resolved = deployment.status.as_ref()?.resolved.as_ref()?;
        (resolved.revision == self.revision).then_some(resolved)
    }

    /// Whether the context follows from what fits, and is settled with the first place that is found.
    pub fn context_is_open(&self) -> bool {
        self.spec_asked.num_ctx.is_none() || self.spec_asked.context_policy == ContextPolicy::ShrinkToFit
    }

    /// With the context that was settled; what is settled is not open any more.
    pub fn asked(&self, settled: Option<Tokens>) -> Asked {
        match settled {
            Some(num_ctx) if self.context_is_open() => {
                Asked { num_ctx: Some(num_ctx), context_policy: ContextPolicy::Exact, min_context: None, ..self.spec_asked.clone() }
            }
            _ => self.spec_asked.clone(),
        }
    }

    pub fn replica_name(&self, index: usize) -> String {
        format!("{}-{}-{index}", self.key.name, self.revision)
    }
}

/// The first ten hexadecimal digits of the SHA-256 over what needs the model loaded anew when it changes.
pub fn revision(deployment: &ModelDeployment) -> String {
    let spec = &deployment.spec;
    let parameters = &spec.parameters;
    let hashed = json!({
        "model": spec.model,
        "parameters": {
            "num_ctx": parameters.num_ctx,
            "num_gpu": parameters.num_gpu,
            "num_batch": parameters.num_batch,
            "num_thread": parameters.num_thread,
        },
        "kvCacheType": spec.kv_cache_type,
        "parallel": spec.parallel,
        "placement": spec.placement,
        "template": spec.template,
    });
    let mut text = String::new();
    write_canonically(&hashed, &mut text);
    hex(&Sha256::digest(text.as_bytes())[..5])
}

/// JSON with the keys of objects in order and fields without a value left out, so that neither a library's choice of map nor a new optional field changes
/// a hash.
fn write_canonically(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
            fields.sort_by_key(|(name, _)| name.as_str());
            out.push('{');
            for (name, value) in fields {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_canonically(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonically(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A uid that follows from what it is for: the same decision on the same version gives the same uid, any other gives another.
pub fn assignment_uid(deployment: &ModelDeployment, replica: &str) -> String {
    let mut hash = Sha256::new();
    for part in [deployment.uid().unwrap_or_default().as_str(), replica, deployment.resource_version().unwrap_or_default().as_str()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digits = hex(&hash.finalize()[..16]);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use stowage_crds::ModelDeploymentStatus;
    use stowage_crds::model_deployment::ResolvedSource;

    use super::*;
    use crate::testing::deployment;

    #[test]
    fn a_revision_changes_with_what_needs_a_reload_and_with_nothing_else() {
        let base = deployment("m");
        let mut same = base.clone();
        same.spec.aliases = vec!["other".into()];
        same.spec.system = "Be brief.".into();
        same.spec.parameters.temperature = Some(0.5);
        same.spec.replicas = 3;
        assert_eq!(revision(&base), revision(&same));
        assert_eq!(revision(&base).len(), 10);
        let mut reload = base.clone();
        reload.spec.parameters.num_ctx = Some(Tokens(256));
        assert_ne!(revision(&base), revision(&reload));
        let mut reload = base.clone();
        reload.spec.template = "{{ messages }}".into();
        assert_ne!(revision(&base), revision(&reload));
    }

    #[test]
    fn a_branch_is_read_at_the_commit_that_was_settled_until_the_revision_is_another() {
        let mut deployment = deployment("m");
        let source = HuggingFaceSource { repository: "a/b".into(), revision: "main".into(), file: "m.gguf".into() };
        deployment.spec.model = ModelSource { hugging_face: Some(source), ..ModelSource::default() };
        let branch = Origin::settled(&deployment);
        assert_eq!(branch, Origin::of(&deployment.spec.model));
        let commit = "0123456789012345678901234567890123456789";
        let source = ResolvedSource { commit: commit.into(), ..ResolvedSource::default() };
        let resolved = Resolved { revision: revision(&deployment), source: Some(source), ..Resolved::default() };
        deployment.status = Some(ModelDeploymentStatus { resolved: Some(resolved), ..ModelDeploymentStatus::default() });
        assert_eq!(Origin::settled(&deployment), branch.clone().at(commit));
        deployment.spec.parallel = 2;
        assert_eq!(Origin::settled(&deployment), branch);
    }

    #[test]
    fn an_assignment_uid_looks_like_one_and_changes_with_the_version() {
        let mut deployment = deployment("m");
        let first = assignment_uid(&deployment, "m-0");
        assert_eq!(first.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(first, assignment_uid(&deployment, "m-0"));
        deployment.metadata.resource_version = Some("999".into());
        assert_ne!(first, assignment_uid(&deployment, "m-0"));
    }

    #[test]
    fn a_context_that_was_settled_is_asked_for_exactly() {
        let mut open = deployment("m");
        open.spec.parameters.num_ctx = None;
        let wanted = Wanted::of(&open);
        assert_eq!(wanted.asked(None).num_ctx, None);
        assert_eq!(wanted.asked(Some(Tokens(512))).num_ctx, Some(Tokens(512)));
    }
}
