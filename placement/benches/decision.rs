//! How many plans, decisions and fit reports there are in a second: `cargo bench -p stowage-placement --bench decision`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stowage_placement::testing::{DEEPSEEK_R1_32B, OFFLOADING, Shape, devices};
use stowage_placement::{Asked, Bytes, Holder, ModelSummary, Node, NodeDevices, PlacementPolicy, Tokens, Who, choose, decide, decide_for};

const NODES: usize = 5000;
const GPUS: usize = 8;

/// 65 layers, of a family that the engine runs.
fn model() -> ModelSummary {
    Shape { architecture: "llama", ..DEEPSEEK_R1_32B }.summary()
}

fn asked(num_ctx: u64) -> Asked {
    Asked { num_ctx: Some(Tokens(num_ctx)), ..Asked::default() }
}

/// Nodes of several sizes of GPU, every GPU free to a different part, so that no two nodes are alike.
fn fleet(largest_gib: u64) -> Vec<Node> {
    let mut random = StdRng::seed_from_u64(65);
    let sizes = [16, 24, 48, 80].map(|gib: u64| Bytes::gib(gib.min(largest_gib)).0);
    (0..NODES)
        .map(|index| {
            let size = sizes[random.random_range(0..sizes.len())];
            let offers: Vec<Bytes> = (0..GPUS).map(|_| Bytes(random.random_range(0..=size))).collect();
            Node {
                name: format!("node-{index:04}"),
                ready: true,
                schedulable: true,
                selector_matches: true,
                assignments: 0,
                has_model_file: index % 10 == 0,
                siblings: 0,
                devices: devices(&offers, Bytes::gib(256)),
            }
        })
        .collect()
}

/// The same node with four holders on each GPU, all of whom together give back enough, and no one of whom does alone.
fn held(devices: &NodeDevices) -> NodeDevices {
    let mut devices = devices.clone();
    for (index, gpu) in devices.gpus.iter_mut().enumerate() {
        let holder = |nth: u32| {
            let who = Who::Process { pid: 4 * index as u32 + nth, name: "python3".into() };
            Holder { who, bytes: Bytes::mib(4000 + 100 * u64::from(nth) + index as u64) }
        };
        gpu.holders = (0..4).map(holder).collect();
    }
    devices
}

fn plans(criterion: &mut Criterion) {
    let summary = model();
    let different: Vec<Bytes> = (0..GPUS as u64).map(|gpu| Bytes::mib(2000 + 700 * gpu)).collect();
    for (name, offers) in [("equal", vec![Bytes::mib(6000); GPUS]), ("different", different)] {
        let node = Node { devices: devices(&offers, Bytes::gib(256)), ..fleet(16).swap_remove(0) };
        criterion.bench_function(&format!("plan of a 65-layer model on 8 {name} GPUs, chosen among one node"), |bencher| {
            bencher.iter(|| choose(black_box(&summary), &asked(32768), std::slice::from_ref(&node)));
        });
        let asked = Asked { parallel: 4, ..asked(131_072) };
        criterion.bench_function(&format!("fit report with all suggestions, 8 {name} GPUs"), |bencher| {
            bencher.iter(|| decide(black_box(&summary), &asked, &node.devices));
        });
        let experts = Shape { architecture: "llama", feed_forward: 1024, ..DEEPSEEK_R1_32B }.with_experts(0, 128, 1024);
        criterion.bench_function(&format!("fit report with all suggestions, 8 {name} GPUs, experts left on the host"), |bencher| {
            bencher.iter(|| decide_for(OFFLOADING, black_box(&experts), &asked, &node.devices));
        });
        let held = held(&node.devices);
        criterion.bench_function(&format!("fit report with all suggestions, 8 {name} GPUs with 4 holders each"), |bencher| {
            bencher.iter(|| decide(black_box(&summary), &asked, &held));
        });
    }
}

fn decisions(criterion: &mut Criterion) {
    let summary = model();
    let (large, small) = (fleet(80), fleet(16));
    let required = Asked { policy: PlacementPolicy::RequireGPU, ..asked(131_072) };
    let cases = [
        ("one GPU holds it", asked(8192), &large),
        ("several GPUs hold it", asked(131_072), &large),
        ("a context left out", Asked::default(), &large),
        ("several small GPUs hold it", asked(8192), &small),
        ("none holds it, so it is split", Asked { parallel: 4, ..asked(131_072) }, &small),
        ("none holds it, so it is refused", Asked { parallel: 4, ..required }, &small),
    ];
    let mut group = criterion.benchmark_group("decision against 5000 nodes of 8 GPUs");
    group.sample_size(20);
    for (name, asked, nodes) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter(|| choose(black_box(&summary), &asked, nodes));
        });
    }
    group.finish();
}

criterion_group!(benches, plans, decisions);
criterion_main!(benches);
