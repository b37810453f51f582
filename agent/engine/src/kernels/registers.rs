//! The vector registers that tiles are read into, for what is written once and compiled for each instruction set.
//!
//! The functions are unsafe because the CPU must have the instructions, and because some read memory. All are inlined into a function that enables them.

use std::arch::x86_64::*;

use super::tile::ROWS;

/// Registers of 4 columns of 8 or 16 rows.
pub trait Registers {
    /// 4 bytes of each row.
    type Bytes: Copy;
    /// A number of each row.
    type Floats: Copy;
    /// How many of them have a tile's rows.
    const SIDES: usize;
    /// Whether products take weights that fill their byte without a sign: 128 is added to them.
    const UNSIGNED: bool;
    /// How many bytes ahead of its use a tile is asked for. CPUs with nothing but AVX2 read faster so (a Zen 3: 20 GB/s a core instead of 14), later
    /// ones slower (a Zen 4: 30 instead of 36).
    const AHEAD: Option<usize>;

    unsafe fn load(from: *const u8) -> Self::Bytes;
    unsafe fn store(to: *mut u8, bytes: Self::Bytes);
    unsafe fn splat(byte: u8) -> Self::Bytes;
    unsafe fn and(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    unsafe fn xor(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Shifts pairs of bytes to the left, or to the right where `by` is negative. Bits go over from byte to byte.
    unsafe fn shift(a: Self::Bytes, by: i32) -> Self::Bytes;
    /// What the table has for each byte, all of which are below 16.
    unsafe fn look_up(table: &[i8; 16], codes: Self::Bytes) -> Self::Bytes;

    /// Reads a half-precision number of each row.
    unsafe fn load_halves(from: *const u8) -> Self::Floats;
    /// Of a byte for each of 16 rows, those of one side, in the lowest bytes.
    unsafe fn of_side(bytes: __m128i, side: usize) -> __m128i;
    /// Signed bytes, one a row, as floats.
    unsafe fn floats(bytes: __m128i) -> Self::Floats;
    /// `2^(exponent - 128)` for a byte a row, at least `2^-126`.
    unsafe fn powers_of_two_halved(exponents: __m128i) -> Self::Floats;
    unsafe fn splat_float(value: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn store_floats(to: *mut f32, value: Self::Floats);
}

macro_rules! registers {
    ($(unsafe fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block)+) => {
        $(#[inline(always)]
        unsafe fn $name($($argument: $type),*) $(-> $result)? {
            // SAFETY: the caller made sure of the instructions and of the memory, see the module's docs.
            unsafe { $body }
        })+
    };
}

/// Registers of 256 bits.
pub struct Avx2;

impl Registers for Avx2 {
    type Bytes = __m256i;
    type Floats = __m256;
    const SIDES: usize = 2;
    const UNSIGNED: bool = false;
    const AHEAD: Option<usize> = Some(3072);

    registers! {
        unsafe fn load(from: *const u8) -> __m256i { _mm256_loadu_si256(from.cast()) }
        unsafe fn store(to: *mut u8, bytes: __m256i) { _mm256_storeu_si256(to.cast(), bytes) }
        unsafe fn splat(byte: u8) -> __m256i { _mm256_set1_epi8(byte as i8) }
        unsafe fn and(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        unsafe fn xor(a: __m256i, b: __m256i) -> __m256i { _mm256_xor_si256(a, b) }
        unsafe fn shift(a: __m256i, by: i32) -> __m256i {
            if by >= 0 { _mm256_sll_epi16(a, _mm_cvtsi32_si128(by)) } else { _mm256_srl_epi16(a, _mm_cvtsi32_si128(-by)) }
        }
        unsafe fn look_up(table: &[i8; 16], codes: __m256i) -> __m256i {
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), codes)
        }
        unsafe fn load_halves(from: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        unsafe fn of_side(bytes: __m128i, side: usize) -> __m128i { if side == 0 { bytes } else { _mm_srli_si128::<8>(bytes) } }
        unsafe fn floats(bytes: __m128i) -> __m256 { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) }
        unsafe fn powers_of_two_halved(exponents: __m128i) -> __m256 {
            let exponents = _mm256_max_epi32(_mm256_cvtepu8_epi32(exponents), _mm256_set1_epi32(2));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1))))
        }
        unsafe fn splat_float(value: f32) -> __m256 { _mm256_set1_ps(value) }
        unsafe fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        unsafe fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        unsafe fn store_floats(to: *mut f32, value: __m256) { _mm256_storeu_ps(to, value) }
    }
}

/// Registers of 512 bits.
pub struct Avx512;

impl Registers for Avx512 {
    type Bytes = __m512i;
    type Floats = __m512;
    const SIDES: usize = 1;
    const UNSIGNED: bool = true;
    const AHEAD: Option<usize> = None;

    #[inline(always)]
    unsafe fn of_side(bytes: __m128i, _side: usize) -> __m128i {
        bytes
    }

    registers! {
        unsafe fn load(from: *const u8) -> __m512i { _mm512_loadu_si512(from.cast()) }
        unsafe fn store(to: *mut u8, bytes: __m512i) { _mm512_storeu_si512(to.cast(), bytes) }
        unsafe fn splat(byte: u8) -> __m512i { _mm512_set1_epi8(byte as i8) }
        unsafe fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        unsafe fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        unsafe fn xor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        unsafe fn shift(a: __m512i, by: i32) -> __m512i {
            if by >= 0 { _mm512_sll_epi16(a, _mm_cvtsi32_si128(by)) } else { _mm512_srl_epi16(a, _mm_cvtsi32_si128(-by)) }
        }
        unsafe fn look_up(table: &[i8; 16], codes: __m512i) -> __m512i {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), codes)
        }
        unsafe fn load_halves(from: *const u8) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        unsafe fn floats(bytes: __m128i) -> __m512 { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)) }
        unsafe fn powers_of_two_halved(exponents: __m128i) -> __m512 {
            let exponents = _mm512_max_epi32(_mm512_cvtepu8_epi32(exponents), _mm512_set1_epi32(2));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1))))
        }
        unsafe fn splat_float(value: f32) -> __m512 { _mm512_set1_ps(value) }
        unsafe fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        unsafe fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        unsafe fn store_floats(to: *mut f32, value: __m512) { _mm512_storeu_ps(to, value) }
    }
}

/// A side's first byte of what has `bytes` a row.
#[inline(always)]
pub fn of_side<R: Registers>(t: *const u8, side: usize, bytes: usize) -> *const u8 {
    t.wrapping_add(side * (ROWS / R::SIDES) * bytes)
}
