use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stowage_crds::conditions::{self, ConditionType, Observation};
use stowage_crds::model_deployment::{DecisionRecord, DeviceBytes, PlacementState, PlacementStatus, Resolved, Summary};
use stowage_placement::{Bytes, DeviceAllocation, DevicePlan, HOST, Reason, Tokens};

use super::*;
use crate::kubectl::testing::{NOW, deployment, gpu_node, is_golden, now, seen};

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).unwrap()
}

fn defaults() -> DefaultsArgs {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        defaults: DefaultsArgs,
    }
    <Command as clap::Parser>::parse_from(["explain"]).defaults
}

/// On the GPU 24 MiB less was measured than was planned, and on the host what was planned.
fn measured(plan: &DevicePlan) -> Vec<DeviceBytes> {
    let less = |on: &DeviceAllocation| if on.id == HOST { Bytes::ZERO } else { Bytes::mib(24) };
    let measured = |on: &DeviceAllocation| Some(on.total_bytes.saturating_sub(less(on)));
    let devices = plan.devices.iter();
    devices.map(|on| DeviceBytes { id: on.id.clone(), predicted_bytes: on.total_bytes, measured_bytes: measured(on) }).collect()
}

/// `smollm2` with `num_ctx` 8192, on a node with 1 GiB, as the operator has written it down.
async fn partly_on_cpu() -> (ModelDeployment, ClusterPlan) {
    let mut object = deployment(8192);
    let nodes = seen(vec![gpu_node("one", Bytes::gib(1)), gpu_node("two", Bytes::mib(800))]);
    let question = Question::about(&object, &nodes, None, "http://127.0.0.1:1").await.unwrap();
    let plan = ClusterPlan::new(&question, &nodes, defaults());
    let report = plan.report.clone().unwrap();
    let placement = PlacementStatus {
        replica: "smollm2-5d9f-0".into(),
        revision: "5d9f".into(),
        node: "one".into(),
        model_node_uid: String::new(),
        assignment_uid: "a".into(),
        replaces: String::new(),
        state: PlacementState::Ready,
        processor: report.plan.processor.clone(),
        num_ctx: Tokens(8192),
        gpu_layers: report.plan.gpu_layers.0,
        total_layers: report.plan.total_layers.0,
        devices: measured(&report.plan),
        predicted_bytes: report.plan.devices.iter().map(|device| device.total_bytes).sum(),
        uncertainty_bytes: Bytes::mib(256),
        measured_bytes: Some(measured(&report.plan).iter().filter_map(|on| on.measured_bytes).sum()),
        speed: String::new(),
        percent: None,
        reason: Reason::PartlyOnCPU,
        message: String::new(),
        endpoint: "192.0.2.10:4000".into(),
        pod_ref: String::new(),
    };
    let offered = stowage_placement::NodeDevices::new(Vec::new(), Bytes::gib(16));
    let mut status = ModelDeploymentStatus {
        observed_generation: Some(2),
        replicas: 1,
        ready_replicas: 1,
        updated_replicas: 1,
        ready: "1/1".into(),
        resolved: Some(Resolved { revision: "5d9f".into(), ..Resolved::default() }),
        summary: Some(Summary {
            processor: report.plan.processor.clone(),
            num_ctx: Some(Tokens(8192)),
            reason: "PartlyOnCPU".into(),
            ..Summary::default()
        }),
        decision: Some(DecisionRecord {
            nodes: 2,
            node: "one".into(),
            model_node_uid: String::new(),
            resource_version: "321".into(),
            offered,
        }),
        placements: vec![placement],
        ..ModelDeploymentStatus::default()
    };
    let observed = [
        Observation { condition: ConditionType::Ready, status: true, reason: Reason::Serving, message: "1 of 1 replicas serve".into() },
        Observation { condition: ConditionType::Degraded, status: true, reason: Reason::PartlyOnCPU, message: report.fit.message.clone() },
    ];
    conditions::set(&mut status.conditions, &observed, Some(2), Time(ago(300)));
    status.fit = Some(report);
    object.status = Some(status);
    (object, plan)
}

#[tokio::test]
async fn a_model_that_is_partly_on_cpu_is_explained_with_its_numbers_node_by_node() {
    let (object, plan) = partly_on_cpu().await;
    let told = Told { at: Some(ago(30)), warning: true, reason: "PartlyOnCPU".into(), message: "28 of 31 layers run on GPU".into() };
    let explanation = Explanation::new(object, Some(plan), vec![told], Vec::new(), now());
    is_golden("explain-partly-on-cpu.txt", &text::render(&explanation));
}

#[tokio::test]
async fn whoever_may_not_see_the_nodes_is_told_what_status_has() {
    let (object, _) = partly_on_cpu().await;
    let note = "this account may not list ModelNodes: no; so the nodes are not gone through".to_owned();
    let text = text::render(&Explanation::new(object, None, Vec::new(), vec![note], now()));
    assert!(text.contains("Unseen     this account may not list ModelNodes"), "{text}");
    assert!(
        text.contains("17.1 MiB are missing") && text.contains("What would make it fit") && !text.contains("as they are now"),
        "{text}"
    );
}

#[tokio::test]
async fn a_rollout_on_its_way_is_told_with_what_is_older() {
    let (mut object, plan) = partly_on_cpu().await;
    let status = object.status.as_mut().unwrap();
    status.resolved = Some(Resolved { revision: "77ab".into(), ..Resolved::default() });
    status.updated_replicas = 0;
    status.progressed_at = Some(Time(ago(150)));
    object.metadata.generation = Some(3);
    let text = text::render(&Explanation::new(object, Some(plan), Vec::new(), Vec::new(), now()));
    assert!(text.contains("The operator has not looked at the present spec yet"), "{text}");
    let rollout = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        rollout.contains("Rollout 0 of 1 replicas are of the newest revision, 1 older;") && rollout.contains("last a step further 2m ago"),
        "{text}"
    );
}

#[test]
fn what_was_never_decided_says_so() {
    let text = text::render(&Explanation::new(deployment(512), None, Vec::new(), Vec::new(), now()));
    assert!(text.starts_with("smollm2 in namespace default: not looked at yet\n") && text.contains("Decided    nothing yet"), "{text}");
}
