"""Makes one case: random weights, the GGUF, and what `transformers` computes for random tokens."""

import json
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import converter
import mxfp4
import vocabularies
from models import WINDOW, Case, Prompt, Without

SPREAD = 3.0
"""What the largest and the smallest logit of each row are apart, at least."""

SEEN = 0.05
"""By how much each feature changes some logit, at least."""

ROUTING_GAP = 2e-3
"""How much the last expert chosen stands before the first one not chosen, at least: nobody's rounding may choose another."""


def make(case: Case, llama_cpp_source: Path, folder: Path) -> dict[str, Any]:
    """Writes `model.gguf`, `case.json` and the expected numbers of a case, and returns what case.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokens = _model_and_tokens(case)
    outputs = [_run(case, model, ids) for ids in tokens]
    manifest = {"name": case.name, "about": case.about, "architecture": "", "kind": "embeddings" if case.pooling else "logits"}
    manifest |= _write_outputs(case, folder, tokens, outputs)
    manifest["features"] = _check_features(case, model, tokens, outputs)
    manifest["float64Difference"] = _round(max(_float64_difference(case, model, ids, out) for ids, out in zip(tokens, outputs)))
    with tempfile.TemporaryDirectory() as scratch:
        released = Path(scratch) / f"Random {case.name}"
        released.mkdir()
        _save(case, model, released)
        converter.convert(llama_cpp_source, released, folder / "model.gguf", case.pre)
    manifest["architecture"] = converter.architecture(folder / "model.gguf")
    _write_json(folder / "case.json", manifest)
    return manifest


def _model_and_tokens(case: Case) -> tuple[PreTrainedModel, list[list[int]]]:
    """The first of a row of seeds for which every choice of experts is a clear one."""
    config = case.configuration()
    for attempt in range(500):
        seed = zlib.crc32(case.name.encode()) + attempt
        model = case.model(config)
        _randomise(case, model, torch.Generator().manual_seed(seed))
        tokens = [_tokens(case, prompt, seed + number) for number, prompt in enumerate(case.prompts)]
        if all(_routing_gap(model, ids) > ROUTING_GAP for ids in tokens):
            return model, tokens
    raise RuntimeError(f"{case.name}: no seed gives a clear choice of experts")


def _tokens(case: Case, prompt: Prompt, seed: int) -> list[int]:
    ids = np.random.default_rng(seed).integers(5, vocabularies.SIZE, prompt.length).tolist()
    return [2, *ids[1:-1], 3] if case.pooling else ids  # [CLS] and [SEP] of the vocabulary


@torch.no_grad()
def _randomise(case: Case, model: PreTrainedModel, random: torch.Generator) -> None:
    """Fills every parameter so that no one of them is idle: norms are not 1, biases and sinks not 0, scores far from uniform."""
    # What chooses experts besides their scores is no parameter.
    biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("bias")]
    for name, parameter in [*model.named_parameters(), *biases]:
        noise = torch.randn(parameter.shape, generator=random)
        parameter.copy_(_scaled(case, name, noise))
    if case.mxfp4:
        for name, parameter in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                parameter.copy_(mxfp4.dequantise(*mxfp4.quantise(parameter)))


def _scaled(case: Case, name: str, noise: Tensor) -> Tensor:
    is_norm = "norm" in name.lower()
    if name.endswith("sinks"):
        return noise
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise  # so that a token's scores still have their say
    if name.endswith("bias"):
        return 0.5 * noise
    if is_norm:
        return (0.0 if case.norms_add_one else 1.0) + 0.3 * noise
    if "embed" in name:
        return 0.4 * noise
    if "experts.gate_up_proj" in name and case.family == "GptOss":
        return 3.0 * noise / noise.shape[1] ** 0.5  # beyond the clamp of 7 now and then
    inputs = noise.shape[1] if case.family == "GptOss" and "experts" in name else noise.shape[-1]
    gain = 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "query", "key")) else 1.2
    return gain * noise / inputs**0.5


@torch.no_grad()
def _run(case: Case, model: PreTrainedModel, ids: list[int]) -> Tensor:
    """`[tokens, vocabulary]`, or `[tokens, hidden]` of an embedding model."""
    output = model(input_ids=torch.tensor([ids]), **({} if case.pooling else {"use_cache": False}))
    return (output.last_hidden_state if case.pooling else output.logits)[0]


@torch.no_grad()
def _routing_gap(model: PreTrainedModel, ids: list[int]) -> float:
    gaps = [float("inf")]

    def look(module: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        scores = logits.reshape(-1, logits.shape[-1])
        if hasattr(module, "e_score_correction_bias"):
            scores = scores.sigmoid() + module.e_score_correction_bias
            groups = scores.view(len(scores), module.num_group, -1)
            worth = groups.topk(2, dim=-1).values.sum(-1)
            if module.topk_group < module.num_group:
                gaps.append(_gap(worth, module.topk_group))
            best = torch.zeros_like(worth).scatter(1, worth.topk(module.topk_group).indices, 1.0)
            scores = groups.masked_fill(best[:, :, None] == 0, -1e9).flatten(1)
        gaps.append(_gap(scores, model.config.num_experts_per_tok))

    routers = [module for name, module in model.named_modules() if name.endswith((".gate", ".router"))]
    hooks = [router.register_forward_hook(look) for router in routers]
    model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return min(gaps)


def _gap(scores: Tensor, chosen: int) -> float:
    """How far the last chosen one stands before the next in any row."""
    best = scores.topk(chosen + 1, dim=-1).values
    return float((best[:, -2] - best[:, -1]).min())


def _float64_difference(case: Case, model: PreTrainedModel, ids: list[int], expected: Tensor) -> float:
    """How far float32 is from float64 here: a case where that is much would ask the impossible of an engine."""
    precise = _run(case, model.double(), ids)
    model.float()
    return float((precise - expected).abs().max())


def _check_features(case: Case, model: PreTrainedModel, tokens: list[list[int]], outputs: list[Tensor]) -> dict[str, float]:
    differences = {}
    for name, without in case.features.items():
        other = _altered(case, model, without)
        pairs = zip(tokens, outputs)
        differences[name] = _round(max(float((_run(case, other, ids) - expected).abs().max()) for ids, expected in pairs))
        if differences[name] < SEEN:
            raise RuntimeError(f"{case.name}: without {name}, no output changes by more than {differences[name]}")
    return differences


@torch.no_grad()
def _altered(case: Case, model: PreTrainedModel, without: Without) -> PreTrainedModel:
    other = case.model(case.configuration(without.config))
    other.load_state_dict(model.state_dict())
    named = dict(other.named_parameters()) | dict(other.named_buffers())
    filled = {name: value for name in named for end, value in without.fill.items() if name.endswith(end)}
    if not filled and not without.config:
        raise RuntimeError(f"{case.name}: no parameter ends in one of {list(without.fill)}")
    for name, value in filled.items():
        named[name].fill_(value)
    return other


def _positions(length: int) -> list[int]:
    """Where logits are kept: the first tokens, around the window's end and twice it, the middle, and the last ones."""
    wanted = {0, 1, WINDOW - 1, WINDOW, 2 * WINDOW + 1, length // 2, length - 2, length - 1}
    return sorted(position for position in wanted if position < length)


def _write_outputs(case: Case, folder: Path, tokens: list[list[int]], outputs: list[Tensor]) -> dict[str, Any]:
    """The raw numbers and where each sequence's are. Rows follow one another in the order of `positions`."""
    rows: list[Tensor] = []
    sequences = []
    for prompt, ids, output in zip(case.prompts, tokens, outputs):
        sequence: dict[str, Any] = {"numCtx": prompt.num_ctx, "tokens": ids, "firstRow": sum(len(row) for row in rows)}
        if case.pooling:
            sequence["positions"] = list(range(len(ids)))
            sequence["embedding"] = _pooled(case, output).tolist()
            rows.append(output)
        else:
            sequence["positions"] = _positions(len(ids))
            rows.append(output[sequence["positions"]])
        sequences.append(sequence)
    values = torch.cat(rows)
    spread = float((values.max(-1).values - values.min(-1).values).min())
    if not case.pooling and spread < SPREAD:
        raise RuntimeError(f"{case.name}: the logits of a row spread by no more than {spread}")
    name = "hidden.f32" if case.pooling else "logits.f32"
    (folder / name).write_bytes(values.numpy().astype("<f4").tobytes())
    pooling = {"pooling": case.pooling} if case.pooling else {}
    return {"gguf": "model.gguf", "values": name, "shape": list(values.shape), "spread": _round(spread)} | pooling | {"sequences": sequences}


def _pooled(case: Case, output: Tensor) -> Tensor:
    """The embedding, of length 1."""
    return nn.functional.normalize(output.mean(0) if case.pooling == "mean" else output[0], dim=0)


def _save(case: Case, model: PreTrainedModel, folder: Path) -> None:
    """The model as it would be released."""
    model.save_pretrained(folder)
    vocabularies.write(case.vocabulary, folder)
    changes: Mapping[str, Any] = dict(case.published_config)
    if case.mxfp4:
        _pack_experts(folder / "model.safetensors")
        changes = {**changes, "quantization_config": {"quant_method": "mxfp4"}}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if case.pooling:
        _write_json(folder / "modules.json", [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{'cls_token' if mode == 'cls' else 'mean_tokens'}": mode == case.pooling for mode in ("cls", "mean")}
        _write_json(folder / "1_Pooling" / "config.json", modes)


def _pack_experts(path: Path) -> None:
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = mxfp4.quantise(tensors.pop(name))
    save_file(tensors, path, metadata={"format": "pt"})


def _round(number: float) -> float:
    return float(f"{number:.3g}")


def _write_json(path: Path, value: Any) -> None:
    """Readable, with one line for each list of numbers."""
    text = json.dumps(value, indent=1)
    numbers = re.compile(r"\[\s+(-?[\d.e+-]+,?\s+)+\]")
    path.write_text(numbers.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n")
