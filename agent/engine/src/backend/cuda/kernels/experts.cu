// Which experts tokens go to, and what becomes of what they give. All of it stays on the device: the host never learns who goes where.
#include "products.cuh"

#define EXPERT_THREADS 128

struct ChooseArguments {
    // `[tokens, count]`
    const float *logits;
    // Added to what experts are chosen by, and not to their weights; null: nothing.
    const float *selection_bias;
    Choice *choices;
    u32 count;
    u32 used;
    // 0: softmax over all; 1: sigmoid of each; 2: softmax over those chosen.
    u32 gating;
    // Experts stand in groups, and are chosen from the best alone; 0: no groups.
    u32 groups;
    u32 groups_used;
    u32 renormalise;
    float scale;
};

struct Best {
    float value;
    u32 index;
};

// The largest of a warp's values; of equal ones the first.
static __device__ __forceinline__ Best best_of_warp(Best best) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        float value = __shfl_xor_sync(FULL_WARP, best.value, distance);
        u32 index = __shfl_xor_sync(FULL_WARP, best.index, distance);
        if (value > best.value || (value == best.value && index < best.index)) best.value = value, best.index = index;
    }
    return best;
}

static __device__ __forceinline__ Best largest(const float *values, u32 count) {
    Best best = {NOTHING, ~0u};
    for (u32 i = threadIdx.x; i < count; i += WARP) {
        // What is no number was taken before.
        if (values[i] == values[i] && (values[i] > best.value || best.index == ~0u)) best.value = values[i], best.index = i;
    }
    return best_of_warp(best);
}

// Leaves only the experts of the best groups; a group is as good as its two best experts together.
static __device__ __forceinline__ void leave_best_groups(float *by, float *worth, const ChooseArguments &a) {
    u32 size = a.count / a.groups;
    for (u32 group = threadIdx.x; group < a.groups; group += WARP) {
        float first = NOTHING, second = NOTHING;
        for (u32 i = 0; i < size; i++) {
            float value = by[group * size + i];
            if (value > first) second = first, first = value;
            else if (value > second) second = value;
        }
        worth[group] = first + second;
    }
    __syncwarp();
    for (u32 taken = 0; taken < a.groups_used; taken++) {
        u32 group = largest(worth, a.groups).index;
        __syncwarp();
        if (threadIdx.x == 0) worth[group] = bits_to_float(0x7fc00000);
        __syncwarp();
    }
    for (u32 i = threadIdx.x; i < a.count; i += WARP) {
        float mark = worth[i / size];
        if (mark == mark) by[i] = NOTHING;
    }
    __syncwarp();
}

static __device__ __forceinline__ void softmax_over(float *values, u32 count) {
    float most = NOTHING, sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += WARP) most = fmaxf(most, values[i]);
    most = warp_max(most);
    for (u32 i = threadIdx.x; i < count; i += WARP) {
        values[i] = expf(values[i] - most);
        sum += values[i];
    }
    sum = warp_sum(sum);
    for (u32 i = threadIdx.x; i < count; i += WARP) values[i] /= sum;
    __syncwarp();
}

// A warp a token. Shared memory has what experts are weighed by, what they are chosen by, and what their groups are worth.
KERNEL(choose, ChooseArguments, WARP) {
    SHARED_MEMORY(float, scores);
    float *by = scores + a.count, *worth = by + a.count, *weights = worth + a.groups;
    const float *logits = a.logits + u64(blockIdx.x) * a.count;
    for (u32 i = threadIdx.x; i < a.count; i += WARP) scores[i] = a.gating == 1 ? sigmoid(logits[i]) : logits[i];
    __syncwarp();
    if (a.gating == 0) softmax_over(scores, a.count);
    for (u32 i = threadIdx.x; i < a.count; i += WARP) by[i] = scores[i] + (a.selection_bias == nullptr ? 0.0f : a.selection_bias[i]);
    __syncwarp();
    if (a.groups > 0) leave_best_groups(by, worth, a);
    Choice *choices = a.choices + u64(blockIdx.x) * a.used;
    for (u32 taken = 0; taken < a.used; taken++) {
        // Of numbers that are none the first is taken, so that there always is one.
        u32 expert = min(largest(by, a.count).index, a.count - 1);
        __syncwarp();
        if (threadIdx.x == 0) {
            choices[taken].expert = expert;
            weights[taken] = scores[expert];
            by[expert] = bits_to_float(0x7fc00000);
        }
        __syncwarp();
    }
    if (a.gating == 2) softmax_over(weights, a.used);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.used; i += WARP) sum += weights[i];
    sum = a.renormalise ? fmaxf(warp_sum(sum), 1.17549435e-38f) : 1.0f;
    for (u32 i = threadIdx.x; i < a.used; i += WARP) choices[i].weight = weights[i] * (a.scale / sum);
}

// Adds to each row what its experts gave, in the order of its choices.
struct SumExpertsArguments {
    float *to;
    const float *from;
    const Choice *choices;
    u32 used;
    u32 length;
};

KERNEL(sum_experts, SumExpertsArguments, EXPERT_THREADS) {
    u32 i = blockIdx.y * EXPERT_THREADS + threadIdx.x;
    if (i >= a.length) return;
    float sum = 0.0f;
    for (u32 n = 0; n < a.used; n++) {
        u64 pair = u64(blockIdx.x) * a.used + n;
        sum += a.choices[pair].weight * a.from[pair * a.length + i];
    }
    a.to[u64(blockIdx.x) * a.length + i] += sum;
}

// Sorts a batch's pairs by their experts, and cuts each expert's into tiles. One block; tiles that are not needed have no columns.
struct SortArguments {
    const Choice *choices;
    u32 *sorted_pairs;
    Tile *tiles;
    u32 pairs;
    u32 experts;
    u32 most_tiles;
    u32 tile_columns;
};

KERNEL(sort_by_expert, SortArguments, EXPERT_THREADS) {
    SHARED_MEMORY(u32, first);
    for (u32 expert = threadIdx.x; expert < a.experts; expert += EXPERT_THREADS) {
        u32 count = 0;
        for (u32 pair = 0; pair < a.pairs; pair++) count += a.choices[pair].expert == expert;
        first[expert] = count;
    }
    for (u32 tile = threadIdx.x; tile < a.most_tiles; tile += EXPERT_THREADS) a.tiles[tile] = Tile{0, 0, 0, 0};
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 before = 0, tile = 0;
        for (u32 expert = 0; expert < a.experts; expert++) {
            u32 count = first[expert];
            first[expert] = before;
            for (u32 done = 0; done < count; done += a.tile_columns) {
                a.tiles[tile++] = Tile{expert, before + done, min(a.tile_columns, count - done), 0};
            }
            before += count;
        }
    }
    __syncthreads();
    for (u32 expert = threadIdx.x; expert < a.experts; expert += EXPERT_THREADS) {
        u32 at = first[expert];
        for (u32 pair = 0; pair < a.pairs; pair++) {
            if (a.choices[pair].expert == expert) a.sorted_pairs[at++] = pair;
        }
    }
}
