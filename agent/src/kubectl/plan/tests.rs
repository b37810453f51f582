use k8s_openapi::api::core::v1::{Node as KubeNode, NodeSpec};
use kube::ResourceExt;
use stowage_crds::ModelDeployment;
use stowage_placement::Bytes;

use super::*;
use crate::kubectl::testing::{deployment, gpu_node, is_golden, lease, now, seen};

fn defaults() -> DefaultsArgs {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        defaults: DefaultsArgs,
    }
    <Command as clap::Parser>::parse_from(["plan"]).defaults
}

async fn plan(seen: &Seen, deployment: &ModelDeployment) -> ClusterPlan {
    let question = Question::about(deployment, seen, None, "http://127.0.0.1:1").await.unwrap();
    ClusterPlan::new(&question, seen, defaults())
}

#[tokio::test]
async fn the_table_has_each_node_and_marks_the_one_that_the_operator_would_take() {
    let seen = seen(vec![gpu_node("large", Bytes::gib(2)), gpu_node("small", Bytes::gib(1))]);
    let plan = plan(&seen, &deployment(8192)).await;
    assert_eq!((plan.fits, plan.node.as_deref()), (true, Some("large")));
    is_golden("plan-fits.txt", &text::render(&plan));
}

#[tokio::test]
async fn where_it_fits_nowhere_the_best_node_is_taken_and_what_would_help_is_told() {
    let seen = seen(vec![gpu_node("one", Bytes::gib(1))]);
    let plan = plan(&seen, &deployment(8192)).await;
    assert_eq!((plan.fits, plan.reason, plan.node.as_deref()), (false, Reason::InsufficientVRAM, Some("one")));
    is_golden("plan-short.txt", &text::render(&plan));
}

#[tokio::test]
async fn nodes_that_are_cordoned_silent_or_without_the_file_are_told_and_not_taken() {
    let mut without_file = gpu_node("bare", Bytes::gib(8));
    without_file.status.as_mut().unwrap().models.clear();
    let nodes = vec![without_file, gpu_node("cordoned", Bytes::gib(8)), gpu_node("silent", Bytes::gib(8))];
    let object = |name: &str| {
        let spec = NodeSpec { unschedulable: Some(name == "cordoned"), ..NodeSpec::default() };
        let mut node = KubeNode { spec: Some(spec), ..KubeNode::default() };
        node.metadata.name = Some(name.to_owned());
        node
    };
    let objects = nodes.iter().map(|node| object(&node.name_any())).collect();
    let seen = Seen::new(nodes, Some(objects), Some(vec![lease("cordoned", 5), lease("silent", 60)]), now());
    let plan = plan(&seen, &deployment(512)).await;
    let reasons: Vec<(&str, Reason)> = plan.nodes.iter().map(|node| (node.node.as_str(), node.reason)).collect();
    assert_eq!(reasons, [("bare", Reason::ModelNotFound), ("cordoned", Reason::NodeUnschedulable), ("silent", Reason::NodeNotReady)]);
    assert!(plan.node.is_none() && plan.nodes.iter().all(|node| !node.considered));
    is_golden("plan-nowhere.txt", &text::render(&plan));
}

#[tokio::test]
async fn what_may_not_be_seen_is_assumed_and_said() {
    let seen = Seen::new(vec![gpu_node("one", Bytes::gib(2))], None, None, now());
    let mut asked = deployment(512);
    asked.spec.placement.node_selector.insert("disk".into(), "ssd".into());
    let plan = plan(&seen, &asked).await;
    assert_eq!(plan.node.as_deref(), Some("one"));
    assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
    assert!(text::render(&plan).contains("Assumed    this account may not list Nodes"));
}

#[tokio::test]
async fn a_model_that_no_node_has_is_named_with_those_that_there_are() {
    let seen = seen(vec![gpu_node("one", Bytes::gib(2))]);
    let mut asked = deployment(512);
    asked.spec.model.path = Some("other.gguf".into());
    let error = Question::about(&asked, &seen, None, "http://127.0.0.1:1").await.unwrap_err();
    assert_eq!(error.to_string(), "other.gguf is in the model directory of none of 1 nodes; there are smollm2.gguf (one)");
}
