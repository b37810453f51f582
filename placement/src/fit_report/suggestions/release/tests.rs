//! Who is asked to leave, and what comes of it.

use proptest::prelude::*;

use super::EVERY_SET_OF;
use crate::device_plan::{Holder, NodeDevices, Who};
use crate::fit_report::{PlanReport, Suggestion, decide};
use crate::model_summary::ModelSummary;
use crate::request::{Asked, PlacementPolicy};
use crate::testing::{LLAMA_3_8B, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, Tokens};

fn replica(deployment: &str, replica: &str) -> Who {
    Who::Replica { namespace: "default".into(), deployment: deployment.into(), replica: replica.into() }
}

fn process(pid: u32) -> Who {
    Who::Process { pid, name: "python3".into() }
}

/// GPUs with so many MiB on offer, beside a host that holds any of these models.
fn node(offers: &[u64]) -> NodeDevices {
    let offers: Vec<Bytes> = offers.iter().map(|mib| Bytes::mib(*mib)).collect();
    devices(&offers, Bytes::gib(64))
}

fn hold(node: &mut NodeDevices, gpu: usize, who: Who, mib: u64) {
    node.gpus[gpu].holders.push(Holder { who, bytes: Bytes::mib(mib) });
}

fn report(node: &NodeDevices) -> PlanReport {
    let asked = Asked { num_ctx: Some(Tokens(8192)), ..Asked::default() };
    decide(&LLAMA_3_8B.summary(), &asked, node).unwrap().report
}

fn released(report: &PlanReport) -> Option<&Suggestion> {
    report.fit.suggestions.iter().find(|suggestion| suggestion.change == "release")
}

#[test]
fn one_holder_is_suggested_before_several_and_the_smallest_that_does() {
    // 148.8 MiB are missing.
    let mut node = node(&[5000]);
    for (who, mib) in [(process(1), 100), (process(2), 60), (replica("large", "large-1-0"), 900), (replica("small", "small-1-0"), 500)] {
        hold(&mut node, 0, who, mib);
    }
    let report = report(&node);
    let found = released(&report).unwrap();
    assert_eq!((found.value.as_str(), found.processor.as_str()), ("default/small", "100% GPU"));
    assert_eq!(found.message, "stops default/small, which gives back 500.0 MiB on gpu0");
    let order: Vec<&str> = report.fit.suggestions.iter().map(|suggestion| suggestion.change.as_str()).collect();
    assert_eq!(order, ["kvCacheType", "numCtx", "release", "device"]);
}

#[test]
fn where_no_single_one_is_enough_the_set_with_the_fewest_bytes_is_suggested() {
    let mut node = node(&[5000]);
    for (pid, mib) in [(1, 20), (2, 100), (3, 140), (4, 60)] {
        hold(&mut node, 0, process(pid), mib);
    }
    let report = report(&node);
    let found = released(&report).unwrap();
    assert_eq!(found.value, "process 4 (python3), process 2 (python3)");
    assert_eq!(
        found.message,
        "stops process 4 (python3), which gives back 60.0 MiB on gpu0; process 2 (python3), which gives back 100.0 MiB on gpu0"
    );
}

#[test]
fn a_holder_gives_back_what_it_holds_on_every_gpu() {
    let mut node = node(&[1800, 1800]);
    hold(&mut node, 0, replica("wide", "wide-1-0"), 1000);
    hold(&mut node, 1, replica("wide", "wide-1-0"), 900);
    let report = report(&node);
    let found = released(&report).unwrap();
    assert_eq!(found.message, "stops default/wide, which gives back 1000.0 MiB on gpu0 and 900.0 MiB on gpu1");
}

#[test]
fn a_replica_is_named_where_its_deployment_has_several_on_the_node() {
    let mut node = node(&[3500]);
    hold(&mut node, 0, replica("twin", "twin-1-0"), 900);
    hold(&mut node, 0, replica("twin", "twin-1-1"), 901);
    let report = report(&node);
    assert_eq!(released(&report).unwrap().value, "default/twin (twin-1-0), default/twin (twin-1-1)");
}

#[test]
fn nobody_is_asked_to_leave_where_it_would_not_help() {
    let mut small = node(&[1000]);
    hold(&mut small, 0, process(1), 3000);
    assert_eq!(released(&report(&small)), None);
    let mut roomy = node(&[9000]);
    hold(&mut roomy, 0, process(1), 3000);
    assert_eq!(released(&report(&roomy)), None);
    // The token embeddings stay in host memory.
    let mut without_memory = NodeDevices { host: devices(&[], Bytes::mib(50)).host, ..node(&[5000]) };
    hold(&mut without_memory, 0, process(1), 3000);
    assert_eq!(released(&report(&without_memory)), None);
}

/// What `--gpu` would have to show once these are gone: their bytes given back.
fn without(node: &NodeDevices, leaves: impl Fn(&Who) -> bool) -> NodeDevices {
    let mut node = node.clone();
    for gpu in &mut node.gpus {
        for holder in std::mem::take(&mut gpu.holders) {
            if leaves(&holder.who) {
                gpu.offered.0 += holder.bytes.0;
            } else {
                gpu.holders.push(holder);
            }
        }
    }
    node
}

/// Small models, requests of all sorts, and GPUs that are held by up to nine.
fn cases() -> impl Strategy<Value = (ModelSummary, Asked, NodeDevices)> {
    let summary = (1u32..9, 1u64..5, any::<bool>()).prop_map(|(blocks, width, tied_output)| {
        let sizes = Shape { blocks, embedding: width * 64, heads: 2, kv_heads: 1, feed_forward: 192, vocabulary: 640, ..SMOLLM2_135M };
        Shape { tied_output, ..sizes }.summary()
    });
    let policy = prop_oneof![Just(PlacementPolicy::PreferGPU), Just(PlacementPolicy::RequireGPU)];
    let asked = (1u64..8000, policy, prop_oneof![3 => Just(-1i64), 1 => 1i64..6]).prop_map(|(num_ctx, policy, num_gpu)| Asked {
        num_ctx: Some(Tokens(num_ctx)),
        num_gpu: if policy == PlacementPolicy::RequireGPU { -1 } else { num_gpu },
        policy,
        num_batch: 32,
        ..Asked::default()
    });
    let offers = proptest::collection::vec(0u64..1 << 20, 1..4);
    let holders = proptest::collection::vec((1u32..10, 0usize..3, 0u64..2 << 20), 0..12);
    (summary, asked, offers, holders).prop_map(|(summary, asked, offers, holders)| {
        let offers: Vec<Bytes> = offers.into_iter().map(Bytes).collect();
        let mut node = devices(&offers, Bytes::gib(64));
        for (pid, gpu, bytes) in holders {
            let gpus = node.gpus.len();
            node.gpus[gpu % gpus].holders.push(Holder { who: process(pid), bytes: Bytes(bytes) });
        }
        (summary, asked, node)
    })
}

fn pids(value: &str) -> Vec<u32> {
    value.split(", ").map(|who| who.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

/// How many leave, and with how many bytes.
fn cost(node: &NodeDevices, leaves: impl Fn(u32) -> bool) -> (usize, Bytes) {
    let holders = node.gpus.iter().flat_map(|gpu| &gpu.holders);
    let leaving = holders.filter(|holder| matches!(holder.who, Who::Process { pid, .. } if leaves(pid)) && holder.bytes > Bytes::ZERO);
    let who: std::collections::BTreeSet<&Who> = leaving.clone().map(|holder| &holder.who).collect();
    (who.len(), leaving.map(|holder| holder.bytes).sum())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn those_suggested_to_leave_make_it_fit_and_nobody_of_them_could_stay((summary, asked, node) in cases()) {
        let report = decide(&summary, &asked, &node).unwrap().report;
        if let Some(suggestion) = released(&report) {
            let leaving = pids(&suggestion.value);
            let applied = |leaving: &[u32]| {
                let node = without(&node, |who| matches!(who, Who::Process { pid, .. } if leaving.contains(pid)));
                decide(&summary, &asked, &node).unwrap().report
            };
            let all = applied(&leaving);
            prop_assert!(all.fit.fits);
            prop_assert_eq!(&all.plan.processor, &suggestion.processor);
            for staying in &leaving {
                let others: Vec<u32> = leaving.iter().copied().filter(|pid| pid != staying).collect();
                prop_assert!(!applied(&others).fit.fits, "{staying} could stay: {suggestion:?}");
            }
        }
    }

    #[test]
    fn nobody_else_with_fewer_bytes_would_do_and_none_is_missed((summary, asked, node) in cases()) {
        let report = decide(&summary, &asked, &node).unwrap().report;
        let (holders, _) = cost(&node, |_| true);
        let fits = |set: u32| decide(&summary, &asked, &without(&node, |who| matches!(who, Who::Process { pid, .. } if set & (1 << pid) != 0))).unwrap().report.fit.fits;
        if report.fit.fits || holders > EVERY_SET_OF {
            return Ok(());
        }
        let present = |set: &u32| cost(&node, |pid| set & (1 << pid) != 0).0 == set.count_ones() as usize;
        let sets = (1u32..1 << 10).map(|set| set << 1).filter(present).filter(|set| fits(*set));
        // One before several, then the fewest bytes.
        let least = sets.map(|set| (set.count_ones() > 1, cost(&node, |pid| set & (1 << pid) != 0).1)).min();
        let found = released(&report).map(|suggestion| {
            let leaving = pids(&suggestion.value);
            (leaving.len() > 1, cost(&node, |pid| leaving.contains(&pid)).1)
        });
        prop_assert_eq!(found, least);
    }
}
