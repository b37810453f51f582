//! Headers of real models, without their data, and shorthands for devices. For tests, here and in other crates.

use crate::capability::Engine;
use crate::device_plan::{Device, NodeDevices};
use crate::gguf::write::HeaderWriter;
use crate::gguf::{GgmlType, Header, HeaderReader, Keep};
use crate::layout::Backend;
use crate::model_summary::{ModelSummary, Particulars};
use crate::units::Bytes;

/// The numbers of a transformer that is built like Llama.
#[derive(Clone, Debug)]
pub struct Shape {
    pub architecture: &'static str,
    pub blocks: u32,
    pub embedding: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub feed_forward: u64,
    pub vocabulary: u64,
    pub trained_context: u32,
    /// Type of all matrices.
    pub weights: GgmlType,
    pub tied_output: bool,
}

/// SmolLM2-135M-Instruct: <https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json>.
pub const SMOLLM2_135M: Shape = Shape {
    architecture: "llama",
    blocks: 30,
    embedding: 576,
    heads: 9,
    kv_heads: 3,
    feed_forward: 1536,
    vocabulary: 49152,
    trained_context: 8192,
    weights: GgmlType::Q4_1,
    tied_output: true,
};

/// Meta-Llama-3-8B: <https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json>.
pub const LLAMA_3_8B: Shape = Shape {
    architecture: "llama",
    blocks: 32,
    embedding: 4096,
    heads: 32,
    kv_heads: 8,
    feed_forward: 14336,
    vocabulary: 128_256,
    trained_context: 8192,
    weights: GgmlType::Q4_K,
    tied_output: false,
};

/// Meta-Llama-3-70B: <https://huggingface.co/meta-llama/Meta-Llama-3-70B/blob/main/config.json>.
pub const LLAMA_3_70B: Shape = Shape { blocks: 80, embedding: 8192, heads: 64, feed_forward: 28672, ..LLAMA_3_8B };

/// DeepSeek-R1-Distill-Qwen-32B: <https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-32B/blob/main/config.json>.
pub const DEEPSEEK_R1_32B: Shape = Shape {
    architecture: "qwen2",
    blocks: 64,
    embedding: 5120,
    heads: 40,
    kv_heads: 8,
    feed_forward: 27648,
    vocabulary: 152_064,
    trained_context: 131_072,
    weights: GgmlType::Q4_K,
    tied_output: false,
};

impl Shape {
    /// The model's header, to be changed further before it is written.
    pub fn writer(&self) -> HeaderWriter {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let mut writer = HeaderWriter::architecture(self.architecture)
            .string("general.name", "a model")
            .u32(&key("block_count"), self.blocks)
            .u32(&key("context_length"), self.trained_context)
            .u32(&key("embedding_length"), self.embedding as u32)
            .u32(&key("feed_forward_length"), self.feed_forward as u32)
            .u32(&key("attention.head_count"), self.heads)
            .u32(&key("attention.head_count_kv"), self.kv_heads)
            .tensor("token_embd.weight", self.weights, &[self.embedding, self.vocabulary]);
        for block in 0..self.blocks {
            writer = self.block(writer, block);
        }
        if !self.tied_output {
            writer = writer.tensor("output.weight", self.weights, &[self.embedding, self.vocabulary]);
        }
        writer.tensor("output_norm.weight", GgmlType::F32, &[self.embedding])
    }

    fn block(&self, mut writer: HeaderWriter, block: u32) -> HeaderWriter {
        let (embedding, feed_forward) = (self.embedding, self.feed_forward);
        let head = embedding / u64::from(self.heads.max(1));
        let kv = head * u64::from(self.kv_heads);
        let matrices = [
            ("attn_q", embedding, embedding),
            ("attn_k", embedding, kv),
            ("attn_v", embedding, kv),
            ("attn_output", embedding, embedding),
            ("ffn_gate", embedding, feed_forward),
            ("ffn_up", embedding, feed_forward),
            ("ffn_down", feed_forward, embedding),
        ];
        for norm in ["attn_norm", "ffn_norm"] {
            writer = writer.tensor(&format!("blk.{block}.{norm}.weight"), GgmlType::F32, &[embedding]);
        }
        for (name, columns, rows) in matrices {
            writer = writer.tensor(&format!("blk.{block}.{name}.weight"), self.weights, &[columns, rows]);
        }
        if self.architecture == "qwen2" {
            for (name, length) in [("attn_q", embedding), ("attn_k", kv), ("attn_v", kv)] {
                writer = writer.tensor(&format!("blk.{block}.{name}.bias"), GgmlType::F32, &[length]);
            }
        }
        writer
    }

    /// # Panics
    /// Where the shape is none that a header can have.
    pub fn summary(&self) -> ModelSummary {
        summary(&self.writer())
    }

    /// The same with so many experts beside what every token goes through, in the blocks from `first` on. As if the engine ran it, which it does not yet.
    ///
    /// # Panics
    /// As [`Shape::summary`].
    pub fn with_experts(&self, first: u32, experts: u64, feed_forward: u64) -> ModelSummary {
        let mut writer = self.writer();
        for block in first..self.blocks {
            for (name, columns, rows) in
                [("gate", self.embedding, feed_forward), ("up", self.embedding, feed_forward), ("down", feed_forward, self.embedding)]
            {
                writer = writer.tensor(&format!("blk.{block}.ffn_{name}_exps.weight"), self.weights, &[columns, rows, experts]);
            }
        }
        ModelSummary { particulars: Particulars::default(), ..summary(&writer) }
    }
}

fn summary(writer: &HeaderWriter) -> ModelSummary {
    let summary = ModelSummary::from_header(&read(&writer.header()), Bytes(writer.file_size()));
    summary.unwrap_or_else(|error| panic!("{error}"))
}

/// An engine that leaves experts in host memory, which ours can't yet.
pub const OFFLOADING: Engine = Engine { offloads_experts: |_| true };

/// Reads a header that is known to be good.
///
/// # Panics
/// Where it is not.
pub fn read(bytes: &[u8]) -> Header {
    let mut reader = HeaderReader::new(Keep::Sizing);
    reader.feed(bytes).and_then(|_| reader.into_header()).unwrap_or_else(|error| panic!("{error}"))
}

/// Simulated GPUs named `gpu0`, `gpu1`, … with this much on offer, no overhead, beside a host.
pub fn devices(gpus: &[Bytes], host: Bytes) -> NodeDevices {
    let gpu = |(index, offered): (usize, &Bytes)| Device {
        id: format!("gpu{index}"),
        backend: Backend::SimulatedGpu,
        offered: *offered,
        ..Device::default()
    };
    NodeDevices::new(gpus.iter().enumerate().map(gpu).collect(), host)
}
