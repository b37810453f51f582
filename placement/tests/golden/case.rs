//! The cases: a model's published configuration, how it is quantised, and what is asked.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::{Bytes, KvCacheType, ModelSummary, Request, Tokens, testing};

use crate::config::Config;
use crate::convert::convert;
use crate::quantize::Quantization;

/// A `*.input.yaml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub name: String,
    /// Where the configuration is published.
    pub from: String,
    pub quantization: Quantization,
    pub config: Config,
    pub requests: Vec<Asked>,
    /// GPUs of which each is planned for alone, in GiB: a large one and a small one.
    #[serde(default)]
    pub gpus: Vec<u64>,
    /// Nodes with these GPUs, in GiB with nothing on them, for which all is told: what the report says, and what it suggests.
    #[serde(default)]
    pub nodes: Vec<Vec<u64>>,
    /// Those nodes have an engine that leaves experts in host memory, which ours can't yet.
    #[serde(default)]
    pub nodes_offload_experts: bool,
    /// What others say of the same file.
    #[serde(default)]
    pub published: Option<Published>,
}

/// What is known of a published file, to which the one made here is compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Published {
    pub parameters: u64,
    pub from: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    pub num_ctx: u64,
    #[serde(default)]
    pub kv_cache_type: KvCacheType,
    #[serde(default = "one")]
    pub parallel: u32,
    #[serde(default = "default_batch")]
    pub num_batch: u32,
}

fn one() -> u32 {
    1
}

fn default_batch() -> u32 {
    Request::default().num_batch
}

impl Asked {
    pub fn request(&self) -> Request {
        let Asked { num_ctx, kv_cache_type, parallel, num_batch } = *self;
        Request { num_ctx: Tokens(num_ctx), kv_cache_type, parallel, num_batch, ..Request::default() }
    }
}

/// An input and where it lies.
#[derive(Clone, Debug)]
pub struct Case {
    pub path: PathBuf,
    pub input: Input,
}

impl Case {
    /// All cases, by name.
    pub fn all() -> Vec<Case> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(".input.yaml"));
        paths.sort();
        paths.into_iter().map(Case::read).collect()
    }

    /// The case `NAME.input.yaml`.
    pub fn named(name: &str) -> Case {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
        Case::read(folder.join(format!("{name}.input.yaml")))
    }

    fn read(path: PathBuf) -> Case {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let input = stowage_crds::yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Case { path, input }
    }

    pub fn output_path(&self) -> PathBuf {
        PathBuf::from(self.path.to_string_lossy().replace(".input.yaml", ".output.yaml"))
    }

    /// Where its header is written, if it is asked for.
    pub fn header_path(&self, folder: &OsStr) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().replace(".input.yaml", ".gguf");
        Path::new(folder).join(name)
    }

    pub fn writer(&self) -> HeaderWriter {
        convert(&self.input.config).header(&self.input.name, self.input.quantization)
    }

    pub fn summary(&self) -> ModelSummary {
        let writer = self.writer();
        let summary = ModelSummary::from_header(&testing::read(&writer.header()), Bytes(writer.file_size()));
        summary.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }
}
