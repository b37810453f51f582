//! The case that Stowage exists for: a context that does not fit on the GPU, said with its numbers, instead of a model that is slow for no visible reason.
#![allow(clippy::unwrap_used)]

use stowage_crds::ModelDeployment;
use stowage_crds::conditions::ConditionType;
use stowage_end_to_end::client::worker_url;
use stowage_end_to_end::cluster::program;
use stowage_end_to_end::{Cluster, Settings, models, watch};
use stowage_placement::{Bytes, PlanReport, Reason, Tokens};

const NAME: &str = "smollm2";

fn manifest(num_ctx: u64, parameters: &str, policy: &str) -> String {
    format!(
        "apiVersion: stowage.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {NAME}, namespace: default}}\nspec:\n  \
         model: {{path: {}}}\n  parameters: {{num_ctx: {num_ctx}{parameters}}}\n  placement: {{policy: {policy}}}\n",
        models::SMOLLM2
    )
}

/// Ready at this context, in the newest revision.
fn ready_at(num_ctx: u64) -> impl Fn(&ModelDeployment) -> bool {
    move |object| {
        let summary = object.status.as_ref().and_then(|status| status.summary.as_ref());
        watch::is_ready(object) && summary.is_some_and(|summary| summary.num_ctx == Some(Tokens(num_ctx)))
    }
}

async fn apply(cluster: &Cluster, num_ctx: u64, parameters: &str, policy: &str) {
    cluster.apply(&manifest(num_ctx, parameters, policy)).unwrap();
}

async fn ready(cluster: &Cluster, num_ctx: u64) -> ModelDeployment {
    match watch::model_deployment(&cluster.client, "default", NAME, ready_at(num_ctx)).await {
        Ok(found) => found,
        Err(error) => panic!("{error:#}\n{}", cluster.logs()),
    }
}

/// Waits until what was applied last is refused, and gives the refusal's words.
async fn refused(cluster: &Cluster) -> String {
    let is_refused = |object: &ModelDeployment| {
        let reason = object.status.as_ref().and_then(|status| stowage_crds::conditions::find(&status.conditions, ConditionType::Scheduled));
        watch::is(object, ConditionType::Scheduled, "False") && reason.is_some_and(|c| c.reason == Reason::InsufficientVRAM.as_str())
    };
    match watch::model_deployment(&cluster.client, "default", NAME, is_refused).await {
        Ok(found) => watch::message(&found, ConditionType::Scheduled),
        Err(error) => panic!("{error:#}\n{}", cluster.logs()),
    }
}

/// What was decided can be told again from the objects alone, by who has nothing but their YAML, whatever the node's figures are by now.
fn replayed(cluster: &Cluster, decided: &ModelDeployment) {
    let save = |kind: &str, name: &str| {
        let path = cluster.folder().join(format!("{kind}.yaml"));
        std::fs::write(&path, cluster.kubectl_output(&["get", kind, name, "-o", "yaml"]).unwrap()).unwrap();
        path
    };
    let mut command = std::process::Command::new(program("stowage-agent").unwrap());
    command.arg("plan").arg(save("modeldeployment", NAME)).arg("--node").arg(save("modelnode", "node-a")).args(["--format", "json"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let replayed: PlanReport = serde_json::from_slice(&output.stdout).unwrap();
    let fit = decided.status.as_ref().unwrap().fit.as_ref().unwrap();
    assert_eq!(&replayed.without_layers(), fit);
}

/// `ollama ps` tells the processor by two sizes: it must say what `kubectl get` does.
async fn ollama_shows(placed: &ModelDeployment) {
    let url = format!("{}/api/ps", worker_url(placed).unwrap());
    let answer: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let model = &answer["models"][0];
    let (size, on_gpu) = (model["size"].as_f64().unwrap(), model["size_vram"].as_f64().unwrap());
    let on_cpu = (100.0 * (size - on_gpu) / size).round();
    let shown = match on_cpu {
        0.0 => "100% GPU".to_owned(),
        100.0 => "100% CPU".to_owned(),
        _ => format!("{on_cpu}%/{}% CPU/GPU", 100.0 - on_cpu),
    };
    let told = watch::processor(placed);
    assert_eq!((&shown, model["processor"].as_str()), (&told, Some(told.as_str())), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_does_not_fit_the_gpu_says_so_with_its_numbers_and_the_largest_that_does() {
    let mut cluster = Cluster::start(Settings::default()).await.unwrap();
    cluster.start_gpu_nodes(&[("node-a", Bytes::gib(1))]).await.unwrap();

    apply(&cluster, 512, "", "PreferGPU").await;
    assert_eq!(watch::processor(&ready(&cluster, 512).await), "100% GPU");

    apply(&cluster, 8192, "", "PreferGPU").await;
    let large = ready(&cluster, 8192).await;
    ollama_shows(&large).await;
    assert_ne!(watch::processor(&large), "100% GPU");
    let status = large.status.clone().unwrap();
    let largest = status.fit.as_ref().unwrap().fit.max_num_ctx_on_gpu.0;
    assert!((256..8192).contains(&largest) && largest % 256 == 0, "{largest}");
    let row = cluster.kubectl_output(&["get", "mdl", NAME]).unwrap();
    assert!(row.contains("CPU") && (row.contains("PartlyOnCPU") || row.contains("RunningOnCPU")), "{row}");
    println!("{row}");
    let described = cluster.kubectl_output(&["describe", "mdl", NAME]).unwrap();
    for needed in ["8192", "missing", &largest.to_string()] {
        assert!(described.contains(needed), "`{needed}` is not in:\n{described}");
    }
    let missing = status.fit.unwrap().fit.shortfall_bytes.to_string();
    replayed(&cluster, &large);
    println!("{}", watch::message(&large, ConditionType::Degraded));

    apply(&cluster, 8192, "", "RequireGPU").await;
    let by_policy = refused(&cluster).await;
    apply(&cluster, 8192, ", num_gpu: 999", "PreferGPU").await;
    let by_demand = refused(&cluster).await;
    for message in [by_policy, by_demand] {
        assert!(message.contains(&missing) && message.contains(&largest.to_string()), "{message} should say {missing} and {largest}");
    }

    apply(&cluster, largest, "", "PreferGPU").await;
    assert_eq!(watch::processor(&ready(&cluster, largest).await), "100% GPU");
    apply(&cluster, largest + 256, "", "PreferGPU").await;
    let larger = ready(&cluster, largest + 256).await;
    assert_ne!(watch::processor(&larger), "100% GPU");
    ollama_shows(&larger).await;
    cluster.stop().unwrap();
}
