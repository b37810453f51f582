//! BERT and Nomic's BERT: a text is read at once, every token seeing every other; norms follow what they norm. BERT adds embeddings of positions and
//! has a plain network; Nomic's turns positions and has a gated one.
//!
//! Source: `src/models/bert.cpp` and `nomic-bert.cpp` of llama.cpp, whose GELU is an approximation; the models' own is exact.

use stowage_placement::ModelSummary;
use stowage_placement::compute::ComputeShape;

use super::keys::{Keys, vector};
use super::{
    Activation, Attention, Block, CacheShape, Graph, Input, Norm, Operand, Operation, Pairing, Pooling, Product, Rope, Weight, cannot_run,
};
use crate::api::EngineError;

/// `pooling_type` as llama.cpp counts.
const MEAN: usize = 1;
const FIRST: usize = 2;

struct Encoder<'a> {
    keys: &'a Keys<'a>,
    embedding: usize,
    heads: usize,
    feed_forward: usize,
    epsilon: f32,
    cache: CacheShape,
    turns: bool,
}

pub(super) fn graph(keys: &Keys<'_>, summary: &ModelSummary) -> Result<Graph, EngineError> {
    let (embedding, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    if heads == 0 || !embedding.is_multiple_of(heads) {
        return Err(cannot_run(format!("{embedding} elements can't be shared by {heads} heads evenly")));
    }
    let length = embedding / heads;
    let encoder = Encoder {
        keys,
        embedding,
        heads,
        feed_forward: keys.required("feed_forward_length")?,
        epsilon: keys.required_float("attention.layer_norm_epsilon")? as f32,
        cache: CacheShape { kv_heads: heads, key_length: length, value_length: length, window: None, for_a_batch: true },
        turns: keys.architecture == "nomic-bert",
    };
    Ok(Graph {
        architecture: keys.architecture.into(),
        input: encoder.input()?,
        blocks: (0..summary.block_count() as usize).map(|index| encoder.block(index)).collect(),
        output: None,
        pooling: pooling(keys)?,
        ropes: if encoder.turns { vec![Rope::read(keys, length, Pairing::Halves)?] } else { Vec::new() },
        shape: ComputeShape::from(&summary.shape),
    })
}

fn pooling(keys: &Keys<'_>) -> Result<Pooling, EngineError> {
    match keys.optional("pooling_type")?.unwrap_or(MEAN) {
        MEAN => Ok(Pooling::Mean),
        FIRST => Ok(Pooling::First),
        other => Err(cannot_run(format!("the engine does not pool by type {other}; it does by 1, the mean, and 2, the first token"))),
    }
}

impl Encoder<'_> {
    fn input(&self) -> Result<Input, EngineError> {
        let table = |name: &str| {
            let tensor = self.keys.header.tensor(name)?;
            Some(Weight { name: name.into(), rows: tensor.rows() as usize, columns: self.embedding })
        };
        let embeddings = table("token_embd.weight").ok_or_else(|| cannot_run("the file has no token embeddings".into()))?;
        Ok(Input {
            embeddings,
            scale: 1.0,
            vectors: Vec::new(),
            types: table("token_types.weight"),
            positions: table("position_embd.weight"),
            norm: self.keys.has("token_embd_norm.weight").then(|| self.norm("token_embd_norm")),
        })
    }

    fn block(&self, index: usize) -> Block {
        let name = |part: &str| format!("blk.{index}.{part}");
        let mut operations = vec![Operation::Linear { from: Operand::Hidden, products: self.query_key_value(index) }];
        if self.turns {
            operations.extend([Operand::Query, Operand::Key].map(|value| Operation::Rope { value, heads: self.heads, rope: 0 }));
        }
        operations.push(Operation::Attention(Attention {
            heads: self.heads,
            scale: 1.0 / (self.cache.key_length as f32).sqrt(),
            softcap: None,
            causal: false,
            sinks: None,
            to: Operand::Attended,
        }));
        operations.extend(self.added(Operand::Attended, &name("attn_output"), self.embedding, &name("attn_output_norm")));
        operations.extend(self.feed_forward(index));
        let widened = if self.is_gated(index) { Operand::Gate } else { Operand::Up };
        operations.extend(self.added(widened, &name("ffn_down"), self.feed_forward, &name("layer_output_norm")));
        Block { cache: self.cache, operations }
    }

    /// From a matrix each, or from one.
    fn query_key_value(&self, index: usize) -> Vec<Product> {
        let fused = format!("blk.{index}.attn_qkv");
        let parts = [Operand::Query, Operand::Key, Operand::Value];
        if self.keys.has(&format!("{fused}.weight")) {
            let whole = self.matrix(&fused, 3 * self.embedding, self.embedding, Operand::Query);
            let part = |(at, to): (usize, Operand)| Product { rows: at * self.embedding..(at + 1) * self.embedding, to, ..whole.clone() };
            return parts.into_iter().enumerate().map(part).collect();
        }
        let names = ["attn_q", "attn_k", "attn_v"].map(|name| format!("blk.{index}.{name}"));
        names.iter().zip(parts).map(|(name, to)| self.matrix(name, self.embedding, self.embedding, to)).collect()
    }

    fn is_gated(&self, index: usize) -> bool {
        self.keys.has(&format!("blk.{index}.ffn_gate.weight"))
    }

    fn feed_forward(&self, index: usize) -> [Operation; 2] {
        let matrix = |name: &str, to| self.matrix(&format!("blk.{index}.{name}"), self.feed_forward, self.embedding, to);
        let linear = |products| Operation::Linear { from: Operand::Hidden, products };
        if self.is_gated(index) {
            let gated = Operation::GatedActivation { activation: Activation::Silu, gate: Operand::Gate, up: Operand::Up };
            return [linear(vec![matrix("ffn_gate", Operand::Gate), matrix("ffn_up", Operand::Up)]), gated];
        }
        [linear(vec![matrix("ffn_up", Operand::Up)]), Operation::Gelu { value: Operand::Up }]
    }

    /// A product that is added to the hidden state, which is then normed.
    fn added(&self, from: Operand, name: &str, columns: usize, norm: &str) -> [Operation; 2] {
        let product = Product { add: true, ..self.matrix(name, self.embedding, columns, Operand::Hidden) };
        let norm = Operation::Norm { from: Operand::Hidden, norm: self.norm(norm), parts: 1, to: Operand::Hidden };
        [Operation::Linear { from, products: vec![product] }, norm]
    }

    fn norm(&self, name: &str) -> Norm {
        let part = |part: &str| vector(&format!("{name}.{part}"), self.embedding);
        Norm { weight: part("weight"), bias: Some(part("bias")), epsilon: self.epsilon }
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize, to: Operand) -> Product {
        let bias = self.keys.vector(&format!("{name}.bias"), rows);
        Product::whole(Weight { name: format!("{name}.weight"), rows, columns }, bias, to)
    }
}
