//! How fast one core multiplies, by type and instruction set: `cargo run --release -p stowage-engine --example kernels -- [TYPE..]`.

use stowage_engine::Isa;
use stowage_engine::bench::{cpu_name, kernels};
use stowage_placement::gguf::GgmlType;

const TYPES: [GgmlType; 16] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::MXFP4,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::F32,
];

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!("{}, one core, memory read at {:.1} GB/s", cpu_name(), kernels::read_bandwidth(1)?);
    println!("{:<8} {:<12} {:>15} {:>12} {:>12}", "type", "instructions", "prefill GMAC/s", "decode GB/s", "of 4 GB/s");
    for ty in TYPES.into_iter().filter(|ty| wanted.is_empty() || wanted.contains(&ty.to_string())) {
        for isa in Isa::available() {
            let rates = kernels::rates(ty, isa)?;
            let [prefill, decode, decode_of_4] = [rates.prefill_gmacs, rates.decode_gb, rates.decode_of_4_gb];
            println!("{:<8} {:<12} {prefill:>15.1} {decode:>12.1} {decode_of_4:>12.1}", ty.to_string(), isa.name());
        }
    }
    Ok(())
}
