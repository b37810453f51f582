//! What is said yes and no to, with which numbers and in which words.

mod experts;

use proptest::prelude::*;

use crate::device_plan::{Device, NodeDevices};
use crate::fit_report::{Decision, PlanReport, Refusal, decide};
use crate::gguf::GgmlType;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::offer::Defaults;
use crate::reason::Reason;
use crate::request::{Asked, ContextPolicy, KvCacheType, PlacementPolicy};
use crate::testing::{DEEPSEEK_R1_32B, LLAMA_3_8B, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, LayerCount, Tokens};

const HOST: Bytes = Bytes::gib(32);
const ASKED: Asked = Asked {
    num_ctx: Some(Tokens(8192)),
    num_gpu: -1,
    kv_cache_type: KvCacheType::F16,
    parallel: 1,
    num_batch: 512,
    policy: PlacementPolicy::PreferGPU,
    context_policy: ContextPolicy::Exact,
    min_context: None,
    max_devices: None,
};

fn decided(shape: &Shape, asked: &Asked, devices: &NodeDevices) -> Decision {
    decide(&shape.summary(), asked, devices).unwrap()
}

fn one_gpu(mib: u64) -> NodeDevices {
    devices(&[Bytes::mib(mib)], HOST)
}

fn refusal(decision: Decision) -> Refusal {
    decision.verdict.unwrap_err()
}

#[test]
fn the_case_that_stowage_exists_for() {
    let node = one_gpu(400);
    let small = decided(&SMOLLM2_135M, &Asked { num_ctx: Some(Tokens(2048)), ..ASKED }, &node);
    assert_eq!((small.report.plan.processor.as_str(), small.report.fit.fits), ("100% GPU", true));
    assert_eq!(small.report.fit.shortfall_bytes, Bytes::ZERO);

    let large = Asked { num_ctx: Some(Tokens(8192)), num_batch: 2048, ..ASKED };
    let split = decided(&SMOLLM2_135M, &large, &one_gpu(300));
    assert_eq!(split.verdict, Ok(()));
    let fit = &split.report.fit;
    assert_eq!((fit.fits, fit.reason), (false, Reason::InsufficientVRAM));
    assert!(split.report.plan.processor.ends_with("CPU/GPU"));
    let limit = fit.max_num_ctx_on_gpu;
    assert!(fit.message.contains(&format!("Up to num_ctx {limit} it stays wholly on the GPU.")), "{}", fit.message);
    assert!(fit.message.contains("the GPU offers 300.0 MiB") && fit.message.contains(&format!("{} are missing", fit.shortfall_bytes)));

    for (policy, num_gpu) in [(PlacementPolicy::RequireGPU, -1), (PlacementPolicy::PreferGPU, 999), (PlacementPolicy::RequireGPU, 31)] {
        let refused = decided(&SMOLLM2_135M, &Asked { policy, num_gpu, ..large.clone() }, &one_gpu(300));
        assert_eq!(refused.report.fit.shortfall_bytes, fit.shortfall_bytes);
        assert_eq!(refused.report.fit.max_num_ctx_on_gpu, limit);
        assert_eq!(refusal(refused).reason, Reason::InsufficientVRAM);
    }

    let at_limit = decided(&SMOLLM2_135M, &Asked { num_ctx: Some(limit), ..large.clone() }, &one_gpu(300));
    assert_eq!(at_limit.report.plan.processor, "100% GPU");
    let beyond = decided(&SMOLLM2_135M, &Asked { num_ctx: Some(Tokens(limit.0 + 256)), ..large }, &one_gpu(300));
    assert_ne!(beyond.report.plan.processor, "100% GPU");
}

#[test]
fn the_message_names_what_is_needed_offered_and_missing() {
    let report = decided(&LLAMA_3_8B, &ASKED, &one_gpu(5000)).report;
    assert_eq!(
        report.fit.message,
        "num_ctx 8192 needs 5.03 GiB of GPU memory (weights 3.93 GiB, memory of 8192 tokens (KV cache) 1.00 GiB, working space 98.0 MiB, \
         GPU libraries 0 B); the GPU offers 4.88 GiB: 148.8 MiB are missing. Up to num_ctx 6912 it stays wholly on the GPU. 32 of 33 layers \
         run on GPU, the others on CPU (5%/95% CPU/GPU)."
    );
}

#[test]
fn num_gpu_is_a_demand_that_is_met_or_refused() {
    let exactly = |num_gpu| decided(&LLAMA_3_8B, &Asked { num_gpu, ..ASKED }, &one_gpu(3000));
    let met = exactly(10);
    assert_eq!((met.report.plan.gpu_layers, met.report.fit.reason), (LayerCount(10), Reason::Fits));
    assert_eq!(exactly(0).report.plan.processor, "100% CPU");
    assert!(exactly(0).report.fit.fits);
    let refused = exactly(25);
    let most = refused.report.plan.gpu_layers;
    assert!(refused.report.fit.message.contains(&format!("num_gpu 25 is a demand, so nothing is loaded; {most} layers would fit.")));
    let suggestion = refused.report.fit.suggestions.iter().find(|suggestion| suggestion.change == "numGpu").unwrap();
    assert_eq!(suggestion.value, most.to_string());
    assert_eq!(refusal(refused).reason, Reason::InsufficientVRAM);
}

#[test]
fn contradictions_are_refused_before_anything_is_planned() {
    let refused = |asked: Asked| decide(&SMOLLM2_135M.summary(), &asked, &one_gpu(1000)).unwrap_err();
    for (asked, said) in [
        (Asked { policy: PlacementPolicy::RequireCPU, num_gpu: 5, ..ASKED }, "RequireCPU allows none"),
        (Asked { policy: PlacementPolicy::RequireGPU, num_gpu: 0, ..ASKED }, "RequireGPU wants all 31"),
        (Asked { policy: PlacementPolicy::RequireGPU, num_gpu: 30, ..ASKED }, "RequireGPU wants all 31"),
        (Asked { num_gpu: -2, ..ASKED }, "num_gpu is -2"),
        (Asked { parallel: 0, ..ASKED }, "parallel is 0"),
        (Asked { num_batch: 0, ..ASKED }, "num_batch is 0"),
        (Asked { num_ctx: Some(Tokens(0)), ..ASKED }, "num_ctx is 0"),
        (Asked { context_policy: ContextPolicy::ShrinkToFit, ..ASKED }, "needs minContext"),
        (Asked { context_policy: ContextPolicy::ShrinkToFit, min_context: Some(Tokens(9000)), ..ASKED }, "9000 is above num_ctx 8192"),
    ] {
        let refusal = refused(asked);
        assert_eq!(refusal.reason, Reason::InvalidRequest);
        assert!(refusal.message.contains(said), "{}", refusal.message);
    }
}

#[test]
fn without_a_gpu_it_runs_on_cpu_and_says_so() {
    let node = devices(&[], HOST);
    let decision = decided(&SMOLLM2_135M, &ASKED, &node);
    assert_eq!(decision.verdict, Ok(()));
    assert_eq!((decision.report.plan.processor.as_str(), decision.report.fit.reason), ("100% CPU", Reason::NoUsableGPU));
    assert_eq!(decision.report.fit.max_num_ctx_on_gpu, Tokens(0));
    assert_eq!(decision.report.fit.max_num_ctx, Tokens(8192));
    let required = decided(&SMOLLM2_135M, &Asked { policy: PlacementPolicy::RequireGPU, ..ASKED }, &node);
    assert_eq!(refusal(required).reason, Reason::NoUsableGPU);
    let on_cpu = decided(&SMOLLM2_135M, &Asked { policy: PlacementPolicy::RequireCPU, ..ASKED }, &node);
    assert!(on_cpu.report.fit.fits);
}

#[test]
fn host_memory_counts_too() {
    let node = devices(&[Bytes::mib(1500)], Bytes::mib(2000));
    let decision = decided(&LLAMA_3_8B, &ASKED, &node);
    let message = &decision.report.fit.message;
    assert!(message.contains("of host memory; the host offers 1.95 GiB"), "{message}");
    assert_eq!(refusal(decision).reason, Reason::InsufficientMemory);
    let on_cpu = decided(&LLAMA_3_8B, &Asked { num_gpu: 0, ..ASKED }, &node);
    let needed = on_cpu.report.plan.devices[0].total_bytes;
    assert_eq!(on_cpu.report.fit.shortfall_bytes, needed.saturating_sub(Bytes::mib(2000)));
    assert_eq!(refusal(on_cpu).reason, Reason::InsufficientMemory);
}

#[test]
fn beyond_the_trained_context_it_is_refused_and_the_bytes_are_still_told() {
    let decision = decided(&SMOLLM2_135M, &Asked { num_ctx: Some(Tokens(131_072)), ..ASKED }, &one_gpu(8000));
    assert_eq!(decision.report.footprint.kv_cache_bytes, Bytes::mib(2880));
    assert_eq!(decision.report.fit.reason, Reason::ContextBeyondTrained);
    assert!(decision.report.fit.message.contains("beyond the 8192 tokens"));
    assert!(decision.verdict.is_err());
}

#[test]
fn an_architecture_that_can_be_sized_but_not_run_is_refused_with_its_bytes() {
    let shape = Shape { architecture: "mistral3", ..DEEPSEEK_R1_32B };
    let decision = decided(&shape, &Asked { num_ctx: Some(Tokens(32768)), ..ASKED }, &one_gpu(48_000));
    assert_eq!(decision.report.fit.reason, Reason::EngineCannotRun);
    assert!(decision.report.fit.message.contains("mistral3"));
    assert_eq!(decision.report.footprint.kv_cache_bytes, Bytes::gib(8));
    assert_eq!(decision.report.plan.processor, "100% GPU");
    assert!(decision.verdict.is_err());
}

#[test]
fn a_context_left_out_is_the_largest_that_stays_on_the_gpu() {
    let omitted = Asked { num_ctx: None, ..ASKED };
    let roomy = decided(&Shape { trained_context: 131_072, ..SMOLLM2_135M }, &omitted, &one_gpu(8000));
    assert_eq!(roomy.report.request.num_ctx, Tokens(32768));
    let trained = decided(&SMOLLM2_135M, &omitted, &one_gpu(8000));
    assert_eq!(trained.report.request.num_ctx, Tokens(8192));
    let tight = decided(&LLAMA_3_8B, &omitted, &one_gpu(5000));
    assert_eq!(tight.report.plan.processor, "100% GPU");
    assert_eq!(tight.report.request.num_ctx, tight.report.fit.max_num_ctx_on_gpu);
    let on_cpu = decided(&Shape { trained_context: 131_072, ..SMOLLM2_135M }, &omitted, &devices(&[], HOST));
    assert_eq!(on_cpu.report.request.num_ctx, Tokens(8192));
    let split = decided(&LLAMA_3_8B, &omitted, &one_gpu(3000));
    assert_eq!(split.report.request.num_ctx, Tokens(8192));
    assert!(split.report.plan.processor.ends_with("CPU/GPU"));
    let cramped = decided(&LLAMA_3_8B, &omitted, &devices(&[], Bytes::mib(5100)));
    assert!(cramped.verdict.is_ok() && cramped.report.request.num_ctx < Tokens(8192));
    let short = decided(&Shape { trained_context: 100, ..SMOLLM2_135M }, &omitted, &one_gpu(8000));
    assert_eq!((short.report.request.num_ctx, short.report.fit.max_num_ctx_on_gpu), (Tokens(100), Tokens(100)));
}

#[test]
fn a_context_shrinks_as_far_as_it_must_and_no_further_than_it_may() {
    let shrinking = |least, mib| {
        let asked = Asked { context_policy: ContextPolicy::ShrinkToFit, min_context: Some(Tokens(least)), ..ASKED };
        decided(&LLAMA_3_8B, &asked, &one_gpu(mib)).report
    };
    assert_eq!(shrinking(1024, 8000).request.num_ctx, Tokens(8192));
    let shrunk = shrinking(1024, 5000);
    assert_eq!((shrunk.request.num_ctx, shrunk.plan.processor.as_str()), (shrunk.fit.max_num_ctx_on_gpu, "100% GPU"));
    assert_eq!(shrinking(7000, 5000).request.num_ctx, Tokens(8192));
    assert_eq!(shrinking(shrunk.request.num_ctx.0 - 1, 5000).request.num_ctx, shrunk.request.num_ctx);
}

#[test]
fn max_devices_limits_the_gpus() {
    let node = devices(&[Bytes::gib(3); 3], HOST);
    assert_eq!(decided(&LLAMA_3_8B, &ASKED, &node).report.plan.processor, "100% GPU");
    let limited = decided(&LLAMA_3_8B, &Asked { max_devices: Some(1), ..ASKED }, &node);
    assert_eq!(limited.report.plan.devices.len(), 2);
    assert!(limited.report.fit.message.contains("the largest GPU offers 3.00 GiB"), "{}", limited.report.fit.message);
}

#[test]
fn the_footprint_is_for_the_gpus_own_backend() {
    let mut node = one_gpu(8000);
    node.gpus[0].backend = Backend::Cuda;
    let cuda = decided(&SMOLLM2_135M, &ASKED, &node).report;
    assert_eq!(cuda.footprint.total_bytes, cuda.plan.devices[0].total_bytes);
}

#[test]
fn a_plan_from_a_summary_that_went_through_json_is_the_plan_from_the_file() {
    let summary = LLAMA_3_8B.summary();
    let through_json: ModelSummary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
    assert_eq!(decide(&summary, &ASKED, &one_gpu(5000)), decide(&through_json, &ASKED, &one_gpu(5000)));
}

/// What a GPU of `--gpu VALUE` offers where nothing else is on it.
fn offered_by(value: &str) -> Bytes {
    let size = Bytes::gib(value.strip_suffix("GiB").unwrap().parse().unwrap());
    Defaults::default().offered_by(size)
}

/// One GPU of the kind that the node has, or else of the kind that nodes have.
fn only_gpu(node: &NodeDevices, offered: Bytes) -> NodeDevices {
    let usual = Device { id: "gpu0".into(), backend: Backend::Cuda, offered, overhead: node.defaults.overhead_bytes, ..Device::default() };
    let gpu = node.gpus.first().map_or(usual, |gpu| Device { offered, ..gpu.clone() });
    NodeDevices { gpus: vec![gpu], ..node.clone() }
}

fn suggested<'a>(report: &'a PlanReport, change: &str) -> Option<&'a str> {
    let found = report.fit.suggestions.iter().find(|suggestion| suggestion.change == change);
    found.map(|suggestion| suggestion.value.as_str())
}

#[test]
fn the_largest_batch_and_the_most_sequences_that_fit_are_suggested() {
    let asked = Asked { parallel: 4, num_ctx: Some(Tokens(2048)), ..ASKED };
    let report = decided(&LLAMA_3_8B, &asked, &one_gpu(4900)).report;
    assert_eq!(suggested(&report, "parallel"), Some("3"));
    assert_eq!(suggested(&report, "numBatch"), None);
    let report = decided(&LLAMA_3_8B, &Asked { num_batch: 2048, ..asked }, &one_gpu(5300)).report;
    assert_eq!(suggested(&report, "numBatch"), Some("1024"));
}

#[test]
fn the_size_of_gpu_that_would_do_is_suggested_last_and_without_any_gpu_too() {
    for node in [one_gpu(3000), devices(&[Bytes::mib(1000); 2], HOST), devices(&[], HOST)] {
        let report = decided(&LLAMA_3_8B, &ASKED, &node).report;
        let last = report.fit.suggestions.last().unwrap();
        assert_eq!((last.change.as_str(), last.processor.as_str()), ("device", "100% GPU"));
        assert!(last.value == "6GiB" && last.message.contains("one GPU of 6 GiB"), "{last:?}");
    }
    let on_cpu = decided(&LLAMA_3_8B, &Asked { num_gpu: 0, ..ASKED }, &devices(&[], Bytes::gib(1)));
    assert_eq!(suggested(&on_cpu.report, "device"), None);
}

#[test]
fn a_cache_that_the_engine_lacks_is_told_with_one_that_it_has() {
    let mut summary = LLAMA_3_8B.summary();
    summary.layer_kinds.iter_mut().for_each(|kind| kind.key_length = 80);
    let report = decide(&summary, &Asked { kv_cache_type: KvCacheType::Q8_0, ..ASKED }, &one_gpu(9000)).unwrap().report;
    assert_eq!(report.fit.reason, Reason::EngineCannotRun);
    assert_eq!(suggested(&report, "kvCacheType"), Some("f16"));
}

#[test]
fn where_the_host_is_too_small_as_well_the_longest_context_that_runs_at_all_is_suggested() {
    let asked = Asked { parallel: 8, ..ASKED };
    let report = decided(&LLAMA_3_8B, &asked, &devices(&[Bytes::mib(1000)], Bytes::gib(8))).report;
    assert_eq!(report.fit.reason, Reason::InsufficientMemory);
    assert_eq!(suggested(&report, "numCtx"), Some(report.fit.max_num_ctx.to_string().as_str()));
}

fn cases() -> impl Strategy<Value = (Shape, Asked, Vec<Bytes>)> {
    let shape = (1u32..9, 1u64..5, 1u64..6, any::<bool>(), 1u32..20_000).prop_map(|(blocks, width, ff, tied_output, trained_context)| {
        let weights = if ff % 2 == 0 { GgmlType::F16 } else { GgmlType::Q8_0 };
        let embedding = width * 64;
        Shape {
            blocks,
            embedding,
            heads: 2,
            kv_heads: 1,
            feed_forward: ff * 64,
            vocabulary: 640,
            weights,
            tied_output,
            trained_context,
            ..SMOLLM2_135M
        }
    });
    let asked = (proptest::option::of(1u64..10_000), -1i64..8, 1u32..3, prop_oneof![Just(32u32), Just(512)])
        .prop_map(|(num_ctx, num_gpu, parallel, num_batch)| Asked { num_ctx: num_ctx.map(Tokens), num_gpu, parallel, num_batch, ..ASKED });
    (shape, asked, proptest::collection::vec((0u64..8 << 20).prop_map(Bytes), 0..4))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_largest_context_on_gpu_fits_and_the_next_does_not((shape, asked, offers) in cases()) {
        let node = devices(&offers, HOST);
        let limit = decided(&shape, &asked, &node).report.fit.max_num_ctx_on_gpu;
        let on_gpu = |num_ctx: u64| {
            let whole = Asked { num_ctx: Some(Tokens(num_ctx)), num_gpu: 999, ..asked.clone() };
            decided(&shape, &whole, &node).report.plan.processor == "100% GPU"
        };
        let trained = u64::from(shape.trained_context);
        if limit.0 > 0 {
            prop_assert!(on_gpu(limit.0));
        }
        let next = if limit.0 == 0 { trained.min(256) } else { limit.0 + 256 };
        if next <= trained {
            prop_assert!(!on_gpu(next), "{next} fits too, limit {limit}");
        }
    }

    #[test]
    fn the_largest_context_anywhere_is_placed_and_the_next_is_not((shape, asked, offers) in cases(), host in 0u64..16 << 20) {
        let node = devices(&offers, Bytes(host));
        let asked = Asked { num_gpu: -1, ..asked };
        let limit = decided(&shape, &asked, &node).report.fit.max_num_ctx;
        let placed = |num_ctx: u64| decided(&shape, &Asked { num_ctx: Some(Tokens(num_ctx)), ..asked.clone() }, &node).verdict.is_ok();
        let trained = u64::from(shape.trained_context);
        prop_assert!(limit.0 == 0 || placed(limit.0));
        let next = if limit.0 == 0 { trained.min(256) } else { limit.0 + 256 };
        prop_assert!(next > trained || !placed(next), "{next} is placed too, limit {limit}");
    }

    #[test]
    fn a_context_left_out_or_shrunk_is_a_multiple_of_256_that_is_placed_as_far_as_any_is((shape, asked, offers) in cases(), least in 1u64..3000) {
        let node = devices(&offers, HOST);
        let trained = u64::from(shape.trained_context);
        let omitted = decided(&shape, &Asked { num_ctx: None, ..asked.clone() }, &node).report.request.num_ctx;
        prop_assert!(omitted.0.is_multiple_of(256) || omitted.0 == trained, "{omitted}");
        prop_assert!(omitted.0 <= trained.min(32768));
        let most = asked.num_ctx.map_or(least, |num_ctx| num_ctx.0.max(least));
        let shrinking = Asked { num_ctx: Some(Tokens(most)), context_policy: ContextPolicy::ShrinkToFit, min_context: Some(Tokens(least)), ..asked };
        let shrunk = decided(&shape, &shrinking, &node).report.request.num_ctx.0;
        prop_assert!(least <= shrunk && shrunk <= most);
        prop_assert!(shrunk.is_multiple_of(256) || shrunk == least || shrunk == most, "{shrunk}");
    }

    #[test]
    fn a_placed_plan_exceeds_nothing_and_a_refused_one_is_short_of_something((shape, asked, offers) in cases(), host in 0u64..16 << 20) {
        let decision = decided(&shape, &asked, &devices(&offers, Bytes(host)));
        let fit = &decision.report.fit;
        if decision.verdict.is_ok() {
            for device in &decision.report.plan.devices {
                prop_assert!(device.total_bytes <= device.free_bytes);
            }
        } else if fit.reason != Reason::ContextBeyondTrained {
            prop_assert!(fit.shortfall_bytes > Bytes::ZERO, "{fit:?}");
        }
        prop_assert!(fit.max_num_ctx >= fit.max_num_ctx_on_gpu);
        prop_assert!(!fit.message.is_empty());
    }

    #[test]
    fn every_suggestion_applied_gives_what_it_says((shape, asked, offers) in cases()) {
        let node = devices(&offers, HOST);
        let Decision { report, verdict } = decided(&shape, &asked, &node);
        for suggestion in &report.fit.suggestions {
            let mut node = node.clone();
            let mut changed = Asked { num_ctx: Some(report.request.num_ctx), ..asked.clone() };
            match suggestion.change.as_str() {
                "numCtx" => changed.num_ctx = Some(Tokens(suggestion.value.parse().unwrap())),
                "numBatch" => changed.num_batch = suggestion.value.parse().unwrap(),
                "numGpu" => changed.num_gpu = suggestion.value.parse().unwrap(),
                "kvCacheType" => {
                    changed.kv_cache_type = KvCacheType::ALL.into_iter().find(|cache| cache.as_str() == suggestion.value).unwrap();
                }
                "parallel" => changed.parallel = suggestion.value.parse().unwrap(),
                "device" => node = only_gpu(&node, offered_by(&suggestion.value)),
                other => prop_assert!(false, "{other} is not expected here"),
            }
            let Decision { report: applied, verdict: then } = decided(&shape, &changed, &node);
            prop_assert!(applied.fit.fits || verdict.is_err() && then.is_ok(), "{suggestion:?}");
            prop_assert_eq!(&applied.plan.processor, &suggestion.processor);
        }
    }
}
