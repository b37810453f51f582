// Operations on rows of activations, one row a token: `blockIdx.x` is the row, `blockIdx.y` the part of it.
#include "prelude.cuh"

#define ROW_THREADS 128

// Rows in 8 bits: of each 16 elements a scale, and the scale times the sum of the codes. Null: they are not wanted.
struct Quantised {
    s8 *codes;
    float2 *scales;
};

// Brings an element into 8 bits, with its 16 neighbours in half a warp. `at` counts all elements of all rows.
static __device__ __forceinline__ void quantise_element(const Quantised &to, u64 at, float x) {
    float most = fabsf(x);
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, distance));
    int code = int(rintf(x * (most == 0.0f ? 0.0f : 127.0f / most))), sum = code;
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, distance);
    to.codes[at] = s8(code);
    float scale = most / 127.0f;
    if (at % 16 == 0) to.scales[at / 16] = make_float2(scale, scale * float(sum));
}

// Norms each of `parts` parts of a row. With a bias it is layer norm, else RMS norm.
struct NormArguments {
    const float *from;
    float *to;
    const float *weight;
    const float *bias;
    // Rows that are read, where they are not those that are written.
    const u32 *rows;
    u32 from_stride;
    u32 to_stride;
    u32 length;
    float epsilon;
    Quantised quantised;
};

KERNEL(norm_rows, NormArguments, ROW_THREADS) {
    SHARED_MEMORY(float, room);
    u32 row = a.rows == nullptr ? blockIdx.x : a.rows[blockIdx.x];
    const float *from = a.from + u64(row) * a.from_stride + blockIdx.y * a.length;
    float *to = a.to + u64(blockIdx.x) * a.to_stride + blockIdx.y * a.length;
    float sum = 0.0f;
    if (a.bias != nullptr) {
        for (u32 i = threadIdx.x; i < a.length; i += ROW_THREADS) sum += from[i];
        sum = block_sum(sum, room);
    }
    float mean = sum / float(a.length), squares = 0.0f;
    for (u32 i = threadIdx.x; i < a.length; i += ROW_THREADS) squares += (from[i] - mean) * (from[i] - mean);
    squares = block_sum(squares, room + ROW_THREADS / WARP);
    float scale = 1.0f / sqrtf(squares / float(a.length) + a.epsilon);
    for (u32 i = threadIdx.x; i < a.length; i += ROW_THREADS) {
        float normed = (from[i] - mean) * scale * a.weight[i];
        if (a.bias != nullptr) normed += a.bias[i];
        to[i] = normed;
        // Rows that are quantised are whole 32 elements long: no lane of a warp is missing.
        if (a.quantised.codes != nullptr) quantise_element(a.quantised, u64(blockIdx.x) * a.length + i, normed);
    }
}

// Brings rows of whole 32 elements into 8 bits.
struct QuantiseArguments {
    const float *from;
    Quantised to;
    u32 stride;
    u32 length;
};

KERNEL(quantise, QuantiseArguments, ROW_THREADS) {
    u32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i < a.length) quantise_element(a.to, u64(blockIdx.x) * a.length + i, a.from[u64(blockIdx.x) * a.stride + i]);
}

// Brings rows into half precision, each divided by a power of two that makes its largest element at most 1, and filled up with zeros.
struct HalveArguments {
    const float *from;
    u16 *halves;
    float *scales;
    u32 stride;
    u32 length;
    u32 padded;
};

KERNEL(halve, HalveArguments, ROW_THREADS) {
    SHARED_MEMORY(float, room);
    const float *from = a.from + u64(blockIdx.x) * a.stride;
    u16 *to = a.halves + u64(blockIdx.x) * a.padded;
    float most = 0.0f;
    for (u32 i = threadIdx.x; i < a.length; i += ROW_THREADS) most = fmaxf(most, fabsf(from[i]));
    most = block_max(most, room);
    int exponent = 0;
    if (most > 0.0f) frexpf(most, &exponent);
    // Both it and its inverse are normal numbers.
    exponent = min(max(exponent, -126), 126);
    float scale = ldexpf(1.0f, exponent), inverse = ldexpf(1.0f, -exponent);
    for (u32 i = threadIdx.x; i < a.padded; i += ROW_THREADS) to[i] = i < a.length ? float_to_half(from[i] * inverse) : u16(0);
    if (threadIdx.x == 0) a.scales[blockIdx.x] = scale;
}

// `gate = activation(gate) x up`
struct ActivateArguments {
    float *gate;
    const float *up;
    u32 stride;
    u32 length;
    // 0: silu; 1: gelu by a hyperbolic tangent; 2: clamped; 3: gelu by the error function, without `up`.
    u32 activation;
    float alpha;
    float limit;
    Quantised quantised;
};

static __device__ __forceinline__ float activated(const ActivateArguments &a, float gate, float up) {
    switch (a.activation) {
        case 0: return gate * sigmoid(gate) * up;
        case 1: return 0.5f * gate * (1.0f + tanhf(0.7978845608f * gate * (1.0f + 0.044715f * gate * gate))) * up;
        case 2:
            gate = fminf(gate, a.limit);
            return gate * sigmoid(a.alpha * gate) * (fminf(fmaxf(up, -a.limit), a.limit) + 1.0f);
        default: return 0.5f * gate * (1.0f + erff(gate * 0.7071067812f));
    }
}

KERNEL(activate, ActivateArguments, ROW_THREADS) {
    u32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i >= a.length) return;
    u64 at = u64(blockIdx.x) * a.stride + i;
    float x = activated(a, a.gate[at], a.up == nullptr ? 0.0f : a.up[at]);
    a.gate[at] = x;
    if (a.quantised.codes != nullptr) quantise_element(a.quantised, u64(blockIdx.x) * a.length + i, x);
}

// `to = to + from x scale`, or where there is `by`, `to = to x sigmoid(by)` with one number a row.
struct CombineArguments {
    float *to;
    const float *from;
    const float *by;
    u32 stride;
    u32 length;
    float scale;
};

KERNEL(combine, CombineArguments, ROW_THREADS) {
    u32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i >= a.length) return;
    u64 at = u64(blockIdx.x) * a.stride + i;
    a.to[at] = a.by == nullptr ? a.to[at] + a.from[at] * a.scale : a.to[at] * sigmoid(a.by[blockIdx.x]);
}

// `softcap x tanh(x scale / softcap)`, or without a softcap `x scale`.
struct CapArguments {
    float *values;
    u64 count;
    float scale;
    float softcap;
};

KERNEL(cap, CapArguments, ROW_THREADS) {
    u64 i = u64(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (i < a.count) a.values[i] = softcapped(a.values[i] * a.scale, a.softcap);
}

// Of each token the cosines, then the sines, of its position's angles.
struct RotationsArguments {
    const float *frequencies;
    const Token *tokens;
    float *to;
    u32 stride;
    u32 pairs;
    float magnitude;
};

KERNEL(rotations, RotationsArguments, ROW_THREADS) {
    u32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i >= a.pairs) return;
    // What is left of a whole number of turns is found in double precision, so that far positions are as exact as near ones.
    const double turn = 6.283185307179586;
    double angle = double(a.tokens[blockIdx.x].position) * double(a.frequencies[i]);
    float rest = float(angle - turn * rint(angle / turn));
    float *to = a.to + u64(blockIdx.x) * a.stride;
    to[i] = cosf(rest) * a.magnitude;
    to[a.pairs + i] = sinf(rest) * a.magnitude;
}
