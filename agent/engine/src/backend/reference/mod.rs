//! Layers as candle-core tensors in f32, dequantised by candle: plain and slow, and what every other backend is compared to.
//!
//! It shares no arithmetic with the other backends: not the reading of quantised weights, not the order of operations within one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{D, DType, Device, Tensor};
use stowage_placement::gguf::GgmlType;
use stowage_placement::{Bytes, Reason};

use super::{Backend, LayerRun, PreparedRun, not_held};
use crate::api::EngineError;
use crate::batch::{Batch, TokenAt};
use crate::file_mmap::ModelFile;
use crate::graph::{CacheShape, Graph, Operand, Operation, Product, Weight};

/// candle on the CPU.
pub struct ReferenceBackend;

struct ReferenceRun {
    graph: Graph,
    weights: HashMap<String, Tensor>,
    /// Of each block and slot, keys and values `[kv_heads, positions, length]` of what was seen so far.
    caches: HashMap<(usize, u32), (Tensor, Tensor)>,
    frequencies: Vec<f32>,
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
            names.push(&graph.embeddings);
        }
        if run.output {
            names.extend([&graph.output.norm, &graph.output.weight]);
        }
        let mut weights = HashMap::new();
        for weight in names {
            if !weights.contains_key(&weight.name) {
                weights.insert(weight.name.clone(), read(file, weight)?);
                loaded(Bytes(file.tensor(&weight.name)?.data.len() as u64));
            }
        }
        let factors =
            graph.rope.factors.as_ref().map(|weight| read(file, weight)?.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(failed));
        let frequencies = graph.rope.frequencies(factors.transpose()?.as_deref());
        Ok(Box::new(ReferenceRun { graph, weights, caches: HashMap::new(), frequencies, logits: Vec::new() }))
    }
}

/// A tensor in f32, `[rows, columns]`.
fn read(file: &ModelFile, weight: &Weight) -> Result<Tensor, EngineError> {
    let view = file.tensor(&weight.name)?;
    let dtype = dtype(view.ggml_type).ok_or_else(|| {
        let message = format!("the reference backend can't read tensor `{}` of type {}", weight.name, view.ggml_type);
        EngineError::new(Reason::EngineCannotRun, message)
    })?;
    let read = || {
        let storage = QStorage::from_data(Cow::Borrowed(view.data), &Device::Cpu, dtype)?;
        QTensor::new(storage, (view.rows, view.columns))?.dequantize(&Device::Cpu)
    };
    read().map_err(failed)
}

fn dtype(ty: GgmlType) -> Option<GgmlDType> {
    Some(match ty {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

impl PreparedRun for ReferenceRun {
    fn embed(&mut self, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let table = self.weights.get(&self.graph.embeddings.name).ok_or_else(|| not_held("the embeddings"))?;
        let ids: Vec<u32> = batch.tokens.iter().map(|at| at.token).collect();
        let rows = Tensor::new(ids, &Device::Cpu).and_then(|ids| table.index_select(&ids, 0));
        write_back(rows, hidden)
    }

    fn step(&mut self, blocks: Range<usize>, batch: &Batch, hidden: &mut [f32]) -> Result<(), EngineError> {
        let (tokens, embedding) = (batch.tokens.len(), self.graph.embeddings.columns);
        let mut state = Tensor::from_slice(&hidden[..tokens * embedding], (tokens, embedding), &Device::Cpu).map_err(failed)?;
        for block in blocks {
            state = self.block(block, &batch.tokens, state).map_err(failed)?;
        }
        write_back(Ok(state), hidden)
    }

    fn logits(&mut self, rows: &[u32], hidden: &[f32]) -> Result<&[f32], EngineError> {
        let embedding = self.graph.embeddings.columns;
        let output = self.weights.get(&self.graph.output.weight.name).ok_or_else(|| not_held("the output layer"))?;
        let compute = || {
            let hidden = Tensor::from_slice(hidden, (hidden.len() / embedding, embedding), &Device::Cpu)?;
            let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
            let normed = norm(&rows, &self.weights[&self.graph.output.norm.name], self.graph.output.epsilon)?;
            normed.matmul(&output.t()?)?.flatten_all()?.to_vec1::<f32>()
        };
        self.logits = compute().map_err(failed)?;
        Ok(&self.logits)
    }

    fn normalise(&mut self, hidden: &mut [f32]) -> Result<(), EngineError> {
        let embedding = self.graph.embeddings.columns;
        let weight = self.weights.get(&self.graph.output.norm.name).ok_or_else(|| not_held("the output layer"))?;
        let rows = Tensor::from_slice(hidden, (hidden.len() / embedding, embedding), &Device::Cpu);
        write_back(rows.and_then(|rows| norm(&rows, weight, self.graph.output.epsilon)), hidden)
    }
}

fn write_back(tensor: Candle<Tensor>, to: &mut [f32]) -> Result<(), EngineError> {
    let values = tensor.and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).map_err(failed)?;
    to[..values.len()].copy_from_slice(&values);
    Ok(())
}

/// `x / sqrt(mean(x^2) + epsilon) x weight`, row by row.
fn norm(rows: &Tensor, weight: &Tensor, epsilon: f32) -> Candle<Tensor> {
    let mean = rows.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = rows.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?;
    normed.broadcast_mul(&weight.flatten_all()?)
}

impl ReferenceRun {
    fn block(&mut self, block: usize, tokens: &[TokenAt], hidden: Tensor) -> Candle<Tensor> {
        let operations = self.graph.blocks[block].operations.clone();
        let mut values = HashMap::from([(Operand::Hidden, hidden)]);
        for operation in &operations {
            match operation {
                Operation::Norm { from, weight, epsilon, to } => {
                    let normed = norm(&values[from], self.weight(weight)?, *epsilon)?;
                    values.insert(*to, normed);
                }
                Operation::Linear { from, products } => {
                    for Product { weight, to, add } in products {
                        let product = values[from].matmul(&self.weight(weight)?.t()?)?;
                        let product = if *add { (&values[to] + product)? } else { product };
                        values.insert(*to, product);
                    }
                }
                Operation::Rope { value, heads } => {
                    let rotated = self.rotate(&values[value], *heads, tokens)?;
                    values.insert(*value, rotated);
                }
                Operation::Attention { heads, scale, to } => {
                    let attended = self.attention(
                        block,
                        tokens,
                        [&values[&Operand::Query], &values[&Operand::Key], &values[&Operand::Value]],
                        *heads,
                        *scale,
                    )?;
                    values.insert(*to, attended);
                }
                Operation::GatedActivation { gate, up } => {
                    let activated = (values[gate].silu()? * &values[up])?;
                    values.insert(*gate, activated);
                }
            }
        }
        values.remove(&Operand::Hidden).ok_or_else(|| candle_core::Error::Msg("a block without a hidden state".into()))
    }

    fn weight(&self, weight: &Weight) -> Candle<&Tensor> {
        self.weights.get(&weight.name).ok_or_else(|| candle_core::Error::Msg(format!("tensor `{}` is not on this device", weight.name)))
    }

    /// Rows `[tokens, heads x length]` with the pairs of each head turned.
    fn rotate(&self, rows: &Tensor, heads: usize, tokens: &[TokenAt]) -> Candle<Tensor> {
        let (count, width) = rows.dims2()?;
        let (length, pairs) = (width / heads, self.frequencies.len());
        let angles = tokens.iter().flat_map(|at| self.frequencies.iter().map(|&frequency| f64::from(at.position) * f64::from(frequency)));
        let angles = Tensor::from_vec(angles.collect::<Vec<f64>>(), (count, 1, pairs), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?.to_dtype(DType::F32)?, angles.sin()?.to_dtype(DType::F32)?);
        let rows = rows.reshape((count, heads, length))?;
        let turned = rows.narrow(2, 0, 2 * pairs)?.reshape((count, heads, pairs, 2))?;
        let (x, y) = (turned.narrow(3, 0, 1)?.squeeze(3)?, turned.narrow(3, 1, 1)?.squeeze(3)?);
        let first = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
        let second = (x.broadcast_mul(&sin)? + y.broadcast_mul(&cos)?)?;
        let turned = Tensor::stack(&[first, second], 3)?.reshape((count, heads, 2 * pairs))?;
        let rest = rows.narrow(2, 2 * pairs, length - 2 * pairs)?;
        Tensor::cat(&[turned, rest], 2)?.reshape((count, width))
    }

    /// Attention of each sequence's tokens in turn.
    fn attention(
        &mut self,
        block: usize,
        tokens: &[TokenAt],
        [query, key, value]: [&Tensor; 3],
        heads: usize,
        scale: f32,
    ) -> Candle<Tensor> {
        let shape = self.graph.blocks[block].cache;
        let mut attended = Vec::new();
        let mut first = 0;
        for sequence in tokens.chunk_by(|a, b| a.slot == b.slot) {
            let rows = |tensor: &Tensor, heads: usize, length: usize| {
                tensor.narrow(0, first, sequence.len())?.reshape((sequence.len(), heads, length))?.transpose(0, 1)?.contiguous()
            };
            let key = rows(key, shape.kv_heads, shape.key_length)?;
            let value = rows(value, shape.kv_heads, shape.value_length)?;
            let (keys, values) = self.remember(block, sequence[0], key, value)?;
            attended.push(attend(&rows(query, heads, shape.key_length)?, &keys, &values, sequence, shape, scale)?);
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
fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, tokens: &[TokenAt], shape: CacheShape, scale: f32) -> Candle<Tensor> {
    let (heads, count, _) = query.dims3()?;
    let positions = keys.dim(1)?;
    let for_each_head = |tensor: &Tensor, length: usize| {
        let sharing = heads / shape.kv_heads;
        tensor.unsqueeze(1)?.expand((shape.kv_heads, sharing, positions, length))?.reshape((heads, positions, length))?.contiguous()
    };
    let keys = for_each_head(keys, shape.key_length)?;
    let scores = (query.matmul(&keys.transpose(1, 2)?.contiguous()?)? * f64::from(scale))?;
    let hidden = |at: &TokenAt, position: usize| if position <= at.position as usize { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = tokens.iter().flat_map(|at| (0..positions).map(move |position| hidden(at, position))).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, count, positions), &Device::Cpu)?)?;
    let exponents = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)?;
    let attended = weights.matmul(&for_each_head(values, shape.value_length)?)?;
    attended.transpose(0, 1)?.contiguous()?.reshape((count, heads * shape.value_length))
}
