//! Headers that are well formed and say what can't be meant: found when a value is asked for.

use stowage_placement::gguf::{GgufError, Header};

use crate::file::{File, STRING, begin};
use crate::{Case, case};

type Ask = fn(&Header) -> Result<(), GgufError>;

pub fn cases() -> Vec<Case> {
    [numbers(), others(), per_layer()].concat()
}

fn asked(name: &str, file: File, ask: Ask, said: &str) -> Case {
    case(name, file, said).asked(ask)
}

fn key(value_type: u32, value: &[u8]) -> File {
    begin(0, 2).number("a", 1).here().key("k", value_type).raw(value)
}

fn number(header: &Header) -> Result<(), GgufError> {
    header.u64("k").map(drop)
}

fn numbers() -> Vec<Case> {
    let needed = "expected a whole number of at least 0";
    vec![
        asked("a count in words", key(STRING, &[1, 0, 0, 0, 0, 0, 0, 0, b'7']), number, &format!("`k` at offset 41 is a text; {needed}")),
        asked("a negative i8", key(1, &[0xff]), number, "is -1 (i8)"),
        asked("a negative i16", key(3, &(-2i16).to_le_bytes()), number, "is -2 (i16)"),
        asked("a negative i32", key(5, &i32::MIN.to_le_bytes()), number, "is -2147483648 (i32)"),
        asked("a negative i64", key(11, &i64::MIN.to_le_bytes()), number, "is -9223372036854775808 (i64)"),
        asked("a count with a fraction", key(6, &2.5f32.to_le_bytes()), number, "is 2.5 (f32)"),
        asked("a count that is not a number", key(12, &f64::NAN.to_le_bytes()), number, "is NaN (f64)"),
        asked("a count that is true", key(7, &[1]), number, "is true"),
        asked("several counts", begin(0, 1).here().array("k", 4, 3).zeros(12), number, "is an array of 3"),
    ]
}

fn others() -> Vec<Case> {
    let text: Ask = |header| header.string("k").map(drop);
    let fraction: Ask = |header| header.f64("k").map(drop);
    let boolean: Ask = |header| header.bool("k").map(drop);
    let texts: Ask = |header| header.strings("k").map(drop);
    let architecture: Ask = |header| header.architecture().map(drop);
    vec![
        asked("a text that is a number", key(4, &[7, 0, 0, 0]), text, "is the number 7; expected a text"),
        asked("a text that is several", begin(0, 1).here().array("k", STRING, 1).text("x"), text, "is an array of 1; expected a text"),
        asked("a fraction that is a whole number", key(4, &[1, 0, 0, 0]), fraction, "is the number 1; expected a floating-point number"),
        asked("a boolean that is a number", key(0, &[1]), boolean, "is the number 1; expected a boolean"),
        asked("a boolean in words", begin(0, 1).here().string("k", "true"), boolean, "is a text; expected a boolean"),
        asked("texts that are one", begin(0, 1).here().string("k", "one"), texts, "is a text; expected an array of texts"),
        asked(
            "texts that are numbers",
            begin(0, 1).here().array("k", 4, 2).zeros(8),
            texts,
            "is an array of 2; expected an array of texts",
        ),
        asked(
            "an architecture that is a number",
            begin(0, 1).here().number("general.architecture", 1),
            architecture,
            "is the number 1; expected a text",
        ),
        asked(
            "an architecture that is a list",
            begin(0, 1).here().array("general.architecture", STRING, 0),
            architecture,
            "is an array of 0",
        ),
    ]
}

fn per_layer() -> Vec<Case> {
    let layers: Ask = |header| header.u64_per_layer("k", 4).map(drop);
    vec![
        asked(
            "a number for each of three layers out of four",
            begin(0, 1).here().array("k", 4, 3).zeros(12),
            layers,
            "an array of 3 for 4 layers",
        ),
        asked(
            "a number for each of five layers out of four",
            begin(0, 1).here().array("k", 4, 5).zeros(20),
            layers,
            "an array of 5 for 4 layers",
        ),
        asked("a number for no layer", begin(0, 1).here().array("k", 4, 0), layers, "an array of 0 for 4 layers"),
        asked("a text for each layer", begin(0, 1).here().array("k", STRING, 4).zeros(32), layers, "an array of other values"),
        asked("a fraction for each layer", begin(0, 1).here().array("k", 6, 4).zeros(16), layers, "an array of other values"),
        asked("a negative number for a layer", begin(0, 1).here().array("k", 5, 4).raw(&[0xff; 16]), layers, "an array of other values"),
        asked("a text for all layers", begin(0, 1).here().string("k", "8"), layers, "is a text"),
    ]
}
