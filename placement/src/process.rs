//! What a worker's process takes of the host beside what the plan has it allocate: the program, its libraries and threads, and the model's tokens, in a
//! tokenizer and in the tries that constrained answers walk.

use crate::units::Bytes;

/// What a process takes that has a model without tokens.
const PROCESS: Bytes = Bytes::mib(15);

/// What a token takes: in maps from texts to ids and back, in pairs that are merged, in tries.
const TOKEN_BYTES: u64 = 646;

/// What a worker takes that has a model of so many tokens, wherever its layers are.
///
/// Source: resident memory of workers whose weights are in memory, less what they had allocated by plan (`agent/examples/worker_memory.rs`): 45.0 MiB with
/// SmolLM2's 49,152 tokens (BPE), 176.6 MiB with Gemma 3's 262,144 (SentencePiece).
pub fn process_bytes(vocabulary: u64) -> Bytes {
    PROCESS.saturating_add(Bytes(vocabulary.saturating_mul(TOKEN_BYTES)))
}
