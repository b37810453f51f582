//! `cargo run -p stowage-placement --example fuzz_seeds -- FOLDER`: small headers that are right, for a fuzzer to begin with.

use std::path::Path;
use std::{env, fs, io};

use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::testing::{DEEPSEEK_R1_32B, SMOLLM2_135M, Shape};

fn main() -> io::Result<()> {
    let folder = env::args().nth(1).ok_or_else(|| io::Error::other("usage: fuzz_seeds FOLDER"))?;
    fs::create_dir_all(&folder)?;
    for (name, bytes) in seeds() {
        fs::write(Path::new(&folder).join(name), bytes)?;
    }
    Ok(())
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let small = |shape: Shape| Shape { blocks: 1, embedding: 64, heads: 2, kv_heads: 1, feed_forward: 64, vocabulary: 64, ..shape };
    let f32s = |shape: Shape| Shape { weights: GgmlType::F32, ..small(shape) }.writer();
    let part = |number: u16| HeaderWriter::new().split(number, 2, 2).tensor(&format!("t{number}"), GgmlType::Q8_0, &[32]);
    vec![
        ("empty-v3", HeaderWriter::new().header()),
        ("empty-v2", HeaderWriter::new().version(2).header()),
        ("llama", f32s(SMOLLM2_135M).header()),
        ("qwen2", f32s(DEEPSEEK_R1_32B).header()),
        ("q4_1", Shape { weights: GgmlType::Q4_1, ..small(SMOLLM2_135M) }.writer().header()),
        ("values", values().header()),
        ("arrays", arrays().header()),
        ("long-array", HeaderWriter::new().array("flags", 7, 4100, &[1; 4100]).u32("after", 1).header()),
        ("long-texts", HeaderWriter::new().strings("tokens", std::iter::repeat_n("t", 4200)).u32("after", 1).header()),
        ("long-text", HeaderWriter::new().string("template", &"x".repeat(5000)).u32("after", 1).header()),
        ("alignment", HeaderWriter::new().u32("general.alignment", 64).tensor("t", GgmlType::F32, &[16]).header()),
        ("types", types().header()),
        ("part-1", part(0).header()),
        ("part-2", part(1).header()),
        ("data", HeaderWriter::architecture("llama").tensor("t", GgmlType::F16, &[4, 4]).file(|_, i| i as u8)),
    ]
}

fn values() -> HeaderWriter {
    HeaderWriter::architecture("llama")
        .u32("u32", 7)
        .u64("u64", 1 << 40)
        .f32("f32", 0.5)
        .bool("bool", true)
        .raw("u8", 0, &[1])
        .raw("i8", 1, &[0xff])
        .raw("u16", 2, &[1, 0])
        .raw("i16", 3, &(-2i16).to_le_bytes())
        .raw("i32", 5, &(-3i32).to_le_bytes())
        .raw("i64", 11, &(-4i64).to_le_bytes())
        .raw("f64", 12, &f64::NAN.to_le_bytes())
}

fn arrays() -> HeaderWriter {
    HeaderWriter::new()
        .strings("texts", ["one", "", "three"])
        .u32s("u32s", &[1, 2, 3])
        .i32s("i32s", &[-1, 1])
        .f32s("f32s", &[0.25])
        .array("bools", 7, 2, &[0, 1])
        .array("bytes", 0, 3, &[1, 2, 3])
        .array("wide", 10, 1, &[9, 0, 0, 0, 0, 0, 0, 0])
        .array("none", 8, 0, &[])
}

/// A tensor of every type.
fn types() -> HeaderWriter {
    GgmlType::ALL.iter().fold(HeaderWriter::new(), |writer, ty| writer.tensor(ty.as_str(), *ty, &[ty.block_elements(), 2]))
}
