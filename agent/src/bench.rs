//! `agent bench`: tokens per second of prefill and decode on this machine, in the manner of llama-bench.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use stowage_engine::bench::{BenchOptions, BenchReport, BenchRow, bench};
use stowage_engine::{Isa, LoadProgress};
use stowage_placement::Bytes;

/// Measure prefill and decode of a model on this machine's CPU.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// A GGUF file.
    pub model: PathBuf,
    /// Tokens of the prompt whose prefill is measured; 0: prefill is not measured.
    #[arg(short = 'p', long, value_name = "TOKENS", default_value_t = 512)]
    pub prompt_tokens: u32,
    /// Tokens that are generated; 0: decode is not measured.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    pub generated_tokens: u32,
    /// Tokens that stand in the context before.
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0)]
    pub depth: u32,
    /// 0: one for each physical core.
    #[arg(short, long, value_name = "THREADS", default_value_t = 0)]
    pub threads: u32,
    /// Times that each is measured.
    #[arg(short, long, value_name = "REPEATS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Sequences that are read, or that generate, at once; their tokens count together.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub parallel: u32,
    /// The instruction set to compute with, to compare it with others: the fastest that the CPU has.
    #[arg(long, value_name = "SET")]
    pub instructions: Option<Isa>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Measures and prints. What went wrong goes to standard error.
pub fn run(args: &BenchArgs) -> ExitCode {
    let BenchArgs { model, prompt_tokens, generated_tokens, depth, threads, repeats, parallel, instructions, format } = args.clone();
    let isa = instructions.unwrap_or_else(Isa::best);
    let options = BenchOptions { prompt_tokens, generated_tokens, depth, threads, repeats, parallel, isa };
    let printed = bench(&model, &options, &mut progress).map_err(|error| error.to_string()).and_then(|report| match format {
        Format::Table => Ok(table(&report)),
        Format::Json => serde_json::to_string_pretty(&report).map(|json| json + "\n").map_err(|error| error.to_string()),
    });
    match printed {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", model.display());
            ExitCode::FAILURE
        }
    }
}

/// To a person who waits, and to nobody else.
fn progress(progress: LoadProgress) {
    if std::io::stderr().is_terminal() {
        eprint!("\rloading: {} of {}   ", progress.loaded, progress.total);
        if progress.loaded >= progress.total {
            eprintln!();
        }
    }
}

fn table(report: &BenchReport) -> String {
    let header = format!("{:<10} {:>7} {:>7} {:>9} {:>20}", "TEST", "DEPTH", "THREADS", "SEQUENCES", "TOKENS/S");
    let mut text = format!("{} on {}\n\n{header}\n", report.model, report.cpu);
    for row in &report.results {
        let BenchRow { prompt_tokens, generated_tokens, depth, threads, parallel, tokens_per_second, standard_deviation } = row;
        let test = if *generated_tokens == 0 { format!("pp{prompt_tokens}") } else { format!("tg{generated_tokens}") };
        let rate = format!("{tokens_per_second:.2} ± {standard_deviation:.2}");
        // Writing to a String can't fail.
        let _ = writeln!(text, "{test:<10} {depth:>7} {threads:>7} {parallel:>9} {rate:>20}");
    }
    let _ = writeln!(
        text,
        "\nA token alone reads {} of weights. Memory is read at {:.1} GB/s: one sequence decodes {:.0} tokens a second at most.",
        Bytes(report.weight_bytes),
        report.memory_bandwidth,
        report.decode_bound()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_tests_as_llama_bench_does() {
        let row = |prompt_tokens, generated_tokens| BenchRow {
            prompt_tokens,
            generated_tokens,
            depth: 0,
            threads: 2,
            parallel: 1,
            tokens_per_second: 123.456,
            standard_deviation: 1.5,
        };
        let results = vec![row(512, 0), row(0, 128)];
        let report = BenchReport { model: "m.gguf".into(), cpu: "a CPU".into(), weight_bytes: 100 << 20, memory_bandwidth: 20.0, results };
        let lines: Vec<String> = table(&report).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected =
            ["m.gguf on a CPU", "", "TEST DEPTH THREADS SEQUENCES TOKENS/S", "pp512 0 2 1 123.46 ± 1.50", "tg128 0 2 1 123.46 ± 1.50"];
        assert_eq!(lines[..5], expected);
        assert!(lines[6].ends_with("Memory is read at 20.0 GB/s: one sequence decodes 191 tokens a second at most."), "{}", lines[6]);
    }
}
