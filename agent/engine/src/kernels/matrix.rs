//! A matrix of weights in an arena, packed for the kernels.

use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;
use stowage_placement::layout;

use super::Isa;
use super::product::{Format, TileProduct};
use super::rows::{BLOCK, BLOCK_BYTES};
use super::tile::{self, Panel, ROWS};
use crate::api::EngineError;
use crate::arena::Region;
use crate::file_mmap::TensorView;
use crate::pool::{Pool, Worker};

/// Panels that are unpacked at once: 24 KiB, most of a first-level cache.
const PANELS: usize = 32;

/// Activations that a pass over a matrix goes through at once, so that they stay in the second-level cache.
const PASS_BYTES: usize = 512 << 10;

/// `rows` outputs by `columns` inputs.
pub struct Matrix {
    ggml_type: GgmlType,
    pub rows: usize,
    pub columns: usize,
    /// Bytes of one row, as in the file.
    row_bytes: usize,
    region: Region,
}

/// The columns that a matrix is multiplied with, one a token.
#[derive(Clone, Copy)]
pub struct Columns {
    pub tokens: usize,
    /// As floats, `stride` apart.
    pub floats: *const f32,
    pub stride: usize,
    /// Quantised, in groups of `width`, see `rows::quantise`. Used by quantised matrices alone.
    pub quantised: *const u8,
    pub width: usize,
}

/// Where the products go: a row for each token, `stride` floats apart.
#[derive(Clone, Copy)]
pub struct Products {
    pub to: *mut f32,
    pub stride: usize,
    pub add: bool,
}

impl Matrix {
    /// Packs a tensor into its region, which has the bytes that `placement::layout` says.
    pub fn load(view: &TensorView<'_>, mut region: Region, pool: &Pool) -> Result<Matrix, EngineError> {
        let (rows, columns) = (view.rows, view.columns);
        if rows == 1 {
            read_floats(view, region.floats_mut())?;
            return Ok(Matrix { ggml_type: GgmlType::F32, rows, columns, row_bytes: columns * 4, region });
        }
        let row_bytes = view.data.len() / rows;
        let matrix = Matrix { ggml_type: view.ggml_type, rows, columns, row_bytes, region };
        let held = if layout::is_tiled(view.ggml_type) { matrix.tiles() * ROWS } else { rows };
        if matrix.region.len() < held * row_bytes || (matrix.is_quantised() && !columns.is_multiple_of(BLOCK)) {
            let message = format!(
                "tensor `{}` of {rows} x {columns} {} does not fit in the {} bytes planned for it",
                view.name,
                view.ggml_type,
                matrix.region.len()
            );
            return Err(EngineError::new(Reason::LoadFailed, message));
        }
        pool.run(&|worker: &Worker<'_>| {
            for tile in worker.share(matrix.tiles(), 1) {
                let rows = tile * ROWS..rows.min((tile + 1) * ROWS);
                let from = &view.data[rows.start * row_bytes..rows.end * row_bytes];
                let length = if matrix.is_quantised() { ROWS * row_bytes } else { from.len() };
                // SAFETY: the region has room for all tiles, as was just checked, and each is written by one thread.
                let to = unsafe { std::slice::from_raw_parts_mut(matrix.region.as_ptr().add(tile * ROWS * row_bytes), length) };
                tile::pack(view.ggml_type, from, row_bytes, to);
            }
        });
        Ok(matrix)
    }

    /// A matrix whose region is packed already.
    pub fn packed(ggml_type: GgmlType, rows: usize, columns: usize, region: Region) -> Matrix {
        Matrix {
            ggml_type,
            rows,
            columns,
            row_bytes: columns / ggml_type.block_elements() as usize * ggml_type.block_bytes() as usize,
            region,
        }
    }

    /// Tiles of 16 rows, the last of them maybe not full: the unit in which threads share the work.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Whether it is multiplied with quantised columns.
    pub fn is_quantised(&self) -> bool {
        layout::is_tiled(self.ggml_type)
    }

    /// A row's weights as floats. `to` has `columns` of them.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        if !self.is_quantised() {
            let bytes = &self.region.bytes()[row * self.row_bytes..][..self.row_bytes];
            plain_floats(self.ggml_type, bytes, to);
            return;
        }
        let (tile, row) = (row / ROWS, row % ROWS);
        let mut panel = Panel::EMPTY;
        for (block, to) in to.chunks_exact_mut(BLOCK).enumerate() {
            tile::unpack(self.ggml_type, self.tile(tile), self.row_bytes, block, row..row + 1, &mut panel);
            for (column, to) in to.iter_mut().enumerate() {
                *to = panel.weight(row, column);
            }
        }
    }

    /// Some of the tiles times all columns, in passes over as many columns as a cache holds.
    ///
    /// # Safety
    ///
    /// As for `multiply`.
    pub unsafe fn multiply_tiles(&self, isa: Isa, tiles: std::ops::Range<usize>, columns: &Columns, products: Products) {
        let column_bytes = (self.columns.div_ceil(BLOCK) * BLOCK_BYTES).max(1);
        let pass = (PASS_BYTES / column_bytes / columns.width).max(1) * columns.width;
        for first in (0..columns.tokens).step_by(pass) {
            // SAFETY: by the contract of this function; `first` is the beginning of a group.
            unsafe {
                let columns = Columns {
                    tokens: pass.min(columns.tokens - first),
                    floats: columns.floats.add(first * columns.stride),
                    quantised: columns.quantised.wrapping_add(first * column_bytes),
                    ..*columns
                };
                let products = Products { to: products.to.wrapping_add(first * products.stride), ..products };
                for tile in tiles.clone() {
                    self.multiply(isa, tile, &columns, products);
                }
            }
        }
    }

    /// Rows `16 tile` to `16 tile + 15` times some of the columns.
    ///
    /// # Safety
    ///
    /// `columns` has this matrix's number of rows of each column, in the form that the matrix is multiplied with; `products` has room for
    /// `rows` floats a token, and no other thread is writing those of this tile.
    pub unsafe fn multiply(&self, isa: Isa, tile: usize, columns: &Columns, products: Products) {
        // SAFETY: by the contract of this function.
        unsafe {
            if !self.is_quantised() {
                self.multiply_plain(isa, tile, columns, products);
            } else if isa.multiplies(Format::of(self.ggml_type)) {
                let format = Format::of(self.ggml_type);
                self.multiply_groups(isa, format, tile, self.tile(tile).as_ptr(), 0..self.columns / BLOCK, columns, products);
            } else {
                self.multiply_panels(isa, tile, columns, products);
            }
        }
    }

    fn tile(&self, tile: usize) -> &[u8] {
        &self.region.bytes()[tile * ROWS * self.row_bytes..][..ROWS * self.row_bytes]
    }

    /// # Safety
    ///
    /// As for `multiply`; `from` holds the blocks of the tile in this format.
    #[allow(clippy::too_many_arguments)]
    unsafe fn multiply_groups(
        &self,
        isa: Isa,
        format: Format,
        tile: usize,
        from: *const u8,
        blocks: std::ops::Range<usize>,
        columns: &Columns,
        products: Products,
    ) {
        let width = columns.width;
        let group_bytes = self.columns / BLOCK * width * BLOCK_BYTES;
        for group in 0..columns.tokens.div_ceil(width) {
            let first = group * width;
            // SAFETY: by the contract of this function: there are as many groups and rows of products as tokens ask for.
            unsafe {
                let product = TileProduct {
                    tile: from,
                    blocks: blocks.len(),
                    group: columns.quantised.add(group * group_bytes + blocks.start * width * BLOCK_BYTES),
                    width,
                    columns: width.min(columns.tokens - first),
                    rows: ROWS.min(self.rows - tile * ROWS),
                    // Of some rows of a matrix, `to` lies before the memory by as many rows as are left out.
                    to: products.to.wrapping_add(first * products.stride + tile * ROWS),
                    stride: products.stride,
                    add: products.add || blocks.start > 0,
                };
                isa.tile_product(format, &product);
            }
        }
    }

    /// # Safety
    ///
    /// As for `multiply`.
    unsafe fn multiply_panels(&self, isa: Isa, tile: usize, columns: &Columns, products: Products) {
        let mut panels = [const { Panel::EMPTY }; PANELS];
        // Where the type has a kernel of its own, this is the path without it.
        let (format, blocks) = (Format::of(self.ggml_type), self.columns / BLOCK);
        let format = if format.is_panel() { format } else { Format::Panel };
        for start in (0..blocks).step_by(PANELS) {
            let end = blocks.min(start + PANELS);
            for block in start..end {
                tile::unpack(self.ggml_type, self.tile(tile), self.row_bytes, block, 0..ROWS, &mut panels[block - start]);
            }
            // SAFETY: by the contract of this function, and the panels are these blocks.
            unsafe { self.multiply_groups(isa, format, tile, panels.as_ptr().cast(), start..end, columns, products) };
        }
    }

    /// # Safety
    ///
    /// As for `multiply`.
    unsafe fn multiply_plain(&self, isa: Isa, tile: usize, columns: &Columns, products: Products) {
        for row in tile * ROWS..self.rows.min((tile + 1) * ROWS) {
            for token in 0..columns.tokens {
                // SAFETY: by the contract of this function; the row lies in the region.
                unsafe {
                    let weights = self.region.as_ptr().add(row * self.row_bytes);
                    let column = columns.floats.add(token * columns.stride);
                    let sum = match self.ggml_type {
                        GgmlType::F16 => isa.dot_f16(weights.cast(), column, self.columns),
                        GgmlType::BF16 => isa.dot_bf16(weights.cast(), column, self.columns),
                        _ => isa.dot_f32(weights.cast(), column, self.columns),
                    };
                    let to = products.to.wrapping_add(token * products.stride + row);
                    *to = if products.add { *to + sum } else { sum };
                }
            }
        }
    }
}

/// A tensor of one row as floats, whatever its type.
pub fn read_floats(view: &TensorView<'_>, to: &mut [f32]) -> Result<(), EngineError> {
    let to = &mut to[..view.columns];
    match view.ggml_type {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => plain_floats(view.ggml_type, view.data, to),
        ty => {
            let message = format!("tensor `{}` of one row has type {ty}; the engine reads such from F32, F16 and BF16", view.name);
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        }
    }
    Ok(())
}

/// A tensor of F32 as it is.
pub fn read_all(view: &TensorView<'_>, to: &mut [f32]) {
    plain_floats(GgmlType::F32, view.data, to);
}

fn plain_floats(ty: GgmlType, bytes: &[u8], to: &mut [f32]) {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match ty {
        GgmlType::F16 => to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = half::f16::from_le_bytes(pair).to_f32()),
        GgmlType::BF16 => to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = half::bf16::from_le_bytes(pair).to_f32()),
        _ => {
            for (to, four) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                *to = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
        }
    }
}
