//! A matrix of weights in an arena, packed for the kernels.

use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;

use super::Isa;
use super::format::Format;
use super::held::{Found, Held, Mapped};
use super::packing::Packing;
use super::plain::{Float, PlainProduct};
use super::product::TileProduct;
use super::rows::{BLOCK, BLOCK_BYTES};
use super::tile::{self, Panel, ROWS};
use crate::api::EngineError;
use crate::arena::Region;
use crate::file_mmap::TensorView;
use crate::pool::{Pool, Worker};

/// Panels that are unpacked at once: 18 KiB, so that a first-level cache has room for a group of columns too.
const PANELS: usize = 24;

/// What is made of a tile on the way to its product, where that is needed.
struct Room {
    /// A tile whose rows are in the model's file as yet.
    tile: Vec<u8>,
    panels: Option<[Panel; PANELS]>,
}

/// Activations that a pass over a matrix goes through at once, so that they stay in a core's part of the third-level cache: each pass unpacks the matrix
/// again, which costs more than the second-level cache gives.
const PASS_BYTES: usize = 2 << 20;

/// `rows` outputs by `columns` inputs.
pub struct Matrix {
    pub(super) weights: Weights,
    pub rows: usize,
    pub columns: usize,
    /// Bytes of one row, as in the file.
    pub(super) row_bytes: usize,
    pub(super) activations: Activations,
    pub(super) held: Held,
}

/// What quantised weights are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Blocks of 8-bit integers.
    #[default]
    Quantised,
    /// Floats as they are, by weights that are unpacked to floats each time: slow, and free of what quantising activations costs. For comparing.
    Floats,
}

/// How a matrix's weights lie in its region.
#[derive(Clone, Copy)]
pub(super) enum Weights {
    /// Packed into tiles.
    Tiled(Format),
    /// Rows as in the file.
    Plain(Float),
}

impl Weights {
    pub fn of(ty: GgmlType) -> Option<Weights> {
        Some(match ty {
            GgmlType::F32 => Weights::Plain(Float::F32),
            GgmlType::F16 => Weights::Plain(Float::F16),
            GgmlType::BF16 => Weights::Plain(Float::BF16),
            _ => Weights::Tiled(Format::of(ty)?),
        })
    }

    pub fn are_tiled(self) -> bool {
        matches!(self, Weights::Tiled(_))
    }
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
    pub fn load(view: &TensorView<'_>, activations: Activations, mut region: Region, pool: &Pool) -> Result<Matrix, EngineError> {
        let (rows, columns) = (view.rows, view.columns);
        if rows == 1 {
            read_floats(view, region.floats_mut())?;
            let held = Held::here(region);
            return Ok(Matrix { weights: Weights::Plain(Float::F32), rows, columns, row_bytes: columns * 4, activations, held });
        }
        let packing = Packing::of(view, region.len())?;
        for tiles in packing.pieces() {
            pool.run(&|worker: &Worker<'_>| {
                worker.share(tiles.len(), 1).for_each(|tile| {
                    let (start, length) = packing.place(tiles.start + tile);
                    // SAFETY: the region has room for all tiles, as was checked, and each is written by one thread.
                    let to = unsafe { std::slice::from_raw_parts_mut(region.as_ptr().add(start), length) };
                    packing.pack(tiles.start + tile, to);
                });
            });
            packing.let_go(tiles);
        }
        Ok(packing.matrix(activations, Held::here(region)))
    }

    /// A tensor of several rows that stays where it is in the model's file until it is brought over.
    pub fn in_place(view: &TensorView<'_>, activations: Activations, file: Mapped, region: Region) -> Result<Matrix, EngineError> {
        let packing = Packing::of(view, region.len())?;
        Ok(packing.matrix(activations, Held::mapped(file, packing.form(), region)))
    }

    /// A matrix whose region is packed already. `None`: its type has no kernels.
    pub fn packed(ty: GgmlType, rows: usize, columns: usize, region: Region) -> Option<Matrix> {
        let row_bytes = columns / ty.block_elements() as usize * ty.block_bytes() as usize;
        let (activations, held) = (Activations::Quantised, Held::here(region));
        Some(Matrix { weights: Weights::of(ty)?, rows, columns, row_bytes, activations, held })
    }

    /// See [`Held::in_file`].
    pub fn in_file(&self) -> usize {
        self.held.in_file()
    }

    /// See [`Held::bring_over`].
    pub fn bring_over(&self, at_most: usize, pool: &Pool) -> usize {
        self.held.bring_over(at_most, pool, &|rows, tile| {
            if let Weights::Tiled(format) = self.weights {
                tile::pack(format, rows, self.row_bytes, tile);
            }
        })
    }

    /// Tiles of 16 rows, the last of them maybe not full: the unit in which threads share the work.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Whether it is multiplied with quantised columns.
    pub fn is_quantised(&self) -> bool {
        self.is_tiled() && self.activations == Activations::Quantised
    }

    fn is_tiled(&self) -> bool {
        self.weights.are_tiled()
    }

    /// A row's weights as floats. `to` has `columns` of them.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        match self.weights {
            Weights::Plain(float) => plain_floats(float, self.plain_rows(row, 1), to),
            Weights::Tiled(format) => {
                let mut room = Vec::new();
                let (tile, row) = (self.tile(format, row / ROWS, &mut room), row % ROWS);
                let mut panel = Panel::EMPTY;
                for (block, to) in to.chunks_exact_mut(BLOCK).enumerate() {
                    tile::unpack(format, tile, block, row..row + 1, &mut panel);
                    for (column, to) in to.iter_mut().enumerate() {
                        *to = panel.weight(row, column);
                    }
                }
            }
        }
    }

    /// Some of the tiles times all columns, in passes over as many columns as a cache holds.
    ///
    /// # Safety
    ///
    /// As for `multiply`.
    pub unsafe fn multiply_tiles(&self, isa: Isa, tiles: std::ops::Range<usize>, columns: &Columns, products: Products) {
        let quantised_bytes = self.columns / BLOCK * BLOCK_BYTES;
        let column_bytes = if self.is_quantised() { quantised_bytes } else { self.columns * 4 }.max(1);
        let pass = (PASS_BYTES / column_bytes / columns.width).max(1) * columns.width;
        let mut room = Room { tile: Vec::new(), panels: None };
        for first in (0..columns.tokens).step_by(pass) {
            // SAFETY: by the contract of this function; `first` is the beginning of a group.
            unsafe {
                let columns = Columns {
                    tokens: pass.min(columns.tokens - first),
                    floats: columns.floats.add(first * columns.stride),
                    quantised: columns.quantised.wrapping_add(first * quantised_bytes),
                    ..*columns
                };
                let products = Products { to: products.to.wrapping_add(first * products.stride), ..products };
                for tile in tiles.clone() {
                    self.multiply_tile(isa, tile, &columns, products, &mut room);
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
        unsafe { self.multiply_tiles(isa, tile..tile + 1, columns, products) };
    }

    /// # Safety
    ///
    /// As for `multiply`.
    unsafe fn multiply_tile(&self, isa: Isa, tile: usize, columns: &Columns, products: Products, room: &mut Room) {
        // SAFETY: by the contract of this function.
        unsafe {
            match self.weights {
                Weights::Plain(Float::F32) => self.multiply_plain(isa, Float::F32, self.rows_of(tile).as_ptr(), tile, columns, products),
                _ if self.activations == Activations::Floats => self.multiply_unpacked(isa, tile, columns, products),
                Weights::Plain(float) => self.multiply_plain(isa, float, self.rows_of(tile).as_ptr(), tile, columns, products),
                Weights::Tiled(format) if isa.multiplies_tiles() && columns.tokens <= columns.width => {
                    let weights = self.tile(format, tile, &mut room.tile).as_ptr();
                    isa.tile_product(format, &self.product(weights, tile, 0..self.columns / BLOCK, 0, columns, products));
                }
                Weights::Tiled(format) => self.multiply_panels(isa, format, tile, columns, products, room),
            }
        }
    }

    /// A tile's bytes, for which there is `room` where they are not packed yet.
    fn tile<'a>(&'a self, format: Format, tile: usize, room: &'a mut Vec<u8>) -> &'a [u8] {
        let bytes = ROWS * self.row_bytes;
        match self.held.part(tile * bytes, bytes) {
            Found::Packed(tile) => tile,
            Found::Rows(rows) => {
                room.resize(bytes, 0);
                tile::pack(format, rows, self.row_bytes, room);
                room
            }
        }
    }

    /// What some blocks of a tile times a group is. `weights` are those of the tile, or what these blocks were unpacked to.
    fn product(
        &self,
        weights: *const u8,
        tile: usize,
        blocks: std::ops::Range<usize>,
        group: usize,
        columns: &Columns,
        products: Products,
    ) -> TileProduct {
        let width = columns.width;
        let (first, block_bytes) = (group * width, width * BLOCK_BYTES);
        TileProduct {
            tile: weights,
            blocks: blocks.len(),
            group: columns.quantised.wrapping_add((group * (self.columns / BLOCK) + blocks.start) * block_bytes),
            width,
            columns: width.min(columns.tokens - first),
            rows: ROWS.min(self.rows - tile * ROWS),
            // Of some rows of a matrix, `to` lies before the memory by as many rows as are left out.
            to: products.to.wrapping_add(first * products.stride + tile * ROWS),
            stride: products.stride,
            add: products.add || blocks.start > 0,
        }
    }

    /// # Safety
    ///
    /// As for `multiply`.
    unsafe fn multiply_panels(&self, isa: Isa, format: Format, tile: usize, columns: &Columns, products: Products, room: &mut Room) {
        let Room { tile: room, panels } = room;
        let panels = panels.get_or_insert_with(|| [const { Panel::EMPTY }; PANELS]);
        let weights = self.tile(format, tile, room);
        let blocks = self.columns / BLOCK;
        let at_once = blocks.div_ceil(blocks.div_ceil(PANELS).max(1)).max(1);
        for start in (0..blocks).step_by(at_once) {
            let range = start..blocks.min(start + at_once);
            isa.unpack(format, weights, range.clone(), panels);
            for group in 0..columns.tokens.div_ceil(columns.width) {
                let product = self.product(panels.as_ptr().cast(), tile, range.clone(), group, columns, products);
                // SAFETY: by the contract of this function, and the panels are these blocks.
                unsafe { isa.panel_product(format, &product) };
            }
        }
    }

    /// # Safety
    ///
    /// As for `multiply`.
    unsafe fn multiply_unpacked(&self, isa: Isa, tile: usize, columns: &Columns, products: Products) {
        let mut weights = vec![0f32; ROWS * self.columns];
        let rows = tile * ROWS..self.rows.min((tile + 1) * ROWS);
        weights.chunks_exact_mut(self.columns).zip(rows).for_each(|(weights, row)| self.read_row(row, weights));
        // SAFETY: by the contract of this function; the rows were just unpacked.
        unsafe { self.multiply_plain(isa, Float::F32, weights.as_ptr().cast(), tile, columns, products) };
    }

    /// A tile's rows where they are as in the file.
    fn rows_of(&self, tile: usize) -> &[u8] {
        self.plain_rows(tile * ROWS, ROWS.min(self.rows - tile * ROWS))
    }

    fn plain_rows(&self, first: usize, count: usize) -> &[u8] {
        let (Found::Packed(rows) | Found::Rows(rows)) = self.held.part(first * self.row_bytes, count * self.row_bytes);
        rows
    }

    /// # Safety
    ///
    /// As for `multiply`; `weights` are the rows of the tile.
    unsafe fn multiply_plain(&self, isa: Isa, float: Float, weights: *const u8, tile: usize, columns: &Columns, products: Products) {
        let product = PlainProduct {
            float,
            weights,
            rows: ROWS.min(self.rows - tile * ROWS),
            length: self.columns,
            floats: columns.floats,
            stride: columns.stride,
            columns: columns.tokens,
            to: products.to.wrapping_add(tile * ROWS),
            to_stride: products.stride,
            add: products.add,
        };
        // SAFETY: by the contract of this function; the rows lie in the region.
        unsafe { isa.plain_product(&product) };
    }
}

/// A tensor of one row as floats, whatever its type.
pub fn read_floats(view: &TensorView<'_>, to: &mut [f32]) -> Result<(), EngineError> {
    match Weights::of(view.ggml_type) {
        Some(Weights::Plain(float)) => plain_floats(float, view.data, &mut to[..view.columns]),
        _ => {
            let ty = view.ggml_type;
            let message = format!("tensor `{}` of one row has type {ty}; the engine reads such from F32, F16 and BF16", view.name);
            return Err(EngineError::new(Reason::EngineCannotRun, message));
        }
    }
    Ok(())
}

/// A tensor of F32 as it is.
pub fn read_all(view: &TensorView<'_>, to: &mut [f32]) {
    plain_floats(Float::F32, view.data, to);
}

fn plain_floats(float: Float, bytes: &[u8], to: &mut [f32]) {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match float {
        Float::F16 => to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = half::f16::from_le_bytes(pair).to_f32()),
        Float::BF16 => to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = half::bf16::from_le_bytes(pair).to_f32()),
        Float::F32 => {
            for (to, four) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                *to = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
        }
    }
}
