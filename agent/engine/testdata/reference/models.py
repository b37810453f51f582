"""The random models: one case for each way in which architectures differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from vocabularies import SIZE, SPECIAL_TOKENS

WINDOW = 12
"""Tokens that a sliding window holds, in every case that has one."""

LONG = 128
"""Context that a case is loaded with, and `max_position_embeddings`."""


@dataclass(frozen=True)
class Prompt:
    """One sequence: `length` random tokens, in a model that was loaded with `num_ctx`."""

    length: int
    num_ctx: int = LONG


@dataclass(frozen=True)
class Without:
    """One feature taken away, which has to change the logits: else the case wouldn't see an engine that lacks it."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration to change."""
    fill: Mapping[str, float] = field(default_factory=dict)
    """What to fill the parameters with whose names end so."""


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    family: str
    """The prefix of the classes in `transformers`."""
    config: Mapping[str, Any]
    vocabulary: str
    pre: str = "default"
    """`tokenizer.ggml.pre`, as the converter writes it for released models of that family."""
    head: str = "ForCausalLM"
    features: Mapping[str, Without] = field(default_factory=dict)
    prompts: Sequence[Prompt] = (Prompt(64), Prompt(41))
    norms_add_one: bool = False
    """Norms multiply by 1 + weight."""
    mxfp4: bool = False
    """Experts are packed as gpt-oss is released."""
    pooling: str = ""
    """An embedding model, which pools so: `mean` or `cls`."""
    published_config: Mapping[str, Any] = field(default_factory=dict)
    """What the released config.json says besides, and the converter reads."""

    def configuration(self, changes: Mapping[str, Any] | None = None) -> PreTrainedConfig:
        base = {"vocab_size": SIZE, "max_position_embeddings": LONG} | SPECIAL_TOKENS[self.vocabulary]
        values = _merged(base | dict(self.config), changes or {})
        return getattr(transformers, _config_class(self.family))(**values)

    def model(self, config: PreTrainedConfig) -> PreTrainedModel:
        build = getattr(transformers, self.family + self.head)._from_config
        return build(config, attn_implementation="eager", experts_implementation="eager").eval().float()


def _config_class(family: str) -> str:
    return "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
    return merged


NARROW = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""Heads that are wider together than the hidden state is."""

SQUARE = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads that together are as wide as the hidden state, for families that know no other."""

GRANITE_SCALES = {"embedding_multiplier": 6.0, "attention_multiplier": 0.08, "residual_multiplier": 0.3, "logits_scaling": 4.0}
"""What Granite multiplies embeddings, scores and what is added by, and divides logits by."""

WITHOUT_BIASES = Without(fill={".bias": 0.0})
WITHOUT_ROPE_SCALING = Without(config={"rope_parameters": {"rope_type": "default"}})
WITHOUT_WINDOW = Without(config={"sliding_window": LONG})


def _norms(*names: str, value: float = 1.0) -> dict[str, Without]:
    return {name: Without(fill={f"{name}.weight": value}) for name in names}


def _yarn(theta: float, first: int, last: int, original: int = 32, factor: float = 4.0) -> dict[str, Any]:
    """YaRN whose ramp goes from pair `first` to pair `last` of 16, so that whether an engine rounds them makes no difference."""

    def rotations(pair: float) -> float:
        return original / (2 * math.pi) * theta ** (-2 * pair / 32)

    # A hair to the inner side: rounding outwards then gives the very pair.
    beta = {"beta_fast": rotations(first + 1e-4), "beta_slow": rotations(last - 1e-4)}
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original} | beta


def _longrope(pairs: int) -> dict[str, Any]:
    random = np.random.default_rng(7)
    factors = {name: [round(x, 3) for x in random.uniform(low, high, pairs)] for name, low, high in (("short_factor", 1.0, 1.6), ("long_factor", 2.0, 9.0))}
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32} | factors


LLAMA = [
    Case(
        name="llama",
        about="Llama 2: SentencePiece, an output matrix of its own.",
        family="Llama",
        config=NARROW | {"num_hidden_layers": 2},
        vocabulary="sentencepiece",
        features=_norms("input_layernorm", "post_attention_layernorm", "model.norm"),
    ),
    Case(
        name="llama-tied",
        about="SmolLM2: the embeddings are the output matrix too, and RoPE's base is 100000.",
        family="Llama",
        config=NARROW | {"num_hidden_layers": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
        vocabulary="bpe",
        pre="smollm",
        features={"rope base": Without(config={"rope_parameters": {"rope_theta": 10000.0}})},
    ),
    Case(
        name="llama3",
        about="Llama 3.2: RoPE's frequencies are divided by the factors of the tensor rope_freqs, from 32 to 128 tokens.",
        family="Llama",
        config=NARROW
        | {
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        vocabulary="bpe",
        pre="llama-bpe",
        features={"rope scaling": WITHOUT_ROPE_SCALING},
    ),
    Case(
        name="llama-linear",
        about="Positions are divided by 4, and every matrix of attention and MLP has a bias.",
        family="Llama",
        config=NARROW
        | {
            "num_hidden_layers": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        vocabulary="sentencepiece",
        features={
            "rope scaling": WITHOUT_ROPE_SCALING,
            "q bias": Without(fill={"q_proj.bias": 0.0}),
            "k bias": Without(fill={"k_proj.bias": 0.0}),
            "v bias": Without(fill={"v_proj.bias": 0.0}),
            "o bias": Without(fill={"o_proj.bias": 0.0}),
            "gate bias": Without(fill={"gate_proj.bias": 0.0}),
            "up bias": Without(fill={"up_proj.bias": 0.0}),
            "down bias": Without(fill={"down_proj.bias": 0.0}),
        },
    ),
    Case(
        name="llama-yarn",
        about="YaRN from 32 to 128 tokens.",
        family="Llama",
        config=NARROW | {"num_hidden_layers": 1, "rope_parameters": _yarn(10000.0, first=1, last=7)},
        vocabulary="sentencepiece",
        features={
            "rope scaling": WITHOUT_ROPE_SCALING,
            "attention factor": Without(config={"rope_parameters": {"attention_factor": 1.0}}),
            "ramp": Without(config={"rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0}}),
        },
    ),
    Case(
        name="mistral",
        about="Mistral Nemo: a Llama whose heads are wider together than the hidden state.",
        family="Mistral",
        config=NARROW | {"num_hidden_layers": 1, "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        vocabulary="bpe",
        pre="tekken",
    ),
    Case(
        name="mixtral",
        about="Mixtral: 2 of 4 experts, their weights made to sum to 1.",
        family="Mixtral",
        config=NARROW | {"num_hidden_layers": 2, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        vocabulary="sentencepiece",
        features={"routing": Without(fill={"gate.weight": 0.0})},
    ),
    Case(
        name="granite",
        about="Granite 3: embeddings, attention, residuals and logits are scaled.",
        family="Granite",
        config=SQUARE | GRANITE_SCALES | {"num_hidden_layers": 2, "tie_word_embeddings": True},
        vocabulary="bpe",
        pre="refact",
        features={
            "embedding scale": Without(config={"embedding_multiplier": 1.0}),
            "attention scale": Without(config={"attention_multiplier": 32**-0.5}),
            "residual scale": Without(config={"residual_multiplier": 1.0}),
            "logit scale": Without(config={"logits_scaling": 1.0}),
        },
    ),
    Case(
        name="granitemoe",
        about="Granite 3 MoE: 2 of 4 experts and a shared one, what each adds being scaled.",
        family="GraniteMoeShared",
        config=SQUARE
        | GRANITE_SCALES
        | {
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "tie_word_embeddings": True,
        },
        vocabulary="bpe",
        pre="refact",
        features={
            "residual scale": Without(config={"residual_multiplier": 1.0}),
            "shared expert": Without(fill={"shared_mlp.output_linear.weight": 0.0}),
            "routing": Without(fill={"router.weight": 0.0}),
        },
    ),
    Case(
        name="smollm3",
        about="SmolLM3: every fourth layer knows nothing of positions.",
        family="SmolLM3",
        config=SQUARE | {"num_hidden_layers": 5, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 2000000.0}},
        vocabulary="bpe",
        pre="smaug-bpe",
        features={"a layer without positions": Without(config={"no_rope_layers": [1] * 5})},
    ),
]

QWEN = [
    Case(
        name="qwen2",
        about="Qwen 2.5: biases on Q, K and V.",
        family="Qwen2",
        config=SQUARE | {"num_hidden_layers": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        vocabulary="bpe",
        pre="qwen2",
        features={
            "q bias": Without(fill={"q_proj.bias": 0.0}),
            "k bias": Without(fill={"k_proj.bias": 0.0}),
            "v bias": Without(fill={"v_proj.bias": 0.0}),
        },
    ),
    Case(
        name="qwen2-yarn",
        about="Qwen 2.5 at long context: YaRN from 32 to 128 tokens, with the usual ramp left out of the configuration.",
        family="Qwen2",
        config=SQUARE
        | {
            "num_hidden_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32},
        },
        vocabulary="bpe",
        pre="qwen2",
        features={"rope scaling": WITHOUT_ROPE_SCALING, "attention factor": Without(config={"rope_parameters": {"attention_factor": 1.0}})},
    ),
    Case(
        name="qwen3",
        about="Qwen 3: Q and K are normalised, heads are wider together than the hidden state.",
        family="Qwen3",
        config=NARROW | {"num_hidden_layers": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        vocabulary="bpe",
        pre="qwen2",
        features=_norms("q_norm", "k_norm"),
    ),
    Case(
        name="qwen2moe",
        about="Qwen 1.5 MoE: 2 of 4 experts whose weights are not made to sum to 1, and a shared expert with a sigmoid gate.",
        family="Qwen2Moe",
        config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        vocabulary="bpe",
        pre="qwen2",
        features={
            "sum of weights": Without(config={"norm_topk_prob": True}),
            "shared expert": Without(fill={"shared_expert.down_proj.weight": 0.0}),
            "shared expert's gate": Without(fill={"shared_expert_gate.weight": 0.0}),
            "biases": WITHOUT_BIASES,
        },
    ),
    Case(
        name="qwen3moe",
        about="Qwen 3 MoE: 2 of 4 experts whose weights are made to sum to 1, Q and K are normalised.",
        family="Qwen3Moe",
        config=NARROW
        | {
            "num_hidden_layers": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        vocabulary="bpe",
        pre="qwen2",
        features=_norms("q_norm", "k_norm") | {"sum of weights": Without(config={"norm_topk_prob": False})},
    ),
]

GEMMA = [
    Case(
        name="gemma2",
        about="Gemma 2: every other layer has a window, scores and logits are softcapped, norms stand before and after each block.",
        family="Gemma2",
        config=NARROW
        | {
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
            "query_pre_attn_scalar": 32,
        },
        vocabulary="sentencepiece",
        norms_add_one=True,
        features={
            "window": WITHOUT_WINDOW,
            "window on all layers": Without(config={"layer_types": ["sliding_attention"] * 3}),
            "order of layers": Without(config={"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
            "softcap of scores": Without(config={"attn_logit_softcapping": None}),
            "softcap of logits": Without(config={"final_logit_softcapping": None}),
        }
        | _norms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "model.norm", value=0.0),
    ),
    Case(
        name="gemma3",
        about="Gemma 3: five layers with a window and RoPE's base 10000, then one that sees all with base 1000000 and positions divided by 8.",
        family="Gemma3",
        config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "num_hidden_layers": 7,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        vocabulary="sentencepiece",
        norms_add_one=True,
        features={
            "window": WITHOUT_WINDOW,
            "base of windowed layers": Without(config={"rope_parameters": {"sliding_attention": {"rope_theta": 1000000.0}}}),
            "base of full layers": Without(config={"rope_parameters": {"full_attention": {"rope_theta": 10000.0}}}),
            "rope scaling": Without(config={"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "scaling on full layers alone": Without(config={"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}}),
        }
        | _norms("q_norm", "k_norm", "post_attention_layernorm", "post_feedforward_layernorm", value=0.0),
    ),
]

PHI = [
    Case(
        name="phi3",
        about="Phi 3 mini 4k: QKV and gate+up are one matrix each, every layer has a window. llama.cpp leaves that window out.",
        family="Phi3",
        config=SQUARE | {"num_hidden_layers": 1, "sliding_window": WINDOW},
        vocabulary="sentencepiece",
        features={"window": WITHOUT_WINDOW},
    ),
    Case(
        name="phi3-longrope",
        about="Phi 3 mini 128k: RoPE's frequencies are divided by the long factors where the context is longer than 32, else by the short ones.",
        family="Phi3",
        config=SQUARE
        | {
            "num_hidden_layers": 1,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            "rope_parameters": _longrope(16),
        },
        vocabulary="sentencepiece",
        prompts=(Prompt(64), Prompt(41), Prompt(28, num_ctx=32)),
        features={
            "rope scaling": WITHOUT_ROPE_SCALING,
            "attention factor": Without(config={"rope_parameters": {"attention_factor": 1.0}}),
            "long factors": Without(config={"rope_parameters": {"long_factor": _longrope(16)["short_factor"]}}),
        },
    ),
    Case(
        name="phi4",
        about="Phi 4 mini: three quarters of each head rotate, with long factors; the embeddings are the output matrix too.",
        family="Phi3",
        config=SQUARE
        | {
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "sliding_window": 4 * LONG,
            "original_max_position_embeddings": 32,
            "rope_parameters": _longrope(12) | {"partial_rotary_factor": 0.75},
        },
        vocabulary="bpe",
        pre="gpt-4o",
        prompts=(Prompt(64), Prompt(41), Prompt(28, num_ctx=32)),
        features={"rope scaling": WITHOUT_ROPE_SCALING},
    ),
]

GPT_OSS_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": WINDOW,
}
GPT_OSS_YARN = _yarn(150000.0, first=1, last=6) | {"truncate": False}
GPT_OSS_FEATURES = {
    "sinks": Without(fill={"sinks": -1e9}),
    "window": WITHOUT_WINDOW,
    "rope scaling": WITHOUT_ROPE_SCALING,
    "attention factor": Without(config={"rope_parameters": {"attention_factor": 1.0}}),
    "attention's biases": Without(fill={"q_proj.bias": 0.0, "k_proj.bias": 0.0, "v_proj.bias": 0.0, "o_proj.bias": 0.0}),
    "router's bias": Without(fill={"router.bias": 0.0}),
    "experts' biases": Without(fill={"proj_bias": 0.0}),
    "clamp": Without(config={"swiglu_limit": 1e9}),
}

GPT_OSS = [
    Case(
        name="gpt-oss",
        about="gpt-oss with experts in F32: sinks, biases everywhere, a clamped SwiGLU, YaRN, a window on every other layer.",
        family="GptOss",
        config=GPT_OSS_SIZES | {"num_hidden_layers": 2, "rope_parameters": GPT_OSS_YARN},
        vocabulary="bpe",
        pre="gpt-4o",
        features=GPT_OSS_FEATURES | {"order of layers": Without(config={"layer_types": ["full_attention", "sliding_attention"]})},
    ),
    Case(
        name="gpt-oss-mxfp4",
        about="gpt-oss with experts in MXFP4, as it is released. The logits are those of the dequantised experts.",
        family="GptOss",
        config=GPT_OSS_SIZES | {"num_hidden_layers": 2, "rope_parameters": GPT_OSS_YARN},
        vocabulary="bpe",
        pre="gpt-4o",
        mxfp4=True,
        features=GPT_OSS_FEATURES,
    ),
    Case(
        name="gpt-oss-yarn",
        about="gpt-oss with YaRN's own ramp, whose ends are not rounded (`truncate` is false in its configuration). llama.cpp rounds them, and differs.",
        family="GptOss",
        config=GPT_OSS_SIZES
        | {
            "num_hidden_layers": 1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 1.4,
                "beta_slow": 0.04,
                "truncate": False,
                "original_max_position_embeddings": 32,
            },
        },
        vocabulary="bpe",
        pre="gpt-4o",
        features={"ends that are not rounded": Without(config={"rope_parameters": {"truncate": True}})},
    ),
]

GLM = [
    Case(
        name="glm4",
        about="GLM-4: half of each head rotates in neighbouring pairs, gate and up are one matrix, norms stand before and after each part.",
        family="Glm4",
        config=NARROW | {"num_hidden_layers": 2, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        vocabulary="glm",
        pre="glm4",
        features=_norms("post_self_attn_layernorm", "post_mlp_layernorm") | {"biases": WITHOUT_BIASES},
    ),
    Case(
        name="glm4moe",
        about="GLM-4.5: after one ordinary layer, 3 of 8 experts from 2 of 4 groups and a shared one, chosen by sigmoid with a bias; a last block is not run.",
        family="Glm4Moe",
        config=NARROW
        | {
            "num_hidden_layers": 2,
            "attention_bias": True,
            "use_qk_norm": True,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
        },
        vocabulary="glm",
        prompts=(Prompt(28), Prompt(17)),
        pre="glm4",
        features={
            "selection bias": Without(fill={"e_score_correction_bias": 0.0}),
            "groups": Without(config={"n_group": 1, "topk_group": 1}),
            "sum of weights": Without(config={"norm_topk_prob": False}),
            "scale of weights": Without(config={"routed_scaling_factor": 1.0}),
            "shared experts": Without(fill={"shared_experts.down_proj.weight": 0.0}),
        }
        | _norms("q_norm", "k_norm"),
    ),
]

BERT_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}

EMBEDDINGS = [
    Case(
        name="bert",
        about="BERT whose embedding is the mean over the tokens, as all-MiniLM's is.",
        family="Bert",
        head="Model",
        config=BERT_SIZES,
        vocabulary="wordpiece",
        pre="jina-v2-en",
        pooling="mean",
        prompts=(Prompt(30), Prompt(11)),
        features={
            "biases": WITHOUT_BIASES,
            "token types": Without(fill={"token_type_embeddings.weight": 0.0}),
            "positions": Without(fill={"position_embeddings.weight": 0.0}),
        },
    ),
    Case(
        name="bert-cls",
        about="BERT whose embedding is that of the first token, as bge's is.",
        family="Bert",
        head="Model",
        config=BERT_SIZES | {"num_hidden_layers": 1},
        vocabulary="wordpiece",
        pre="jina-v2-en",
        pooling="cls",
        prompts=(Prompt(30), Prompt(11)),
    ),
    Case(
        name="nomic-bert",
        about="nomic-embed-text: RoPE with base 1000, a gated MLP, no biases but the norms'.",
        family="NomicBert",
        head="Model",
        config=BERT_SIZES,
        vocabulary="wordpiece",
        pre="jina-v2-en",
        pooling="mean",
        prompts=(Prompt(30), Prompt(11)),
        features={
            "norms' biases": WITHOUT_BIASES,
            "token types": Without(fill={"token_type_embeddings.weight": 0.0}),
            "rope base": Without(config={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        },
        published_config={
            "n_positions": 8192,
            "max_trained_positions": 2048,
            "activation_function": "swiglu",
            "causal": False,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "prenorm": False,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_emb_base": 1000,
        },
    ),
]

CASES = [*LLAMA, *QWEN, *GEMMA, *PHI, *GLM, *GPT_OSS, *EMBEDDINGS]
