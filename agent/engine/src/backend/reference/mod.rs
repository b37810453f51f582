//! Layers as candle-core tensors in f32, dequantised by candle: plain and slow, and what every other backend is compared to.
//!
//! It shares no arithmetic with the other backends: not the reading of quantised weights, not the order of operations within one.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};
use stowage_placement::{Bytes, Reason};

use super::{Backend, LayerRun, Next, PreparedRun, not_held};
use crate::api::EngineError;
use crate::batch::{Batch, TokenAt};
use crate::cache::Checkpoint;
use crate::file_mmap::ModelFile;
use crate::graph::{Activation, Attention, CacheShape, Graph, Input, Norm, Operand, Operation, Output, Pairing, Product, Rope, Weight};

pub(crate) mod dequantise;
mod experts;

pub(crate) use dequantise::dequantised;

/// candle on the CPU.
pub struct ReferenceBackend;

struct ReferenceRun {
    graph: Graph,
    weights: HashMap<String, Tensor>,
    /// Of each block and slot, keys and values `[kv_heads, positions, length]` of what was seen so far.
    caches: HashMap<(usize, u32), (Tensor, Tensor)>,
    /// Of each rope.
    frequencies: Vec<Vec<f32>>,
    logits: Vec<f32>,
}

type Candle<T> = candle_core::Result<T>;

fn failed(error: candle_core::Error) -> EngineError {
    EngineError::new(Reason::LoadFailed, format!("the reference backend failed: {error}"))
}

impl Backend for ReferenceBackend {
    fn prepare(&self, run: &LayerRun<'_>, file: &ModelFile, loaded: &mut dyn FnMut(Bytes)) -> Result<Box<dyn PreparedRun>, EngineError> {
        let graph = run.graph.clone();
        let mut names: Vec<&Weight> = Vec::new();
        for block in run.blocks.iter().cloned().flatten() {
            names.extend(graph.block_weights(block));
        }
        if run.input {
            names.extend(graph.input.weights());
        }
        if let Some(output) = graph.output.as_ref().filter(|_| run.output) {
            names.extend(output.norm.weights().chain([&output.weight]));
        }
        let mut weights = HashMap::new();
        for weight in names {
            if !weights.contains_key(&weight.name) {
                weights.insert(weight.name.clone(), read(file, weight)?);
                loaded(Bytes(file.tensor(&weight.name)?.data.len() as u64));
            }
        }
        let frequencies = graph.ropes.iter().map(|rope| frequencies(rope, file)).collect::<Result<Vec<_>, EngineError>>()?;
        Ok(Box::new(ReferenceRun { graph, weights, caches: HashMap::new(), frequencies, logits: Vec::new() }))
    }
}

/// Frequencies of a rope, its factors read from the file.
fn frequencies(rope: &Rope, file: &ModelFile) -> Result<Vec<f32>, EngineError> {
    let factors = rope.factors.as_ref().map(|weight| read(file, weight)?.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(failed));
    Ok(rope.frequencies(factors.transpose()?.as_deref()))
}

/// A tensor in f32, `[rows, columns]`.
fn read(file: &ModelFile, weight: &Weight) -> Result<Tensor, EngineError> {
    dequantised(&file.tensor(&weight.name)?)
}

impl PreparedRun for ReferenceRun {
    fn embed(&mut self, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let input = &self.graph.input;
        let table = self.weights.get(&input.embeddings.name).ok_or_else(|| not_held("the embeddings"))?;
        let ids: Vec<u32> = batch.tokens.iter().map(|at| at.token).collect();
        let rows = Tensor::new(ids, &Device::Cpu).and_then(|ids| table.index_select(&ids, 0)? * f64::from(input.scale));
        write_back(rows.and_then(|rows| self.with_positions(rows, &batch.tokens)), hidden)
    }

    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32], _: Next) -> Result<(), EngineError> {
        let (tokens, embedding) = (batch.tokens.len(), self.graph.input.embeddings.columns);
        let mut state = Tensor::from_slice(&hidden[..tokens * embedding], (tokens, embedding), &Device::Cpu).map_err(failed)?;
        for block in blocks {
            state = self.block(block, &batch.tokens, state).map_err(failed)?;
        }
        write_back(Ok(state), hidden)
    }

    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError> {
        let embedding = self.graph.input.embeddings.columns;
        let Some(Output { norm, weight, scale, softcap, .. }) = &self.graph.output else { return Err(not_held("the output layer")) };
        let output = self.weights.get(&weight.name).ok_or_else(|| not_held("the output layer"))?;
        let compute = || {
            let hidden = Tensor::from_slice(hidden, (hidden.len() / embedding, embedding), &Device::Cpu)?;
            let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
            let normed = self.normed(&rows, norm)?;
            capped((normed.matmul(&output.t()?)? * f64::from(*scale))?, *softcap)?.flatten_all()?.to_vec1::<f32>()
        };
        self.logits = compute().map_err(failed)?;
        Ok(&self.logits)
    }

    /// It keeps all positions of every layer, and needs no copies.
    fn checkpoint(&mut self, _: u32, _: usize, _: Checkpoint) {}

    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError> {
        let embedding = self.graph.input.embeddings.columns;
        let Some(output) = &self.graph.output else { return Ok(()) };
        let rows = Tensor::from_slice(hidden, (hidden.len() / embedding, embedding), &Device::Cpu);
        write_back(rows.and_then(|rows| self.normed(&rows, &output.norm)), hidden)
    }
}

fn write_back(tensor: Candle<Tensor>, to: &mut [f32]) -> Result<(), EngineError> {
    let values = tensor.and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).map_err(failed)?;
    to[..values.len()].copy_from_slice(&values);
    Ok(())
}

/// `x / sqrt(mean(x^2) + epsilon) x weight`, row by row.
fn normed(rows: &Tensor, weight: &Tensor, epsilon: f32) -> Candle<Tensor> {
    let mean = rows.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = rows.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?;
    normed.broadcast_mul(&weight.flatten_all()?)
}

/// `softcap x tanh(x / softcap)`
fn capped(values: Tensor, softcap: Option<f32>) -> Candle<Tensor> {
    match softcap {
        Some(softcap) => (values / f64::from(softcap))?.tanh()? * f64::from(softcap),
        None => Ok(values),
    }
}

fn sigmoid(values: &Tensor) -> Candle<Tensor> {
    (values.neg()?.exp()? + 1.0)?.recip()
}

/// `activation(gate) x up`
fn activated(activation: Activation, gate: &Tensor, up: &Tensor) -> Candle<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        // candle's `gelu` is the approximation by a hyperbolic tangent.
        Activation::GeluTanh => gate.gelu()? * up,
        Activation::ClampedSwiGlu { alpha, limit } => {
            let limit = f64::from(limit);
            let (gate, up) = (gate.minimum(limit)?, up.clamp(-limit, limit)?);
            (&gate * sigmoid(&(&gate * f64::from(alpha))?)?)? * (up + 1.0)?
        }
    }
}

impl ReferenceRun {
    fn block(&mut self, block: usize, tokens: &[TokenAt], hidden: Tensor) -> Candle<Tensor> {
        let operations = self.graph.blocks[block].operations.clone();
        let mut values = HashMap::from([(Operand::Hidden, hidden)]);
        for operation in &operations {
            self.operation(operation, block, tokens, &mut values)?;
        }
        values.remove(&Operand::Hidden).ok_or_else(|| candle_core::Error::Msg("a block without a hidden state".into()))
    }

    fn operation(&mut self, operation: &Operation, block: usize, tokens: &[TokenAt], values: &mut HashMap<Operand, Tensor>) -> Candle<()> {
        let (to, result) = match operation {
            Operation::Norm { from, norm, parts, to } => {
                let rows = values[from].reshape((tokens.len() * parts, norm.weight.columns))?;
                let normed = self.normed(&rows, norm)?;
                (*to, normed.reshape((tokens.len(), parts * norm.weight.columns))?)
            }
            Operation::Linear { from, products } => {
                for product in products {
                    let result = self.product(&values[from], product)?;
                    let result = if product.add { (&values[&product.to] + result)? } else { result };
                    values.insert(product.to, result);
                }
                return Ok(());
            }
            Operation::Rope { value, heads, rope } => (*value, self.rotate(&values[value], *heads, *rope, tokens)?),
            Operation::Attention(attention) => {
                let vectors = [Operand::Query, Operand::Key, Operand::Value].map(|operand| &values[&operand]);
                (attention.to, self.attention(block, tokens, vectors, attention)?)
            }
            Operation::Gelu { value } => (*value, values[value].gelu_erf()?),
            Operation::GatedActivation { activation, gate, up } => (*gate, activated(*activation, &values[gate], &values[up])?),
            Operation::Share { value, by } => (*value, values[value].broadcast_mul(&sigmoid(&values[by])?)?),
            Operation::Experts(experts) => {
                (Operand::Hidden, (&values[&Operand::Hidden] + self.experts(experts, &values[&Operand::Normed])?)?)
            }
            Operation::Add { from, scale, to } => (*to, (&values[to] + (&values[from] * f64::from(*scale))?)?),
        };
        values.insert(to, result);
        Ok(())
    }

    /// A norm, and a layer norm where it has a bias.
    fn normed(&self, rows: &Tensor, norm: &Norm) -> Candle<Tensor> {
        let weight = self.weight(&norm.weight)?;
        match &norm.bias {
            None => normed(rows, weight, norm.epsilon),
            Some(bias) => {
                let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
                normed(&centred, weight, norm.epsilon)?.broadcast_add(&self.weight(bias)?.flatten_all()?)
            }
        }
    }

    /// Embeddings with what is added to them.
    fn with_positions(&self, mut rows: Tensor, tokens: &[TokenAt]) -> Candle<Tensor> {
        let Input { types, positions, norm, .. } = &self.graph.input;
        if let Some(positions) = positions {
            let places: Vec<u32> = tokens.iter().map(|at| at.position).collect();
            rows = (rows + self.weight(positions)?.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?)?;
        }
        if let Some(types) = types {
            rows = rows.broadcast_add(&self.weight(types)?.narrow(0, 0, 1)?)?;
        }
        norm.as_ref().map_or(Ok(rows.clone()), |norm| self.normed(&rows, norm))
    }

    fn product(&self, rows: &Tensor, Product { weight, rows: part, bias, .. }: &Product) -> Candle<Tensor> {
        let product = rows.matmul(&self.weight(weight)?.narrow(0, part.start, part.len())?.t()?)?;
        match bias {
            Some(bias) => product.broadcast_add(&self.weight(bias)?.flatten_all()?.narrow(0, part.start, part.len())?),
            None => Ok(product),
        }
    }

    fn weight(&self, weight: &Weight) -> Candle<&Tensor> {
        self.weights.get(&weight.name).ok_or_else(|| candle_core::Error::Msg(format!("tensor `{}` is not on this device", weight.name)))
    }

    /// Rows `[tokens, heads x length]` with the pairs of each head turned.
    fn rotate(&self, rows: &Tensor, heads: usize, rope: usize, tokens: &[TokenAt]) -> Candle<Tensor> {
        let (count, width) = rows.dims2()?;
        let (frequencies, Rope { magnitude, pairing, .. }) = (&self.frequencies[rope], &self.graph.ropes[rope]);
        let (length, pairs) = (width / heads, frequencies.len());
        let angles = tokens.iter().flat_map(|at| frequencies.iter().map(|&frequency| f64::from(at.position) * f64::from(frequency)));
        let angles = Tensor::from_vec(angles.collect::<Vec<f64>>(), (count, 1, pairs), &Device::Cpu)?;
        let magnified = |part: Tensor| part.to_dtype(DType::F32)? * f64::from(*magnitude);
        let (cos, sin) = (magnified(angles.cos()?)?, magnified(angles.sin()?)?);
        let rows = rows.reshape((count, heads, length))?;
        let turned = rows.narrow(2, 0, 2 * pairs)?;
        // `[.., pairs, 2]` of neighbours, `[.., 2, pairs]` of halves.
        let (turned, apart) = match pairing {
            Pairing::Neighbours => (turned.reshape((count, heads, pairs, 2))?, 3),
            Pairing::Halves => (turned.reshape((count, heads, 2, pairs))?, 2),
        };
        let (x, y) = (turned.narrow(apart, 0, 1)?.squeeze(apart)?, turned.narrow(apart, 1, 1)?.squeeze(apart)?);
        let first = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
        let second = (x.broadcast_mul(&sin)? + y.broadcast_mul(&cos)?)?;
        let turned = Tensor::stack(&[first, second], apart)?.reshape((count, heads, 2 * pairs))?;
        let rest = rows.narrow(2, 2 * pairs, length - 2 * pairs)?;
        Tensor::cat(&[turned, rest], 2)?.reshape((count, width))
    }

    /// Attention of each sequence's tokens in turn.
    fn attention(&mut self, block: usize, tokens: &[TokenAt], [query, key, value]: [&Tensor; 3], attention: &Attention) -> Candle<Tensor> {
        let shape = self.graph.blocks[block].cache;
        let sinks = attention.sinks.as_ref().map(|sinks| self.weight(sinks)?.flatten_all()).transpose()?;
        let mut attended = Vec::new();
        let mut first = 0;
        for sequence in tokens.chunk_by(|a, b| a.slot == b.slot) {
            let rows = |tensor: &Tensor, heads: usize, length: usize| {
                tensor.narrow(0, first, sequence.len())?.reshape((sequence.len(), heads, length))?.transpose(0, 1)?.contiguous()
            };
            let key = rows(key, shape.kv_heads, shape.key_length)?;
            let value = rows(value, shape.kv_heads, shape.value_length)?;
            let (keys, values) = self.remember(block, sequence[0], key, value)?;
            let query = rows(query, attention.heads, shape.key_length)?;
            attended.push(attend(&query, &keys, &values, sequence, shape, attention, sinks.as_ref())?);
            first += sequence.len();
        }
        Tensor::cat(&attended, 0)
    }

    /// Puts keys and values `[kv_heads, tokens, length]` where the sequence has `first.position` tokens before, and returns all of them.
    fn remember(&mut self, block: usize, first: TokenAt, key: Tensor, value: Tensor) -> Candle<(Tensor, Tensor)> {
        let before = first.position as usize;
        let all = match self.caches.get(&(block, first.slot)) {
            Some((keys, values)) if before > 0 => {
                (Tensor::cat(&[&keys.narrow(1, 0, before)?, &key], 1)?, Tensor::cat(&[&values.narrow(1, 0, before)?, &value], 1)?)
            }
            _ => (key, value),
        };
        self.caches.insert((block, first.slot), all.clone());
        Ok(all)
    }
}

/// Causal attention of queries `[heads, tokens, length]`, as rows `[tokens, heads x value_length]`.
fn attend(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    tokens: &[TokenAt],
    shape: CacheShape,
    attention: &Attention,
    sinks: Option<&Tensor>,
) -> Candle<Tensor> {
    let (heads, count, _) = query.dims3()?;
    let positions = keys.dim(1)?;
    let for_each_head = |tensor: &Tensor, length: usize| {
        let sharing = heads / shape.kv_heads;
        tensor.unsqueeze(1)?.expand((shape.kv_heads, sharing, positions, length))?.reshape((heads, positions, length))?.contiguous()
    };
    let keys = for_each_head(keys, shape.key_length)?;
    let scores = (query.matmul(&keys.transpose(1, 2)?.contiguous()?)? * f64::from(attention.scale))?;
    let scores = capped(scores, attention.softcap)?;
    let seen = |at: &TokenAt, position: usize| {
        let own = at.position as usize;
        !attention.causal || position <= own && shape.window.is_none_or(|window| own - position < window)
    };
    let hidden = |at: &TokenAt, position: usize| if seen(at, position) { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = tokens.iter().flat_map(|at| (0..positions).map(move |position| hidden(at, position))).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, count, positions), &Device::Cpu)?)?;
    // A sink is a score of its own, whose value is nothing.
    let scores = match sinks {
        Some(sinks) => Tensor::cat(&[scores, sinks.reshape((heads, 1, 1))?.expand((heads, count, 1))?.contiguous()?], 2)?,
        None => scores,
    };
    let exponents = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)?.narrow(2, 0, positions)?.contiguous()?;
    let attended = weights.matmul(&for_each_head(values, shape.value_length)?)?;
    attended.transpose(0, 1)?.contiguous()?.reshape((count, heads * shape.value_length))
}
