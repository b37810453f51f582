//! Headers with nothing but what a family needs, for its table test.

use std::collections::BTreeMap;

use super::layer_cache::LayerCache;
use super::{Hyperparameters, family, needs};
use crate::footprint::Footprint;
use crate::gguf::write::HeaderWriter;
use crate::gguf::{Array, GgmlType, Header, Value};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::Request;
use crate::testing::read;
use crate::units::{Bytes, Tokens};

pub(super) const KIB: u64 = 1024;

/// Keys and values over all of the context.
pub(super) fn kv(kv_heads: u64, key_length: u64, value_length: u64) -> LayerCache {
    LayerCache { kv_heads, key_length, value_length, ..LayerCache::default() }
}

/// The same within a window.
pub(super) fn sliding(kv_heads: u64, key_length: u64, value_length: u64, window: u64) -> LayerCache {
    LayerCache { window, ..kv(kv_heads, key_length, value_length) }
}

/// A recurrent state alone.
pub(super) fn state(bytes: u64) -> LayerCache {
    with_state(LayerCache::default(), bytes)
}

pub(super) fn with_state(cache: LayerCache, bytes: u64) -> LayerCache {
    LayerCache { state: Bytes(bytes), ..cache }
}

/// A header of one family.
#[derive(Clone, Debug)]
pub(super) struct Case {
    architecture: &'static str,
    metadata: BTreeMap<String, Value>,
    dropped: Vec<&'static str>,
    added: Vec<String>,
    unconverted: bool,
}

impl Case {
    /// With these numbers, a context of 2^30, and a feed-forward width of 64.
    pub fn new(architecture: &'static str, blocks: u64, numbers: &[(&str, u64)]) -> Case {
        let mut case = Case { architecture, metadata: BTreeMap::new(), dropped: Vec::new(), added: Vec::new(), unconverted: false };
        let common = [("block_count", blocks), ("context_length", 1 << 30), ("feed_forward_length", 64)];
        for (name, number) in common.iter().chain(numbers) {
            case.set(name, Value::U64(*number));
        }
        case
    }

    pub fn flags(mut self, name: &str, flags: &[bool]) -> Case {
        self.set(name, Value::Array(Array::Bool(flags.into())));
        self
    }

    pub fn array(mut self, name: &str, numbers: &[u32]) -> Case {
        self.set(name, Value::Array(Array::U32(numbers.into())));
        self
    }

    /// Without any tensor whose name ends so.
    pub fn without(&self, ending: &'static str) -> Case {
        let mut case = self.clone();
        case.dropped.push(ending);
        case
    }

    pub fn with(mut self, tensors: &[String]) -> Case {
        self.added.extend_from_slice(tensors);
        self
    }

    /// Of MLA, the older form.
    pub fn unconverted(self) -> Case {
        Case { unconverted: true, ..self }
    }

    fn set(&mut self, name: &str, value: Value) {
        self.metadata.insert(format!("{}.{name}", self.architecture), value);
    }

    fn header(&self) -> Header {
        let mut names: Vec<String> = ["token_embd.weight", "output_norm.weight"].map(String::from).into();
        if let Ok(numbers) = Hyperparameters::read(&self.with_tensors(&[]), self.architecture) {
            let hyperparameters = Hyperparameters { absorbed: !self.unconverted, ..numbers };
            for layer in 0..hyperparameters.loaded_blocks() {
                let needs = needs(family(self.architecture).unwrap(), &hyperparameters, layer);
                names.extend(needs.iter().flat_map(|need| &need.ways[0]).map(|suffix| format!("blk.{layer}.{suffix}")));
            }
        }
        names.extend(self.added.iter().cloned());
        names.retain(|name| !self.dropped.iter().any(|ending| name.ends_with(ending)));
        self.with_tensors(&names)
    }

    fn with_tensors(&self, names: &[String]) -> Header {
        let writer = HeaderWriter::architecture(self.architecture);
        let writer = names.iter().fold(writer, |writer, name| writer.tensor(name, GgmlType::F32, &[32, 2]));
        let mut header = read(&writer.header());
        header.metadata.extend(self.metadata.clone());
        header
    }

    fn summary(&self) -> ModelSummary {
        ModelSummary::from_header(&self.header(), Bytes::ZERO).unwrap()
    }

    pub fn error(&self) -> String {
        ModelSummary::from_header(&self.header(), Bytes::ZERO).unwrap_err().to_string()
    }

    /// What each run of layers keeps.
    #[track_caller]
    pub fn has_layers(&self, expected: &[(LayerCache, u32)]) {
        let summary = self.summary();
        let mut found: Vec<(LayerCache, u32)> = Vec::new();
        for [kind, count] in &summary.layers {
            let kind = &summary.layer_kinds[*kind as usize];
            let cache = LayerCache {
                kv_heads: kind.kv_heads,
                key_length: kind.key_length,
                value_length: kind.value_length,
                window: kind.window,
                state: kind.state_bytes,
            };
            match found.last_mut() {
                Some((last, runs)) if *last == cache => *runs += count,
                _ => found.push((cache, *count)),
            }
        }
        assert_eq!(found, expected);
    }

    /// Bytes of keys and values in f16, and of state, of one sequence.
    #[track_caller]
    pub fn takes(&self, num_ctx: u64, num_batch: u32, kv_cache: u64, state: u64) {
        let footprint = self.footprint(num_ctx, num_batch);
        assert_eq!((footprint.kv_cache_bytes, footprint.state_bytes), (Bytes(kv_cache), Bytes(state)));
    }

    pub fn weights_of_layer(&self, layer: usize) -> u64 {
        // The token embeddings are tied to the output, which is not what is asked about.
        let mut summary = self.summary();
        summary.output = Vec::new();
        summary.tied_output = None;
        let request = Request { num_ctx: Tokens(256), ..Request::default() };
        let footprint = Footprint::new(&summary, &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap();
        footprint.layers[layer].weights_bytes.0
    }

    fn footprint(&self, num_ctx: u64, num_batch: u32) -> Footprint {
        let request = Request { num_ctx: Tokens(num_ctx), num_batch, ..Request::default() };
        Footprint::new(&self.summary(), &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap()
    }
}
