use stowage_placement::Reason;
use stowage_placement::gguf::Keep;
use stowage_sources::{AddressPolicy, SourceError, header, hugging_face};

use crate::server::{Script, Server};
use crate::{model, with_loopback};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ANSWER: &str =
    r#"{"_id": "1", "id": "a/b", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "m.gguf"}]}"#;

async fn asked(revision: &'static str) -> Result<String, SourceError> {
    let server = Server::start(Script { revision, ..Script::default() }).await;
    hugging_face::commit(&server.url, "a/b", "main", &with_loopback()).await
}

#[tokio::test]
async fn a_revision_is_resolved_to_its_commit_and_the_file_is_read_at_that_commit() {
    let files = [(format!("/hf/a/b/resolve/{COMMIT}/sub/m.gguf"), model().file(|_, _| 0))].into();
    let server = Server::start(Script { revision: ANSWER, files, ..Script::default() }).await;
    let commit = hugging_face::commit(&server.url, "a/b", "refs/pr/1", &with_loopback()).await.unwrap();
    assert_eq!(commit, COMMIT);
    assert_eq!(server.paths(), ["/api/models/a/b/revision/refs%2Fpr%2F1"]);
    let url = hugging_face::file_url(&format!("{}/hf", server.url), "a/b", &commit, "sub/m.gguf").unwrap();
    assert_eq!(header(&url, Keep::Sizing, &with_loopback()).await.unwrap().header.architecture().unwrap(), "llama");
}

#[tokio::test]
async fn a_commit_stands_for_itself_and_nobody_is_asked() {
    let nowhere = "http://127.0.0.1:1";
    assert_eq!(hugging_face::commit(nowhere, "a/b", COMMIT, &AddressPolicy::public()).await.unwrap(), COMMIT);
}

#[tokio::test]
async fn what_the_hub_answers_instead_of_a_commit_is_not_repeated() {
    for answer in ["SECRET", r#"{"sha": "SECRET"}"#, r#"{"sha": null}"#, "[]"] {
        let error = asked(answer).await.unwrap_err();
        assert_eq!(error.reason(), Reason::SourceUnavailable);
        assert!(error.to_string().contains("its answer names no commit") && !error.to_string().contains("SECRET"), "{error}");
    }
    assert_eq!(asked("").await.unwrap_err().reason(), Reason::ModelNotFound);
}

#[tokio::test]
async fn a_hub_within_the_cluster_is_not_asked_unless_allowed() {
    let server = Server::start(Script { revision: ANSWER, ..Script::default() }).await;
    let error = hugging_face::commit(&server.url, "a/b", "main", &AddressPolicy::public()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SourceForbidden);
    assert!(server.paths().is_empty());
}
