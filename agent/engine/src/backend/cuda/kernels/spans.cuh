// What attention is from: queries that see the same head of a cache, of neighbouring tokens of one sequence.
#pragma once
#include "cache.cuh"

#define ATTENTION_THREADS 128

// Neighbouring tokens of one sequence, as rows of the batch.
struct Span {
    u32 slot;
    u32 first;
    u32 count;
};

struct AttendArguments {
    Cache cache;
    const float *query;
    float *to;
    // Of each row, head and split the sums, then their largest score and the sum of their weights; where there are several splits.
    float *partials;
    const Token *tokens;
    const Span *spans;
    // A score a head that takes its share of the softmax; null: none.
    const float *sinks;
    u32 heads;
    u32 query_stride;
    u32 to_stride;
    // Positions that a token looks back, itself among them; 0: all.
    u32 window;
    u32 causal;
    // Tokens of the batch: what is not causal sees them all.
    u32 count;
    u32 splits;
    float scale;
    float softcap;
};

// One query of a block: its row and head, and the positions that it sees. Where there is none it sees nothing.
struct Query {
    u32 row;
    u32 head;
    u32 first;
    u32 end;
};

static __device__ __forceinline__ Query query_at(const AttendArguments &a, const Span &span, u32 kv_head, u32 index) {
    u32 sharing = a.heads / a.cache.kv_heads;
    if (index >= span.count * sharing) return Query{span.first, kv_head * sharing, 0, 0};
    u32 row = span.first + index / sharing;
    u32 end = a.causal ? a.tokens[row].position + 1 : a.count;
    u32 first = a.window > 0 && end > a.window ? end - a.window : 0;
    return Query{row, kv_head * sharing + index % sharing, first, end};
}
