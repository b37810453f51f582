//! Measures the products of one core with weights of each type: prefill in multiplications a second, decode in bytes a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use stowage_placement::gguf::GgmlType;
use stowage_placement::layout::{self, Backend};
use stowage_placement::{Bytes, Reason};

use crate::api::EngineError;
use crate::arena::{Arena, Purpose, Region};
use crate::kernels::format::Format;
use crate::kernels::matrix::{Columns, Matrix, Products};
use crate::kernels::tile::{self, ROWS};
use crate::kernels::{BLOCK, BLOCK_BYTES, Isa};
use crate::pool::{Pool, Worker};

/// Tokens of the measured prefill.
const TOKENS: usize = 512;
/// Rows and columns of the matrix of the measured prefill: even in F16 no larger than a second-level cache.
const SHAPE: [usize; 2] = [512, 1024];
/// Bytes of the matrix of the measured decode: more than a third-level cache.
const DECODED: usize = 128 << 20;
/// Bytes of which the bandwidth of memory is measured: many times what a third-level cache holds.
const READ: usize = 512 << 20;
/// How long one measurement is repeated.
const PATIENCE: Duration = Duration::from_millis(400);

/// What is measured of one type with one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct KernelRates {
    /// Weights multiplied with activations, 1e9 a second, of 512 tokens at once.
    pub prefill_gmacs: f64,
    /// 1e9 bytes of weights a second, of one token.
    pub decode_gb: f64,
    /// The same of a token each of 4 sequences.
    pub decode_of_4_gb: f64,
    /// 1e9 bytes of weights a second, packed tile after tile to where only the last is kept. `None`: the type is not packed.
    pub packing_gb: Option<f64>,
}

/// Measures one type on this thread, the best of some repeats. Errors: LoadFailed where there is no memory.
pub fn rates(ty: GgmlType, isa: Isa) -> Result<KernelRates, EngineError> {
    let [rows, columns] = SHAPE;
    let matrix = any_matrix(ty, rows, columns)?;
    let prefill = Measured::new(isa, columns, rows, TOKENS)?.best(isa, &matrix);
    let rows = DECODED / (columns / ty.block_elements() as usize * ty.block_bytes() as usize) / 16 * 16;
    let matrix = any_matrix(ty, rows, columns)?;
    let bytes = layout::weight_bytes(ty, rows as u64, columns as u64, Backend::Cpu).map_or(0, |bytes| bytes.0);
    let decode = |tokens| {
        let took = Measured::new(isa, columns, rows, tokens)?.best(isa, &matrix);
        Ok::<f64, EngineError>(bytes as f64 / took.as_secs_f64() / 1e9)
    };
    Ok(KernelRates {
        prefill_gmacs: (SHAPE[0] * SHAPE[1] * TOKENS) as f64 / prefill.as_secs_f64() / 1e9,
        decode_gb: decode(1)?,
        decode_of_4_gb: decode(4)?,
        packing_gb: Format::of(ty).map(|format| packing(format, columns)).transpose()?,
    })
}

/// 1e9 bytes a second.
fn packing(format: Format, columns: usize) -> Result<f64, EngineError> {
    let row_bytes = columns / BLOCK / format.subs() * (format.bytes() / ROWS);
    let mut tile = vec![0; ROWS * row_bytes];
    let source = any_bytes((DECODED / tile.len() * tile.len()) as u64)?;
    let took = best_of(|| {
        for rows in source.bytes().chunks_exact(tile.len()) {
            tile::pack(format, rows, row_bytes, &mut tile);
            black_box(&mut tile);
        }
    });
    Ok(source.len() as f64 / took.as_secs_f64() / 1e9)
}

/// 1e9 bytes a second that some threads read from memory in order, each its part, for a while: what decode is measured against, which takes a while too. The
/// best moment would say what memory gives while nobody else on the machine wants any.
pub fn read_bandwidth(threads: u32) -> Result<f64, EngineError> {
    let region = any_bytes(READ as u64)?;
    let pool = Pool::new(threads)?;
    let (begin, mut passes) = (Instant::now(), 0);
    while begin.elapsed() < PATIENCE {
        pool.run(&|worker: &Worker<'_>| {
            let (words, _) = region.bytes()[worker.share(READ, 64)].as_chunks::<64>();
            let mut sums = [0u64; 8];
            for words in words {
                let (words, _) = words.as_chunks::<8>();
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum ^= u64::from_ne_bytes(*word);
                }
            }
            black_box(sums);
        });
        passes += 1;
    }
    Ok((passes * READ) as f64 / begin.elapsed().as_secs_f64() / 1e9)
}

fn best_of(mut run: impl FnMut()) -> Duration {
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < PATIENCE {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
    }
    best
}

/// Memory with bytes of which every type makes numbers of ordinary size.
fn any_bytes(length: u64) -> Result<Region, EngineError> {
    let mut region = Arena::new(Bytes(length))?.take(Purpose::Weights, Bytes(length))?;
    for (i, byte) in region.bytes_mut().iter_mut().enumerate() {
        *byte = 0x28 | (i * 7 / 3) as u8 & 7;
    }
    Ok(region)
}

fn any_matrix(ty: GgmlType, rows: usize, columns: usize) -> Result<Matrix, EngineError> {
    let bytes = layout::weight_bytes(ty, rows as u64, columns as u64, Backend::Cpu);
    let bytes =
        bytes.ok_or_else(|| EngineError::new(Reason::LoadFailed, format!("{rows} x {columns} {ty} is no whole number of bytes")))?;
    let no_kernels = || EngineError::new(Reason::EngineCannotRun, format!("there are no kernels for {ty}"));
    Matrix::packed(ty, rows, columns, any_bytes(bytes.0)?).ok_or_else(no_kernels)
}

/// Activations of some tokens and room for their products.
struct Measured {
    tokens: usize,
    length: usize,
    floats: Vec<f32>,
    quantised: Region,
    products: Vec<f32>,
}

impl Measured {
    fn new(isa: Isa, length: usize, rows: usize, tokens: usize) -> Result<Measured, EngineError> {
        let floats: Vec<f32> = (0..tokens * length).map(|i| (i as f32 * 0.37).sin()).collect();
        let (width, blocks) = (isa.group_width(tokens), length / BLOCK);
        let bytes = Bytes((tokens.next_multiple_of(8) * blocks * BLOCK_BYTES).next_multiple_of(64) as u64);
        let quantised = Arena::new(bytes)?.take(Purpose::Compute, bytes)?;
        for (token, row) in floats.chunks_exact(length).enumerate() {
            let group = token / width * width * blocks * BLOCK_BYTES;
            // SAFETY: the region has room for all tokens in whole groups.
            unsafe { isa.quantise(row.as_ptr(), length, token % width, width, quantised.as_ptr().add(group)) };
        }
        Ok(Measured { tokens, length, floats, quantised, products: vec![0.0; tokens * rows] })
    }

    /// The least time that all products take.
    fn best(&mut self, isa: Isa, matrix: &Matrix) -> Duration {
        let width = isa.group_width(self.tokens);
        let columns =
            Columns { tokens: self.tokens, floats: self.floats.as_ptr(), stride: self.length, quantised: self.quantised.as_ptr(), width };
        let products = Products { to: self.products.as_mut_ptr(), stride: matrix.rows, add: false };
        best_of(|| {
            // SAFETY: the columns were made for the matrix, and the products have room for its rows.
            unsafe { matrix.multiply_tiles(isa, 0..matrix.tiles(), &columns, products) };
        })
    }
}
