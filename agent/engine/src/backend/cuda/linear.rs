//! Products of rows with matrices: those of one type that multiply the same rows are one launch. Few rows are brought into 8 bits, many into half precision.

use stowage_placement::compute::cuda::TILE_COLUMNS;
use stowage_placement::gguf::GgmlType;

use super::arguments::{HalveArguments, MOST_PARTS, Matrix, Part, ProductArguments, QuantiseArguments, Quantised};
use super::buffers::Rows;
use super::driver::DevicePointer;
use super::kernels::{FEW, Kernels, ProductKernels, THREADS, WARP};
use crate::api::EngineError;

/// Rows of a matrix that a block multiplies where there are few columns, a warp each, and many.
const MATVEC_ROWS: u32 = THREADS / WARP;
const MATMUL_ROWS: u32 = 128;
/// Bytes of shared memory of a block with many columns: two stages of 128 rows and 128 columns of 40 halves.
const MATMUL_SHARED_FLOATS: u32 = 2 * 2 * 128 * 40 / 2;
const NO_PART: Part = Part {
    matrix: Matrix { data: DevicePointer::NULL, rows: 0, columns: 0 },
    to: DevicePointer::NULL,
    bias: DevicePointer::NULL,
    first: 0,
    rows: 0,
    stride: 0,
    add: 0,
};

/// Products of the same rows.
pub struct Linear {
    pub from: Rows,
    /// Elements of a row.
    pub length: u32,
    /// Where rows are brought into the form in which they are multiplied.
    pub activations: DevicePointer,
    groups: Vec<Group>,
    /// Never in half precision.
    exact: bool,
}

/// Up to four parts of one type.
struct Group {
    ty: GgmlType,
    kernels: ProductKernels,
    parts: Vec<Part>,
}

/// How experts' columns are found.
#[derive(Clone, Copy)]
pub struct Routed {
    pub choices: DevicePointer,
    pub tiles: DevicePointer,
    pub sorted_pairs: DevicePointer,
    /// Experts that a token goes to.
    pub used: u32,
    pub experts: u32,
    /// Whether the rows are those of tokens, or of pairs.
    pub by_token: bool,
}

fn is_float(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
}

impl Linear {
    pub fn new(from: Rows, length: u32, activations: DevicePointer) -> Linear {
        Linear { from, length, activations, groups: Vec::new(), exact: false }
    }

    /// Where the result decides what is computed next, or there are always few rows.
    pub fn exact(from: Rows, length: u32, activations: DevicePointer) -> Linear {
        Linear { exact: true, ..Linear::new(from, length, activations) }
    }

    /// Adds a product.
    pub fn push(&mut self, kernels: &mut Kernels, ty: GgmlType, part: Part) -> Result<(), EngineError> {
        match self.groups.iter_mut().find(|group| group.ty == ty && group.parts.len() < MOST_PARTS) {
            Some(group) => group.parts.push(part),
            None => self.groups.push(Group { ty, kernels: kernels.products(ty)?, parts: vec![part] }),
        }
        Ok(())
    }

    /// Where whoever makes its rows puts them in 8 bits, if they are multiplied so. What is then run is [`Linear::run_prepared`].
    pub fn wants(&self, rows: u32) -> Quantised {
        let Forms { codes, scales, .. } = self.forms(rows);
        let wanted = self.has_few(rows) && self.is_quantised();
        if wanted { Quantised { codes, scales } } else { Quantised::NOWHERE }
    }

    fn has_few(&self, rows: u32) -> bool {
        rows <= FEW || self.exact
    }

    fn is_quantised(&self) -> bool {
        self.groups.iter().any(|group| !is_float(group.ty))
    }

    /// Multiplies `rows` rows.
    pub fn run(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        self.prepare(kernels, rows, self.has_few(rows))?;
        self.multiply(kernels, rows)
    }

    /// The same where the rows are in 8 bits already, if [`Linear::wants`] asked for that.
    pub fn run_prepared(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        if !self.has_few(rows) {
            self.prepare(kernels, rows, false)?;
        }
        self.multiply(kernels, rows)
    }

    fn multiply(&self, kernels: &Kernels, rows: u32) -> Result<(), EngineError> {
        let few = self.has_few(rows);
        for group in &self.groups {
            let arguments = self.arguments(group, rows);
            if few {
                let width = rows.next_power_of_two().min(FEW);
                let kernel = group.kernels.matvec[width.ilog2() as usize];
                kernels.launch(kernel, [group.blocks(MATVEC_ROWS), rows.div_ceil(width), 1], 0, &arguments)?;
            } else {
                let columns = rows.div_ceil(TILE_COLUMNS as u32);
                kernels.launch(group.kernels.matmul, [group.blocks(MATMUL_ROWS), columns, 1], MATMUL_SHARED_FLOATS, &arguments)?;
            }
        }
        Ok(())
    }

    /// Multiplies the rows of each token, or of each pair, with the experts that `tokens` tokens go to.
    pub fn run_routed(&self, kernels: &Kernels, tokens: u32, routed: Routed) -> Result<(), EngineError> {
        let (few, pairs) = (tokens <= FEW, tokens * routed.used);
        self.prepare(kernels, if routed.by_token { tokens } else { pairs }, few)?;
        for group in &self.groups {
            let Routed { choices, used, by_token, .. } = routed;
            let rows = if by_token { tokens } else { pairs };
            let arguments = ProductArguments { choices, used, by_token: by_token.into(), ..self.arguments(group, rows) };
            if few {
                let arguments = ProductArguments { column_count: pairs, ..arguments };
                kernels.launch(group.kernels.matvec[0], [group.blocks(MATVEC_ROWS), pairs, 1], 0, &arguments)?;
            } else {
                let arguments = ProductArguments { tiles: routed.tiles, sorted_pairs: routed.sorted_pairs, ..arguments };
                let grid = [group.blocks(MATMUL_ROWS), most_tiles(pairs, routed.experts), 1];
                kernels.launch(group.kernels.matmul, grid, MATMUL_SHARED_FLOATS, &arguments)?;
            }
        }
        Ok(())
    }

    /// Brings rows into the form in which they are multiplied.
    fn prepare(&self, kernels: &Kernels, rows: u32, few: bool) -> Result<(), EngineError> {
        let Forms { codes, scales, halves, half_scales, padded } = self.forms(rows);
        let Rows { at: from, stride } = self.from;
        if !few {
            let arguments = HalveArguments { from, halves, scales: half_scales, stride, length: self.length, padded };
            return kernels.launch(kernels.halve, [rows, 1, 1], THREADS / WARP, &arguments);
        }
        if !self.is_quantised() {
            return Ok(());
        }
        let arguments = QuantiseArguments { from, to: Quantised { codes, scales }, stride, length: self.length };
        kernels.launch_rows(kernels.quantise, rows, self.length, &arguments)
    }

    /// Where each form of `rows` rows lies in the buffer that they share.
    fn forms(&self, rows: u32) -> Forms {
        let padded = self.length.next_multiple_of(WARP);
        let elements = rows as usize * padded as usize;
        let at = self.activations;
        Forms { codes: at, scales: at.after(elements), halves: at, half_scales: at.after(2 * elements), padded }
    }

    fn arguments(&self, group: &Group, rows: u32) -> ProductArguments {
        let Forms { codes, scales, halves, half_scales, padded } = self.forms(rows);
        let part = |index: usize| group.parts.get(index).copied().unwrap_or(NO_PART);
        let nothing = DevicePointer::NULL;
        ProductArguments {
            parts: std::array::from_fn(part),
            part_count: group.parts.len() as u32,
            column_count: rows,
            padded,
            float_stride: self.from.stride,
            floats: self.from.at,
            codes,
            scales,
            halves,
            half_scales,
            choices: nothing,
            tiles: nothing,
            sorted_pairs: nothing,
            used: 1,
            by_token: 0,
        }
    }
}

struct Forms {
    codes: DevicePointer,
    scales: DevicePointer,
    halves: DevicePointer,
    half_scales: DevicePointer,
    padded: u32,
}

impl Group {
    /// Blocks of `rows` rows each that the parts take.
    fn blocks(&self, rows: u32) -> u32 {
        self.parts.iter().map(|part| part.rows.div_ceil(rows)).sum()
    }
}

/// Tiles that a batch's pairs make at most.
pub fn most_tiles(pairs: u32, experts: u32) -> u32 {
    pairs.div_ceil(TILE_COLUMNS as u32) + experts.min(pairs)
}
