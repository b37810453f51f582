//! Which layers leave their experts, against trying everything.

use proptest::prelude::*;

use crate::capability::Engine;
use crate::device_plan::{DeviceKind, DevicePlan, NodeDevices, Planner, SizedPlanner, Split};
use crate::gguf::GgmlType;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::testing::{OFFLOADING, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, Tokens};

fn planned<T>(engine: Engine, summary: &ModelSummary, node: &NodeDevices, request: &Request, f: impl FnOnce(&SizedPlanner<'_>) -> T) -> T {
    let planner = Planner::new(summary, node, |_| true, engine, None);
    f(&planner.sized(request).unwrap())
}

fn fullest(summary: &ModelSummary, node: &NodeDevices, request: &Request) -> Split {
    planned(OFFLOADING, summary, node, request, |sized| sized.fullest())
}

/// The 135M with 16 experts in its blocks from the third on: most of its bytes are experts.
fn model() -> ModelSummary {
    SMOLLM2_135M.with_experts(2, 16, 512)
}

fn plan(engine: Engine, mib: u64) -> DevicePlan {
    let node = devices(&[Bytes::mib(mib)], Bytes::gib(8));
    planned(engine, &model(), &node, &Request::default(), |sized| sized.plan(sized.fullest()).unwrap())
}

#[test]
fn all_layers_go_on_gpu_and_the_experts_of_the_first_ones_that_have_any_stay_in_host_memory() {
    let (with, without) = (plan(OFFLOADING, 300), plan(Engine::OURS, 300));
    assert_eq!(with.gpu_layers, with.total_layers);
    assert_eq!(with.devices[0].layer_ranges, [[0, 30]]);
    assert_eq!((&with.devices[1].layer_ranges, &with.devices[1].expert_layer_ranges), (&vec![], &vec![[2, 16]]));
    assert_eq!((with.processor.as_str(), with.layers_without_experts()), ("32%/68% CPU/GPU", 15));
    assert!(without.gpu_layers.0 < 31 && without.devices[1].expert_layer_ranges.is_empty(), "{without:?}");
}

#[test]
fn a_gpu_that_holds_everything_holds_the_experts_too() {
    let plan = plan(OFFLOADING, 4000);
    assert_eq!((plan.processor.as_str(), plan.layers_without_experts()), ("100% GPU", 0));
}

/// Models of a few blocks with experts of all sizes, on GPUs that hold parts of them.
fn cases() -> impl Strategy<Value = (ModelSummary, Request, NodeDevices)> {
    let model = (1u32..7, 1u64..4, 1u64..4, any::<bool>(), 0u32..3, 1u64..9, 1u64..4).prop_map(
        |(blocks, width, ff, tied_output, dense, experts, expert_ff)| {
            let sizes =
                Shape { blocks, embedding: width * 64, heads: 2, kv_heads: 1, feed_forward: ff * 64, vocabulary: 640, ..SMOLLM2_135M };
            Shape { weights: GgmlType::Q8_0, tied_output, ..sizes }.with_experts(dense, experts, expert_ff * 64)
        },
    );
    let request =
        (1u64..3000, 1u32..64).prop_map(|(num_ctx, num_batch)| Request { num_ctx: Tokens(num_ctx), num_batch, ..Request::default() });
    let host = prop_oneof![3 => Just(1000u64), 1 => 0u64..150];
    (model, request, proptest::collection::vec(0u64..110, 0..4), host).prop_map(|(summary, request, percents, host)| {
        let roomy = devices(&[Bytes::gib(1000)], Bytes::ZERO);
        let needed = planned(OFFLOADING, &summary, &roomy, &request, |sized| sized.gpu_needs(sized.total_layers(), 1).total());
        let offers: Vec<Bytes> = percents.into_iter().map(|percent| Bytes(needed.0 / 100 * percent)).collect();
        let node = devices(&offers, Bytes(needed.0 / 100 * host));
        (summary, request, node)
    })
}

/// Whether any of these GPUs, in any order, hold layers `target` to `end - 1` where those below `without` leave their experts.
fn held(sized: &SizedPlanner<'_>, unused: &[Bytes], target: u32, end: u32, without: u32) -> bool {
    end <= target
        || (0..unused.len()).any(|gpu| {
            let others: Vec<Bytes> = (0..unused.len()).filter(|other| *other != gpu).map(|other| unused[other]).collect();
            let bytes = |first: u32| {
                let experts = (first..end.min(without)).map(|layer| sized.costs[0].sizes.experts(layer, layer + 1)).sum();
                sized.costs[0].bytes(first, end).saturating_sub(experts)
            };
            (target..end).any(|first| bytes(first) <= unused[gpu] && held(sized, &others, target, first, without))
        })
}

fn by_trying_all(sized: &SizedPlanner<'_>, offers: &[Bytes], host: Bytes) -> Split {
    let all = sized.total_layers();
    let whole = (0..=all).rev().find(|layers| held(sized, offers, all - layers, all, 0)).unwrap();
    let counts = (1..all).map(|without_experts| Split { gpu_layers: all, without_experts });
    let first = counts.into_iter().find(|split| held(sized, offers, 0, all, split.without_experts));
    let offloading = first.filter(|split| whole < all && sized.host_needs(*split) <= host);
    offloading.unwrap_or(whole.into())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_the_gpus_holds_all_layers_with_fewer_experts_left((summary, request, node) in cases()) {
        let offers: Vec<Bytes> = node.gpus.iter().map(|gpu| gpu.offered).collect();
        let (found, tried) = planned(OFFLOADING, &summary, &node, &request, |sized| (sized.fullest(), by_trying_all(sized, &offers, node.host.offered)));
        prop_assert_eq!(found, tried);
    }

    #[test]
    fn no_plan_exceeds_a_device_and_everything_is_somewhere_once((summary, request, node) in cases()) {
        let (split, plan, all) = planned(OFFLOADING, &summary, &node, &request, |sized| {
            let split = sized.fullest();
            (split, sized.plan(split).unwrap(), sized.costs[0].sizes.all().weights)
        });
        for device in plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu) {
            prop_assert!(device.total_bytes <= device.free_bytes, "{device:?}");
        }
        if split.without_experts > 0 {
            // Both kinds of device lay tensors out alike, and the host has the input layer beside.
            let input = planned(OFFLOADING, &summary, &node, &request, |sized| sized.host.input);
            let weights: Bytes = plan.devices.iter().map(|device| device.weights_bytes).sum();
            prop_assert_eq!(weights, all.saturating_add(input));
            prop_assert!(plan.devices.last().unwrap().total_bytes <= node.host.offered);
            prop_assert_ne!(plan.processor, "100% GPU");
        }
    }

    #[test]
    fn more_free_never_gives_fewer_layers_on_gpu_nor_takes_experts_from_it(
        (summary, request, node) in cases(), which in any::<prop::sample::Index>(), more in 0u64..1 << 22,
    ) {
        prop_assume!(!node.gpus.is_empty());
        let mut larger = node.clone();
        larger.gpus[which.index(node.gpus.len())].offered.0 += more;
        let (before, after) = (fullest(&summary, &node, &request), fullest(&summary, &larger, &request));
        prop_assert!(after.gpu_layers >= before.gpu_layers);
        prop_assert!(after.gpu_layers > before.gpu_layers || after.without_experts <= before.without_experts);
    }

    #[test]
    fn one_gpu_holds_more_layers_than_whole_ones_and_at_most_the_experts_of_one_fewer((summary, request, node) in cases()) {
        prop_assume!(node.gpus.len() == 1);
        planned(OFFLOADING, &summary, &node, &request, |sized| {
            let (split, whole) = (sized.fullest(), sized.most_gpu_layers());
            if split.without_experts > 0 {
                let sizes = &sized.costs[0].sizes;
                let (all, last) = (sized.total_layers(), split.without_experts - 1);
                let held = sizes.bytes(0, all).saturating_sub(sizes.experts(0, split.without_experts));
                prop_assert!(split.gpu_layers > whole);
                prop_assert!(held.saturating_add(sizes.experts(last, last + 1)) > sizes.bytes(all - whole, all));
            }
            Ok(())
        })?;
    }

    #[test]
    fn an_engine_that_leaves_no_experts_plans_whole_layers((summary, request, node) in cases()) {
        let (found, whole) = planned(Engine::OURS, &summary, &node, &request, |sized| (sized.fullest(), sized.most_gpu_layers()));
        prop_assert_eq!(found, Split::from(whole));
    }
}
