//! Kernels on rows of floats: norm, gated activations, rotation, sums, quantisation. Each is written once over
//! [`Lanes`]; `kernels::Kernels` holds them compiled for each instruction set.

use super::lanes::{Lanes, exp};

/// Bytes of one block of quantised activations for one column: 32 bytes, then scale, scale x sum, and scale x sum of the first half.
pub const BLOCK: usize = 32;
pub const BLOCK_BYTES: usize = 44;

/// `to = from / sqrt(mean(from^2) + epsilon) x weight`. All of one length, `to` may be `from`.
#[inline(always)]
pub unsafe fn norm<L: Lanes>(from: *const f32, weight: *const f32, length: usize, epsilon: f32, to: *mut f32) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(16) {
            let x = L::load(from.add(i));
            squares = L::mul_add(x, x, squares);
        }
        let mut sum = L::sum(squares);
        for i in whole..length {
            sum += *from.add(i) * *from.add(i);
        }
        let factor = 1.0 / (sum / length as f32 + epsilon).sqrt();
        for i in (0..whole).step_by(16) {
            L::store(to.add(i), L::mul(L::mul(L::load(from.add(i)), L::splat(factor)), L::load(weight.add(i))));
        }
        for i in whole..length {
            *to.add(i) = *from.add(i) * factor * *weight.add(i);
        }
    }
}

/// Layer norm: `to = (from - mean(from)) / sqrt(variance(from) + epsilon) x weight + bias`. All of one length, `to` may be `from`.
#[inline(always)]
pub unsafe fn layer_norm<L: Lanes>(from: *const f32, weight: *const f32, bias: *const f32, length: usize, epsilon: f32, to: *mut f32) {
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        let mean = (0..length).fold(0.0, |sum, i| sum + *from.add(i)) / length as f32;
        for i in 0..length {
            *to.add(i) = *from.add(i) - mean;
        }
        norm::<L>(to, weight, length, epsilon, to);
        add_scaled::<L>(to, bias, 1.0, length);
    }
}

/// `row = row / 2 x (1 + erf(row / sqrt(2)))` for `length` floats.
///
/// Source of erf: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26, exact to 1.5e-7.
#[inline(always)]
pub unsafe fn gelu<L: Lanes>(row: *mut f32, length: usize) {
    const COEFFICIENTS: [f32; 4] = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let erf = |x: f32| {
        let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
        let polynomial = COEFFICIENTS.iter().fold(1.061_405_4, |sum, coefficient| sum * t + coefficient);
        (1.0 - polynomial * t * (-x * x).exp()).copysign(x)
    };
    // SAFETY: the caller gives `length` floats.
    unsafe {
        for i in 0..length {
            let x = *row.add(i);
            *row.add(i) = x * 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// `gate = gate / (1 + e^-gate) x up`, for `length` floats.
#[inline(always)]
pub unsafe fn gated_silu<L: Lanes>(gate: *mut f32, up: *const f32, length: usize) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        for i in (0..whole).step_by(16) {
            let x = L::load(gate.add(i));
            let denominator = L::add(L::splat(1.0), exp::<L>(L::sub(L::splat(0.0), x)));
            L::store(gate.add(i), L::mul(L::div(x, denominator), L::load(up.add(i))));
        }
        for i in whole..length {
            let x = *gate.add(i);
            *gate.add(i) = x / (1.0 + (-x).exp()) * *up.add(i);
        }
    }
}

/// `tanh(x)`, as `1 - 2 / (e^2x + 1)`: exact to 1e-7 where x is not tiny, and to 1e-7 absolutely there.
#[inline(always)]
pub unsafe fn tanh<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: the caller's duty, see the docs of `lanes`.
    unsafe {
        let denominator = L::add(exp::<L>(L::add(x, x)), L::splat(1.0));
        L::sub(L::splat(1.0), L::div(L::splat(2.0), denominator))
    }
}

/// `gate = gelu(gate) x up` with GELU's approximation by a hyperbolic tangent, for `length` floats.
#[inline(always)]
pub unsafe fn gated_gelu_tanh<L: Lanes>(gate: *mut f32, up: *const f32, length: usize) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        for i in (0..whole).step_by(16) {
            let x = L::load(gate.add(i));
            let inner = L::mul_add(L::mul(L::mul(x, x), x), L::splat(CUBE), x);
            let factor = L::mul_add(tanh::<L>(L::mul(inner, L::splat(SQRT_2_OVER_PI))), L::splat(0.5), L::splat(0.5));
            L::store(gate.add(i), L::mul(L::mul(x, factor), L::load(up.add(i))));
        }
        for i in whole..length {
            let x = *gate.add(i);
            let factor = 0.5 + 0.5 * (SQRT_2_OVER_PI * (x + CUBE * x * x * x)).tanh();
            *gate.add(i) = x * factor * *up.add(i);
        }
    }
}

/// `gate = min(gate, limit) x sigmoid(alpha x min(gate, limit)) x (clamp(up) + 1)` for `length` floats, up being kept within `-limit` to `limit`.
#[inline(always)]
pub unsafe fn gated_clamped<L: Lanes>(gate: *mut f32, up: *const f32, length: usize, alpha: f32, limit: f32) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        for i in (0..whole).step_by(16) {
            let x = L::min(L::load(gate.add(i)), L::splat(limit));
            let y = L::max(L::min(L::load(up.add(i)), L::splat(limit)), L::splat(-limit));
            let denominator = L::add(L::splat(1.0), exp::<L>(L::mul(x, L::splat(-alpha))));
            L::store(gate.add(i), L::mul(L::div(x, denominator), L::add(y, L::splat(1.0))));
        }
        for i in whole..length {
            let (x, y) = ((*gate.add(i)).min(limit), (*up.add(i)).clamp(-limit, limit));
            *gate.add(i) = x / (1.0 + (-alpha * x).exp()) * (y + 1.0);
        }
    }
}

/// `to = to + from x scale` for `length` floats.
#[inline(always)]
pub unsafe fn add_scaled<L: Lanes>(to: *mut f32, from: *const f32, scale: f32, length: usize) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats at each pointer.
    unsafe {
        for i in (0..whole).step_by(16) {
            L::store(to.add(i), L::mul_add(L::load(from.add(i)), L::splat(scale), L::load(to.add(i))));
        }
        for i in whole..length {
            *to.add(i) += *from.add(i) * scale;
        }
    }
}

/// `row = row x factor` for `length` floats.
#[inline(always)]
pub unsafe fn scale<L: Lanes>(row: *mut f32, factor: f32, length: usize) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats.
    unsafe {
        for i in (0..whole).step_by(16) {
            L::store(row.add(i), L::mul(L::load(row.add(i)), L::splat(factor)));
        }
        for i in whole..length {
            *row.add(i) *= factor;
        }
    }
}

/// `row = cap x tanh(row / cap)` for `length` floats.
#[inline(always)]
pub unsafe fn softcap<L: Lanes>(row: *mut f32, cap: f32, length: usize) {
    let whole = length / 16 * 16;
    // SAFETY: the caller gives `length` floats.
    unsafe {
        for i in (0..whole).step_by(16) {
            L::store(row.add(i), L::mul(tanh::<L>(L::mul(L::load(row.add(i)), L::splat(1.0 / cap))), L::splat(cap)));
        }
        for i in whole..length {
            *row.add(i) = (*row.add(i) / cap).tanh() * cap;
        }
    }
}

/// Turns pairs of each head, element `i` with the one `pairs` further on: `rotation` holds `pairs` cosines, then `pairs` sines. Heads are `head_length`
/// apart.
#[inline(always)]
pub unsafe fn rotate_halves<L: Lanes>(row: *mut f32, heads: usize, head_length: usize, rotation: *const f32, pairs: usize) {
    let whole = pairs / 16 * 16;
    // SAFETY: the caller gives `heads x head_length` floats in the row and `2 x pairs` in the rotation, with `2 x pairs <= head_length`.
    unsafe {
        for head in 0..heads {
            let (low, high) = (row.add(head * head_length), row.add(head * head_length + pairs));
            for i in (0..whole).step_by(16) {
                let (cos, sin) = (L::load(rotation.add(i)), L::load(rotation.add(pairs + i)));
                let (x, y) = (L::load(low.add(i)), L::load(high.add(i)));
                L::store(low.add(i), L::sub(L::mul(x, cos), L::mul(y, sin)));
                L::store(high.add(i), L::mul_add(x, sin, L::mul(y, cos)));
            }
            for i in whole..pairs {
                let (cos, sin) = (*rotation.add(i), *rotation.add(pairs + i));
                let (x, y) = (*low.add(i), *high.add(i));
                *low.add(i) = x * cos - y * sin;
                *high.add(i) = x * sin + y * cos;
            }
        }
    }
}

/// Turns neighbouring pairs of each head: `rotation` holds `pairs` cosines, then `pairs` sines. Heads are `head_length` apart.
#[inline(always)]
pub unsafe fn rotate<L: Lanes>(row: *mut f32, heads: usize, head_length: usize, rotation: *const f32, pairs: usize) {
    // SAFETY: the caller gives `heads x head_length` floats in the row and `2 x pairs` in the rotation, with `2 x pairs <= head_length`.
    unsafe {
        for head in 0..heads {
            let at = row.add(head * head_length);
            for i in 0..pairs {
                let (cos, sin) = (*rotation.add(i), *rotation.add(pairs + i));
                let (x, y) = (*at.add(2 * i), *at.add(2 * i + 1));
                *at.add(2 * i) = x * cos - y * sin;
                *at.add(2 * i + 1) = x * sin + y * cos;
            }
        }
    }
}

/// Quantises a row of `length` floats (a multiple of 32) to 8 bits, as column `column` of a group of `columns`.
///
/// A group holds, for each block of 32: eight times the 4 bytes of each column, each column's scale, scale x sum, and scale x sum of the first 16. So
/// one broadcast of 4 bytes meets 4 weights of each row of a tile.
#[inline(always)]
pub unsafe fn quantise<L: Lanes>(row: *const f32, length: usize, column: usize, columns: usize, group: *mut u8) {
    let mut bytes = [0u32; 8];
    // SAFETY: the caller gives `length` floats, and a group of `length / 32 x columns x BLOCK_BYTES` bytes, aligned to 4.
    unsafe {
        for block in 0..length / BLOCK {
            let low = L::load(row.add(block * BLOCK));
            let high = L::load(row.add(block * BLOCK + 16));
            let scale = L::greatest(L::max(L::abs(low), L::abs(high))) / 127.0;
            let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
            let first = L::store_bytes(bytes.as_mut_ptr().cast(), L::mul(low, inverse));
            let second = L::store_bytes(bytes.as_mut_ptr().add(4).cast(), L::mul(high, inverse));
            let to = group.add(block * columns * BLOCK_BYTES).cast::<u32>().add(column);
            for (i, &four) in bytes.iter().enumerate() {
                *to.add(i * columns) = four;
            }
            let scales = to.add(8 * columns).cast::<f32>();
            *scales = scale;
            *scales.add(columns) = scale * (first + second) as f32;
            *scales.add(2 * columns) = scale * first as f32;
        }
    }
}
