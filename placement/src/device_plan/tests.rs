//! Plans against the devices they are made for, and against trying everything.

use proptest::prelude::*;

use crate::capability::Engine;
use crate::device_plan::{Device, DeviceKind, DevicePlan, NodeDevices, Planner, SizedPlanner};
use crate::gguf::GgmlType;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::testing::{LLAMA_3_8B, SMOLLM2_135M, Shape, devices};
use crate::units::{Bytes, LayerCount, Tokens};

const HOST: Bytes = Bytes::gib(64);

fn planned<T>(summary: &ModelSummary, devices: &NodeDevices, request: &Request, f: impl FnOnce(&SizedPlanner<'_>) -> T) -> T {
    let planner = Planner::new(summary, devices, |_| true, Engine::OURS, None);
    f(&planner.sized(request).unwrap())
}

fn most_on_gpu(summary: &ModelSummary, devices: &NodeDevices, request: &Request) -> DevicePlan {
    planned(summary, devices, request, |sized| sized.plan(sized.most_gpu_layers()).unwrap())
}

fn whole(summary: &ModelSummary, request: &Request) -> Bytes {
    planned(summary, &devices(&[Bytes::gib(1000)], HOST), request, |sized| sized.gpu_needs(sized.total_layers(), 1).total())
}

#[test]
fn a_model_goes_wholly_on_a_gpu_that_offers_just_enough_and_not_with_a_byte_less() {
    let (summary, request) = (SMOLLM2_135M.summary(), Request::default());
    let needed = whole(&summary, &request);
    let plan = most_on_gpu(&summary, &devices(&[needed], HOST), &request);
    assert_eq!((plan.processor.as_str(), plan.gpu_layers), ("100% GPU", LayerCount(31)));
    assert_eq!(plan.devices[0].total_bytes, needed);
    assert_eq!(plan.devices[0].layer_ranges, [[0, 30]]);
    assert_eq!(plan.devices[1].layer_ranges, [[0u32; 2]; 0]);
    let plan = most_on_gpu(&summary, &devices(&[Bytes(needed.0 - 1)], HOST), &request);
    assert_eq!(plan.gpu_layers, LayerCount(30));
    assert_eq!(plan.devices[0].layer_ranges, [[1, 30]]);
    assert_eq!(plan.devices[1].layer_ranges, [[0, 0]]);
}

#[test]
fn the_missing_bytes_are_exactly_those_that_make_it_fit() {
    let (summary, request) = (LLAMA_3_8B.summary(), Request::default());
    for gpus in [vec![4000], vec![2000, 1000], vec![1500, 1500, 100], vec![0, 0]] {
        let offers: Vec<Bytes> = gpus.iter().map(|mib| Bytes::mib(*mib)).collect();
        let missing = planned(&summary, &devices(&offers, HOST), &request, |sized| sized.shortfall(33));
        let fits = |more: u64| {
            let mut offers = offers.clone();
            offers[0] = Bytes(offers[0].0 + more);
            most_on_gpu(&summary, &devices(&offers, HOST), &request).gpu_layers == LayerCount(33)
        };
        assert!(fits(missing.0) && !fits(missing.0 - 1), "{gpus:?}: {missing}");
    }
}

#[test]
fn overhead_and_scratch_memory_are_paid_on_every_gpu_that_gets_a_layer() {
    let (summary, request) = (LLAMA_3_8B.summary(), Request::default());
    let mut node = devices(&[Bytes::mib(2400); 4], HOST);
    assert_eq!(most_on_gpu(&summary, &node, &request).devices.len(), 2 + 1);
    for gpu in &mut node.gpus {
        gpu.overhead = Bytes::mib(300);
    }
    let plan = most_on_gpu(&summary, &node, &request);
    let gpus: Vec<_> = plan.devices.iter().filter(|device| device.kind == DeviceKind::Gpu).collect();
    assert_eq!(gpus.len(), 3);
    for gpu in gpus {
        assert_eq!(gpu.overhead_bytes, Bytes::mib(300));
        assert!(gpu.compute_bytes > Bytes::ZERO);
    }
}

#[test]
fn one_gpu_is_preferred_to_two_and_the_tightest_to_a_larger_one() {
    let (summary, request) = (SMOLLM2_135M.summary(), Request::default());
    let needed = whole(&summary, &request);
    let offers = [Bytes(needed.0 * 3), Bytes(needed.0 - 1), Bytes(needed.0 + 1), Bytes(needed.0 * 2)];
    let plan = most_on_gpu(&summary, &devices(&offers, HOST), &request);
    assert_eq!(plan.devices.len(), 2);
    assert_eq!(plan.devices[0].id, "gpu2");
}

#[test]
fn several_gpus_are_filled_evenly() {
    let (summary, request) = (LLAMA_3_8B.summary(), Request::default());
    let plan = most_on_gpu(&summary, &devices(&[Bytes::gib(4), Bytes::gib(4)], HOST), &request);
    assert_eq!(plan.processor, "100% GPU");
    let (first, second) = (plan.devices[0].total_bytes.as_mib(), plan.devices[1].total_bytes.as_mib());
    assert!((first - second).abs() < 700.0, "{first} and {second} MiB");
    let unequal = most_on_gpu(&summary, &devices(&[Bytes::gib(2), Bytes::gib(4)], HOST), &request);
    let fill = |i: usize| unequal.devices[i].total_bytes.as_mib() / unequal.devices[i].free_bytes.as_mib();
    assert!((fill(0) - fill(1)).abs() < 0.15, "{} and {}", fill(0), fill(1));
}

#[test]
fn a_tied_output_is_held_once_on_the_host_and_again_on_gpu() {
    let (summary, request) = (SMOLLM2_135M.summary(), Request::default());
    let node = devices(&[Bytes::gib(1)], HOST);
    let matrix = Bytes(576 * 49152 / 32 * 20);
    let host = |layers| planned(&summary, &node, &request, |sized| sized.plan(layers).unwrap().devices.pop().unwrap());
    let blocks_and_norm: Bytes = host(0).weights_bytes.saturating_sub(matrix);
    assert_eq!(host(31).weights_bytes, matrix);
    let gpu = planned(&summary, &node, &request, |sized| sized.plan(31).unwrap().devices[0].clone());
    assert_eq!(Some(gpu.weights_bytes), blocks_and_norm.checked_add(matrix));
}

#[test]
fn a_split_is_told_in_shares_of_bytes_and_never_as_all_or_nothing() {
    let (summary, request) = (LLAMA_3_8B.summary(), Request::default());
    let node = devices(&[Bytes::gib(8)], HOST);
    let processor = |layers| planned(&summary, &node, &request, |sized| sized.plan(layers).unwrap().processor);
    assert_eq!(processor(0), "100% CPU");
    assert_eq!(processor(33), "100% GPU");
    assert_eq!(processor(17), "47%/53% CPU/GPU");
    assert!(processor(1).ends_with("% CPU/GPU"));
}

#[test]
fn many_gpus_that_all_differ_are_still_planned_quickly_and_fully() {
    let (summary, request) = (LLAMA_3_8B.summary(), Request::default());
    let offers: Vec<Bytes> = (0..20).map(|i| Bytes(Bytes::mib(700).0 + i * 1000)).collect();
    let plan = most_on_gpu(&summary, &devices(&offers, HOST), &request);
    assert_eq!(plan.processor, "100% GPU");
}

/// Random models of a few blocks, on GPUs that hold parts of them.
fn cases() -> impl Strategy<Value = (Shape, Request, Vec<Bytes>)> {
    let shape = (1u32..9, 1u64..5, 1u32..3, 1u64..6, any::<bool>(), any::<bool>()).prop_map(|(blocks, width, kv_heads, ff, tied, half)| {
        let weights = if half { GgmlType::F16 } else { GgmlType::Q8_0 };
        let (heads, embedding) = (kv_heads * 2, width * u64::from(kv_heads) * 64);
        Shape { blocks, embedding, heads, kv_heads, feed_forward: ff * 64, vocabulary: 640, weights, tied_output: tied, ..SMOLLM2_135M }
    });
    let request = (1u64..5000, 1u32..3, 1u32..64).prop_map(|(num_ctx, parallel, num_batch)| Request {
        num_ctx: Tokens(num_ctx),
        parallel,
        num_batch,
        ..Request::default()
    });
    (shape, request, proptest::collection::vec(0u64..120, 0..5)).prop_map(|(shape, request, percents)| {
        let needed = whole(&shape.summary(), &request);
        let offers = percents.into_iter().map(|percent| Bytes(needed.0 / 100 * percent)).collect();
        (shape, request, offers)
    })
}

/// The most layers that any order of any of the GPUs holds, found by trying all of them.
fn brute_force(sized: &SizedPlanner<'_>, unused: &[Bytes], end: u32) -> u32 {
    let mut fewest_left = end;
    for (i, offered) in unused.iter().enumerate() {
        let others: Vec<Bytes> = unused.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, offered)| *offered).collect();
        for first in 0..end {
            if sized.bytes_of_run(first, end) <= *offered {
                fewest_left = fewest_left.min(brute_force(sized, &others, first));
            }
        }
    }
    fewest_left
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_exceeds_a_device_and_each_layer_is_somewhere_once((shape, request, offers) in cases()) {
        let summary = shape.summary();
        let plan = most_on_gpu(&summary, &devices(&offers, HOST), &request);
        let mut seen = vec![0; summary.total_layers().0 as usize];
        for device in &plan.devices {
            prop_assert!(device.total_bytes <= device.free_bytes, "{device:?}");
            let parts = [device.weights_bytes, device.kv_cache_bytes, device.state_bytes, device.checkpoint_bytes, device.compute_bytes, device.overhead_bytes];
            prop_assert_eq!(parts.into_iter().sum::<Bytes>(), device.total_bytes);
            for [first, last] in &device.layer_ranges {
                (*first..=*last).for_each(|layer| seen[layer as usize] += 1);
            }
        }
        prop_assert!(seen.iter().all(|times| *times == 1), "{plan:?}");
        prop_assert_eq!(&plan.devices.last().unwrap().id, "host");
    }

    #[test]
    fn nothing_holds_more_layers_than_the_plan((shape, request, offers) in cases()) {
        prop_assume!(offers.len() <= 3);
        let summary = shape.summary();
        let node = devices(&offers, HOST);
        let (most, left) = planned(&summary, &node, &request, |sized| {
            (sized.most_gpu_layers(), brute_force(sized, &offers, sized.total_layers()))
        });
        prop_assert_eq!(most, summary.total_layers().0 - left);
    }

    #[test]
    fn more_free_never_gives_fewer_layers_on_gpu((shape, request, offers) in cases(), which in any::<proptest::sample::Index>(), more in 0u64..1 << 24) {
        prop_assume!(!offers.is_empty());
        let summary = shape.summary();
        let mut larger = offers.clone();
        larger[which.index(offers.len())].0 += more;
        let layers = |offers: &[Bytes]| most_on_gpu(&summary, &devices(offers, HOST), &request).gpu_layers;
        prop_assert!(layers(&larger) >= layers(&offers));
    }

    #[test]
    fn the_order_of_the_gpus_does_not_matter((shape, request, offers) in cases(), order in any::<u64>()) {
        let summary = shape.summary();
        let node = devices(&offers, HOST);
        let mut shuffled: Vec<Device> = node.gpus.clone();
        shuffled.sort_by_key(|gpu| gpu.id.bytes().fold(order, |hash, byte| hash.rotate_left(7).wrapping_mul(u64::from(byte) | 1)));
        let shuffled = NodeDevices { gpus: shuffled, ..node.clone() };
        prop_assert_eq!(most_on_gpu(&summary, &node, &request), most_on_gpu(&summary, &shuffled, &request));
    }
}
