"""Writes a Llama of 1 billion random weights in F16, to measure speed with: `random_llama.py SMALL TO`. Its tokens are those of the Llama SMALL."""

import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

WIDTH, BLOCKS, HEADS, KV_HEADS, FEED_FORWARD = 2048, 16, 32, 8, 8192


def main(small: Path, target: Path) -> None:
    fields = GGUFReader(small).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    writer = GGUFWriter(target, "llama")
    writer.add_name("random Llama 1B")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(32768)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    random = np.random.default_rng(1)
    keys = WIDTH // HEADS * KV_HEADS

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", len(tokens), WIDTH)
    norm("output_norm")
    for block in range(BLOCKS):
        for name in ("attn_norm", "ffn_norm"):
            norm(f"blk.{block}.{name}")
        for name, rows in (("attn_q", WIDTH), ("attn_k", keys), ("attn_v", keys), ("attn_output", WIDTH)):
            matrix(f"blk.{block}.{name}", rows, WIDTH)
        for name, rows, columns in (("gate", FEED_FORWARD, WIDTH), ("up", FEED_FORWARD, WIDTH), ("down", WIDTH, FEED_FORWARD)):
            matrix(f"blk.{block}.ffn_{name}", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
