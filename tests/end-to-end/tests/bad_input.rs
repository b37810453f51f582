//! What users get wrong, and what networks and disks get wrong: each is told in status by its reason, and nothing else is disturbed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use stowage_control_plane::processes::free_port;
use stowage_crds::ModelDeployment;
use stowage_end_to_end::file_server::FileServer;
use stowage_end_to_end::{AgentOptions, Cluster, Settings, models, watch};
use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;

fn manifest(name: &str, model: &str, num_ctx: u64) -> String {
    format!(
        "apiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{model: {model}, parameters: {{num_ctx: {num_ctx}}}}}\n"
    )
}

async fn ready(cluster: &Cluster, name: &str) -> ModelDeployment {
    match watch::model_deployment(&cluster.client, "default", name, watch::is_ready).await {
        Ok(found) => found,
        Err(error) => panic!("{error:#}\n{}", cluster.logs()),
    }
}

fn write_bad_files(directory: &Path, good: &Path) {
    let whole = fs::read(good).unwrap();
    fs::write(directory.join("truncated.gguf"), &whole[..50_000_000]).unwrap();
    // Of a quantised weight, all bits set are a scale that is no number.
    let intact = whole.len() - (20 << 20);
    fs::write(directory.join("damaged.gguf"), [&whole[..intact], &vec![0xff; 20 << 20]].concat()).unwrap();
    fs::write(directory.join("text.gguf"), "this is not a model").unwrap();
    let hostile = HeaderWriter::architecture("llama").claim_tensors(1 << 60).header();
    fs::write(directory.join("hostile.gguf"), hostile).unwrap();
    let unknown = HeaderWriter::architecture("steam").tensor("token_embd.weight", GgmlType::F32, &[32, 32]).file(|_, _| 0);
    fs::write(directory.join("unknown.gguf"), unknown).unwrap();
    fs::write(directory.join("mistral3.gguf"), tiny_mistral3().file(|_, _| 0)).unwrap();
}

/// An architecture that can be sized and not run.
fn tiny_mistral3() -> HeaderWriter {
    let biases = [("attn_q", 64), ("attn_k", 32), ("attn_v", 32)];
    biases.iter().fold(models::tiny("mistral3", 4096), |w, (name, size)| w.tensor(&format!("blk.0.{name}.bias"), GgmlType::F32, &[*size]))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_input_is_told_by_its_reason_and_the_good_deployment_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let good = models::directory().unwrap().join(models::SMOLLM2);
    fs::copy(&good, directory.path().join("good.gguf")).unwrap();
    write_bad_files(directory.path(), &good);
    let server = FileServer::start(good).await.unwrap();

    let allowed = ["--allow-source-address".to_owned(), "127.0.0.1/32".to_owned()];
    let nobody = format!("http://127.0.0.1:{}/a.gguf", free_port().unwrap());
    let mut cluster = Cluster::start(Settings { operator_flags: allowed.to_vec(), ..Settings::default() }).await.unwrap();
    let options = AgentOptions { flags: allowed.to_vec(), ..AgentOptions::new("node-a", directory.path()) };
    cluster.start_agent(options).await.unwrap();
    cluster.apply(&manifest("good", "{path: good.gguf}", 512)).unwrap();
    let before = ready(&cluster, "good").await;

    let wrong = "0".repeat(64);
    let bad = [
        ("truncated", "{path: truncated.gguf}".to_owned(), 512, Reason::InvalidModelFile, "50000000"),
        ("text", "{path: text.gguf}".to_owned(), 512, Reason::InvalidModelFile, "GGUF"),
        ("hostile", "{path: hostile.gguf}".to_owned(), 512, Reason::InvalidModelFile, "1152921504606846976"),
        ("unknown", "{path: unknown.gguf}".to_owned(), 512, Reason::UnsupportedArchitecture, "steam"),
        ("mistral3", "{path: mistral3.gguf}".to_owned(), 512, Reason::EngineCannotRun, "llama"),
        ("missing", "{path: nowhere.gguf}".to_owned(), 512, Reason::ModelNotFound, "nowhere.gguf"),
        ("beyond", "{path: good.gguf}".to_owned(), 8193, Reason::ContextBeyondTrained, "8192"),
        ("damaged", "{path: damaged.gguf}".to_owned(), 512, Reason::LoadFailed, "numbers are not finite"),
        ("unreachable", format!("{{http: {{url: '{}'}}}}", nobody), 512, Reason::SourceUnavailable, &nobody),
        ("forbidden", "{http: {url: 'http://127.0.0.2/a.gguf'}}".to_owned(), 512, Reason::SourceForbidden, "127.0.0.2"),
        ("digest", format!("{{http: {{url: '{}', sha256: '{wrong}'}}}}", server.url("digest/a.gguf")), 512, Reason::DigestMismatch, &wrong),
    ];
    for (name, model, num_ctx, ..) in &bad {
        cluster.apply(&manifest(name, model, *num_ctx)).unwrap();
    }
    cluster.apply(&manifest("dropped", &format!("{{http: {{url: '{}'}}}}", server.url("dropped/a.gguf")), 512)).unwrap();
    for (name, _, _, reason, words) in bad {
        cluster.says(name, reason, words).await.unwrap();
    }

    ready(&cluster, "dropped").await;
    let downloads = server.downloads("dropped/a.gguf");
    assert!(downloads.len() >= 2 && downloads[1] > 0, "the download should go on from where it was: {downloads:?}");

    let after = ready(&cluster, "good").await;
    let uids =
        |object: &ModelDeployment| object.status.as_ref().unwrap().placements.iter().map(|p| p.assignment_uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&after), uids(&before));
    cluster.stop().unwrap();
}
