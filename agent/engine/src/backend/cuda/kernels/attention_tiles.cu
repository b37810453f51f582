// Attention of prompts, by tensor cores: a block has 64 queries that see the same head of a cache, 16 a warp, and goes through what they see 64 positions at a
// time, with the softmax kept up to date on the way (Dao 2023, "FlashAttention-2"). Scores, weights and sums stay in registers.
#include "spans.cuh"
#include "tensor_core.cuh"

#define TILE_QUERIES 64
#define TILE_POSITIONS 64
// The longest keys and values for which there is room.
#define TILE_LENGTH 128
// Halves from one row to the next in shared memory: a warp's loads of fragments then meet each bank once.
#define KEY_ROW (TILE_LENGTH + 8)
#define VALUE_ROW (TILE_POSITIONS + 8)

// The two rows of a warp's 16 that a lane holds parts of.
struct Pair {
    Query query[2];
    float most[2];
    float total[2];
};

static __device__ __forceinline__ float saturated(float x) {
    return fminf(fmaxf(x, -65504.0f), 65504.0f);
}

// Queries of the lane's rows, scaled, as fragments of all 16 elements each; beyond their length they are zero.
static __device__ __forceinline__ void load_queries(const AttendArguments &a, const Pair &pair, u32 (&fragments)[TILE_LENGTH / 16][4]) {
    u32 length = a.cache.key_length, t = threadIdx.x % 4;
#pragma unroll
    for (u32 step = 0; step < TILE_LENGTH / 16; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const Query &query = pair.query[i % 2];
            const float *from = a.query + u64(query.row) * a.query_stride + query.head * length;
            u32 d = 16 * step + 8 * (i / 2) + 2 * t;
            float low = d < length ? saturated(from[d] * a.scale) : 0.0f, high = d + 1 < length ? saturated(from[d + 1] * a.scale) : 0.0f;
            fragments[step][i] = pack_halves(low, high);
        }
    }
}

// Keys of a tile, a row a position.
static __device__ __forceinline__ void load_keys(const AttendArguments &a, u8 *keys, u32 tile, u32 end, u16 *to) {
    u32 padded = rounded_up(a.cache.key_length, 16);
    for (u32 i = threadIdx.x; i < TILE_POSITIONS * padded / 8; i += ATTENTION_THREADS) {
        u32 position = i / (padded / 8), d = i % (padded / 8) * 8;
        float eight[8] = {};
        if (tile + position < end && d < a.cache.key_length) cached_eight(a.cache, keys, a.cache.key_length, (tile + position) % a.cache.cells, d, eight);
        u32 *words = reinterpret_cast<u32 *>(to + position * KEY_ROW + d);
#pragma unroll
        for (int j = 0; j < 4; j++) words[j] = pack_halves(eight[2 * j], eight[2 * j + 1]);
    }
}

// Values of a tile, a row an element, so that neighbouring positions make the pairs that tensor cores take.
static __device__ __forceinline__ void load_values(const AttendArguments &a, u8 *values, u32 tile, u32 end, u16 *to) {
    u32 padded = rounded_up(a.cache.value_length, 8), position = 2 * (threadIdx.x % WARP);
    for (u32 d = threadIdx.x / WARP * 8; d < padded; d += ATTENTION_THREADS / WARP * 8) {
        float even[8] = {}, odd[8] = {};
        if (tile + position < end) cached_eight(a.cache, values, a.cache.value_length, (tile + position) % a.cache.cells, d, even);
        if (tile + position + 1 < end) cached_eight(a.cache, values, a.cache.value_length, (tile + position + 1) % a.cache.cells, d, odd);
#pragma unroll
        for (u32 j = 0; j < 8; j++) *reinterpret_cast<u32 *>(to + (d + j) * VALUE_ROW + position) = pack_halves(even[j], odd[j]);
    }
}

static __device__ __forceinline__ u32 pair_at(const u16 *row) {
    return *reinterpret_cast<const u32 *>(row);
}

// Scores of the warp's queries against a tile, capped, and nothing where a query does not see a position.
static __device__ __forceinline__ void score_tile(const AttendArguments &a, const Pair &pair, const u32 (&queries)[TILE_LENGTH / 16][4], const u16 *keys, u32 tile, float (&scores)[TILE_POSITIONS / 8][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, steps = rounded_up(a.cache.key_length, 16) / 16;
#pragma unroll
    for (u32 j = 0; j < TILE_POSITIONS / 8; j++) {
        const u16 *row = keys + (8 * j + g) * KEY_ROW + 2 * t;
#pragma unroll
        for (u32 i = 0; i < 4; i++) scores[j][i] = 0.0f;
#pragma unroll
        for (u32 step = 0; step < TILE_LENGTH / 16; step++) {
            if (step >= steps) break;
            u32 b[2] = {pair_at(row + 16 * step), pair_at(row + 16 * step + 8)};
            multiply_add(scores[j], queries[step], b);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 position = tile + 8 * j + 2 * t + i % 2;
            const Query &query = pair.query[i / 2];
            scores[j][i] = position >= query.first && position < query.end ? softcapped(scores[j][i], a.softcap) : NOTHING;
        }
    }
}

// Makes weights of scores; what was summed before is to be multiplied by `kept`.
static __device__ __forceinline__ void weigh(Pair &pair, float (&scores)[TILE_POSITIONS / 8][4], float (&kept)[2]) {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float largest = pair.most[r], sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < TILE_POSITIONS / 8; j++) largest = fmaxf(largest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
        // Four neighbouring lanes share a row.
        largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
        kept[r] = pair.most[r] == NOTHING ? 0.0f : expf(pair.most[r] - largest);
#pragma unroll
        for (u32 j = 0; j < TILE_POSITIONS / 8; j++) {
#pragma unroll
            for (u32 i = 2 * r; i < 2 * r + 2; i++) {
                scores[j][i] = scores[j][i] == NOTHING ? 0.0f : expf(scores[j][i] - largest);
                sum += scores[j][i];
            }
        }
        pair.most[r] = largest;
        pair.total[r] = pair.total[r] * kept[r] + sum;
    }
}

// Adds the values of a tile, weighed. The sums of scores lie in registers as tensor cores take their first factor.
static __device__ __forceinline__ void add_values(const AttendArguments &a, const float (&weights)[TILE_POSITIONS / 8][4], const float (&kept)[2], const u16 *values, float (&sums)[TILE_LENGTH / 8][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    u32 fragments[TILE_POSITIONS / 16][4];
#pragma unroll
    for (u32 step = 0; step < TILE_POSITIONS / 16; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float *from = &weights[2 * step + i / 2][2 * (i % 2)];
            fragments[step][i] = pack_halves(from[0], from[1]);
        }
    }
#pragma unroll
    for (u32 j = 0; j < TILE_LENGTH / 8; j++) {
        if (8 * j >= a.cache.value_length) break;
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[j][i] *= kept[i / 2];
        const u16 *row = values + (8 * j + g) * VALUE_ROW + 2 * t;
#pragma unroll
        for (u32 step = 0; step < TILE_POSITIONS / 16; step++) {
            u32 b[2] = {pair_at(row + 16 * step), pair_at(row + 16 * step + 8)};
            multiply_add(sums[j], fragments[step], b);
        }
    }
}

static __device__ __forceinline__ void write_attended(const AttendArguments &a, Pair &pair, const float (&sums)[TILE_LENGTH / 8][4]) {
    u32 length = a.cache.value_length, t = threadIdx.x % 4;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float total = pair.total[r];
        total += __shfl_xor_sync(FULL_WARP, total, 1);
        total += __shfl_xor_sync(FULL_WARP, total, 2);
        const Query &query = pair.query[r];
        if (query.end == 0) continue;
        float sink = a.sinks == nullptr ? NOTHING : a.sinks[query.head], largest = fmaxf(pair.most[r], sink), kept = expf(pair.most[r] - largest);
        float divisor = total * kept + (sink == NOTHING ? 0.0f : expf(sink - largest));
        float *to = a.to + u64(query.row) * a.to_stride + query.head * length;
#pragma unroll
        for (u32 j = 0; j < TILE_LENGTH / 8; j++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 d = 8 * j + 2 * t + i;
                if (d < length) to[d] = sums[j][2 * r + i] * kept / divisor;
            }
        }
    }
}

KERNEL(attend_tiles, AttendArguments, ATTENTION_THREADS) {
    SHARED_MEMORY(u16, shared);
    u16 *keys_of_tile = shared, *values_of_tile = shared + TILE_POSITIONS * KEY_ROW;
    Span span = a.spans[blockIdx.x];
    u32 kv_head = blockIdx.y % a.cache.kv_heads, first_query = blockIdx.y / a.cache.kv_heads * TILE_QUERIES;
    if (first_query >= span.count * (a.heads / a.cache.kv_heads)) return;
    Pair pair;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        pair.query[r] = query_at(a, span, kv_head, first_query + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * r);
        pair.most[r] = NOTHING, pair.total[r] = 0.0f;
    }
    // Queries are in the order of their tokens: the first sees furthest back, the last furthest ahead.
    u32 last_query = min(first_query + TILE_QUERIES, span.count * (a.heads / a.cache.kv_heads)) - 1;
    u32 begin = query_at(a, span, kv_head, first_query).first, end = query_at(a, span, kv_head, last_query).end;
    u8 *keys = cached_keys(a.cache, span.slot, kv_head), *values = cached_values(a.cache, span.slot, kv_head);
    u32 queries[TILE_LENGTH / 16][4];
    load_queries(a, pair, queries);
    float sums[TILE_LENGTH / 8][4] = {};
    for (u32 tile = begin; tile < end; tile += TILE_POSITIONS) {
        load_keys(a, keys, tile, end, keys_of_tile);
        load_values(a, values, tile, end, values_of_tile);
        __syncthreads();
        float scores[TILE_POSITIONS / 8][4], kept[2];
        score_tile(a, pair, queries, keys_of_tile, tile, scores);
        weigh(pair, scores, kept);
        add_values(a, scores, kept, values_of_tile, sums);
        __syncthreads();
    }
    write_attended(a, pair, sums);
}
