// Attention from a few queries at a time that see the same head of a cache: the heads that share it, of neighbouring tokens of one sequence. Each cell is read
// once for all of them. Long contexts are split over several blocks, whose parts are then put together (Dao et al. 2023, "Flash-Decoding").
#include "spans.cuh"

// Queries of a block.
#define QUERIES 8
// Positions that are looked at together, one a thread.
#define POSITIONS ATTENTION_THREADS

static __device__ __forceinline__ float *partial_of(const AttendArguments &a, u32 row, u32 head, u32 split) {
    return a.partials + ((u64(row) * a.heads + head) * a.splits + split) * (a.cache.value_length + 2);
}

// A thread's position against all queries.
static __device__ __forceinline__ void score(const AttendArguments &a, u8 *keys, u32 position, const float *queries, u32 padded, float (&scores)[QUERIES]) {
    u32 cell = position % a.cache.cells;
    for (u32 d = 0; d < padded; d += 8) {
        float key[8];
        cached_eight(a.cache, keys, a.cache.key_length, cell, d, key);
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
#pragma unroll
            for (int i = 0; i < 8; i++) scores[q] += key[i] * queries[q * padded + d + i];
        }
    }
}

// ELEMENTS: of a value that each thread sums, so that the block has all of them.
template <int ELEMENTS>
static __device__ __forceinline__ void attend(const AttendArguments &a) {
    SHARED_MEMORY(float, shared);
    const u32 length = a.cache.value_length, padded = rounded_up(a.cache.key_length, 8), warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *queries = shared, *weights = queries + QUERIES * padded, *room = weights + QUERIES * POSITIONS;
    Span span = a.spans[blockIdx.x];
    u32 kv_head = blockIdx.y % a.cache.kv_heads, first_query = blockIdx.y / a.cache.kv_heads * QUERIES;
    if (first_query >= span.count * (a.heads / a.cache.kv_heads)) return;
    Query seen[QUERIES];
    u32 begin = ~0u, end = 0;
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        seen[q] = query_at(a, span, kv_head, first_query + q);
        if (seen[q].end > 0) begin = min(begin, seen[q].first), end = max(end, seen[q].end);
        const float *from = a.query + u64(seen[q].row) * a.query_stride + seen[q].head * a.cache.key_length;
        for (u32 d = threadIdx.x; d < padded; d += ATTENTION_THREADS) queries[q * padded + d] = d < a.cache.key_length ? from[d] * a.scale : 0.0f;
    }
    // This block's share of the positions.
    u32 share = rounded_up((end - begin + a.splits - 1) / a.splits, WARP);
    begin = min(begin + blockIdx.z * share, end);
    end = min(begin + share, end);
    u8 *keys = cached_keys(a.cache, span.slot, kv_head), *values = cached_values(a.cache, span.slot, kv_head);
    float most[QUERIES], total[QUERIES], sums[QUERIES][ELEMENTS];
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        most[q] = NOTHING, total[q] = 0.0f;
#pragma unroll
        for (int e = 0; e < ELEMENTS; e++) sums[q][e] = 0.0f;
    }
    __syncthreads();
    for (u32 tile = begin; tile < end; tile += POSITIONS) {
        u32 position = tile + threadIdx.x, count = min(u32(POSITIONS), end - tile);
        float scores[QUERIES] = {};
        if (position < end) score(a, keys, position, queries, padded, scores);
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            bool sees = position < end && position >= seen[q].first && position < seen[q].end;
            scores[q] = sees ? softcapped(scores[q], a.softcap) : NOTHING;
            float largest = warp_max(scores[q]);
            if (lane == 0) room[warp * QUERIES + q] = largest;
        }
        __syncthreads();
        float kept[QUERIES];
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            float largest = most[q];
            for (u32 w = 0; w < ATTENTION_THREADS / WARP; w++) largest = fmaxf(largest, room[w * QUERIES + q]);
            float weight = scores[q] == NOTHING ? 0.0f : expf(scores[q] - largest);
            weights[threadIdx.x * QUERIES + q] = weight;
            kept[q] = most[q] == NOTHING ? 0.0f : expf(most[q] - largest);
            most[q] = largest;
            // Each thread sums its own positions; they are added up at the end.
            total[q] = total[q] * kept[q] + weight;
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < ELEMENTS; e++) {
            u32 d = threadIdx.x + e * ATTENTION_THREADS;
#pragma unroll
            for (int q = 0; q < QUERIES; q++) sums[q][e] *= kept[q];
            if (d >= length) continue;
            for (u32 i = 0; i < count; i++) {
                float value = cached_element(a.cache, values, length, (tile + i) % a.cache.cells, d);
#pragma unroll
                for (int q = 0; q < QUERIES; q++) sums[q][e] += weights[i * QUERIES + q] * value;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        total[q] = block_sum(total[q], room);
        __syncthreads();
        if (seen[q].end == 0) continue;
        if (a.splits > 1) {
            float *to = partial_of(a, seen[q].row, seen[q].head, blockIdx.z);
#pragma unroll
            for (int e = 0; e < ELEMENTS; e++) {
                u32 d = threadIdx.x + e * ATTENTION_THREADS;
                if (d < length) to[d] = sums[q][e];
            }
            if (threadIdx.x == 0) to[length] = most[q], to[length + 1] = total[q];
            continue;
        }
        float sink = a.sinks == nullptr ? NOTHING : a.sinks[seen[q].head];
        float largest = fmaxf(most[q], sink), kept = expf(most[q] - largest);
        float divisor = total[q] * kept + (sink == NOTHING ? 0.0f : expf(sink - largest));
        float *to = a.to + u64(seen[q].row) * a.to_stride + seen[q].head * length;
#pragma unroll
        for (int e = 0; e < ELEMENTS; e++) {
            u32 d = threadIdx.x + e * ATTENTION_THREADS;
            if (d < length) to[d] = sums[q][e] * kept / divisor;
        }
    }
}

KERNEL(attend_128, AttendArguments, ATTENTION_THREADS) {
    attend<1>(a);
}

KERNEL(attend_256, AttendArguments, ATTENTION_THREADS) {
    attend<2>(a);
}

KERNEL(attend_512, AttendArguments, ATTENTION_THREADS) {
    attend<4>(a);
}

// Puts together what the splits of a row's head found.
KERNEL(attend_combine, AttendArguments, ATTENTION_THREADS) {
    u32 row = blockIdx.x, head = blockIdx.y, length = a.cache.value_length;
    float sink = a.sinks == nullptr ? NOTHING : a.sinks[head], largest = sink;
    for (u32 split = 0; split < a.splits; split++) largest = fmaxf(largest, partial_of(a, row, head, split)[length]);
    float divisor = sink == NOTHING ? 0.0f : expf(sink - largest);
    for (u32 split = 0; split < a.splits; split++) {
        const float *partial = partial_of(a, row, head, split);
        divisor += partial[length] == NOTHING ? 0.0f : expf(partial[length] - largest) * partial[length + 1];
    }
    for (u32 d = threadIdx.x; d < length; d += ATTENTION_THREADS) {
        float sum = 0.0f;
        for (u32 split = 0; split < a.splits; split++) {
            const float *partial = partial_of(a, row, head, split);
            if (partial[length] != NOTHING) sum += expf(partial[length] - largest) * partial[d];
        }
        a.to[u64(row) * a.to_stride + head * length + d] = sum / divisor;
    }
}
