//! Products in plain Rust: the path of CPUs without vector instructions that we use, and the twin of those that have them.

use super::product::{MOST_COLUMNS, TileProduct};
use super::rows::BLOCK_BYTES;
use super::tile::{Panel, ROWS};

/// One tile, unpacked into panels, times one group.
///
/// # Safety
///
/// The product's pointers have what `TileProduct` says, and the tile is panels.
pub unsafe fn panel_product(p: &TileProduct) {
    let mut results = [[0f32; ROWS]; MOST_COLUMNS];
    // SAFETY: by the contract of this function.
    unsafe {
        let panels = std::slice::from_raw_parts(p.tile.cast::<Panel>(), p.blocks);
        for (column, results) in results.iter_mut().enumerate().take(p.columns) {
            *results = p.begin(column);
        }
        for (block, panel) in panels.iter().enumerate() {
            let group = p.group.add(block * p.width * BLOCK_BYTES);
            for (column, results) in results.iter_mut().enumerate().take(p.columns) {
                let (q, scales) = column_of_block(group, p.width, column);
                add_block(panel, &q, scales, results);
            }
        }
        for (column, results) in results.iter().enumerate().take(p.columns) {
            p.finish(column, results);
        }
    }
}

/// One column's bytes, its scale, scale x sum, and scale x sum of the first half.
///
/// # Safety
///
/// `group` points at a block of `width` columns.
unsafe fn column_of_block(group: *const u8, width: usize, column: usize) -> ([i8; 32], [f32; 3]) {
    let mut q = [0i8; 32];
    // SAFETY: by the contract of this function; groups are aligned to 4.
    unsafe {
        for i in 0..32 {
            q[i] = *group.add((i / 4 * width + column) * 4 + i % 4).cast::<i8>();
        }
        let scales = group.cast::<f32>().add(8 * width + column);
        (q, [*scales, *scales.add(width), *scales.add(2 * width)])
    }
}

fn add_block(panel: &Panel, q: &[i8; 32], [scale, sum, first]: [f32; 3], results: &mut [f32; ROWS]) {
    let mut halves = [[0i32; ROWS]; 2];
    let (groups, _) = panel.q.as_chunks::<64>();
    for (group, weights) in groups.iter().enumerate() {
        let activations: [i16; 4] = std::array::from_fn(|i| i16::from(q[group * 4 + i]));
        for (sum, four) in halves[group / 4].iter_mut().zip(weights.as_chunks::<4>().0) {
            // Each fits in 16 bits, which compilers make vectors of.
            let products: [i16; 4] = std::array::from_fn(|i| i16::from(four[i]) * activations[i]);
            *sum += products.iter().map(|&product| i32::from(product)).sum::<i32>();
        }
    }
    for (row, result) in results.iter_mut().enumerate() {
        *result += scale * (panel.scale[0][row] * halves[0][row] as f32 + panel.scale[1][row] * halves[1][row] as f32);
        *result += panel.minimum[0][row] * first + panel.minimum[1][row] * (sum - first);
    }
}
