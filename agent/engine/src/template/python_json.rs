//! JSON as Python's `json.dumps` writes it, which is what models saw in training.

use std::io::{self, Write};

use minijinja::Error;
use minijinja::value::{Kwargs, Value};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// The widest indentation that a template may ask for.
const WIDEST: usize = 16;

/// How to write: the arguments of `json.dumps` that `transformers` lets templates give.
#[derive(Debug)]
pub struct Style {
    ensure_ascii: bool,
    indent: Option<usize>,
    separators: Option<(String, String)>,
    sort_keys: bool,
}

impl Style {
    /// Errors: an argument that there isn't, or of another type.
    pub fn from_arguments(arguments: &Kwargs) -> Result<Style, Error> {
        let style = Style {
            ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            indent: arguments.get::<Option<usize>>("indent")?.map(|indent| indent.min(WIDEST)),
            separators: arguments.get::<Option<Vec<String>>>("separators")?.and_then(pair),
            sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        };
        arguments.assert_all_used()?;
        Ok(style)
    }

    /// Errors: a value that JSON has no form for.
    pub fn write(&self, value: &Value) -> serde_json::Result<String> {
        let mut bytes = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut bytes, Writer { style: self, level: 0, holds_something: false });
        if self.sort_keys {
            let mut sorted = serde_json::to_value(value)?;
            sorted.sort_all_objects();
            sorted.serialize(&mut serializer)?;
        } else {
            value.serialize(&mut serializer)?;
        }
        String::from_utf8(bytes).map_err(<serde_json::Error as serde::ser::Error>::custom)
    }

    fn between_items(&self) -> &str {
        match (&self.separators, self.indent) {
            (Some((item, _)), _) => item,
            (None, Some(_)) => ",",
            (None, None) => ", ",
        }
    }

    fn after_key(&self) -> &str {
        self.separators.as_ref().map_or(": ", |(_, key)| key)
    }
}

fn pair(texts: Vec<String>) -> Option<(String, String)> {
    <[String; 2]>::try_from(texts).ok().map(|[item, key]| (item, key))
}

struct Writer<'a> {
    style: &'a Style,
    level: usize,
    /// Whether the array or object that ends next holds anything.
    holds_something: bool,
}

impl Writer<'_> {
    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.style.indent {
            Some(width) => write!(writer, "\n{:1$}", "", width * self.level),
            None => Ok(()),
        }
    }

    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.holds_something = false;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.between_items().as_bytes())?;
        }
        self.line(writer)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.holds_something {
            self.line(writer)?;
        }
        writer.write_all(bracket)
    }
}

impl Formatter for Writer<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.holds_something = true;
        Ok(())
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.after_key().as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.holds_something = true;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.style.ensure_ascii {
            return writer.write_all(text.as_bytes());
        }
        for character in text.chars() {
            match character {
                ' '..='~' => write!(writer, "{character}")?,
                _ => character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

/// Python's `repr`: the shortest digits that are read as the same number, with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else { return shortest };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Json;
    use minijinja::value::Serde;

    /// A value as a template has it.
    fn value(json: &str) -> Value {
        Value::from(Serde(serde_json::from_str::<Json>(json).unwrap()))
    }

    const PLAIN: Style = Style { ensure_ascii: false, indent: None, separators: None, sort_keys: false };

    // The expected texts are what Python 3.11's json.dumps prints.
    #[test]
    fn json_is_written_as_python_writes_it() {
        let text = r#"{"b": [1, 2.5, null, true], "a": {"c": "é<\"\n\u0001"}, "d": [], "e": {}}"#;
        assert_eq!(PLAIN.write(&value(text)).unwrap(), text);
        let indented = Style { indent: Some(2), ..PLAIN };
        assert_eq!(
            indented.write(&value(r#"{"a":[1,[]],"b":[],"c":{}}"#)).unwrap(),
            "{\n  \"a\": [\n    1,\n    []\n  ],\n  \"b\": [],\n  \"c\": {}\n}"
        );
    }

    #[test]
    fn keys_are_sorted_and_characters_escaped_where_asked() {
        let sorted = Style { sort_keys: true, separators: Some((",".into(), ":".into())), ..PLAIN };
        assert_eq!(sorted.write(&value(r#"{"b": 1, "a": [{"d": 2, "c": 3}]}"#)).unwrap(), r#"{"a":[{"c":3,"d":2}],"b":1}"#);
        let ascii = Style { ensure_ascii: true, ..PLAIN };
        assert_eq!(ascii.write(&value("\"é😀\u{7f}\"")).unwrap(), r#""\u00e9\ud83d\ude00\u007f""#);
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let written = [1.0, -2.5, 0.1, 1e15, 1e16, 1.5e300, 0.0001, 0.00001, 1.25e-7].map(float);
        assert_eq!(written, ["1.0", "-2.5", "0.1", "1000000000000000.0", "1e+16", "1.5e+300", "0.0001", "1e-05", "1.25e-07"]);
    }
}
