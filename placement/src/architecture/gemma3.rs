//! Gemma 3: five sliding layers, then one with the whole context; Gemma 2's blocks, with a norm on each head's query and key.
//!
//! Source: `src/models/gemma3.cpp` of llama.cpp; without a window in the file, no layer slides. Checked on the configurations of
//! google/gemma-3-27b-it and google/gemma-3-270m, and on what llama.cpp prints for the latter.

use super::layer_cache::interleaved_attention;
use super::need::{self, Need};
use super::{Family, Hyperparameters, LayerCache, gemma2, llama};

const PERIOD: u64 = 6;

pub(super) const FAMILY: Family = Family { names: &["gemma3"], block_tensors, cache, ..llama::FAMILY };

fn cache(hyperparameters: &Hyperparameters, layer: usize) -> LayerCache {
    interleaved_attention(hyperparameters, layer, hyperparameters.window, PERIOD)
}

pub(super) fn block_tensors(hyperparameters: &Hyperparameters, layer: usize) -> Vec<Need> {
    let mut needs = gemma2::block_tensors(hyperparameters, layer);
    needs.push(need::query_key_norms());
    needs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, KIB, kv, sliding};

    const GEMMA_3_270M: [(&str, u64); 5] = [
        ("embedding_length", 640),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 256),
        ("attention.value_length", 256),
    ];

    #[test]
    fn five_layers_of_six_slide() {
        let numbers: Vec<(&str, u64)> = GEMMA_3_270M.into_iter().chain([("attention.sliding_window", 512)]).collect();
        let case = Case::new("gemma3", 18, &numbers);
        let (slides, full) = ((sliding(1, 256, 256, 512), 5), (kv(1, 256, 256), 1));
        case.has_layers(&[slides, full, slides, full, slides, full]);
        // 1 KiB a token: 3 layers of 8192, 15 of 512 + 512.
        case.takes(8192, 512, (3 * 8192 + 15 * 1024) * KIB, 0);
    }

    #[test]
    fn the_file_may_say_how_many_layers_slide() {
        let case = |period| {
            let said = [("attention.sliding_window", 512), ("attention.sliding_window_pattern", period)];
            Case::new("gemma3", 4, &GEMMA_3_270M.into_iter().chain(said).collect::<Vec<_>>())
        };
        let (slides, full) = (sliding(1, 256, 256, 512), kv(1, 256, 256));
        case(2).has_layers(&[(slides, 1), (full, 1), (slides, 1), (full, 1)]);
        case(1).has_layers(&[(full, 4)]);
        case(0).has_layers(&[(slides, 4)]);
    }

    #[test]
    fn without_a_window_every_layer_has_the_whole_context() {
        Case::new("gemma3", 18, &GEMMA_3_270M).has_layers(&[(kv(1, 256, 256), 18)]);
    }
}
