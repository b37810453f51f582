//! How fast one core multiplies, by type and instruction set: `cargo run --release -p stowage-engine --example kernels -- [TYPE..]`.

use stowage_engine::Isa;
use stowage_engine::bench::{cpu_name, kernels};
use stowage_placement::capability::WEIGHT_TYPES;

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!("{}, one core, memory read at {:.1} GB/s", cpu_name(), kernels::read_bandwidth(1)?);
    println!(
        "{:<8} {:<12} {:>15} {:>12} {:>12} {:>12}",
        "type", "instructions", "prefill GMAC/s", "decode GB/s", "of 4 GB/s", "packing GB/s"
    );
    for &ty in WEIGHT_TYPES.iter().filter(|ty| wanted.is_empty() || wanted.contains(&ty.to_string())) {
        for isa in Isa::available() {
            let rates = kernels::rates(ty, isa)?;
            let [prefill, decode, decode_of_4] = [rates.prefill_gmacs, rates.decode_gb, rates.decode_of_4_gb];
            let packing = rates.packing_gb.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
            println!("{:<8} {:<12} {prefill:>15.1} {decode:>12.1} {decode_of_4:>12.1} {packing:>12}", ty.to_string(), isa.name());
        }
    }
    Ok(())
}
