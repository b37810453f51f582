//! Which node is chosen, and what is said of the others.

use crate::node_choice::{Choice, Node, choose};
use crate::reason::Reason;
use crate::request::{Asked, PlacementPolicy};
use crate::testing::{LLAMA_3_8B, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, Tokens};

fn node(name: &str, gpus: &[u64]) -> Node {
    let offers: Vec<Bytes> = gpus.iter().map(|mib| Bytes::mib(*mib)).collect();
    Node {
        name: name.into(),
        ready: true,
        schedulable: true,
        selector_matches: true,
        assignments: 0,
        has_model_file: false,
        devices: devices(&offers, Bytes::gib(16)),
    }
}

fn asked() -> Asked {
    Asked { num_ctx: Some(Tokens(4096)), ..Asked::default() }
}

fn chosen(shape: &Shape, asked: &Asked, nodes: &[Node]) -> String {
    match choose(&shape.summary(), asked, nodes) {
        Choice::Placed { node, report } => format!("{}: {}", nodes[node].name, report.plan.processor),
        Choice::Refused { refusal, .. } => panic!("{refusal}"),
    }
}

fn refused(asked: &Asked, nodes: &[Node]) -> (Reason, String, Option<usize>) {
    match choose(&LLAMA_3_8B.summary(), asked, nodes) {
        Choice::Refused { refusal, best } => (refusal.reason, refusal.message, best.map(|(index, _)| index)),
        Choice::Placed { node, .. } => panic!("placed on {}", nodes[node].name),
    }
}

#[test]
fn whole_gpu_goes_before_split_before_cpu() {
    let nodes = [node("cpu", &[]), node("split", &[3000]), node("whole", &[9000])];
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "whole: 100% GPU");
    assert!(chosen(&LLAMA_3_8B, &asked(), &nodes[..2]).starts_with("split: "));
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes[..1]), "cpu: 100% CPU");
}

#[test]
fn a_node_that_has_the_file_goes_before_the_tightest_fit() {
    let mut nodes = [node("a", &[24_000]), node("b", &[9000]), node("c", &[16_000])];
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "b: 100% GPU");
    nodes[0].has_model_file = true;
    nodes[2].has_model_file = true;
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "c: 100% GPU");
}

#[test]
fn equal_nodes_are_told_apart_by_name_whatever_their_order() {
    let mut nodes = [node("b", &[9000]), node("a", &[9000]), node("c", &[9000])];
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "a: 100% GPU");
    nodes.reverse();
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "a: 100% GPU");
}

#[test]
fn a_context_left_out_is_longest_where_the_gpu_is_largest() {
    let nodes = [node("small", &[5000]), node("large", &[9000])];
    assert_eq!(chosen(&LLAMA_3_8B, &Asked::default(), &nodes), "large: 100% GPU");
}

#[test]
fn refusals_are_counted_by_reason_and_the_nearest_node_is_reported_on() {
    let mut nodes = [node("far", &[1000]), node("near", &[4500]), node("silent", &[90_000])];
    nodes[2].ready = false;
    let (reason, message, best) = refused(&Asked { policy: PlacementPolicy::RequireGPU, ..asked() }, &nodes);
    assert_eq!((reason, best), (Reason::InsufficientVRAM, Some(1)));
    assert!(message.starts_with("0 of 3 nodes: 2 InsufficientVRAM (best short by 136.8 MiB), 1 NodeNotReady. On near: "), "{message}");
}

#[test]
fn nodes_that_are_not_considered_are_counted_too() {
    let mut nodes = [node("full", &[9000]), node("cordoned", &[9000]), node("other", &[9000]), node("another", &[9000])];
    nodes[0].assignments = 64;
    nodes[1].schedulable = false;
    nodes[2].selector_matches = false;
    nodes[3].selector_matches = false;
    let (reason, message, best) = refused(&asked(), &nodes);
    assert_eq!((reason, best), (Reason::NoMatchingNode, None));
    assert_eq!(message, "0 of 4 nodes: 2 NoMatchingNode, 1 NodeUnschedulable, 1 TooManyAssignments");
    assert_eq!(refused(&asked(), &[]).0, Reason::NoNodes);
}

#[test]
fn a_request_that_contradicts_itself_is_refused_once_for_all_nodes() {
    let nodes = [node("a", &[9000]), node("b", &[9000])];
    let (reason, message, best) = refused(&Asked { policy: PlacementPolicy::RequireCPU, num_gpu: 4, ..asked() }, &nodes);
    assert_eq!((reason, best), (Reason::InvalidRequest, None));
    assert!(!message.contains("nodes"), "{message}");
}

#[test]
fn beyond_the_trained_context_no_node_is_counted() {
    let (reason, message, best) = refused(&Asked { num_ctx: Some(Tokens(9000)), ..asked() }, &[node("a", &[9000])]);
    assert_eq!((reason, best), (Reason::ContextBeyondTrained, Some(0)));
    assert!(message.starts_with("num_ctx 9000 is beyond"), "{message}");
}

#[test]
fn a_placed_report_carries_the_resolved_request() {
    let nodes = [node("a", &[9000])];
    let Choice::Placed { report, .. } = choose(&SMOLLM2_135M.summary(), &Asked::default(), &nodes) else { panic!("refused") };
    assert_eq!(report.request.num_ctx, Tokens(8192));
}
