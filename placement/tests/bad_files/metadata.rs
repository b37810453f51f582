//! Keys and values that are no arrays.

use crate::file::{STRING, begin};
use crate::{Case, case};

const ENDS: &str = "the header ends early";

pub fn cases() -> Vec<Case> {
    [keys(), text_that_is_none(), duplicates(), types(), cut_scalars(), texts(), alignment()].concat()
}

fn keys() -> Vec<Case> {
    let one = || begin(0, 1);
    vec![
        case("no key at all", one().here(), "ends early, at offset 24, in metadata entry 1 of 1"),
        case("half a key's length", one().zeros(4).here(), ENDS),
        case("a key that ends early", one().u64(9).raw(b"general.").here(), ENDS),
        case("an empty key", one().here().u64(0).u32(4).u32(1), "the metadata key at offset 24 is empty"),
        case("a key of 64 KiB", one().here().text(&"k".repeat(65_536)), "claims a length of 65536 bytes; at most 65535"),
        case("a key's length of -1", one().here().u64(u64::MAX), "claims a length of 18446744073709551615 bytes"),
        case("a key's length in 32 bits, as in version 1", one().here().u32(20).raw(b"general.architecture"), "claims a length of"),
        case("a key longer than the file", one().u64(200).here().zeros(8), "").sized(40).said("metadata key at offset"),
        case("the second of two keys is missing", begin(0, 2).number("a", 1).here(), "in metadata entry 2 of 2"),
        case("a key without a type", one().text("general.architecture").here(), ENDS),
        case("a key with half a type", one().text("general.architecture").raw(&[8, 0]).here(), ENDS),
        case(
            "one key more is counted than there is, and the tensors are taken for it",
            begin(1, 2).number("a", 1).here().u64(0),
            "key at offset",
        )
        .said("is empty"),
    ]
}

fn text_that_is_none() -> Vec<Case> {
    let with = |before: &str, bad: &[u8]| {
        let length = before.len() + bad.len();
        begin(0, 1).u64(length as u64).raw(before.as_bytes()).here().raw(bad).u32(4).u32(1)
    };
    vec![
        case("a key of Latin-1", with("mod", b"\xe8le"), "not valid UTF-8: byte 0xe8"),
        case("a key that begins with 0xff", with("", b"\xff"), "not valid UTF-8: byte 0xff"),
        case("a key with a lone continuation byte", with("a", b"\x80b"), "not valid UTF-8: byte 0x80"),
        case("a key with an overlong slash", with("ab", b"\xc0\xaf"), "not valid UTF-8: byte 0xc0"),
        case("a key with half a surrogate pair", with("abc", b"\xed\xa0\x80"), "not valid UTF-8: byte 0xed"),
        case("a key beyond Unicode", with("abcd", b"\xf5\x80\x80\x80"), "not valid UTF-8: byte 0xf5"),
        case("a key that ends within a character", with("abcde", b"\xe2\x82"), "not valid UTF-8: byte 0xe2"),
    ]
}

fn duplicates() -> Vec<Case> {
    let long = "long.".repeat(100);
    vec![
        case("a key twice in a row", begin(0, 2).number("a", 1).here().number("a", 1), "`a` at offset 41 stands there twice"),
        case("a key twice, with another type", begin(0, 2).number("b", 1).here().string("b", "x"), "`b`"),
        case("a key twice, with another between", begin(0, 3).number("c", 1).number("d", 2).here().number("c", 3), "`c`"),
        case("a key again after an array of its name", begin(0, 2).array("e", 4, 1).u32(7).here().number("e", 3), "`e`"),
        case("a long key twice, shown short", begin(0, 2).number(&long, 1).here().number(&long, 1), "… (500 bytes)` at offset"),
        case(
            "a key that would clear the screen, twice",
            begin(0, 2).number("\u{1b}[2J", 1).here().number("\u{1b}[2J", 1),
            "`\\u{1b}[2J` at offset",
        ),
        case("the alignment twice", begin(0, 2).number("general.alignment", 32).here().number("general.alignment", 64), "twice"),
    ]
}

fn types() -> Vec<Case> {
    let with = |value_type: u32| begin(0, 1).text("k").here().u32(value_type).u64(1);
    vec![
        case("the first value type that is not there", with(13), "value type 13"),
        case("a value type of 255", with(255), "value type 255"),
        case("a value type in the high byte", with(8 << 24), "value type 134217728"),
        case("a value type of -1", with(u32::MAX), "value type 4294967295"),
        case("a boolean of 2", begin(0, 1).key("k", 7).here().raw(&[2]), "2 at offset 37 is no boolean"),
        case("a boolean of 255", begin(0, 1).key("k", 7).here().raw(&[255]), "255 at offset 37 is no boolean"),
    ]
}

/// Every scalar type, each without its last byte.
fn cut_scalars() -> Vec<Case> {
    let types = [("u8", 0, 1), ("i8", 1, 1), ("u16", 2, 2), ("i16", 3, 2), ("u32", 4, 4), ("i32", 5, 4), ("f32", 6, 4), ("bool", 7, 1)];
    let wide = [("u64", 10, 8), ("i64", 11, 8), ("f64", 12, 8)];
    let cut = |(name, id, size): (&str, u32, usize)| {
        case(&format!("a {name} without its last byte"), begin(0, 1).key(name, id).zeros(size - 1).here(), "in metadata entry 1 of 1")
    };
    types.into_iter().chain(wide).map(cut).collect()
}

fn texts() -> Vec<Case> {
    let text = || begin(0, 1).key("k", STRING);
    let long = (64 << 20) + 1;
    vec![
        case("a text without its length", text().here(), ENDS),
        case("a text with half its length", text().zeros(4).here(), ENDS),
        case("a text that ends early", text().u64(5).raw(b"llam").here(), ENDS),
        case(
            "a text of one byte more than is taken",
            text().here().u64(long).raw(b"x"),
            "claims a length of 67108865 bytes; at most 67108864",
        ),
        case("a text's length of -1", text().here().u64(u64::MAX), "claims a length of 18446744073709551615 bytes"),
        case("a text's length of 2^63", text().here().u64(1 << 63), "claims a length of 9223372036854775808 bytes"),
        case("a text longer than the file", text().u64(5000).here().raw(b"x"), "")
            .sized(46)
            .said("claims 5000 bytes, but the file ends at 46"),
        case("a chat template that ends early", text().u64(70_000).zeros(60_000).here(), ENDS),
        case("a chat template that ends after its length", text().u64(70_001).here(), ENDS),
    ]
}

fn alignment() -> Vec<Case> {
    let number = |value: u32| begin(0, 1).here().number("general.alignment", value);
    let typed = |value_type: u32, value: &[u8]| begin(0, 1).here().key("general.alignment", value_type).raw(value);
    vec![
        case("no alignment at all", number(0), "is the number 0; it must be a power of two"),
        case("an alignment of 3", number(3), "is the number 3"),
        case("an alignment of 48", number(48), "is the number 48"),
        case("an alignment of 2 MiB", number(2 << 20), "is the number 2097152"),
        case("an alignment of -1 in 32 bits", number(u32::MAX), "is the number 4294967295"),
        case("an alignment of 2^63", typed(10, &(1u64 << 63).to_le_bytes()), "is the number 9223372036854775808"),
        case("a negative alignment", typed(5, &(-32i32).to_le_bytes()), "is -32 (i32)"),
        case("a fractional alignment", typed(6, &32f32.to_le_bytes()), "is 32 (f32)"),
        case("a true alignment", typed(7, &[1]), "is true"),
        case("an alignment in words", begin(0, 1).here().string("general.alignment", "32"), "is a text"),
        case("several alignments", begin(0, 1).here().array("general.alignment", 4, 2).u32(32).u32(64), "is an array of 2"),
    ]
}
