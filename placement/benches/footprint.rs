//! How long it takes to size a model of 65 layers, to summarise its header, and to plan it: what the operator does for every node that it considers.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use stowage_placement::layout::Backend;
use stowage_placement::testing::{DEEPSEEK_R1_32B, devices, read};
use stowage_placement::{Asked, Bytes, Footprint, ModelSummary, Request, Tokens, decide};

fn footprint(criterion: &mut Criterion) {
    let header = read(&DEEPSEEK_R1_32B.writer().header());
    let summary = DEEPSEEK_R1_32B.summary();
    let request = Request { num_ctx: Tokens(32768), ..Request::default() };
    let node = devices(&[Bytes::gib(24); 2], Bytes::gib(128));
    let asked = Asked { num_ctx: Some(request.num_ctx), ..Asked::default() };
    criterion.bench_function("footprint of a 65-layer model", |bencher| {
        bencher.iter(|| Footprint::new(black_box(&summary), &request, Backend::Cuda, Bytes::mib(512), Backend::Cpu));
    });
    criterion.bench_function("summary of a 65-layer model's header", |bencher| {
        bencher.iter(|| ModelSummary::from_header(black_box(&header), Bytes::ZERO));
    });
    criterion.bench_function("plan of a 65-layer model on two GPUs", |bencher| {
        bencher.iter(|| decide(black_box(&summary), &asked, &node));
    });
}

criterion_group!(benches, footprint);
criterion_main!(benches);
