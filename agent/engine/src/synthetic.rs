//! Models with random weights in the shape of real ones, written where no file is at hand: to calibrate a GPU, and to measure one without a network.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use stowage_placement::Bytes;
use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;

use crate::backend::reference::dequantise::dtype;

/// Elements that are made at once.
const PIECE: u64 = 1 << 20;
/// What a tensor's data is padded to in a file.
const ALIGNMENT: u64 = 32;
/// Of bytes that are no floats of their own: as the bits of a scale of any type, these are small and finite.
const HARMLESS: u8 = 0x2f;
/// How far logits spread: about as far as those of models that were trained.
const LOGIT_DEVIATION: f32 = 3.0;

/// What a synthesised model's family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    /// Its scores and logits are capped, and a norm follows each part.
    Gemma2,
}

/// Sizes of a model.
#[derive(Clone, Debug)]
pub struct Shape {
    pub family: Family,
    pub blocks: u32,
    pub embedding: u64,
    pub heads: u64,
    pub kv_heads: u64,
    /// Elements of a head's keys, and of its values.
    pub head_length: u64,
    pub feed_forward: u64,
    pub vocabulary: u64,
    /// Tokens.
    pub context: u32,
    /// Experts, and how many of them a token goes to.
    pub experts: Option<(u32, u32)>,
}

impl Shape {
    /// A llama as small as K-quants allow.
    pub(crate) fn smallest() -> Shape {
        Shape {
            family: Family::Llama,
            blocks: 1,
            embedding: 256,
            heads: 2,
            kv_heads: 1,
            head_length: 128,
            feed_forward: 256,
            vocabulary: 96,
            context: 64,
            experts: None,
        }
    }
}

/// Whether weights are as many random numbers as they are, or a few that come again and again: large files are made sooner, and read no faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Random,
    Repeated,
}

/// A model to be written: a shape, and the type of each of its matrices.
pub struct Synthetic {
    header: HeaderWriter,
    tensors: Vec<(String, GgmlType, [u64; 2])>,
}

impl Synthetic {
    /// `type_of` is asked for each matrix, by its name (`blk.0.attn_q`) and its number among them.
    pub fn new(shape: &Shape, mut type_of: impl FnMut(&str, usize) -> GgmlType) -> Synthetic {
        let mut synthetic = Synthetic { header: keys(shape), tensors: Vec::new() };
        let mut count = 0;
        for (name, [columns, rows]) in tensors(shape) {
            let is_matrix = rows > 1 && !name.ends_with("ffn_gate_inp");
            let ty = if is_matrix { type_of(&name, count) } else { GgmlType::F32 };
            count += usize::from(is_matrix);
            synthetic.push(&format!("{name}.weight"), ty, columns, rows, shape.experts);
        }
        synthetic
    }

    fn push(&mut self, name: &str, ty: GgmlType, columns: u64, rows: u64, experts: Option<(u32, u32)>) {
        let header = self.header.clone();
        self.header = match (rows, experts) {
            (1, _) => header.tensor(name, ty, &[columns]),
            (_, Some((count, _))) if name.contains("_exps.") => header.tensor(name, ty, &[columns, rows / u64::from(count), count.into()]),
            _ => header.tensor(name, ty, &[columns, rows]),
        };
        self.tensors.push((name.to_owned(), ty, [columns, rows]));
    }

    /// What the file will measure.
    pub fn size(&self) -> Bytes {
        Bytes(self.header.file_size())
    }

    /// Writes the file. The same seed gives the same.
    pub fn write(&self, path: &Path, weights: Weights, seed: u64) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&self.header.header())?;
        let mut maker = Maker { random: Xoshiro256PlusPlus::seed_from_u64(seed), made: HashMap::new(), weights };
        for (name, ty, [columns, rows]) in &self.tensors {
            let written = maker.tensor(&mut file, name, *ty, *columns, *rows)?;
            file.write_all(&vec![0; (written.next_multiple_of(ALIGNMENT) - written) as usize])?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Makes the data of tensors.
struct Maker {
    random: Xoshiro256PlusPlus,
    /// Pieces that are repeated, by their type, elements, and how large their numbers are.
    made: HashMap<(GgmlType, u64, u32), Vec<u8>>,
    weights: Weights,
}

impl Maker {
    /// Writes a tensor; says how many bytes that were.
    fn tensor(&mut self, file: &mut impl Write, name: &str, ty: GgmlType, columns: u64, rows: u64) -> io::Result<u64> {
        let deviation = deviation(name, columns);
        let rows_at_once = (PIECE / columns).clamp(1, rows);
        let (mut left, mut written) = (rows, 0);
        while left > 0 {
            let count = rows_at_once.min(left);
            let piece = self.piece(ty, count * columns, columns, deviation)?;
            file.write_all(&piece)?;
            written += piece.len() as u64;
            left -= count;
        }
        Ok(written)
    }

    fn piece(&mut self, ty: GgmlType, elements: u64, columns: u64, deviation: Option<f32>) -> io::Result<Vec<u8>> {
        let key = (ty, elements, deviation.unwrap_or_default().to_bits());
        if let Some(made) = self.made.get(&key) {
            return Ok(made.clone());
        }
        let piece = match dtype(ty) {
            Some(dtype) => {
                // Evenly spread over as wide a range as has this deviation; a norm is all ones.
                let range = deviation.unwrap_or_default() * 3f32.sqrt();
                let shift = if deviation.is_some() { 0.0 } else { 1.0 };
                let floats: Vec<f32> = (0..elements).map(|_| shift + range * (2.0 * self.random.random::<f32>() - 1.0)).collect();
                let quantise = || {
                    let floats = Tensor::from_vec(floats, ((elements / columns) as usize, columns as usize), &Device::Cpu)?;
                    Ok::<_, candle_core::Error>(QTensor::quantize(&floats, dtype)?.data()?.into_owned())
                };
                quantise().map_err(io::Error::other)?
            }
            None => {
                let bytes = elements / ty.block_elements() * ty.block_bytes();
                (0..bytes).map(|_| self.random.random::<u8>() & HARMLESS).collect()
            }
        };
        if self.weights == Weights::Repeated {
            self.made.insert(key, piece.clone());
        }
        Ok(piece)
    }
}

/// The standard deviation of a matrix's elements, at which what is multiplied with it keeps its size; `None`: a norm.
fn deviation(name: &str, columns: u64) -> Option<f32> {
    let kept = 1.0 / (columns as f32).sqrt();
    match name {
        name if name.contains("norm") => None,
        "token_embd.weight" => Some(1.0),
        "output.weight" => Some(LOGIT_DEVIATION * kept),
        _ => Some(kept),
    }
}

fn keys(shape: &Shape) -> HeaderWriter {
    let family = match shape.family {
        Family::Llama => "llama",
        Family::Gemma2 => "gemma2",
    };
    let key = |name: &str| format!("{family}.{name}");
    let header = HeaderWriter::architecture(family)
        .u32(&key("block_count"), shape.blocks)
        .u32(&key("context_length"), shape.context)
        .u32(&key("embedding_length"), shape.embedding as u32)
        .u32(&key("feed_forward_length"), shape.feed_forward as u32)
        .u32(&key("attention.head_count"), shape.heads as u32)
        .u32(&key("attention.head_count_kv"), shape.kv_heads as u32)
        .u32(&key("attention.key_length"), shape.head_length as u32)
        .u32(&key("attention.value_length"), shape.head_length as u32)
        .u32(&key("rope.dimension_count"), shape.head_length as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    match shape.experts {
        Some((count, used)) => header.u32(&key("expert_count"), count).u32(&key("expert_used_count"), used),
        None => header,
    }
}

/// All tensors by name, `.weight` left out, with columns and rows; those of experts are one tensor of all their rows.
fn tensors(shape: &Shape) -> Vec<(String, [u64; 2])> {
    let Shape { embedding, heads, kv_heads, head_length, feed_forward, vocabulary, .. } = *shape;
    let mut all = vec![("token_embd".to_owned(), [embedding, vocabulary]), ("output_norm".to_owned(), [embedding, 1])];
    if shape.family != Family::Gemma2 {
        all.push(("output".to_owned(), [embedding, vocabulary]));
    }
    for block in 0..shape.blocks {
        let mut add = |name: &str, columns: u64, rows: u64| all.push((format!("blk.{block}.{name}"), [columns, rows]));
        add("attn_norm", embedding, 1);
        add("attn_q", embedding, heads * head_length);
        add("attn_k", embedding, kv_heads * head_length);
        add("attn_v", embedding, kv_heads * head_length);
        add("attn_output", heads * head_length, embedding);
        add("ffn_norm", embedding, 1);
        if shape.family == Family::Gemma2 {
            add("post_attention_norm", embedding, 1);
            add("post_ffw_norm", embedding, 1);
        }
        match shape.experts {
            Some((count, _)) => {
                let count = u64::from(count);
                add("ffn_gate_inp", embedding, count);
                add("ffn_gate_exps", embedding, count * feed_forward);
                add("ffn_up_exps", embedding, count * feed_forward);
                add("ffn_down_exps", feed_forward, count * embedding);
            }
            None => {
                add("ffn_gate", embedding, feed_forward);
                add("ffn_up", embedding, feed_forward);
                add("ffn_down", feed_forward, embedding);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_plan::on_host;
    use crate::model::LoadedModel;
    use stowage_placement::{Request, Tokens};

    #[test]
    fn a_written_model_is_as_large_as_was_said_the_same_again_and_computes() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        let synthetic = Synthetic::new(&Shape::smallest(), |_, _| GgmlType::Q4_K);
        for path in &paths {
            synthetic.write(path, Weights::Random, 7).unwrap();
            assert_eq!(path.metadata().unwrap().len(), synthetic.size().0);
        }
        assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
        let load = on_host(&paths[0], &Request { num_ctx: Tokens(64), ..Request::default() }, 1).unwrap();
        LoadedModel::load(&load, &mut |_| {}).unwrap().self_test().unwrap();
    }

    #[test]
    fn logits_spread_as_far_as_was_meant() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        Synthetic::new(&Shape { vocabulary: 512, ..Shape::smallest() }, |_, _| GgmlType::F16).write(&path, Weights::Random, 1).unwrap();
        let mut model =
            LoadedModel::load(&on_host(&path, &Request { num_ctx: Tokens(64), ..Request::default() }, 1).unwrap(), &mut |_| {}).unwrap();
        let mut batch = crate::Batch::default();
        batch.push_wanted(3, 0, 0);
        let logits = model.step(&batch).unwrap();
        let deviation = (logits.iter().map(|logit| logit * logit).sum::<f32>() / logits.len() as f32).sqrt();
        assert!((2.0..4.0).contains(&deviation), "{deviation}");
    }
}
