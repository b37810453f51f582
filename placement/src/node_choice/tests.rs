//! Which node is chosen, and what is said of the others.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::capability::Engine;
use crate::device_plan::{Device, NodeDevices};
use crate::fit_report::{Suggestion, consider};
use crate::gguf::GgmlType;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::node_choice::figures::Figures;
use crate::node_choice::refusal::{Nearest, refuse};
use crate::node_choice::{Choice, Node, choose, choose_for};
use crate::reason::Reason;
use crate::request::{Asked, ContextPolicy, KvCacheType, PlacementPolicy};
use crate::testing::{LLAMA_3_8B, OFFLOADING, SMOLLM2_135M, Shape, devices};
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
        siblings: 0,
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
fn replicas_are_spread_though_the_file_lies_elsewhere_but_never_at_the_cost_of_their_gpu() {
    let mut nodes = [node("a", &[9000]), node("b", &[24_000]), node("c", &[3000])];
    nodes[0].has_model_file = true;
    nodes[0].siblings = 1;
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "b: 100% GPU");
    nodes[1].siblings = 1;
    assert_eq!(chosen(&LLAMA_3_8B, &asked(), &nodes), "a: 100% GPU");
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

/// The suggestion of another node, as its name, processor and message.
fn other(asked: &Asked, nodes: &[Node]) -> Option<(String, String, String)> {
    let report = match choose(&LLAMA_3_8B.summary(), asked, nodes) {
        Choice::Placed { report, .. } | Choice::Refused { best: Some((_, report)), .. } => report,
        Choice::Refused { refusal, best: None } => panic!("{refusal}"),
    };
    let found = report.fit.suggestions.into_iter().find(|suggestion| suggestion.change == "node")?;
    Some((found.value, found.processor, found.message))
}

#[test]
fn a_node_that_is_kept_out_is_suggested_where_it_would_do() {
    let small = node("small", &[3000]);
    type Change = fn(&mut Node);
    let kept_out = |change: Change| {
        let mut large = node("large", &[9000]);
        change(&mut large);
        let mut larger = Node { name: "larger".into(), ..large.clone() };
        larger.devices.gpus[0].offered = Bytes::gib(12);
        [larger, small.clone(), large]
    };
    let required = Asked { policy: PlacementPolicy::RequireGPU, ..asked() };
    let cases: [(Change, &str); 4] = [
        (|node| node.selector_matches = false, "the nodeSelector or the deviceSelector does not match it"),
        (|node| node.schedulable = false, "it is cordoned"),
        (|node| node.assignments = 64, "it holds 64 assignments, as many as a node may"),
        (
            |node| (node.selector_matches, node.schedulable) = (false, false),
            "the nodeSelector or the deviceSelector does not match it and it is cordoned",
        ),
    ];
    for (change, why) in cases {
        for asked in [asked(), required.clone()] {
            let said = format!("this node has room for it as it is asked, but {why}");
            assert_eq!(other(&asked, &kept_out(change)), Some(("large".into(), "100% GPU".into(), said)));
        }
    }
    assert_eq!(other(&asked(), &kept_out(|node| (node.ready, node.schedulable) = (false, false))), None);
    assert_eq!(
        other(&asked(), &kept_out(|node| (node.schedulable, node.devices.gpus[0].offered) = (false, Bytes::ZERO))).map(|(name, ..)| name),
        Some("larger".into())
    );
}

/// The choice as it is made by planning every node.
fn by_planning_all(engine: Engine, summary: &ModelSummary, asked: &Asked, nodes: &[Node]) -> Choice {
    let (mut placed, mut refused, mut filtered) = (Vec::new(), BTreeMap::<Reason, Vec<(Bytes, &str, usize)>>::new(), Vec::new());
    for (index, node) in nodes.iter().enumerate() {
        if let Some(reason) = node.kept_out() {
            filtered.push(reason);
            continue;
        }
        match consider(engine, summary, asked, &node.devices) {
            Err(refusal) => return Choice::Refused { refusal, best: None },
            Ok(considered) if considered.outcome.is_placed() => {
                placed.push((Figures::of(&considered).rank(node), index));
            }
            Ok(considered) => {
                let entry = (considered.shortfall().unwrap(), node.name.as_str(), index);
                refused.entry(considered.outcome.reason()).or_default().push(entry);
            }
        }
    }
    let report = |index: usize| {
        let mut report = consider(engine, summary, asked, &nodes[index].devices).unwrap().decision().unwrap().report;
        let place = report.fit.suggestions.iter().position(|suggestion| suggestion.change == "device");
        if let (false, Some(suggestion)) = (report.fit.fits, other_node(engine, summary, &asked.resolved(report.request.num_ctx), nodes)) {
            report.fit.suggestions.insert(place.unwrap_or(report.fit.suggestions.len()), suggestion);
        }
        report
    };
    if let Some((_, node)) = placed.into_iter().min() {
        return Choice::Placed { node, report: report(node) };
    }
    let nearest = |(reason, found): (&Reason, &Vec<(Bytes, &str, usize)>)| {
        let (shortfall, _, index) = found.iter().min().copied().unwrap();
        Nearest { reason: *reason, count: found.len(), index, shortfall }
    };
    let best = refused.values().flatten().min().map(|(_, _, index)| (*index, report(*index)));
    refuse(nodes, &filtered, &refused.iter().map(nearest).collect::<Vec<_>>(), best)
}

/// The best of all nodes that are kept out though they are ready, and on which the request is met.
fn other_node(engine: Engine, summary: &ModelSummary, asked: &Asked, nodes: &[Node]) -> Option<Suggestion> {
    let kept_out = nodes.iter().filter(|node| node.kept_out().is_some() && node.ready);
    let found = kept_out.filter_map(|node| {
        let considered = consider(engine, summary, asked, &node.devices).unwrap();
        let rank = Figures::of(&considered).rank(node);
        (considered.outcome.reason() == Reason::Fits).then(|| (rank, considered.plan().processor.clone(), node))
    });
    let (_, processor, node) = found.min_by(|(a, ..), (b, ..)| a.cmp(b))?;
    let kept_out = [
        (!node.selector_matches, "the nodeSelector or the deviceSelector does not match it".to_owned()),
        (!node.schedulable, "it is cordoned".to_owned()),
        (node.assignments >= 64, format!("it holds {} assignments, as many as a node may", node.assignments)),
    ];
    let kept_out: Vec<String> = kept_out.into_iter().filter(|(applies, _)| *applies).map(|(_, what)| what).collect();
    let message = format!("this node has room for it as it is asked, but {}", kept_out.join(" and "));
    Some(Suggestion { change: "node".into(), value: node.name.clone(), processor, message })
}

/// GPUs of several kinds, some of them full.
fn gpus(most: usize) -> impl Strategy<Value = Vec<Device>> {
    let offered = prop_oneof![0u64..8 << 20, (0u64..5).prop_map(|mib| mib << 20)];
    let backend = prop_oneof![8 => Just(Backend::Cuda), 1 => Just(Backend::SimulatedGpu)];
    let overhead = prop_oneof![4 => Just(0u64), 1 => 0u64..1 << 20];
    proptest::collection::vec((offered, backend, overhead), 0..most).prop_map(|gpus| {
        let gpu = |(index, (offered, backend, overhead)): (usize, (u64, Backend, u64))| Device {
            id: format!("gpu{index}"),
            backend,
            offered: Bytes(offered),
            overhead: Bytes(overhead),
            ..Device::default()
        };
        gpus.into_iter().enumerate().map(gpu).collect()
    })
}

/// Nodes of up to twelve GPUs, beside hosts of all sizes.
fn fleets() -> impl Strategy<Value = Vec<Node>> {
    let host = prop_oneof![3 => Just(1u64 << 30), 1 => 0u64..10 << 20];
    let state = [0.9, 0.3, 0.9, 0.9].map(proptest::bool::weighted);
    let one = (prop_oneof![gpus(4), gpus(13)], host, state, 60u32..66, 0u32..3);
    let one = one.prop_map(|(gpus, host, [ready, has_model_file, schedulable, selector_matches], assignments, siblings)| {
        let devices = NodeDevices::new(gpus, Bytes(host));
        Node { ready, has_model_file, siblings, schedulable, selector_matches, assignments, devices, ..node("", &[]) }
    });
    proptest::collection::vec(one, 0..12).prop_map(|nodes| {
        let named = |(index, node): (usize, Node)| Node { name: format!("node{}", index * 7 % 12), ..node };
        nodes.into_iter().enumerate().map(named).collect()
    })
}

fn requests() -> impl Strategy<Value = Asked> {
    let num_ctx = proptest::option::of(1u64..12_000);
    let policy =
        prop_oneof![4 => Just(PlacementPolicy::PreferGPU), 2 => Just(PlacementPolicy::RequireGPU), 1 => Just(PlacementPolicy::RequireCPU)];
    let num_gpu = prop_oneof![4 => Just(-1i64), 1 => -1i64..12];
    let cache = prop_oneof![9 => Just(KvCacheType::F16), 1 => Just(KvCacheType::Q8_0)];
    let rest = (proptest::option::of(1u64..11_000), proptest::option::of(0u32..6), 1u32..3, cache);
    (num_ctx, policy, num_gpu, rest).prop_map(|(num_ctx, policy, num_gpu, (min_context, max_devices, parallel, kv_cache_type))| Asked {
        num_ctx: num_ctx.map(Tokens),
        policy,
        num_gpu,
        parallel,
        kv_cache_type,
        max_devices,
        min_context: min_context.map(Tokens),
        context_policy: if min_context.is_some() { ContextPolicy::ShrinkToFit } else { ContextPolicy::Exact },
        num_batch: 32,
    })
}

fn small_models() -> impl Strategy<Value = ModelSummary> {
    (1u32..9, 1u64..5, 1u64..6, any::<bool>(), 1u32..20_000).prop_map(|(blocks, width, ff, tied_output, trained_context)| {
        let sizes = Shape { blocks, embedding: width * 64, heads: 2, kv_heads: 1, feed_forward: ff * 64, vocabulary: 640, ..SMOLLM2_135M };
        Shape { weights: GgmlType::Q8_0, tied_output, trained_context, ..sizes }.summary()
    })
}

fn small_models_with_experts() -> impl Strategy<Value = ModelSummary> {
    (1u32..9, 1u64..4, 0u32..3, 1u64..9, 1u32..20_000).prop_map(|(blocks, width, dense, experts, trained_context)| {
        let sizes = Shape { blocks, embedding: width * 64, heads: 2, kv_heads: 1, feed_forward: 64, vocabulary: 640, ..SMOLLM2_135M };
        Shape { weights: GgmlType::Q8_0, trained_context, ..sizes }.with_experts(dense, experts, 192)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_choice_is_the_one_that_planning_every_node_gives(summary in small_models(), asked in requests(), nodes in fleets()) {
        prop_assert_eq!(choose(&summary, &asked, &nodes), by_planning_all(Engine::OURS, &summary, &asked, &nodes));
    }

    #[test]
    fn it_is_where_layers_may_leave_their_experts_too(summary in small_models_with_experts(), asked in requests(), nodes in fleets()) {
        prop_assert_eq!(choose_for(OFFLOADING, &summary, &asked, &nodes), by_planning_all(OFFLOADING, &summary, &asked, &nodes));
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(summary in small_models(), asked in requests(), nodes in fleets(), turn in 0usize..12) {
        let mut turned = nodes.clone();
        turned.rotate_left(turn.min(nodes.len()));
        let said = |nodes: &[Node]| match choose(&summary, &asked, nodes) {
            Choice::Placed { node, report } => (Some(nodes[node].name.clone()), None, Some(report)),
            Choice::Refused { refusal, best } => (best.as_ref().map(|(node, _)| nodes[*node].name.clone()), Some(refusal), best.map(|(_, report)| report)),
        };
        prop_assert_eq!(said(&nodes), said(&turned));
    }
}
