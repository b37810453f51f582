//! Mamba and Mamba 2: a recurrent state in every layer and nothing that grows with the context. Mamba 2's convolution also runs over the projections
//! of each group.
//!
//! Converters write a context of 2^20 for them, since they were trained for none in particular.
//!
//! Source: `src/models/mamba.cpp` and `mamba2.cpp` of llama.cpp. Checked on the configurations of state-spaces/mamba-2.8b-hf and
//! mistralai/Mamba-Codestral-7B-v0.1.

use super::layer_cache::recurrent_state;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, OutputLayer};

pub(super) const MAMBA: Family = Family {
    names: &["mamba"],
    required: &["ssm.conv_kernel", "ssm.inner_size", "ssm.state_size"],
    block_tensors: mamba,
    cache,
    output: OutputLayer::Vocabulary,
};

pub(super) const MAMBA2: Family = Family {
    names: &["mamba2"],
    required: &["ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count"],
    block_tensors: mamba2,
    ..MAMBA
};

fn cache(hyperparameters: &Hyperparameters, _: usize) -> LayerCache {
    LayerCache { state: recurrent_state(hyperparameters), ..LayerCache::default() }
}

fn mamba(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![common(), need::all(&["ssm_x.weight", "ssm_dt.weight"])]
}

fn mamba2(_: &Hyperparameters, _: usize) -> Vec<Need> {
    vec![common(), need::all(&["ssm_norm.weight"])]
}

fn common() -> Need {
    need::all(&[
        "attn_norm.weight",
        "ssm_in.weight",
        "ssm_conv1d.weight",
        "ssm_conv1d.bias",
        "ssm_dt.bias",
        "ssm_a",
        "ssm_d",
        "ssm_out.weight",
    ])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, state};

    #[test]
    fn mamba_keeps_the_same_whatever_the_context() {
        let numbers = [("embedding_length", 2560), ("ssm.conv_kernel", 4), ("ssm.inner_size", 5120), ("ssm.state_size", 16)];
        // `3 x 5120 x 4` and `5120 x 16 x 4`.
        let bytes = 61_440 + 327_680;
        let case = Case::new("mamba", 64, &numbers);
        case.has_layers(&[(state(bytes), 64)]);
        case.takes(256, 512, 0, 64 * bytes);
        case.takes(1 << 20, 512, 0, 64 * bytes);
    }

    #[test]
    fn mamba_2_convolves_its_groups_too() {
        let numbers =
            [("embedding_length", 4096), ("ssm.conv_kernel", 4), ("ssm.inner_size", 8192), ("ssm.state_size", 128), ("ssm.group_count", 8)];
        // `3 x (8192 + 2 x 8 x 128) x 4` and `8192 x 128 x 4`.
        let bytes = 122_880 + 4_194_304;
        let case = Case::new("mamba2", 64, &numbers);
        case.has_layers(&[(state(bytes), 64)]);
        case.takes(4096, 512, 0, 64 * bytes);
    }
}
