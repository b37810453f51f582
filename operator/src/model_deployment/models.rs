//! Which model is meant: what placement needs of its header, learnt from its source or from the nodes that have the file.

use std::collections::BTreeSet;
use std::sync::Arc;

use stowage_crds::candidate::{Meant, meant};
use stowage_crds::model_deployment::ResolvedSource;
use stowage_crds::model_node::ModelFile;
use stowage_placement::{Bytes, ModelSummary, Reason, Refusal};

use crate::model_deployment::validate::Origin;
use crate::state::{RemoteModel, State};

/// Most names that a message lists.
const LISTED: usize = 20;

/// A model that is known well enough to be placed.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub summary: Arc<ModelSummary>,
    pub source: ResolvedSource,
    /// The nodes that can have it; `None`: all, since it is downloaded where it is missing.
    pub only_on: Option<BTreeSet<String>>,
    /// The nodes that have the file already.
    pub present_on: BTreeSet<String>,
}

/// Looks the model up, or says why it is not known.
pub fn find(state: &State, origin: &Origin) -> Result<Found, Refusal> {
    match origin {
        Origin::Path(path) => in_model_directories(state, path),
        remote => match state.headers.get(remote) {
            Some(Ok(found)) => Ok(remote_model(state, found)),
            Some(Err(refusal)) => Err(refusal.clone()),
            None => Err(Refusal { reason: Reason::Pending, message: format!("the model's header is being read from {remote}") }),
        },
    }
}

fn remote_model(state: &State, remote: &RemoteModel) -> Found {
    let RemoteModel { summary, source } = remote;
    let has_it = |file: &ModelFile| !source.digest.is_empty() && file.digest == source.digest;
    let present_on = files(state).filter(|(_, file)| has_it(file)).map(|(node, _)| node.to_owned()).collect();
    Found { summary: Arc::new(summary.clone()), source: source.clone(), only_on: None, present_on }
}

fn in_model_directories(state: &State, path: &str) -> Result<Found, Refusal> {
    let Some(Meant { summary, nodes }) = meant(files(state), path) else {
        let unreadable: Vec<(&str, &ModelFile)> = files(state).filter(|(_, file)| file.path == path).collect();
        return Err(not_found(state, path, &unreadable));
    };
    let size = nodes.values().map(|file| file.size_bytes).max().unwrap_or(Bytes::ZERO);
    let digest = nodes.values().map(|file| file.digest.clone()).find(|digest| !digest.is_empty()).unwrap_or_default();
    let names: BTreeSet<String> = nodes.keys().map(|node| (*node).to_owned()).collect();
    Ok(Found {
        summary: Arc::new(summary.clone()),
        source: ResolvedSource { location: path.to_owned(), commit: String::new(), size_bytes: size, digest },
        only_on: Some(names.clone()),
        present_on: names,
    })
}

fn not_found(state: &State, path: &str, found: &[(&str, &ModelFile)]) -> Refusal {
    if let Some((node, file)) = found.first() {
        let reason = file.reason.unwrap_or(Reason::InvalidModelFile);
        return Refusal { reason, message: format!("{path} on {node}: {}", file.message) };
    }
    let nodes = state.model_nodes.iter().count();
    if nodes == 0 {
        return Refusal { reason: Reason::NoNodes, message: "no node is known: no agent has reported yet".into() };
    }
    let unread = state.model_nodes.iter().filter_map(|(key, node)| {
        let message = &node.status.as_ref()?.models_message;
        (!message.is_empty()).then(|| format!("; on {} {message}", key.name))
    });
    let unread: String = unread.take(LISTED).collect();
    let there: BTreeSet<String> = files(state).map(|(node, file)| format!("{} ({node})", file.path)).collect();
    let mut listed: Vec<String> = there.iter().take(LISTED).cloned().collect();
    if there.len() > LISTED {
        listed.push(format!("and {} more", there.len() - LISTED));
    }
    let there = if listed.is_empty() { "there is no model file at all".to_owned() } else { format!("there are {}", listed.join(", ")) };
    Refusal {
        reason: Reason::ModelNotFound,
        message: format!("{path} is in the model directory of none of {nodes} nodes; {there}{unread}"),
    }
}

fn files(state: &State) -> impl Iterator<Item = (&str, &ModelFile)> {
    let nodes = state.model_nodes.iter();
    nodes.flat_map(|(key, node)| node.status.iter().flat_map(|status| &status.models).map(|file| (key.name.as_str(), file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gpu_node, model_file, state_with};

    #[test]
    fn a_path_is_found_on_the_nodes_that_have_the_file() {
        let mut with_file = gpu_node("n1", Bytes::gib(8));
        with_file.status.as_mut().unwrap().models = vec![model_file("a.gguf")];
        let state = state_with(vec![with_file, gpu_node("n2", Bytes::gib(8))], Vec::new());
        let found = find(&state, &Origin::Path("a.gguf".into())).unwrap();
        assert_eq!(found.only_on, Some(BTreeSet::from(["n1".to_owned()])));
    }

    #[test]
    fn a_path_that_no_node_has_is_refused_with_what_there_is() {
        let mut node = gpu_node("n1", Bytes::gib(8));
        node.status.as_mut().unwrap().models = vec![model_file("a.gguf")];
        let refusal = find(&state_with(vec![node], Vec::new()), &Origin::Path("b.gguf".into())).unwrap_err();
        assert_eq!(refusal.reason, Reason::ModelNotFound);
        assert!(refusal.message.contains("b.gguf") && refusal.message.contains("a.gguf (n1)"), "{}", refusal.message);
    }

    #[test]
    fn a_file_that_could_not_be_read_gives_its_reason() {
        let mut node = gpu_node("n1", Bytes::gib(8));
        let broken =
            ModelFile { summary: None, reason: Some(Reason::InvalidModelFile), message: "it ends early".into(), ..model_file("a.gguf") };
        node.status.as_mut().unwrap().models = vec![broken];
        let refusal = find(&state_with(vec![node], Vec::new()), &Origin::Path("a.gguf".into())).unwrap_err();
        assert_eq!((refusal.reason, refusal.message.as_str()), (Reason::InvalidModelFile, "a.gguf on n1: it ends early"));
    }
}
