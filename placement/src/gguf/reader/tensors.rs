//! The list of tensors, and what must hold of it as a whole.

use super::cursor::Cursor;
use super::{HeaderReader, MAX_DIMENSIONS, MAX_TENSOR_NAME, State};
use crate::gguf::{GgmlType, GgufError, TensorInfo};

impl HeaderReader {
    pub(super) fn next_tensor(&mut self, cursor: &Cursor<'_>) -> Result<(), GgufError> {
        if self.tensor_entries.begin_next() {
            self.state = State::Tensor;
            return Ok(());
        }
        // Offsets in a file that was read this far are far from overflow.
        self.data_offset = cursor.offset().next_multiple_of(self.alignment);
        self.check_offsets()?;
        self.tensor_names.clear();
        self.tensor_offsets.clear();
        self.state = State::Complete;
        Ok(())
    }

    pub(super) fn read_tensor(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let offset = cursor.offset();
        let mut ahead = cursor.clone();
        let Some(tensor) = tensor(&mut ahead)? else {
            self.state = State::Tensor;
            return Ok(false);
        };
        self.keep_bytes(2 * tensor.name.len() + size_of::<TensorInfo>() + 64, offset)?;
        if !self.tensor_names.insert(tensor.name.clone()) {
            return Err(GgufError::DuplicateTensor { tensor: tensor.name, offset });
        }
        self.tensors.push(tensor);
        self.tensor_offsets.push(offset);
        *cursor = ahead;
        self.next_tensor(cursor)?;
        Ok(true)
    }

    /// Each tensor is aligned, ends where 64 bits still reach, and shares no byte with another.
    fn check_offsets(&self) -> Result<(), GgufError> {
        let mut spans = Vec::with_capacity(self.tensors.len());
        for (tensor, &offset) in self.tensors.iter().zip(&self.tensor_offsets) {
            let end = self.end_of(tensor, offset)?;
            if end > tensor.offset {
                spans.push((tensor.offset, end, offset, &tensor.name));
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            let [(_, end, _, first), (begin, _, offset, second)] = pair else { continue };
            if begin < end {
                let (first, second) = ((*first).clone(), (*second).clone());
                return Err(GgufError::Overlap { first, second, end: *end, begin: *begin, offset: *offset });
            }
        }
        Ok(())
    }

    /// Where this tensor, listed at `offset` of the file, ends in the data.
    fn end_of(&self, tensor: &TensorInfo, offset: u64) -> Result<u64, GgufError> {
        let (found, size, name) = (tensor.offset, tensor.bytes().0, || tensor.name.clone());
        if !found.is_multiple_of(self.alignment) {
            return Err(GgufError::Misaligned { tensor: name(), found, alignment: self.alignment, offset });
        }
        let end = found.checked_add(size).filter(|end| end.checked_add(self.data_offset).is_some_and(|end| i64::try_from(end).is_ok()));
        end.ok_or_else(|| GgufError::OffsetOverflow { tensor: name(), found, size, offset })
    }
}

/// One entry of the list: name, dimensions, type, offset.
fn tensor(cursor: &mut Cursor<'_>) -> Result<Option<TensorInfo>, GgufError> {
    let Some(name) = cursor.name("tensor name", MAX_TENSOR_NAME)? else { return Ok(None) };
    let count_at = cursor.offset();
    let Some(count) = cursor.u32() else { return Ok(None) };
    if count > MAX_DIMENSIONS {
        return Err(GgufError::TooManyDimensions { tensor: name, found: count, offset: count_at });
    }
    let dimensions_at = cursor.offset();
    let mut dimensions = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let Some(dimension) = cursor.u64() else { return Ok(None) };
        dimensions.push(dimension);
    }
    let id_at = cursor.offset();
    let Some(id) = cursor.u32() else { return Ok(None) };
    let Some(ggml_type) = GgmlType::from_id(id) else {
        return Err(GgufError::UnknownTensorType { tensor: name, id, offset: id_at });
    };
    let Some(offset) = cursor.u64() else { return Ok(None) };
    check_size(&name, &dimensions, ggml_type, dimensions_at)?;
    Ok(Some(TensorInfo { name, dimensions, ggml_type, offset }))
}

/// The product of the dimensions in any order, and the bytes that it takes, fit into 63 bits; rows are whole blocks.
fn check_size(name: &str, dimensions: &[u64], ggml_type: GgmlType, offset: u64) -> Result<(), GgufError> {
    // Zeros are left out, so that 0 x 2^63 x 2^63 is no way around the check: `TensorInfo::rows` multiplies some of the dimensions only.
    let product = dimensions.iter().filter(|d| **d > 0).try_fold(1u64, |product, d| product.checked_mul(*d));
    let fits = product.and_then(|elements| elements.checked_mul(ggml_type.block_bytes())).is_some_and(|bytes| i64::try_from(bytes).is_ok());
    if !fits {
        return Err(GgufError::TensorTooLarge { tensor: name.into(), dimensions: dimensions.into(), offset });
    }
    let columns = dimensions.first().copied().unwrap_or(1);
    if !columns.is_multiple_of(ggml_type.block_elements()) {
        return Err(GgufError::PartialBlock { tensor: name.into(), ggml_type, columns, offset });
    }
    Ok(())
}
