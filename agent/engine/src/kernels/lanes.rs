//! Sixteen floats at once, in whatever registers the CPU has. Kernels written over [`Lanes`] exist once and are compiled for each instruction set;
//! the scalar one is their twin.
//!
//! The functions are unsafe because the CPU must have the instructions, which `Isa::detect` found out, and because some read memory. All are inlined
//! into a function that enables the instructions.

/// Operations on sixteen f32.
pub trait Lanes {
    type V: Copy;
    /// Whether there are 32 registers of 16 floats, so that kernels may hold twice as many sums.
    const WIDE: bool = false;

    unsafe fn splat(value: f32) -> Self::V;
    /// Reads 16 floats.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Reads 16 half-precision floats.
    unsafe fn load_half(from: *const u16) -> Self::V;
    /// Reads 16 bfloat16s.
    unsafe fn load_bfloat(from: *const u16) -> Self::V;
    /// Writes 16 floats.
    unsafe fn store(to: *mut f32, value: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a x b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a x 2^n` for integers n from -126 to 127.
    unsafe fn times_power_of_two(a: Self::V, n: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn greatest(a: Self::V) -> f32;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// Rounds to integers from -127 to 127, writes them as bytes and returns their sum.
    unsafe fn store_bytes(to: *mut i8, value: Self::V) -> i32;
}

/// `e^x`, for x up to 88; 0 to within 1e-38 below -87.
///
/// Source: the polynomial of Cephes' `expf`. Largest relative error found over -87 to 88: 2e-7.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    const COEFFICIENTS: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: the caller's duty, see the module's docs.
    unsafe {
        let x = L::max(L::min(x, L::splat(88.0)), L::splat(-87.0));
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first with few enough bits that n times it is exact.
        let r = L::mul_add(n, L::splat(-0.693_359_4), x);
        let r = L::mul_add(n, L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in COEFFICIENTS {
            p = L::mul_add(p, r, L::splat(coefficient));
        }
        let p = L::mul_add(p, L::mul(r, r), L::add(r, L::splat(1.0)));
        L::times_power_of_two(p, n)
    }
}

/// Plain Rust, on any CPU.
pub struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    std::array::from_fn(f)
}

impl Lanes for Scalar {
    type V = [f32; 16];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 16] {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 16] {
        // SAFETY: the caller gives 16 floats.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> [f32; 16] {
        // SAFETY: the caller gives 16 numbers.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        each(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bfloat(from: *const u16) -> [f32; 16] {
        // SAFETY: the caller gives 16 numbers.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; 16]) {
        // SAFETY: the caller gives room for 16 floats.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        // Two roundings: without the instruction, `f32::mul_add` is a call for each number.
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn times_power_of_two(a: [f32; 16], n: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn sum(a: [f32; 16]) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn greatest(a: [f32; 16]) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |greatest, &value| greatest.max(value))
    }
    #[inline(always)]
    unsafe fn abs(a: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, value: [f32; 16]) -> i32 {
        let bytes: [i8; 16] = std::array::from_fn(|i| value[i].round_ties_even() as i8);
        // SAFETY: the caller gives room for 16 bytes.
        unsafe { to.cast::<[i8; 16]>().write_unaligned(bytes) }
        bytes.iter().map(|&byte| i32::from(byte)).sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    macro_rules! lanes {
        ($(unsafe fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block)+) => {
            $(#[inline(always)]
            unsafe fn $name($($argument: $type),*) $(-> $result)? {
                // SAFETY: the caller made sure of the instructions and of the memory, see the module's docs.
                unsafe { $body }
            })+
        };
    }

    /// One register of 512 bits.
    pub struct Avx512;

    impl Lanes for Avx512 {
        type V = __m512;
        const WIDE: bool = true;

        lanes! {
            unsafe fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
            unsafe fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
            unsafe fn load_half(from: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            unsafe fn load_bfloat(from: *const u16) -> __m512 {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
            }
            unsafe fn store(to: *mut f32, value: __m512) { _mm512_storeu_ps(to, value) }
            unsafe fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            unsafe fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            unsafe fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            unsafe fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            unsafe fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            unsafe fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
            unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            unsafe fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<8>(a) }
            unsafe fn times_power_of_two(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
            unsafe fn sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
            unsafe fn greatest(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
            unsafe fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
            unsafe fn store_bytes(to: *mut i8, value: __m512) -> i32 {
                let integers = _mm512_cvtps_epi32(value);
                _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(integers));
                _mm512_reduce_add_epi32(integers)
            }
        }
    }

    /// Two registers of 256 bits.
    pub struct Avx2;

    macro_rules! both {
        ($f:ident, $($argument:expr),+) => { [$f($($argument[0]),+), $f($($argument[1]),+)] };
    }

    impl Lanes for Avx2 {
        type V = [__m256; 2];

        lanes! {
            unsafe fn splat(value: f32) -> [__m256; 2] { [_mm256_set1_ps(value); 2] }
            unsafe fn load(from: *const f32) -> [__m256; 2] { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
            unsafe fn load_half(from: *const u16) -> [__m256; 2] {
                [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))]
            }
            unsafe fn load_bfloat(from: *const u16) -> [__m256; 2] {
                let widened = |from: *const u16| _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())));
                [_mm256_castsi256_ps(widened(from)), _mm256_castsi256_ps(widened(from.add(8)))]
            }
            unsafe fn store(to: *mut f32, value: [__m256; 2]) {
                _mm256_storeu_ps(to, value[0]);
                _mm256_storeu_ps(to.add(8), value[1])
            }
            unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_add_ps, a, b) }
            unsafe fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_sub_ps, a, b) }
            unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_mul_ps, a, b) }
            unsafe fn div(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_div_ps, a, b) }
            unsafe fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_max_ps, a, b) }
            unsafe fn min(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(_mm256_min_ps, a, b) }
            unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] { both!(_mm256_fmadd_ps, a, b, c) }
            unsafe fn round(a: [__m256; 2]) -> [__m256; 2] { [_mm256_round_ps::<8>(a[0]), _mm256_round_ps::<8>(a[1])] }
            unsafe fn times_power_of_two(a: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
                let power = |n: __m256| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127))));
                [_mm256_mul_ps(a[0], power(n[0])), _mm256_mul_ps(a[1], power(n[1]))]
            }
            unsafe fn sum(a: [__m256; 2]) -> f32 {
                let a = _mm256_add_ps(a[0], a[1]);
                let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
            }
            unsafe fn greatest(a: [__m256; 2]) -> f32 {
                let a = _mm256_max_ps(a[0], a[1]);
                let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
            }
            unsafe fn abs(a: [__m256; 2]) -> [__m256; 2] {
                let sign = _mm256_set1_ps(-0.0);
                [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
            }
            unsafe fn store_bytes(to: *mut i8, value: [__m256; 2]) -> i32 {
                let integers = both!(_mm256_cvtps_epi32, value);
                // packs works within each half of 128 bits, so the order is put right after the first of the two.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(integers[0], integers[1]));
                let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(to.cast(), bytes);
                let sums = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
                let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
                _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums)))
            }
        }
    }
}
