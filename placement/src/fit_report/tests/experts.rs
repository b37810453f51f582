//! Mixtures of experts, for an engine that can leave experts in host memory.

use proptest::prelude::*;

use super::{ASKED, HOST, one_gpu};
use crate::device_plan::NodeDevices;
use crate::fit_report::{Decision, decide, decide_for};
use crate::model_summary::ModelSummary;
use crate::reason::Reason;
use crate::request::{Asked, PlacementPolicy};
use crate::testing::{OFFLOADING, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, Tokens};

/// Most of its bytes are experts.
fn model() -> ModelSummary {
    SMOLLM2_135M.with_experts(0, 16, 512)
}

fn decided(summary: &ModelSummary, asked: &Asked, node: &NodeDevices) -> Decision {
    decide_for(OFFLOADING, summary, asked, node).unwrap()
}

#[test]
fn experts_in_host_memory_are_less_than_was_wished_and_the_message_says_whose() {
    let Decision { report, verdict } = decided(&model(), &ASKED, &one_gpu(400));
    assert_eq!(verdict, Ok(()));
    assert_eq!((report.fit.fits, report.fit.reason), (false, Reason::InsufficientVRAM));
    let left = report.plan.layers_without_experts();
    let said = format!(
        "All 31 layers run on GPU, but {left} of them leave their experts (weights of which each token uses a few) in host memory, where the CPU \
         computes them ({}).",
        report.plan.processor
    );
    assert!(left > 0 && report.fit.message.ends_with(&said), "{}", report.fit.message);
    assert!(report.plan.processor.ends_with("% CPU/GPU"));
    let ours = decide(&model(), &ASKED, &one_gpu(400)).unwrap().report;
    assert!(ours.plan.gpu_layers < ours.plan.total_layers);
    assert!(ours.fit.message.contains("the others on CPU"), "{}", ours.fit.message);
}

#[test]
fn a_demand_for_layers_is_for_whole_ones() {
    for (policy, num_gpu) in [(PlacementPolicy::PreferGPU, 999), (PlacementPolicy::PreferGPU, 30), (PlacementPolicy::RequireGPU, -1)] {
        let asked = Asked { policy, num_gpu, ..ASKED };
        let refused = decided(&model(), &asked, &one_gpu(400));
        assert_eq!(refused.verdict.map_err(|refusal| refusal.reason), Err(Reason::InsufficientVRAM));
        assert_eq!(refused.report.plan.layers_without_experts(), 0);
    }
}

fn cases() -> impl Strategy<Value = (ModelSummary, Asked, NodeDevices)> {
    let summary = (1u32..7, 1u64..4, 0u32..3, 1u64..9, 1u32..20_000).prop_map(|(blocks, width, dense, experts, trained_context)| {
        let sizes = Shape { blocks, embedding: width * 64, heads: 2, kv_heads: 1, feed_forward: 64, vocabulary: 640, ..SMOLLM2_135M };
        Shape { trained_context, ..sizes }.with_experts(dense, experts, 192)
    });
    let asked = (proptest::option::of(1u64..10_000), 1u32..3).prop_map(|(num_ctx, parallel)| Asked {
        num_ctx: num_ctx.map(Tokens),
        parallel,
        num_batch: 32,
        ..ASKED
    });
    let host = prop_oneof![2 => Just(HOST), 1 => (0u64..4 << 20).prop_map(Bytes)];
    (summary, asked, proptest::collection::vec((0u64..2 << 20).prop_map(Bytes), 0..4), host)
        .prop_map(|(summary, asked, offers, host)| (summary, asked, devices(&offers, host)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_largest_context_anywhere_is_placed_and_the_next_is_not((summary, asked, node) in cases()) {
        let limit = decided(&summary, &asked, &node).report.fit.max_num_ctx;
        let placed = |num_ctx: u64| decided(&summary, &Asked { num_ctx: Some(Tokens(num_ctx)), ..asked.clone() }, &node).verdict.is_ok();
        let trained = summary.trained_context.0;
        prop_assert!(limit.0 == 0 || placed(limit.0));
        let next = if limit.0 == 0 { trained.min(256) } else { limit.0 + 256 };
        prop_assert!(next > trained || !placed(next), "{next} is placed too, limit {limit}");
    }

    #[test]
    fn what_is_placed_exceeds_nothing_and_every_suggestion_applied_gives_what_it_says((summary, asked, node) in cases()) {
        let Decision { report, verdict } = decided(&summary, &asked, &node);
        for device in report.plan.devices.iter().filter(|_| verdict.is_ok()) {
            prop_assert!(device.total_bytes <= device.free_bytes);
        }
        for suggestion in &report.fit.suggestions {
            let resolved = Asked { num_ctx: Some(report.request.num_ctx), ..asked.clone() };
            let changed = match suggestion.change.as_str() {
                "numCtx" => Asked { num_ctx: Some(Tokens(suggestion.value.parse().unwrap())), ..resolved },
                "parallel" => Asked { parallel: suggestion.value.parse().unwrap(), ..resolved },
                _ => continue,
            };
            let applied = decided(&summary, &changed, &node);
            prop_assert!(applied.report.fit.fits || verdict.is_err() && applied.verdict.is_ok(), "{suggestion:?}");
            prop_assert_eq!(&applied.report.plan.processor, &suggestion.processor);
        }
    }
}
