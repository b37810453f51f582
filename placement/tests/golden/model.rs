//! A model as a converter writes it: keys and tensors, before quantisation.

use stowage_placement::gguf::write::HeaderWriter;

use crate::quantize::{Quantization, Quantizer};

/// A tensor in ggml's order of dimensions: `[columns, rows, experts]`.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dimensions: Vec<u64>,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub architecture: &'static str,
    numbers: Vec<(String, u64)>,
    arrays: Vec<(String, Vec<u32>)>,
    flags: Vec<(String, Vec<bool>)>,
    texts: Vec<(String, String)>,
    pub tensors: Vec<Tensor>,
}

impl Model {
    pub fn new(architecture: &'static str) -> Model {
        Model { architecture, numbers: Vec::new(), arrays: Vec::new(), flags: Vec::new(), texts: Vec::new(), tensors: Vec::new() }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub fn number(&mut self, name: &str, number: u64) {
        self.numbers.push((self.key(name), number));
    }

    /// Replaces a number that was written before.
    pub fn set(&mut self, name: &str, number: u64) {
        let key = self.key(name);
        self.numbers.retain(|(found, _)| *found != key);
        self.numbers.push((key, number));
    }

    /// A number for each layer; replaces one for all of them.
    pub fn array(&mut self, name: &str, numbers: impl Iterator<Item = u64>) {
        let key = self.key(name);
        self.numbers.retain(|(found, _)| *found != key);
        let numbers = numbers.map(|number| u32::try_from(number).unwrap()).collect();
        self.arrays.push((key, numbers));
    }

    pub fn flags(&mut self, name: &str, flags: Vec<bool>) {
        self.flags.push((self.key(name), flags));
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.texts.push((self.key(name), text.into()));
    }

    pub fn get(&self, name: &str) -> Option<u64> {
        let key = self.key(name);
        self.numbers.iter().find(|(found, _)| *found == key).map(|(_, number)| *number)
    }

    pub fn tensor(&mut self, name: &str, dimensions: &[u64]) {
        self.tensors.push(Tensor { name: name.into(), dimensions: dimensions.into() });
    }

    /// Takes a tensor out again.
    pub fn drop(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// Tensors of one block.
    pub fn block(&mut self, layer: u64, tensors: &[(&str, &[u64])]) {
        for (suffix, dimensions) in tensors {
            self.tensor(&format!("blk.{layer}.{suffix}"), dimensions);
        }
    }

    /// Vectors of one block, all of a length.
    pub fn vectors(&mut self, layer: u64, length: u64, suffixes: &[&str]) {
        for suffix in suffixes {
            self.block(layer, &[(suffix, &[length])]);
        }
    }

    /// The header of the quantised file.
    pub fn header(&self, name: &str, quantization: Quantization) -> HeaderWriter {
        let mut writer = HeaderWriter::architecture(self.architecture).string("general.name", name);
        writer = writer.u32("general.file_type", quantization.file_type());
        for (key, number) in &self.numbers {
            writer = writer.u32(key, u32::try_from(*number).unwrap());
        }
        for (key, numbers) in &self.arrays {
            writer = writer.u32s(key, numbers);
        }
        for (key, flags) in &self.flags {
            let bytes: Vec<u8> = flags.iter().map(|flag| u8::from(*flag)).collect();
            writer = writer.array(key, 7, flags.len() as u64, &bytes);
        }
        for (key, text) in &self.texts {
            writer = writer.string(key, text);
        }
        let mut quantizer = Quantizer::new(self, quantization);
        for tensor in &self.tensors {
            writer = writer.tensor(&tensor.name, quantizer.type_of(tensor), &tensor.dimensions);
        }
        writer
    }
}
