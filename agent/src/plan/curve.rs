//! How many bytes a model needs on GPU, context by context, and how that looks beside the devices.

use stowage_placement::{Asked, Bytes, ContextPolicy, ModelSummary, NodeDevices, Tokens, decide};

/// The first context that is drawn; each further one is twice as long.
const SHORTEST: u64 = 1024;
/// Columns of the longest bar.
const WIDTH: u64 = 48;

/// What all layers need on one GPU at several contexts, and where the devices end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    needs: Vec<(Tokens, Bytes)>,
    /// The GPUs one after another: where each ends.
    ends: Vec<Bytes>,
    /// The context that is asked about.
    num_ctx: Tokens,
}

impl Curve {
    /// From 1024 tokens to the trained context, and `num_ctx` among them.
    pub(super) fn new(summary: &ModelSummary, asked: &Asked, num_ctx: Tokens, devices: &NodeDevices) -> Curve {
        let exact = |num_ctx| Asked { num_ctx: Some(num_ctx), context_policy: ContextPolicy::Exact, min_context: None, ..asked.clone() };
        let need = |num_ctx| Some((num_ctx, decide(summary, &exact(num_ctx), devices).ok()?.report.footprint.total_bytes));
        let mut end = Bytes::ZERO;
        let ends = devices.gpus.iter().map(|gpu| {
            end = end.saturating_add(gpu.offered);
            end
        });
        Curve { ends: ends.collect(), needs: contexts(summary.trained_context, num_ctx).into_iter().filter_map(need).collect(), num_ctx }
    }

    /// A row a context; empty where there is no GPU.
    pub(super) fn render(&self) -> String {
        let Some(capacity) = self.ends.last().copied() else { return String::new() };
        let largest = self.needs.iter().map(|(_, bytes)| *bytes).fold(capacity, Bytes::max);
        let column = |bytes: Bytes| u128::from(bytes.0) * u128::from(WIDTH) / u128::from(largest.0.max(1));
        let ends: Vec<u128> = self.ends.iter().map(|end| column(*end)).collect();
        let bar = |bytes: Bytes| -> String {
            let cell = |at: u128| if ends.contains(&at) { '|' } else { filled(at, column(bytes)) };
            (0..=u128::from(WIDTH)).map(cell).collect()
        };
        let row = |(num_ctx, bytes): &(Tokens, Bytes)| {
            let mark = if *num_ctx == self.num_ctx { '>' } else { ' ' };
            format!("{mark}{:>9} {} {bytes}\n", num_ctx.0, bar(*bytes))
        };
        let rows: String = self.needs.iter().map(row).collect();
        format!("GPU memory for all layers on one GPU, by num_ctx; a line is where a GPU ends\n{rows}")
    }
}

fn filled(at: u128, end: u128) -> char {
    if at < end { '#' } else { ' ' }
}

fn contexts(trained: Tokens, num_ctx: Tokens) -> Vec<Tokens> {
    let doubled = std::iter::successors(Some(SHORTEST), |context| context.checked_mul(2)).take_while(|context| *context < trained.0);
    let mut contexts: Vec<Tokens> = doubled.chain([trained.0, num_ctx.0]).map(Tokens).collect();
    contexts.sort_unstable();
    contexts.dedup();
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_double_up_to_the_trained_one_and_have_the_one_that_is_asked_about() {
        let of = |trained, num_ctx| contexts(Tokens(trained), Tokens(num_ctx)).into_iter().map(|context| context.0).collect::<Vec<_>>();
        assert_eq!(of(8192, 4096), [1024, 2048, 4096, 8192]);
        assert_eq!(of(5000, 300), [300, 1024, 2048, 4096, 5000]);
        assert_eq!(of(512, 512), [512]);
        assert_eq!(of(1 << 20, 1 << 20).len(), 11);
    }

    #[test]
    fn a_bar_is_as_long_as_its_bytes_and_lines_are_where_devices_end() {
        let needs = vec![(Tokens(1024), Bytes(12)), (Tokens(2048), Bytes(48))];
        let drawn = Curve { needs, ends: vec![Bytes(16), Bytes(32)], num_ctx: Tokens(2048) }.render();
        let rows: Vec<&str> = drawn.lines().skip(1).collect();
        assert_eq!(rows[0], format!("      1024 {}    |{}|{} 12 B", "#".repeat(12), " ".repeat(15), " ".repeat(16)));
        assert_eq!(rows[1], format!(">     2048 {}|{}|{}  48 B", "#".repeat(16), "#".repeat(15), "#".repeat(15)));
        let without_gpu = Curve { needs: Vec::new(), ends: Vec::new(), num_ctx: Tokens(1) };
        assert_eq!(without_gpu.render(), "");
    }
}
