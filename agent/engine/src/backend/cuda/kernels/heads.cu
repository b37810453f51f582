// Heads of queries, keys and values on their way to attention: normed, turned by their position, spread where the cache is quantised; keys and values then go
// into the cache, queries back to where they came from.
#include "cache.cuh"

#define HEAD_THREADS 128

struct HeadsArguments {
    Cache cache;
    float *query;
    const float *key;
    const float *value;
    const Token *tokens;
    // The norms' weights, of the length of a key; null: none.
    const float *query_norm;
    const float *key_norm;
    // Cosines and sines of the tokens' positions; null: nothing is turned.
    const float *rotations;
    u32 rotation_stride;
    u32 pairs;
    // Whether pairs are neighbours, or `pairs` apart.
    u32 neighbours;
    u32 heads;
    u32 query_stride;
    u32 key_stride;
    u32 value_stride;
    float epsilon;
};

// The Walsh-Hadamard transform of each run as long as the largest power of two in `length`: outliers are spread over all elements before few bits hold them. It
// is its own inverse.
static __device__ __forceinline__ void spread(float *x, u32 length) {
    u32 run = length & (~length + 1);
    for (u32 distance = 1; distance < run; distance *= 2) {
        for (u32 i = threadIdx.x; i < length / 2; i += HEAD_THREADS) {
            u32 at = i / distance * 2 * distance + i % distance;
            float first = x[at], second = x[at + distance];
            x[at] = first + second;
            x[at + distance] = first - second;
        }
        __syncthreads();
    }
    float scale = 1.0f / sqrtf(float(run));
    for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) x[i] *= scale;
    __syncthreads();
}

static __device__ __forceinline__ void norm_head(float *x, u32 length, const float *weight, float epsilon, float *room) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(block_sum(squares, room) / float(length) + epsilon);
    for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) x[i] *= scale * weight[i];
    __syncthreads();
}

static __device__ __forceinline__ void turn_head(float *x, const HeadsArguments &a, u32 row) {
    const float *rotation = a.rotations + u64(row) * a.rotation_stride;
    for (u32 i = threadIdx.x; i < a.pairs; i += HEAD_THREADS) {
        u32 first = a.neighbours ? 2 * i : i, second = a.neighbours ? 2 * i + 1 : i + a.pairs;
        float cosine = rotation[i], sine = rotation[a.pairs + i], x0 = x[first], x1 = x[second];
        x[first] = x0 * cosine - x1 * sine;
        x[second] = x0 * sine + x1 * cosine;
    }
    __syncthreads();
}

// A warp quantises a block of 32, as ggml does (quantize_row_q8_0_ref, quantize_row_q4_0_ref).
static __device__ __forceinline__ void remember_block(const Cache &cache, u8 *to, u32 length, u32 cell, u32 block, float x) {
    u32 lane = threadIdx.x % WARP;
    float largest = warp_max(x), smallest = -warp_max(-x);
    float most = largest >= -smallest ? largest : smallest;
    float scale = cache.type == CACHE_Q8_0 ? fabsf(most) / 127.0f : most / -8.0f;
    float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    u64 first = u64(cell) * length + block * CACHE_BLOCK;
    if (cache.type == CACHE_Q8_0) {
        to[first + lane] = u8(int(roundf(x * inverse)));
    } else {
        int code = min(max(int(x * inverse + 8.5f), 0), 15);
        int high = __shfl_xor_sync(FULL_WARP, code, 16);
        if (lane < 16) to[first / 2 + lane] = u8(code | high << 4);
    }
    if (lane == 0) cached_scales(cache, to, length, cell)[block] = float_to_half(scale);
}

static __device__ __forceinline__ void remember(const Cache &cache, u8 *to, u32 length, u32 cell, const float *x) {
    if (cache.type == CACHE_F16) {
        u16 *halves = reinterpret_cast<u16 *>(to) + u64(cell) * length;
        for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) halves[i] = float_to_half(x[i]);
        return;
    }
    for (u32 block = threadIdx.x / WARP; block < length / CACHE_BLOCK; block += HEAD_THREADS / WARP) {
        remember_block(cache, to, length, cell, block, x[block * CACHE_BLOCK + threadIdx.x % WARP]);
    }
}

// A block has one head of one token: first those of the query, then the keys, then the values.
KERNEL(heads, HeadsArguments, HEAD_THREADS) {
    SHARED_MEMORY(float, shared);
    float *room = shared, *x = shared + HEAD_THREADS / WARP;
    u32 row = blockIdx.x, head = blockIdx.y, kv_heads = a.cache.kv_heads;
    bool is_query = head < a.heads, is_key = !is_query && head < a.heads + kv_heads;
    u32 length = is_query || is_key ? a.cache.key_length : a.cache.value_length;
    if (!is_query) head -= is_key ? a.heads : a.heads + kv_heads;
    const float *from = is_query ? a.query + u64(row) * a.query_stride : is_key ? a.key + u64(row) * a.key_stride : a.value + u64(row) * a.value_stride;
    for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) x[i] = from[head * length + i];
    __syncthreads();
    const float *weight = is_query ? a.query_norm : is_key ? a.key_norm : nullptr;
    if (weight != nullptr) norm_head(x, length, weight, a.epsilon, room);
    if (a.rotations != nullptr && (is_query || is_key)) turn_head(x, a, row);
    if (a.cache.type != CACHE_F16) spread(x, length);
    if (is_query) {
        float *to = a.query + u64(row) * a.query_stride + head * length;
        for (u32 i = threadIdx.x; i < length; i += HEAD_THREADS) to[i] = x[i];
        return;
    }
    Token token = a.tokens[row];
    u8 *to = is_key ? cached_keys(a.cache, token.slot, head) : cached_values(a.cache, token.slot, head);
    remember(a.cache, to, length, token.position % a.cache.cells, x);
}

// Spreads each head of some rows, in place.
struct SpreadArguments {
    float *rows;
    u32 stride;
    u32 length;
};

KERNEL(spread_heads, SpreadArguments, HEAD_THREADS) {
    SHARED_MEMORY(float, x);
    float *head = a.rows + u64(blockIdx.x) * a.stride + blockIdx.y * a.length;
    for (u32 i = threadIdx.x; i < a.length; i += HEAD_THREADS) x[i] = head[i];
    __syncthreads();
    spread(x, a.length);
    for (u32 i = threadIdx.x; i < a.length; i += HEAD_THREADS) head[i] = x[i];
}
