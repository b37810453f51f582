//! Reads the headers of models that lie elsewhere, beside the decision task, which never waits for a server.
//!
//! Each model that is wanted has one task; it ends when the header is read, tries again with a growing delay where it could not be, and is stopped when
//! the model is no longer wanted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use stowage_crds::model_deployment::ResolvedSource;
use stowage_placement::gguf::Keep;
use stowage_placement::{ModelSummary, Reason, Refusal};
use stowage_sources::{AddressPolicy, RemoteHeader, SourceError, hugging_face};
use tokio::sync::{mpsc, watch};

use crate::model_deployment::validate::Origin;
use crate::state::{HeaderRead, RemoteModel};
use crate::wanted_tasks;
use crate::watch::Change;

const FIRST_DELAY: Duration = Duration::from_secs(2);
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// Reads one header. A seam, so that tests need no server.
pub trait ReadHeader: Send + Sync + 'static {
    fn read<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, HeaderRead>;
}

/// Reads from where the model really lies.
pub struct FromSources {
    pub policy: AddressPolicy,
}

impl ReadHeader for FromSources {
    fn read<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, HeaderRead> {
        Box::pin(async move { read(origin, &hugging_face::endpoint(), &self.policy).await })
    }
}

/// Keeps reading what is wanted until nobody wants anything any more.
pub async fn run(reader: Arc<dyn ReadHeader>, wanted: watch::Receiver<BTreeSet<Origin>>, changes: mpsc::Sender<Change>) {
    wanted_tasks::run(wanted, |origin| read_until_read(reader.clone(), origin, changes.clone())).await;
}

async fn read_until_read(reader: Arc<dyn ReadHeader>, origin: Origin, changes: mpsc::Sender<Change>) {
    let mut delay = FIRST_DELAY;
    loop {
        let read = reader.read(&origin).await;
        let is_read = read.is_ok();
        if let Err(Refusal { reason, message }) = &read {
            tracing::warn!(%origin, %reason, "reading the header of a model: {message}");
        }
        let told = changes.send(Change::Header(origin.clone(), read)).await;
        if is_read || told.is_err() {
            return;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

/// `hub` is the Hugging Face hub's address.
async fn read(origin: &Origin, hub: &str, policy: &AddressPolicy) -> HeaderRead {
    match origin {
        // Found on the nodes that have the file.
        Origin::Path(path) => Err(Refusal { reason: Reason::ModelNotFound, message: format!("{path} lies in no place to read it from") }),
        Origin::Http { url, sha256 } => {
            let digest = sha256.as_ref().map(|sha256| format!("sha256:{sha256}")).unwrap_or_default();
            header(url, String::new(), digest, policy).await
        }
        Origin::HuggingFace { repository, revision, file } => {
            let commit = hugging_face::commit(hub, repository, revision, policy).await.map_err(refusal)?;
            let url = hugging_face::file_url(hub, repository, &commit, file).map_err(refusal)?;
            header(&url, commit, String::new(), policy).await
        }
    }
}

async fn header(url: &str, commit: String, digest: String, policy: &AddressPolicy) -> HeaderRead {
    let RemoteHeader { header, size, files: _ } = stowage_sources::header(url, Keep::Sizing, policy).await.map_err(refusal)?;
    let summary = ModelSummary::from_header(&header, size)
        .map_err(|error| Refusal { reason: error.reason(), message: format!("the model file cannot be placed: {error}") })?;
    let source = ResolvedSource { location: url.to_owned(), commit, size_bytes: size, digest };
    Ok(Arc::new(RemoteModel { summary, source }))
}

fn refusal(error: SourceError) -> Refusal {
    Refusal { reason: error.reason(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::get;
    use stowage_placement::Bytes;
    use stowage_placement::testing::{SMOLLM2_135M, Shape};

    use super::*;
    use crate::testing::remote_model;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub with one repository, whose branch `main` is at [`COMMIT`], and in it a small model in two parts.
    async fn hub() -> (String, Bytes) {
        let small = Shape { blocks: 2, embedding: 64, heads: 2, kv_heads: 1, feed_forward: 64, vocabulary: 64, ..SMOLLM2_135M };
        let parts: Vec<Vec<u8>> = small.writer().into_parts(2).iter().map(|part| part.file(|_, _| 0)).collect();
        let size = Bytes(parts.iter().map(|part| part.len() as u64).sum());
        let mut routes = Router::new().route("/api/models/a/b/revision/main", get(|| async { format!(r#"{{"sha": "{COMMIT}"}}"#) }));
        for (index, part) in parts.into_iter().enumerate() {
            routes = routes.route(&format!("/a/b/resolve/{COMMIT}/m-0000{}-of-00002.gguf", index + 1), get(|| async move { part }));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (url, size)
    }

    fn on_the_hub(file: &str) -> Origin {
        Origin::HuggingFace { repository: "a/b".into(), revision: "main".into(), file: file.into() }
    }

    #[tokio::test]
    async fn a_split_model_of_the_hub_is_read_at_one_commit_which_is_recorded() {
        let (hub, size) = hub().await;
        let loopback = AddressPolicy::parse(["127.0.0.0/8"]).unwrap();
        let read_model = read(&on_the_hub("m-00001-of-00002.gguf"), &hub, &loopback).await.unwrap();
        let location = format!("{hub}/a/b/resolve/{COMMIT}/m-00001-of-00002.gguf");
        assert_eq!(read_model.source, ResolvedSource { location, commit: COMMIT.into(), size_bytes: size, digest: String::new() });
        assert_eq!((read_model.summary.size_bytes, read_model.summary.block_count()), (size, 2));
        let second = read(&on_the_hub("m-00002-of-00002.gguf"), &hub, &loopback).await.unwrap_err();
        assert_eq!(second.reason, Reason::InvalidModelFile);
        let forbidden = read(&on_the_hub("m-00001-of-00002.gguf"), &hub, &AddressPolicy::public()).await.unwrap_err();
        assert_eq!(forbidden.reason, Reason::SourceForbidden);
    }

    /// Fails once, then succeeds.
    struct Flaky(AtomicUsize);

    impl ReadHeader for Flaky {
        fn read<'a>(&'a self, _: &'a Origin) -> BoxFuture<'a, HeaderRead> {
            let first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
            let refusal = Refusal { reason: Reason::SourceUnavailable, message: "busy".into() };
            Box::pin(async move { if first { Err(refusal) } else { Ok(Arc::new(remote_model())) } })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_could_not_be_read_is_read_again_later_and_then_no_more() {
        let origin = Origin::Http { url: "http://models.example/m.gguf".into(), sha256: None };
        let (want, wanted) = watch::channel(BTreeSet::from([origin]));
        let (changes, mut told) = mpsc::channel(8);
        let reader = Arc::new(Flaky(AtomicUsize::new(0)));
        let task = tokio::spawn(run(reader.clone(), wanted, changes));
        assert!(matches!(told.recv().await, Some(Change::Header(_, Err(_)))));
        assert!(matches!(told.recv().await, Some(Change::Header(_, Ok(_)))));
        drop(want);
        task.await.unwrap();
        assert_eq!(reader.0.load(Ordering::SeqCst), 2);
    }
}
