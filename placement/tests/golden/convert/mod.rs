//! What llama.cpp's converter makes of a published configuration: keys and tensors.
//!
//! Source: `conversion/*.py` and `gguf-py/gguf/tensor_mapping.py` of llama.cpp, as of the copy in llama-cpp-python 0.3.36.

mod encoder;
mod experts;
mod gemma;
mod latent;
mod parts;
mod recurrent;
mod transformer;

use crate::config::Config;
use crate::model::Model;

/// Every `model_type` that can be converted.
pub const MODEL_TYPES: &[&str] = &[
    "bert",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "falcon_h1",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoe",
    "llama",
    "mamba",
    "mamba2",
    "minimax_m2",
    "mistral",
    "mixtral",
    "nomic_bert",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
    "starcoder2",
];

/// # Panics
/// Where the configuration's `model_type` is none of [`MODEL_TYPES`], or a number is missing.
pub fn convert(config: &Config) -> Model {
    match config.text("model_type") {
        "llama" | "mistral" => transformer::llama(config, "llama"),
        "granite" => transformer::llama(config, "granite"),
        "smollm3" => transformer::llama(config, "smollm3"),
        "qwen2" => transformer::qwen2(config),
        "qwen3" => transformer::qwen3(config),
        "phi3" => transformer::phi3(config),
        "cohere" => transformer::cohere(config, "command-r"),
        "cohere2" => transformer::cohere(config, "cohere2"),
        "glm4" => transformer::glm4(config),
        "olmo2" => transformer::olmo2(config),
        "starcoder2" => transformer::starcoder2(config),
        "mixtral" => experts::mixtral(config, "llama"),
        "granitemoe" => experts::mixtral(config, "granitemoe"),
        "qwen2_moe" => experts::qwen2_moe(config),
        "qwen3_moe" => experts::qwen3_moe(config),
        "glm4_moe" => experts::glm4_moe(config),
        "gpt_oss" => experts::gpt_oss(config),
        "minimax_m2" => experts::minimax_m2(config),
        "deepseek_v2" | "deepseek_v3" => latent::deepseek(config),
        "gemma2" => gemma::gemma2(config),
        "gemma3_text" => gemma::gemma3(config),
        "gemma3n_text" => gemma::gemma3n(config),
        "gemma4_text" => gemma::gemma4(config),
        "qwen3_next" => recurrent::qwen3_next(config, "qwen3next"),
        "qwen3_5_text" => recurrent::qwen3_next(config, "qwen35"),
        "qwen3_5_moe_text" => recurrent::qwen3_next(config, "qwen35moe"),
        "falcon_h1" => recurrent::falcon_h1(config),
        "mamba" => recurrent::mamba(config),
        "mamba2" => recurrent::mamba2(config),
        "bert" => encoder::bert(config),
        "nomic_bert" => encoder::nomic_bert(config),
        other => panic!("there is no conversion of `{other}`"),
    }
}
