//! What holds for any header of any family, whatever is asked.

use proptest::prelude::*;
use stowage_placement::capability::Engine;
use stowage_placement::layout::Backend;
use stowage_placement::{Bytes, Footprint, KvCacheType, ModelSummary, Request, Tokens, decide, decide_for, testing};

use crate::config::Config;
use crate::convert::{MODEL_TYPES, convert};
use crate::model::Model;
use crate::quantize::Quantization;
use crate::report;

const NUMBERS: usize = 12;

/// A configuration that has every number any family needs, so that any `model_type` can be made of it.
fn config(model_type: &str, random: [u64; NUMBERS]) -> Config {
    let [layers, width, heads, kv_heads, window, experts, states, period, shared, network, vocabulary, ties] = random;
    let heads = heads * kv_heads;
    let numbers = [
        ("num_hidden_layers", layers),
        ("hidden_size", 32 * heads * width),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("intermediate_size", 32 * network),
        ("moe_intermediate_size", 32 * network),
        ("shared_expert_intermediate_size", 64 * network),
        ("vocab_size", 8 * vocabulary),
        ("vocab_size_per_layer_input", 8 * vocabulary),
        ("type_vocab_size", 2),
        ("max_position_embeddings", 1 << 20),
        ("max_trained_positions", 1 << 20),
        ("sliding_window", window),
        ("sliding_window_pattern", period),
        ("full_attention_interval", period),
        ("num_kv_shared_layers", shared.min(layers - 1)),
        ("first_k_dense_replace", shared.min(layers)),
        ("global_head_dim", 64 * width),
        ("hidden_size_per_layer_input", 32),
        ("altup_num_inputs", 4),
        ("laurel_rank", 32),
        ("num_experts", 2 + experts),
        ("num_local_experts", 2 + experts),
        ("n_routed_experts", 2 + experts),
        ("num_experts_per_tok", 1 + experts / 2),
        ("n_shared_experts", 1),
        ("num_nextn_predict_layers", shared % 2),
        ("mtp_num_hidden_layers", shared % 2),
        ("kv_lora_rank", 32 * states),
        ("qk_nope_head_dim", 32),
        ("qk_rope_head_dim", 32),
        ("v_head_dim", 32),
        ("linear_conv_kernel_dim", 4),
        ("linear_key_head_dim", 32 * states),
        ("linear_num_key_heads", kv_heads),
        ("linear_num_value_heads", heads),
        ("linear_value_head_dim", 32 * states),
        ("mamba_d_ssm", 64 * width),
        ("mamba_d_state", 32 * states),
        ("mamba_n_groups", kv_heads),
        ("mamba_n_heads", heads),
        ("mamba_d_conv", 4),
        ("state_size", 32 * states),
        ("conv_kernel", 4),
        ("time_step_rank", 32),
        ("expand", 2),
        ("num_heads", heads),
        ("n_groups", 2),
    ];
    let mut config = Config::default();
    config.0.insert("model_type".into(), model_type.into());
    config.0.insert("tie_word_embeddings".into(), (ties % 2 == 0).into());
    for (key, number) in numbers {
        config.0.insert(key.into(), number.into());
    }
    config
}

fn models() -> impl Strategy<Value = (Model, Quantization)> {
    let small = [1u64..9, 1..4, 1..4, 1..4, 1..5000, 0..9, 1..5, 1..7, 0..4, 1..40, 1..400, 0..2];
    let quantization = prop_oneof![Just(Quantization::Q4_K_M), Just(Quantization::Q8_0), Just(Quantization::F16)];
    let model = (proptest::sample::select(MODEL_TYPES), small).prop_map(|(model_type, random)| convert(&config(model_type, random)));
    (model, quantization)
}

fn summaries() -> impl Strategy<Value = ModelSummary> {
    models().prop_map(|(model, quantization)| {
        let writer = model.header("a model", quantization);
        ModelSummary::from_header(&testing::read(&writer.header()), Bytes(writer.file_size())).unwrap()
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let cache = proptest::sample::select(&KvCacheType::ALL[..]);
    (1u64..200_000, cache, 1u32..5, 1u32..2048, -1i64..10).prop_map(|(num_ctx, kv_cache_type, parallel, num_batch, num_gpu)| Request {
        num_ctx: Tokens(num_ctx),
        num_gpu,
        kv_cache_type,
        parallel,
        num_batch,
    })
}

fn footprint(summary: &ModelSummary, request: &Request, backend: Backend) -> Footprint {
    Footprint::new(summary, request, backend, Bytes::mib(512), Backend::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_longer_context_never_needs_fewer_bytes(summary in summaries(), request in requests(), more in 0u64..100_000) {
        let longer = Request { num_ctx: Tokens(request.num_ctx.0 + more), ..request.clone() };
        for backend in [Backend::Cpu, Backend::Cuda] {
            let (shorter, longer) = (footprint(&summary, &request, backend), footprint(&summary, &longer, backend));
            prop_assert!(longer.total_bytes >= shorter.total_bytes);
            for (shorter, longer) in shorter.layers.iter().zip(&longer.layers) {
                prop_assert!(longer.kv_cache_bytes >= shorter.kv_cache_bytes && longer.checkpoint_bytes >= shorter.checkpoint_bytes);
            }
        }
    }

    #[test]
    fn layers_sum_to_the_kinds_and_the_kinds_to_the_total(summary in summaries(), request in requests()) {
        let sizes = footprint(&summary, &request, Backend::Cuda);
        prop_assert_eq!(sizes.layers.iter().map(|layer| layer.weights_bytes).sum::<Bytes>(), sizes.weights_bytes);
        prop_assert_eq!(sizes.layers.iter().map(|layer| layer.kv_cache_bytes).sum::<Bytes>(), sizes.kv_cache_bytes);
        prop_assert_eq!(sizes.layers.iter().map(|layer| layer.state_bytes).sum::<Bytes>(), sizes.state_bytes);
        prop_assert_eq!(sizes.layers.iter().map(|layer| layer.checkpoint_bytes).sum::<Bytes>(), sizes.checkpoint_bytes);
        let kinds = [sizes.weights_bytes, sizes.kv_cache_bytes, sizes.state_bytes, sizes.checkpoint_bytes];
        let rest = [sizes.compute_bytes, sizes.overhead_bytes];
        prop_assert_eq!(kinds.into_iter().chain(rest).sum::<Bytes>(), sizes.total_bytes);
        prop_assert_eq!(sizes.layers.len() as u32, summary.total_layers().0);
    }

    #[test]
    fn every_sequence_takes_what_one_takes(summary in summaries(), request in requests()) {
        let one = footprint(&summary, &Request { parallel: 1, ..request.clone() }, Backend::Cpu);
        let all = footprint(&summary, &request, Backend::Cpu);
        let times = u64::from(request.parallel);
        prop_assert_eq!(one.kv_cache_bytes.checked_mul(times), Some(all.kv_cache_bytes));
        prop_assert_eq!(one.state_bytes.checked_mul(times), Some(all.state_bytes));
        prop_assert_eq!(one.checkpoint_bytes.checked_mul(times), Some(all.checkpoint_bytes));
    }

    #[test]
    fn no_more_is_loaded_than_lies_in_the_file(summary in summaries()) {
        let sizes = footprint(&summary, &Request::default(), Backend::Cpu);
        prop_assert!(sizes.file_weights_bytes.saturating_add(sizes.file_host_weights_bytes) <= summary.size_bytes);
    }

    #[test]
    fn a_plan_from_a_summary_that_went_through_json_is_the_plan_from_the_file(summary in summaries(), request in requests(), gpu in 0u64..64) {
        let through_json: ModelSummary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
        prop_assert_eq!(&through_json, &summary);
        let (asked, node) = (report::asked(&request), report::node(Bytes::mib(gpu * 64)));
        prop_assert_eq!(decide(&through_json, &asked, &node), decide(&summary, &asked, &node));
    }

    #[test]
    fn no_plan_exceeds_a_device_and_more_free_never_gives_fewer_layers_on_gpu(
        summary in summaries(),
        request in requests(),
        gpus in prop::collection::vec((0u64..64 << 20, 0u64..1 << 20), 1..6),
        (which, more) in (any::<prop::sample::Index>(), 0u64..64 << 20),
        offloading in any::<bool>(),
    ) {
        let engine = if offloading { testing::OFFLOADING } else { Engine::OURS };
        let asked = report::asked(&Request { num_gpu: -1, ..request });
        let plan = |gpus: &[(u64, u64)]| decide_for(engine, &summary, &asked, &report::node_of(gpus)).unwrap().report.plan;
        let before = plan(&gpus);
        for device in &before.devices {
            prop_assert!(device.total_bytes <= device.free_bytes, "{device:?}");
        }
        let mut larger = gpus.clone();
        larger[which.index(gpus.len())].0 += more;
        prop_assert!(plan(&larger).gpu_layers >= before.gpu_layers);
    }

    #[test]
    fn the_order_of_the_gpus_does_not_matter(
        summary in summaries(),
        request in requests(),
        gpus in prop::collection::vec((0u64..64 << 20, 0u64..1 << 20), 1..6),
        turn in 0usize..6,
    ) {
        let node = report::node_of(&gpus);
        let mut turned = node.clone();
        turned.gpus.rotate_left(turn % gpus.len());
        let asked = report::asked(&request);
        prop_assert_eq!(decide(&summary, &asked, &node), decide(&summary, &asked, &turned));
    }

    #[test]
    fn nothing_that_is_asked_makes_it_overflow_or_panic(
        summary in summaries(),
        num_ctx in prop_oneof![any::<u64>(), Just(1u64 << 40), 1u64..1 << 33],
        parallel in any::<u32>(),
        num_batch in any::<u32>(),
        gpu in any::<u64>(),
    ) {
        let request = Request { num_ctx: Tokens(num_ctx), parallel, num_batch, ..Request::default() };
        let sized = Footprint::new(&summary, &request, Backend::Cuda, Bytes::mib(512), Backend::Cpu);
        prop_assert!(sized.is_err() || num_ctx <= 1 << 32);
        let _ = decide(&summary, &report::asked(&request), &report::node(Bytes(gpu)));
    }

    /// Numbers of a header that nobody wrote: an error or a size, never a panic.
    #[test]
    fn no_number_in_a_header_makes_it_overflow_or_panic((model, quantization) in models(), which in any::<prop::sample::Index>(), number in any::<u64>()) {
        let mut header = testing::read(&model.header("a model", quantization).header());
        let keys: Vec<String> = header.metadata.keys().filter(|key| key.starts_with(model.architecture)).cloned().collect();
        header.metadata.insert(which.get(&keys).clone(), stowage_placement::gguf::Value::U64(number));
        if let Ok(summary) = ModelSummary::from_header(&header, Bytes(0)) {
            let _ = Footprint::new(&summary, &Request::default(), Backend::Cpu, Bytes::ZERO, Backend::Cpu);
            let _ = decide(&summary, &report::asked(&Request::default()), &report::node(Bytes::gib(24)));
        }
    }
}
