//! The decoder that all families are variations of: norm, attention, norm, feed-forward network, each added to what came in.
//!
//! What a file shows by its tensors (biases, fused matrices, norms of heads, norms after a part) is taken from there; what it does not show, a family's
//! file sets.

use stowage_placement::ModelSummary;
use stowage_placement::compute::ComputeShape;

use super::experts::{self, Routing};
use super::keys::{Keys, vector};
use super::{
    Activation, Attention, Block, CacheShape, Experts, Graph, Input, Norm, Operand, Operation, Output, Pairing, Pooling, Product, Rope,
    Weight, cannot_run,
};
use crate::api::EngineError;

/// A model, with what families differ in.
pub(super) struct Decoder<'a> {
    keys: &'a Keys<'a>,
    /// What each block caches, by placement's rule.
    caches: Vec<CacheShape>,
    /// The first blocks, which are run.
    run: usize,
    shape: ComputeShape,
    pub embedding: usize,
    pub heads: usize,
    epsilon: f32,
    vocabulary: usize,
    pub ropes: Vec<Rope>,
    /// Which of the ropes a block turns by, if any.
    pub rope_of: fn(usize, &CacheShape) -> Option<usize>,
    pub embedding_scale: f32,
    /// What scores are multiplied by; one over the square root of the key's length unless the family says otherwise.
    pub attention_scale: f32,
    pub attention_softcap: Option<f32>,
    pub activation: Activation,
    /// What each part's result is multiplied by before it is added to the hidden state.
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    pub routing: Option<Routing>,
    /// The norm before the feed-forward network.
    pub feed_forward_norm: &'static str,
}

impl<'a> Decoder<'a> {
    /// The plain one, as Llama is.
    pub fn new(keys: &'a Keys<'a>, summary: &ModelSummary, pairing: Pairing) -> Result<Decoder<'a>, EngineError> {
        let embedding = keys.required("embedding_length")?;
        let heads = keys.required("attention.head_count")?;
        if heads == 0 {
            return Err(cannot_run("a model without attention heads can't be run".into()));
        }
        let caches = caches(summary);
        // The last blocks may predict further tokens: they are not run, and cache nothing.
        let run = caches.len().saturating_sub(keys.optional("nextn_predict_layers")?.unwrap_or(0));
        for cache in &caches[..run] {
            check_heads(heads, cache)?;
        }
        let key_length = summary.shape.key_length as usize;
        Ok(Decoder {
            keys,
            caches,
            run,
            shape: ComputeShape::from(&summary.shape),
            embedding,
            heads,
            epsilon: keys.required_float("attention.layer_norm_rms_epsilon")? as f32,
            vocabulary: keys.header.tensor("token_embd.weight").map_or(0, |tensor| tensor.rows() as usize),
            ropes: vec![Rope::read(keys, key_length, pairing)?],
            rope_of: |_, _| Some(0),
            embedding_scale: 1.0,
            attention_scale: 1.0 / (key_length as f32).sqrt(),
            attention_softcap: None,
            activation: Activation::Silu,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            routing: None,
            feed_forward_norm: "ffn_norm",
        })
    }

    pub fn graph(self) -> Result<Graph, EngineError> {
        let embeddings = Weight { name: "token_embd.weight".into(), rows: self.vocabulary, columns: self.embedding };
        let tied = !self.keys.has("output.weight");
        let output = Some(Output {
            norm: self.norm("output_norm.weight".into(), self.embedding),
            weight: if tied { embeddings.clone() } else { Weight { name: "output.weight".into(), ..embeddings.clone() } },
            tied,
            scale: self.logit_scale,
            softcap: self.logit_softcap,
        });
        let blocks = (0..self.caches.len()).map(|index| self.block(index)).collect::<Result<Vec<Block>, EngineError>>()?;
        let mut vectors: Vec<Weight> = self.ropes.iter().filter_map(|rope| rope.factors.clone()).collect();
        for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
            vectors.extend(self.keys.vector(name, self.ropes[0].dimensions / 2));
        }
        vectors.sort_by(|a, b| a.name.cmp(&b.name));
        vectors.dedup();
        let input = Input { embeddings, scale: self.embedding_scale, vectors, types: None, positions: None, norm: None };
        let (architecture, pooling) = (self.keys.architecture.into(), Pooling::Mean);
        Ok(Graph { architecture, input, blocks, output, pooling, ropes: self.ropes, shape: self.shape })
    }

    fn block(&self, index: usize) -> Result<Block, EngineError> {
        let cache = self.caches[index];
        if index >= self.run {
            return Ok(Block { cache, operations: Vec::new() });
        }
        let mut operations = self.attention(index, &cache);
        operations.push(self.block_norm(index, self.feed_forward_norm, Operand::Hidden));
        let experts = match self.routing {
            Some(routing) if index >= self.keys.optional("leading_dense_block_count")?.unwrap_or(0) => {
                experts::read(self.keys, index, self.embedding, routing)?
            }
            _ => None,
        };
        match experts {
            Some(experts) => operations.extend(self.routed(index, experts)?),
            None => operations.extend(self.dense(index)?),
        }
        Ok(Block { cache, operations })
    }

    fn attention(&self, index: usize, cache: &CacheShape) -> Vec<Operation> {
        let heads = [(Operand::Query, self.heads), (Operand::Key, cache.kv_heads)];
        let mut operations = vec![
            self.block_norm(index, "attn_norm", Operand::Hidden),
            Operation::Linear { from: Operand::Normed, products: self.query_key_value(index, cache) },
        ];
        for ((value, parts), name) in heads.into_iter().zip(["attn_q_norm", "attn_k_norm"]) {
            let name = weight_of(index, name);
            if self.keys.has(&name) {
                operations.push(Operation::Norm { from: value, norm: self.norm(name, cache.key_length), parts, to: value });
            }
        }
        if let Some(rope) = (self.rope_of)(index, cache) {
            operations.extend(heads.map(|(value, heads)| Operation::Rope { value, heads, rope }));
        }
        let sinks = self.keys.vector(&weight_of(index, "attn_sinks"), self.heads);
        operations.push(Operation::Attention(Attention {
            heads: self.heads,
            scale: self.attention_scale,
            softcap: self.attention_softcap,
            causal: true,
            sinks,
            to: Operand::Attended,
        }));
        let output = self.matrix(index, "attn_output", self.embedding, self.heads * cache.value_length, Operand::Hidden);
        operations.extend(self.added(index, Operand::Attended, output, "post_attention_norm"));
        operations
    }

    /// Query, key and value from a matrix each, or from one.
    fn query_key_value(&self, index: usize, cache: &CacheShape) -> Vec<Product> {
        let query = self.heads * cache.key_length;
        let (key, value) = (cache.kv_heads * cache.key_length, cache.kv_heads * cache.value_length);
        let parts = [(Operand::Query, query), (Operand::Key, key), (Operand::Value, value)];
        if self.keys.has(&weight_of(index, "attn_qkv")) {
            return self.fused(index, "attn_qkv", &parts);
        }
        let names = ["attn_q", "attn_k", "attn_v"];
        names.into_iter().zip(parts).map(|(name, (to, rows))| self.matrix(index, name, rows, self.embedding, to)).collect()
    }

    /// Parts of one matrix of the embedding's width, one after the other.
    fn fused(&self, index: usize, name: &str, parts: &[(Operand, usize)]) -> Vec<Product> {
        let total = parts.iter().map(|(_, rows)| rows).sum();
        let whole = self.matrix(index, name, total, self.embedding, Operand::Hidden);
        let mut first = 0;
        let part = |(to, rows): &(Operand, usize)| {
            first += rows;
            Product { rows: first - rows..first, to: *to, ..whole.clone() }
        };
        parts.iter().map(part).collect()
    }

    fn dense(&self, index: usize) -> Result<Vec<Operation>, EngineError> {
        let feed_forward = self.keys.required("feed_forward_length")?;
        self.gated(index, ["ffn_gate", "ffn_up", "ffn_down"], feed_forward, None)
    }

    /// A gated network of which a token may take a share.
    fn gated(
        &self,
        index: usize,
        [gate, up, down]: [&str; 3],
        feed_forward: usize,
        share: Option<Product>,
    ) -> Result<Vec<Operation>, EngineError> {
        let mut products = match self.keys.has(&weight_of(index, gate)) {
            true => vec![
                self.matrix(index, gate, feed_forward, self.embedding, Operand::Gate),
                self.matrix(index, up, feed_forward, self.embedding, Operand::Up),
            ],
            false => self.fused(index, up, &[(Operand::Gate, feed_forward), (Operand::Up, feed_forward)]),
        };
        let shared = share.is_some();
        products.extend(share);
        let mut operations = vec![
            Operation::Linear { from: Operand::Normed, products },
            Operation::GatedActivation { activation: self.activation, gate: Operand::Gate, up: Operand::Up },
        ];
        if shared {
            operations.push(Operation::Share { value: Operand::Gate, by: Operand::Share });
        }
        let down = self.matrix(index, down, self.embedding, feed_forward, Operand::Hidden);
        operations.extend(self.added(index, Operand::Gate, down, "post_ffw_norm"));
        Ok(operations)
    }

    /// The experts, and the one that every token goes to where there is one.
    fn routed(&self, index: usize, experts: Experts) -> Result<Vec<Operation>, EngineError> {
        let length = experts.feed_forward;
        // Each expert's share is scaled, instead of their sum.
        let experts = Experts { scale: experts.scale * self.residual_scale, ..experts };
        let mut operations = vec![Operation::Experts(Box::new(experts))];
        if self.keys.has(&weight_of(index, "ffn_gate_shexp")) {
            let length = self.shared_length(length)?;
            // A vector, not a matrix: the gate of the shared expert.
            let name = weight_of(index, "ffn_gate_inp_shexp");
            let share = self.keys.has(&name).then(|| Product::whole(vector(&name, self.embedding), None, Operand::Share));
            operations.extend(self.gated(index, ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"], length, share)?);
        }
        Ok(operations)
    }

    /// Rows of the shared expert's gate: stated, or those of several experts, or as in an ordinary network.
    fn shared_length(&self, of_one: usize) -> Result<usize, EngineError> {
        let positive = |name: &str| Ok::<_, EngineError>(self.keys.optional(name)?.filter(|number| *number > 0));
        match (positive("expert_shared_feed_forward_length")?, positive("expert_shared_count")?) {
            (Some(length), _) => Ok(length),
            (None, Some(count)) => Ok(count * of_one),
            (None, None) => self.keys.required("feed_forward_length"),
        }
    }

    /// A product that is added to the hidden state: as it is, or after a norm, or scaled.
    fn added(&self, index: usize, from: Operand, product: Product, norm: &str) -> Vec<Operation> {
        let post_norm = (norm != self.feed_forward_norm && self.keys.has(&weight_of(index, norm)))
            .then(|| self.block_norm(index, norm, Operand::Normed));
        if post_norm.is_none() && self.residual_scale == 1.0 {
            return vec![Operation::Linear { from, products: vec![Product { add: true, ..product }] }];
        }
        let mut operations = vec![Operation::Linear { from, products: vec![Product { to: Operand::Normed, ..product }] }];
        operations.extend(post_norm);
        operations.push(Operation::Add { from: Operand::Normed, scale: self.residual_scale, to: Operand::Hidden });
        operations
    }

    fn block_norm(&self, index: usize, name: &str, from: Operand) -> Operation {
        Operation::Norm { from, norm: self.norm(weight_of(index, name), self.embedding), parts: 1, to: Operand::Normed }
    }

    fn norm(&self, name: String, length: usize) -> Norm {
        Norm { weight: vector(&name, length), bias: None, epsilon: self.epsilon }
    }

    /// All rows of a matrix, with its bias where the file has one.
    fn matrix(&self, index: usize, name: &str, rows: usize, columns: usize, to: Operand) -> Product {
        let bias = self.keys.vector(&format!("blk.{index}.{name}.bias"), rows);
        Product::whole(Weight { name: weight_of(index, name), rows, columns }, bias, to)
    }
}

fn weight_of(block: usize, name: &str) -> String {
    format!("blk.{block}.{name}.weight")
}

/// What each block keeps of a token.
fn caches(summary: &ModelSummary) -> Vec<CacheShape> {
    let runs = summary.layers.iter().flat_map(|[kind, count]| std::iter::repeat_n(*kind as usize, *count as usize));
    let shape = |kind: usize| {
        let kind = &summary.layer_kinds[kind];
        CacheShape {
            kv_heads: kind.kv_heads as usize,
            key_length: kind.key_length as usize,
            value_length: kind.value_length as usize,
            window: (kind.window > 0).then_some(kind.window as usize),
            for_a_batch: false,
        }
    };
    runs.map(shape).collect()
}

fn check_heads(heads: usize, cache: &CacheShape) -> Result<(), EngineError> {
    if cache.kv_heads == 0 || !heads.is_multiple_of(cache.kv_heads) {
        return Err(cannot_run(format!("{heads} heads can't share {} heads of keys and values evenly", cache.kv_heads)));
    }
    Ok(())
}
