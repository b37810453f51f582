//! What users get wrong, and what networks and disks get wrong: each is told in status by its reason, and nothing else is disturbed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

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

/// Every reason and message that a status holds, as text.
fn said(object: &ModelDeployment) -> Vec<(String, String)> {
    let Some(status) = &object.status else { return Vec::new() };
    let conditions = status.conditions.iter().map(|c| (c.reason.clone(), c.message.clone()));
    conditions.chain(status.placements.iter().map(|p| (p.reason.to_string(), p.message.clone()))).collect()
}

/// Waits until status gives this reason in a message that holds `words`.
async fn refused(cluster: &Cluster, name: &str, reason: Reason, words: &str) {
    let holds = |object: &ModelDeployment| said(object).iter().any(|(r, message)| r == reason.as_str() && message.contains(words));
    if let Err(error) = watch::model_deployment(&cluster.client, "default", name, holds).await {
        panic!("{name} should be {reason}, saying `{words}`: {error:#}\n{}", cluster.logs());
    }
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
    fs::write(directory.join("text.gguf"), "this is not a model").unwrap();
    let hostile = HeaderWriter::architecture("llama").claim_tensors(1 << 60).header();
    fs::write(directory.join("hostile.gguf"), hostile).unwrap();
    let unknown = HeaderWriter::architecture("steam").tensor("token_embd.weight", GgmlType::F32, &[32, 32]).file(|_, _| 0);
    fs::write(directory.join("unknown.gguf"), unknown).unwrap();
    fs::write(directory.join("mistral3.gguf"), tiny_mistral3().file(|_, _| 0)).unwrap();
}

/// An architecture that can be sized and not run.
fn tiny_mistral3() -> HeaderWriter {
    let keys = [("block_count", 1), ("context_length", 4096), ("embedding_length", 64), ("feed_forward_length", 128)];
    let heads = [("attention.head_count", 2), ("attention.head_count_kv", 1)];
    let writer =
        keys.iter().chain(&heads).fold(HeaderWriter::architecture("mistral3"), |w, (key, value)| w.u32(&format!("mistral3.{key}"), *value));
    let blocks: [(&str, &[u64]); 12] = [
        ("attn_norm.weight", &[64]),
        ("attn_q.weight", &[64, 64]),
        ("attn_q.bias", &[64]),
        ("attn_k.weight", &[64, 32]),
        ("attn_k.bias", &[32]),
        ("attn_v.weight", &[64, 32]),
        ("attn_v.bias", &[32]),
        ("attn_output.weight", &[64, 64]),
        ("ffn_norm.weight", &[64]),
        ("ffn_gate.weight", &[64, 128]),
        ("ffn_up.weight", &[64, 128]),
        ("ffn_down.weight", &[128, 64]),
    ];
    let writer = blocks.iter().fold(writer, |w, (name, dimensions)| w.tensor(&format!("blk.0.{name}"), GgmlType::F32, dimensions));
    writer
        .f32("mistral3.attention.layer_norm_rms_epsilon", 1e-6)
        .strings("tokenizer.ggml.tokens", (0..32).map(|_| "a"))
        .tensor("token_embd.weight", GgmlType::F32, &[64, 32])
        .tensor("output_norm.weight", GgmlType::F32, &[64])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_input_is_told_by_its_reason_and_the_good_deployment_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let good = models::directory().unwrap().join(models::SMOLLM2);
    fs::copy(&good, directory.path().join("good.gguf")).unwrap();
    write_bad_files(directory.path(), &good);
    let server = FileServer::start(good).await.unwrap();

    let loopback = ["--allow-source-address".to_owned(), "127.0.0.0/8".to_owned()];
    let mut cluster = Cluster::start(Settings { operator_flags: loopback.to_vec(), ..Settings::default() }).await.unwrap();
    let options = AgentOptions { flags: loopback.to_vec(), ..AgentOptions::new("node-a", directory.path()) };
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
        ("digest", format!("{{http: {{url: '{}', sha256: '{wrong}'}}}}", server.url("digest/a.gguf")), 512, Reason::DigestMismatch, &wrong),
    ];
    for (name, model, num_ctx, ..) in &bad {
        cluster.apply(&manifest(name, model, *num_ctx)).unwrap();
    }
    cluster.apply(&manifest("dropped", &format!("{{http: {{url: '{}'}}}}", server.url("dropped/a.gguf")), 512)).unwrap();
    for (name, _, _, reason, words) in bad {
        refused(&cluster, name, reason, words).await;
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
