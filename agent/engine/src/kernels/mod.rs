//! Arithmetic on the CPU, for the instructions that it has. What exists once over `Lanes` is compiled here for each instruction set; products of
//! quantised weights have a file for each.
//!
//! Everything here works on memory that its caller owns, and keeps none.

// One index for several arrays is how kernels are read, and how they are compared with each other.
#![allow(clippy::needless_range_loop)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cached;
mod hadamard;
mod lanes;
pub mod matrix;
mod product;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;
mod tile;

pub use attention::{Head, Query};
pub use product::{Format, TileProduct};
pub use rows::{BLOCK, BLOCK_BYTES};
pub use tile::ROWS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// An instruction set that this CPU has: no other can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

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
                    Level::Avx512 => avx512($($argument),*),
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
        }
    }

    /// How many columns stand together in a group where there are `tokens` of them.
    pub fn group_width(self, tokens: usize) -> usize {
        match (self.0, tokens) {
            (_, 1) => 1,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 5..) => 8,
            _ => 4,
        }
    }

    /// Whether the format's tiles are multiplied as they are; others are unpacked into panels first.
    pub fn multiplies(self, format: Format) -> bool {
        !format.is_panel() && self.0 != Level::Scalar
    }

    /// One tile times one group.
    ///
    /// # Safety
    ///
    /// The product's pointers have what `TileProduct` says; the format is a panel, or one that this instruction set multiplies.
    pub unsafe fn tile_product(self, format: Format, product: &TileProduct) {
        // SAFETY: the CPU has what `self` says; the rest is passed on to the caller.
        unsafe {
            match self.0 {
                Level::Scalar => scalar::panel_product(product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::tile_product(format, product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::tile_product(format, product),
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
        /// See `rows::dot_f32`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` numbers.
        rows::dot_f32(a: *const f32, b: *const f32, length: usize) -> f32;
        /// See `rows::dot_f16`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` numbers.
        rows::dot_f16(a: *const u16, b: *const f32, length: usize) -> f32;
        /// See `rows::dot_bf16`.
        ///
        /// # Safety
        ///
        /// Each pointer has `length` numbers.
        rows::dot_bf16(a: *const u16, b: *const f32, length: usize) -> f32;
        /// See `attention::attend`.
        ///
        /// # Safety
        ///
        /// Vectors and cache have the sizes in `head`, and the cache as many positions as the queries see, in whole 16s.
        attention::attend(head: &Head, queries: &[Query]);
    }
}
