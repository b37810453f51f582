"""Says how far llama.cpp is from what is expected: `python check_llama_cpp.py`, with llama-cpp-python installed. See README.md."""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

HERE = Path(__file__).parent
CHUNK = 13
"""Tokens that are decoded at once, so that the cache takes part."""


def main() -> None:
    llama.llama_log_set(_quiet, None)
    llama.llama_backend_init()
    for path in sorted((HERE / "models").glob("*/case.json")):
        case = json.loads(path.read_text())
        if len(sys.argv) == 1 or case["name"] in sys.argv[1:]:
            differences = [_difference(case, path.parent, sequence) for sequence in case["sequences"]]
            print(f"{case['name']:16} {' '.join(f'{difference:.1e}' for difference in differences)}")
    for path in sorted((HERE / "tokenizers").glob("*.json")):
        tokens = json.loads(path.read_text())
        if len(sys.argv) == 1 or tokens["name"] in sys.argv[1:]:
            different = _texts_with_other_ids(path.with_suffix(".gguf"), tokens["cases"])
            print(f"{tokens['name']:16} {len(different)} of {len(tokens['cases'])} texts differ: {different}")


@llama.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: Any) -> None:
    pass


def _difference(case: dict[str, Any], folder: Path, sequence: dict[str, Any]) -> float:
    """The largest difference between what llama.cpp computes for a sequence and what is expected."""
    model = llama.llama_model_load_from_file(str(folder / case["gguf"]).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = sequence["numCtx"], 512, 512
    params.n_threads = params.n_threads_batch = 1
    params.type_k, params.type_v = 0, 0  # F32
    params.flash_attn_type = 0
    params.yarn_beta_fast, params.yarn_beta_slow = _yarn(model, "fast", 32.0), _yarn(model, "slow", 1.0)
    params.embeddings = case["kind"] == "embeddings"
    params.pooling_type = 0
    context = llama.llama_init_from_model(model, params)
    rows = _embeddings(context, sequence) if params.embeddings else _logits(context, sequence, case["shape"][1])
    first = sequence["firstRow"]
    expected = np.fromfile(folder / case["values"], "<f4").reshape(case["shape"])[first : first + len(sequence["positions"])]
    llama.llama_free(context)
    llama.llama_model_free(model)
    return float(np.abs(rows[sequence["positions"]] - expected).max())


def _yarn(model: Any, name: str, default: float) -> float:
    """llama.cpp leaves it to its caller to read these."""
    text, architecture = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    llama.llama_model_meta_val_str(model, b"general.architecture", architecture, 64)
    key = f"{architecture.value.decode()}.rope.scaling.yarn_beta_{name}"
    return float(text.value) if llama.llama_model_meta_val_str(model, key.encode(), text, 64) >= 0 else default


def _logits(context: Any, sequence: dict[str, Any], width: int) -> np.ndarray:
    tokens = sequence["tokens"]
    rows = []
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        batch = _batch(chunk, start)
        assert llama.llama_decode(context, batch) == 0
        rows += [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (width,)).copy() for i in range(len(chunk))]
        llama.llama_batch_free(batch)
    return np.stack(rows)


def _embeddings(context: Any, sequence: dict[str, Any]) -> np.ndarray:
    width = llama.llama_model_n_embd(llama.llama_get_model(context))
    batch = _batch(sequence["tokens"], 0)
    assert llama.llama_encode(context, batch) == 0
    count = len(sequence["tokens"])
    rows = [np.ctypeslib.as_array(llama.llama_get_embeddings_ith(context, i), (width,)).copy() for i in range(count)]
    llama.llama_batch_free(batch)
    return np.stack(rows)


def _texts_with_other_ids(gguf: Path, cases: list[dict[str, Any]]) -> list[str]:
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(gguf).encode(), params)
    vocabulary = llama.llama_model_get_vocab(model)
    ids = (llama.llama_token * 1000)()
    different = []
    for case in cases:
        text = case["text"].encode()
        count = llama.llama_tokenize(vocabulary, text, len(text), ids, len(ids), False, case.get("parse_special", True))
        if ids[:count] != case["ids"]:
            different.append(case["text"])
    llama.llama_model_free(model)
    return different


def _batch(tokens: list[int], start: int) -> Any:
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
        batch.seq_id[i][0] = 0
    return batch


if __name__ == "__main__":
    main()
