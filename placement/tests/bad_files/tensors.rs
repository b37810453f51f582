//! The list of tensors, and where they are said to lie.

use stowage_placement::gguf::GgmlType;

use crate::file::{F32, File, begin};
use crate::{Case, case};

const ENDS: &str = "the header ends early";

pub fn cases() -> Vec<Case> {
    [names(), cut_off(), dimensions(), sizes(), types(), partial_blocks(), places(), overlaps(), short_files()].concat()
}

fn names() -> Vec<Case> {
    let one = || begin(1, 0);
    let two = || begin(2, 0).tensor("t", &[8], F32, 0);
    let escape = |name: &str| begin(2, 0).tensor(name, &[8], F32, 0).here().tensor(name, &[8], F32, 32);
    vec![
        case("a tensor without a name", one().here().u64(0).u32(1), "the tensor name at offset 24 is empty"),
        case("a tensor's name of 1025 bytes", one().here().text(&"t".repeat(1025)), "claims a length of 1025 bytes; at most 1024"),
        case("a tensor's name of -1 bytes", one().here().u64(u64::MAX), "claims a length of 18446744073709551615 bytes"),
        case("a tensor's name longer than the file", one().u64(800).here().zeros(9), "").sized(41).said("tensor name at offset"),
        case(
            "a tensor's name of Latin-1",
            one().u64(3).raw(b"t").here().raw(b"\xe9s"),
            "tensor name at offset 24 is not valid UTF-8: byte 0xe9",
        ),
        case("a tensor's name with a lone surrogate", one().u64(4).raw(b"t").here().raw(b"\xed\xbf\xbf"), "byte 0xed"),
        case("a tensor twice in a row", two().here().tensor("t", &[8], F32, 32), "tensor `t` at offset 57 stands there twice"),
        case("a tensor twice, of other sizes", two().here().tensor("t", &[4, 4], 1, 32), "twice"),
        case(
            "a tensor twice, with another between",
            begin(3, 0).tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 32).here().tensor("a", &[8], F32, 64),
            "tensor `a`",
        ),
        case("a tensor with a bell in its name, twice", escape("t\u{7}"), "tensor `t\\u{7}`"),
        case("a tensor with a line feed in its name, twice", escape("t\nerror: all is well"), "tensor `t\\nerror: all is well`"),
        case("a tensor with a long name, twice", escape(&"blk.".repeat(200)), "… (800 bytes)` at offset"),
    ]
}

fn cut_off() -> Vec<Case> {
    let whole = begin(1, 0).tensor("t", &[8, 8], F32, 0).bytes;
    let places = [
        (24, "no tensor at all"),
        (28, "half the length of a tensor's name"),
        (32, "a tensor's name without a byte"),
        (33, "a tensor without its number of dimensions"),
        (36, "a tensor with three quarters of its number of dimensions"),
        (37, "a tensor without its dimensions"),
        (44, "a tensor with most of its first dimension"),
        (45, "a tensor without its second dimension"),
        (53, "a tensor without its type"),
        (55, "a tensor with half its type"),
        (57, "a tensor without its offset"),
        (64, "a tensor without the last byte of its offset"),
    ];
    let cut =
        |(length, name): (usize, &str)| case(name, File { bytes: whole[..length].to_vec(), ..File::default() }.here(), "in tensor 1 of 1");
    let mut cases: Vec<Case> = places.into_iter().map(cut).collect();
    cases.push(case("the second of two tensors is missing", begin(2, 0).tensor("t", &[8], F32, 0).here(), "in tensor 2 of 2"));
    cases.push(case("a tensor is missing behind a key", begin(1, 1).number("a", 1).here(), ENDS));
    cases
}

fn dimensions() -> Vec<Case> {
    let counted = |count: u32| begin(1, 0).text("t").here().u32(count).zeros(80);
    vec![
        case("five dimensions", counted(5), "claims 5 dimensions at offset 33; at most 4"),
        case("a hundred million dimensions", counted(100_000_000), "claims 100000000 dimensions"),
        case("-1 dimensions", counted(u32::MAX), "claims 4294967295 dimensions"),
    ]
}

fn sizes() -> Vec<Case> {
    let with = |ggml_type: u32, dimensions: &[u64]| {
        let file = begin(1, 0).text("t").u32(dimensions.len() as u32).here();
        dimensions.iter().fold(file, |file, dimension| file.u64(*dimension)).u32(ggml_type).u64(0)
    };
    vec![
        case("a row of 2^64 - 1", with(F32, &[u64::MAX]), "has dimensions [18446744073709551615] at offset 37"),
        case("a row of which only the bytes overflow", with(F32, &[1 << 62]), "whose product overflows"),
        case("a row whose bytes take the sign bit", with(F32, &[1 << 61]), "whose product overflows"),
        case("a matrix of 2^32 by 2^32", with(F32, &[1 << 32, 1 << 32]), "whose product overflows"),
        case("four dimensions of 2^16", with(F32, &[1 << 16; 4]), "whose product overflows"),
        case("an overflow that a zero hides", with(F32, &[0, 1 << 40, 1 << 40]), "whose product overflows"),
        case("an overflow that a zero at the end hides", with(F32, &[1 << 40, 1 << 40, 0]), "whose product overflows"),
        case("bytes that wrap to a small number", with(28, &[(1 << 61) + 1]), "whose product overflows"),
        case("an overflow of blocks", with(12, &[256, 1 << 55]), "whose product overflows"),
        case("a negative dimension", with(F32, &[(-8i64) as u64]), "has dimensions [18446744073709551608]"),
    ]
}

fn types() -> Vec<Case> {
    let with = |id: u32| begin(1, 0).dimensions("t", &[256]).here().u32(id).u64(0);
    let ids = [
        (4, "Q4_2, retired in 2023"),
        (5, "Q4_3, retired in 2023"),
        (31, "Q4_0_4_4, retired in 2024"),
        (32, "Q4_0_4_8, retired in 2024"),
        (33, "Q4_0_8_8, retired in 2024"),
        (36, "IQ4_NL_4_4, retired in 2024"),
        (37, "IQ4_NL_4_8, retired in 2024"),
        (38, "IQ4_NL_8_8, retired in 2024"),
        (43, "a type from the future"),
        (137, "a type of a fork"),
        (u32::MAX, "a type of -1"),
    ];
    ids.into_iter().map(|(id, name)| case(name, with(id), &format!("has type {id} at offset 45"))).collect()
}

/// Every type that has blocks, each with rows of half a block more.
fn partial_blocks() -> Vec<Case> {
    let blocks = GgmlType::ALL.iter().filter(|ty| !ty.is_plain());
    let case_of = |ty: &GgmlType| {
        let columns = ty.block_elements() * 3 / 2;
        let file = begin(1, 0).text("t").u32(2).here().u64(columns).u64(2).u32(ty.id()).u64(0);
        let said = format!("rows of {columns} elements (at offset 37) are no whole number of {ty} blocks of {}", ty.block_elements());
        case(&format!("half a block of {ty} in a row"), file, &said)
    };
    blocks.map(case_of).collect()
}

fn places() -> Vec<Case> {
    let at = |offset: u64| begin(1, 0).here().tensor("t", &[8], F32, offset);
    let aligned = |alignment: u32, offset: u64| begin(1, 1).number("general.alignment", alignment).here().tensor("t", &[8], F32, offset);
    vec![
        case("data one byte off", at(1), "lies at offset 1 of the data, which is no multiple of the alignment 32"),
        case("data one byte short", at(31), "lies at offset 31 of the data"),
        case("data aligned for 16 bytes", at(48), "lies at offset 48 of the data"),
        case("data one byte off, far away", at((1 << 40) + 1), "lies at offset 1099511627777 of the data"),
        case("data at -1", at(u64::MAX), "lies at offset 18446744073709551615 of the data"),
        case("data aligned to 32 where 64 was said", aligned(64, 32), "no multiple of the alignment 64"),
        case("data aligned to 4 KiB where 1 MiB was said", aligned(1 << 20, 4096), "no multiple of the alignment 1048576"),
        case("data that ends behind 2^64", at(u64::MAX - 31), "of 32 bytes (listed at offset 24)"),
        case("data that ends at 2^63", at((1 << 63) - 32), "ends beyond what 63 bits can address"),
        case("data that the header's own length pushes over", at((1 << 63) - 96), "ends beyond what 63 bits can address"),
    ]
}

fn overlaps() -> Vec<Case> {
    let first = |dimensions: &[u64], offset: u64| begin(2, 0).tensor("a", dimensions, F32, offset);
    let third = begin(3, 0).tensor("a", &[64], F32, 0).tensor("b", &[8], F32, 512);
    vec![
        case("two tensors at one place", first(&[8], 0).here().tensor("b", &[8], F32, 0), "`a` and `b` overlap: one ends at offset 32"),
        case(
            "two tensors that share one alignment",
            first(&[16], 0).here().tensor("b", &[8], F32, 32),
            "ends at offset 64 of the data, the other begins at 32",
        ),
        case(
            "a tensor within another",
            first(&[64], 0).here().tensor("b", &[8], F32, 96),
            "ends at offset 256 of the data, the other begins at 96",
        ),
        case(
            "a tensor that begins before the one listed first, and reaches into it",
            begin(2, 0).here().tensor("a", &[8], F32, 32).tensor("b", &[16], F32, 0),
            "`b` and `a` overlap",
        ),
        case("the third of three tensors in the first", third.here().tensor("c", &[8], F32, 224), "`a` and `c` overlap"),
        case(
            "two tensors whose padding alone keeps them apart",
            first(&[9], 0).here().tensor("b", &[8], F32, 32),
            "ends at offset 36 of the data",
        ),
    ]
}

/// Whole headers in files that are too short for their data.
fn short_files() -> Vec<Case> {
    let one = || begin(1, 0).tensor("t", &[64], F32, 0).padded().here();
    let two = || begin(2, 0).tensor("a", &[64], F32, 256).tensor("b", &[64], F32, 0).padded();
    vec![
        case("a file without its data", one(), "file has 64 bytes, tensors end at 320").data_in(64),
        case("a file without the last byte of its data", one(), "file has 319 bytes, tensors end at 320").data_in(319),
        case("a file without its second tensor, which is listed first", two().zeros(256).here(), "`a` at offset 352").data_in(352),
        case("a file that ends within the data of its first tensor", two().here(), "`b` at offset 96").data_in(100),
        case(
            "a tensor of exabytes in a small file",
            begin(1, 0).tensor("t", &[1 << 60], F32, 0).padded().here(),
            "tensors end at 4611686018427387968",
        )
        .data_in(4096),
        case("a tensor far behind the end", begin(1, 0).tensor("t", &[8], F32, 1 << 40).padded(), "")
            .data_in(4096)
            .wrong_at(64 + (1 << 40))
            .said("`t`"),
    ]
}
