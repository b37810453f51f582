//! Values that are arrays, kept and skipped.

use stowage_placement::gguf::Keep;

use crate::file::{ARRAY, File, STRING, begin};
use crate::{Case, case};

const ENDS: &str = "the header ends early";

pub fn cases() -> Vec<Case> {
    [claims(), cut_elements(), texts(), skipped()].concat()
}

fn claims() -> Vec<Case> {
    let typed = |element: u32| begin(0, 1).key("k", ARRAY).here().u32(element).u64(1).zeros(16);
    let counted = |element: u32, length: u64| begin(0, 1).key("k", ARRAY).u32(element).here().u64(length);
    vec![
        case("an array without its type", begin(0, 1).key("k", ARRAY).here(), ENDS),
        case("an array with half its type", begin(0, 1).key("k", ARRAY).zeros(2).here(), ENDS),
        case("an array without its length", begin(0, 1).key("k", ARRAY).u32(4).here(), ENDS),
        case("an array with half its length", begin(0, 1).key("k", ARRAY).u32(4).zeros(4).here(), ENDS),
        case("an array of an unknown type", typed(13), "value type 13"),
        case("an array of type -1", typed(u32::MAX), "value type 4294967295"),
        case("an array of arrays", typed(9), "an array of arrays at offset 37"),
        case(
            "an array of arrays, nested a thousand times",
            (0..1000).fold(begin(0, 1).key("k", ARRAY).here(), |file, _| file.u32(9).u64(1)),
            "an array of arrays at offset 37",
        ),
        case("bytes of 2^62", counted(0, 1 << 62), "claims 4611686018427387904 array elements"),
        case("numbers whose bytes wrap to none", counted(4, 1 << 62), "claims 4611686018427387904 array elements"),
        case("wide numbers whose bytes wrap to eight", counted(10, (1 << 61) + 1), "claims 2305843009213693953 array elements"),
        case("-1 numbers", counted(5, u64::MAX), "claims 18446744073709551615 array elements"),
        case("-1 texts", counted(STRING, u64::MAX), "claims 18446744073709551615 array elements"),
        case("numbers beyond the end of the file", begin(0, 1).array("k", 4, 1000).here().zeros(8), "").sized(57).said("claims 4000 bytes"),
        case("texts beyond the end of the file", begin(0, 1).array("k", STRING, 1000).here().zeros(8), "")
            .sized(57)
            .said("claims 8000 bytes"),
        case("an exabyte in a small file", begin(0, 1).array("k", 0, 1 << 60).here(), "")
            .sized(49)
            .said("claims 1152921504606846976 bytes"),
    ]
}

/// Every type of element: the second of two ends early.
fn cut_elements() -> Vec<Case> {
    let types = [("u8", 0, 1), ("i8", 1, 1), ("u16", 2, 2), ("i16", 3, 2), ("u32", 4, 4), ("i32", 5, 4), ("f32", 6, 4), ("bool", 7, 1)];
    let wide = [("u64", 10, 8), ("i64", 11, 8), ("f64", 12, 8)];
    let cut = |(name, id, size): (&str, u32, usize)| {
        let file = begin(0, 1).array(name, id, 2).zeros(2 * size - 1).here();
        case(&format!("an array of {name} without its last byte"), file, "in metadata entry 1 of 1")
    };
    types.into_iter().chain(wide).map(cut).collect()
}

fn texts() -> Vec<Case> {
    let texts = |count: u64| begin(0, 1).array("k", STRING, count);
    vec![
        case(
            "an array of booleans with a 2 in it",
            begin(0, 1).array("k", 7, 2).raw(&[1]).here().raw(&[2]),
            "2 at offset 50 is no boolean",
        ),
        case("an array of texts without any", texts(3).here(), ENDS),
        case("an array of texts without its last one", texts(2).text("a").here(), ENDS),
        case("an array of texts with half a length", texts(2).text("a").zeros(4).here(), ENDS),
        case("an array of texts of which one ends early", texts(2).text("a").u64(3).raw(b"bc").here(), ENDS),
        case("an array with a text of 4 GiB", texts(2).text("a").here().u64(1 << 32), "claims a length of 4294967296 bytes"),
        case("an array with a text of -1 bytes", texts(1).here().u64(u64::MAX), "claims a length of 18446744073709551615 bytes"),
        case("an array with a text longer than the file", texts(1).u64(99).here(), "")
            .sized(57)
            .said("claims 99 bytes, but the file ends at 57"),
    ]
}

/// Arrays that are too long to be kept for sizing are checked all the same.
fn skipped() -> Vec<Case> {
    let tokens = |count: u64, whole: usize| (0..whole).fold(begin(0, 1).array("tokens", STRING, count), |file, _| file.text("t"));
    let in_sizing = |name: &str, file: File, said: &str| case(name, file, said).keep(Keep::Sizing);
    vec![
        in_sizing("a vocabulary that ends between two tokens", tokens(5000, 4999).here(), "in metadata entry 1 of 1"),
        in_sizing("a vocabulary that ends within a token's length", tokens(5001, 4999).zeros(3).here(), "in metadata entry 1 of 1"),
        in_sizing("a vocabulary that ends within a token", tokens(5000, 4999).u64(9).raw(b"tok").here(), "in a value that is skipped"),
        in_sizing("a vocabulary with a token of -1 bytes", tokens(5000, 10).here().u64(u64::MAX), "claims a length of"),
        in_sizing("a vocabulary with a token longer than the file", tokens(5000, 10).u64(1 << 20).here().zeros(40_000), "")
            .sized(40_200)
            .said("claims 1048576 bytes"),
        in_sizing("scores that end early", begin(0, 1).array("scores", 6, 5000).zeros(19_999).here(), "in a value that is skipped"),
        in_sizing("booleans that end early", begin(0, 1).array("flags", 7, 5000).zeros(4999).here(), "in a value that is skipped"),
        in_sizing(
            "a key twice, behind a vocabulary",
            (0..5000).fold(begin(0, 2).array("tokens", STRING, 5000), |file, _| file.text("t")).here().number("tokens", 1),
            "`tokens` at offset 45054 stands there twice",
        ),
    ]
}
