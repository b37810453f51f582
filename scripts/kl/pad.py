"""Writes a copy of a Llama's GGUF in F32 that computes the same, with rows padded to multiples of 256: `pad.py FROM TO`.

K-quants have blocks of 256 weights, and llama-quantize takes other types for rows that are no multiple of that. Zeros are added to the hidden state and as
heads that nothing comes of; norms, which take the mean over the longer row, are made smaller by as much.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

BLOCK = 256


def main(source: Path, target: Path) -> None:
    reader = GGUFReader(source)
    numbers = {name: field.contents() for name, field in reader.fields.items()}
    embedding, heads, kv_heads = (numbers[f"llama.{key}"] for key in ("embedding_length", "attention.head_count", "attention.head_count_kv"))
    head = embedding // heads
    wider = -(-embedding // BLOCK) * BLOCK
    if wider % head or (wider // head) % (heads // kv_heads) or numbers["llama.feed_forward_length"] % BLOCK:
        raise SystemExit(f"{source}: heads of {head} and {heads // kv_heads} of them on one of keys do not fill rows of {wider}")
    changed = {
        "llama.embedding_length": wider,
        "llama.attention.head_count": wider // head,
        "llama.attention.head_count_kv": wider // head // (heads // kv_heads),
        "llama.attention.layer_norm_rms_epsilon": numbers["llama.attention.layer_norm_rms_epsilon"] * embedding / wider,
        "general.file_type": 0,
    }
    keys = kv_heads * head, changed["llama.attention.head_count_kv"] * head
    lengths = {embedding: wider, keys[0]: keys[1]}
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, changed.get(name, numbers[name]), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
        padded = np.pad(weights, [(0, lengths.get(size, size) - size) for size in weights.shape]).astype(np.float32)
        writer.add_tensor(tensor.name, padded * np.float32((embedding / wider) ** 0.5) if "norm" in tensor.name else padded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
