//! A model's published `config.json`, by its own names.

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Config(pub Map<String, Value>);

impl Config {
    /// # Panics
    /// Where the key is missing: every number that a conversion needs is published.
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        self.optional(key).unwrap_or_else(|| panic!("the configuration has no number `{key}`"))
    }

    pub fn optional(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64)
    }

    #[track_caller]
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("the configuration has no text `{key}`"))
    }

    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Which layers slide: `layer_types`, or all but the last of every `sliding_window_pattern`.
    pub fn sliding_layers(&self) -> Vec<bool> {
        let layers = self.number("num_hidden_layers");
        if let Some(types) = self.0.get("layer_types").and_then(Value::as_array) {
            return types.iter().map(|layer| layer.as_str() == Some("sliding_attention")).collect();
        }
        let pattern = self.number("sliding_window_pattern");
        (0..layers).map(|layer| (layer + 1) % pattern != 0).collect()
    }
}
