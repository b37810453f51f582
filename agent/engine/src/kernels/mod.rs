//! Arithmetic on the CPU, for the instructions that it has. What exists once over `Lanes` is compiled here for each instruction set; products of
//! quantised weights have a file for each.
//!
//! Everything here works on memory that its caller owns, and keeps none.

// One index for several arrays is how kernels are read, and how they are compared with each other.
#![allow(clippy::needless_range_loop)]
// On CPUs without vector instructions that we use, what describes tiles to them is not used.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_macros, unused_variables))]

use std::ops::Range;
use std::str::FromStr;

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub mod cached;
pub mod format;
mod hadamard;
pub mod held;
mod lanes;
pub mod matrix;
pub mod packing;
mod plain;
mod product;
#[cfg(target_arch = "x86_64")]
mod reading;
#[cfg(target_arch = "x86_64")]
mod registers;
mod rows;
mod scalar;
#[cfg(test)]
pub(crate) mod tests;
pub mod tile;

pub use attention::{Head, Query, Softmax};
pub use rows::{BLOCK, BLOCK_BYTES};
pub use tile::ROWS;

use self::format::Format;
use self::plain::{Float, PlainProduct};
use self::product::TileProduct;
use self::tile::Panel;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with products of bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// An instruction set that this CPU has: no other can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Isa, String> {
        let here = Isa::available();
        here.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<&str> = here.iter().map(|isa| isa.name()).collect();
            format!("this CPU has no kernels named `{name}`; it has {}", names.join(", "))
        })
    }
}

/// A method of `Isa` that calls a kernel of one of the modules above, compiled for the instruction set.
macro_rules! compiled {
    ($($(#[$doc:meta])* $module:ident::$name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {
        $($(#[$doc])*
        pub unsafe fn $name(self, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                // SAFETY: passed on to the caller.
                unsafe { $module::$name::<lanes::Avx2>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                // SAFETY: passed on to the caller.
                unsafe { $module::$name::<lanes::Avx512>($($argument),*) }
            }
            // SAFETY: the CPU has what `self` says, since `Isa::available` looked; the rest is passed on to the caller.
            unsafe {
                match self.0 {
                    Level::Scalar => $module::$name::<lanes::Scalar>($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 | Level::Avx512Bf16 => avx512($($argument),*),
                }
            }
        })+
    };
}

impl Isa {
    /// What this CPU has, the fastest first and plain Rust last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut levels = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            levels.insert(0, Isa(Level::Avx2));
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if wide
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.insert(0, Isa(Level::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    levels.insert(0, Isa(Level::Avx512Bf16));
                }
            }
        }
        levels
    }

    /// The fastest that this CPU has.
    pub fn best() -> Isa {
        Isa::available().first().copied().unwrap_or(Isa(Level::Scalar))
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// How many columns stand together in a group where there are `tokens` of them.
    pub fn group_width(self, tokens: usize) -> usize {
        match (self.0, tokens) {
            (_, 1) => 1,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx512Bf16, 5..) => 8,
            _ => 4,
        }
    }

    /// Whether one group is multiplied with tiles as they lie in memory. Else they are unpacked for it, as they are for several.
    fn multiplies_tiles(self) -> bool {
        self.0 != Level::Scalar
    }

    /// A tile times one group.
    ///
    /// # Safety
    ///
    /// The product's pointers have what `TileProduct` says, and `multiplies_tiles`.
    unsafe fn tile_product(self, format: Format, product: &TileProduct) {
        // SAFETY: the CPU has what `self` says; the rest is passed on to the caller.
        unsafe {
            match self.0 {
                Level::Scalar => scalar::panel_product(product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::tile_product(format, product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 => avx512::tile_product(format, product),
            }
        }
    }

    /// Unpacks blocks of 32 columns of a tile for `panel_product`. The panels are as this instruction set has them.
    fn unpack(self, format: Format, tile: &[u8], blocks: Range<usize>, panels: &mut [Panel]) {
        assert!(blocks.end.div_ceil(format.subs()) * format.bytes() <= tile.len() && blocks.len() <= panels.len(), "blocks are there");
        match self.0 {
            Level::Scalar => blocks.zip(panels).for_each(|(block, panel)| tile::unpack(format, tile, block, 0..ROWS, panel)),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what `self` says, and the tile has the blocks.
            Level::Avx2 => unsafe { avx2::unpack(format, tile.as_ptr(), blocks, panels) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 | Level::Avx512Bf16 => unsafe { avx512::unpack(format, tile.as_ptr(), blocks, panels) },
        }
    }

    /// Panels that `unpack` made times one group.
    ///
    /// # Safety
    ///
    /// The product's pointers have what `TileProduct` says, the tile being panels.
    unsafe fn panel_product(self, format: Format, product: &TileProduct) {
        // SAFETY: the CPU has what `self` says; the rest is passed on to the caller.
        unsafe {
            match self.0 {
                Level::Scalar => scalar::panel_product(product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::panel_product(format, product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 => avx512::panel_product(format, product),
            }
        }
    }

    /// Rows of plain floats times some columns.
    ///
    /// # Safety
    ///
    /// The pointers have what `PlainProduct` says.
    unsafe fn plain_product(self, product: &PlainProduct) {
        // SAFETY: the CPU has what `self` says; the rest is passed on to the caller.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 if product.float == Float::BF16 => bf16::product(product),
                // Shorter registers read memory faster (a Zen 4: 30 GB/s instead of 22), and sum in the same order.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 if product.float == Float::BF16 && product.columns == 1 => Isa(Level::Avx2).exact_plain_product(product),
                _ => self.exact_plain_product(product),
            }
        }
    }

    compiled! {
        /// See `rows::norm`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::norm(from: *const f32, weight: *const f32, length: usize, epsilon: f32, to: *mut f32);
        /// See `rows::gated_silu`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::gated_silu(gate: *mut f32, up: *const f32, length: usize);
        /// See `rows::layer_norm`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::layer_norm(from: *const f32, weight: *const f32, bias: *const f32, length: usize, epsilon: f32, to: *mut f32);
        /// See `rows::gelu`.
        ///
        /// # Safety
        ///
        /// The row has `length` floats.
        rows::gelu(row: *mut f32, length: usize);
        /// See `rows::gated_gelu_tanh`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::gated_gelu_tanh(gate: *mut f32, up: *const f32, length: usize);
        /// See `rows::gated_clamped`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::gated_clamped(gate: *mut f32, up: *const f32, length: usize, alpha: f32, limit: f32);
        /// See `rows::add_scaled`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` floats.
        rows::add_scaled(to: *mut f32, from: *const f32, scale: f32, length: usize);
        /// See `hadamard::hadamard`.
        ///
        /// # Safety
        ///
        /// The row has `length` floats, a multiple of 32.
        hadamard::hadamard(row: *mut f32, length: usize);
        /// See `rows::scale`.
        ///
        /// # Safety
        ///
        /// The row has `length` floats.
        rows::scale(row: *mut f32, factor: f32, length: usize);
        /// See `rows::softcap`.
        ///
        /// # Safety
        ///
        /// The row has `length` floats.
        rows::softcap(row: *mut f32, cap: f32, length: usize);
        /// See `rows::rotate_halves`.
        ///
        /// # Safety
        ///
        /// As for `rotate`.
        rows::rotate_halves(row: *mut f32, heads: usize, head_length: usize, rotation: *const f32, pairs: usize);
        /// See `rows::rotate`.
        ///
        /// # Safety
        ///
        /// The row has `heads x head_length` floats, the rotation `2 x pairs`, and `2 x pairs` is at most `head_length`.
        rows::rotate(row: *mut f32, heads: usize, head_length: usize, rotation: *const f32, pairs: usize);
        /// See `rows::quantise`.
        ///
        /// # Safety
        ///
        /// The row has `length` floats, a multiple of 32; the group has room for `columns` columns of them; `column` is one of these.
        rows::quantise(row: *const f32, length: usize, column: usize, columns: usize, group: *mut u8);
        /// See `plain::exact_plain_product`.
        ///
        /// # Safety
        ///
        /// The pointers have what `PlainProduct` says.
        plain::exact_plain_product(product: &PlainProduct);
        /// See `attention::attend`.
        ///
        /// # Safety
        ///
        /// Vectors and cache have the sizes in `head`, and the cache as many positions as the queries see, in whole 16s.
        attention::attend(head: &Head, queries: &[Query]);
    }
}
