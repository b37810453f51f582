//! How far the cpu backend is from the reference on a text: `cargo run -p stowage-engine --example kl -- MODEL TEXT [TOKENS] [all]`.
//!
//! `all` measures every instruction set that this CPU has, not the fastest alone.

use std::path::PathBuf;

use anyhow::Context;
use stowage_engine::{BackendChoice, Isa, LoadRequest, LoadedModel, Tokenizer, divergence, host_plan};
use stowage_placement::{Request, Tokens};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: kl MODEL TEXT [TOKENS] [all]";
    let model = PathBuf::from(arguments.next().context(usage)?);
    let text = std::fs::read_to_string(arguments.next().context(usage)?)?;
    let most = arguments.next().map_or(Ok(4000), |count| count.parse::<usize>())?;
    let request = Request { num_ctx: Tokens(1024), num_batch: 256, ..Request::default() };
    let load = host_plan::on_host(&model, &request, 0)?;
    let reference_load = LoadRequest { backend: BackendChoice::Reference, ..load.clone() };
    let mut reference = LoadedModel::load(&reference_load, &mut |_| {})?;
    let mut tokens = Tokenizer::from_header(reference.header())?.encode(&text, false)?;
    tokens.truncate(most);
    let isas = if arguments.next().as_deref() == Some("all") { Isa::available() } else { vec![Isa::best()] };
    for isa in isas {
        let mut cpu = LoadedModel::load_with(&load, isa, &mut |_| {})?;
        let found = divergence::compare(&mut reference, &mut cpu, &tokens)?;
        println!(
            "{:>12}: {} tokens, KL mean {:.6}, 99th percentile {:.6}, same top token {:.2} %, perplexity {:.4} (reference {:.4})",
            isa.name(),
            found.tokens,
            found.mean,
            found.percentile_99,
            found.same_top * 100.0,
            found.perplexity[1],
            found.perplexity[0],
        );
    }
    Ok(())
}
