//! What kernels are told, in the layout of the structs in `kernels/`, field by field. The emulator refuses a struct of another size.

use std::ffi::c_void;

use super::driver::DevicePointer;

/// A struct that a kernel takes by value.
pub trait Arguments {
    /// Where it lies, and its bytes.
    fn raw(&self) -> (*const c_void, usize) {
        ((&raw const *self).cast(), size_of_val(self))
    }
}

macro_rules! arguments {
    ($($(#[doc = $doc:literal])* $name:ident { $($field:ident: $ty:ty,)+ })+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)+ }
        impl Arguments for $name {}
    )+};
}

/// `[rows, columns]` of weights in planes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Matrix {
    pub data: DevicePointer,
    pub rows: u32,
    pub columns: u32,
}

/// Some rows of a matrix, and where their products go.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Part {
    pub matrix: Matrix,
    pub to: DevicePointer,
    pub bias: DevicePointer,
    pub first: u32,
    pub rows: u32,
    pub stride: u32,
    pub add: u32,
}

/// Where rows go in 8 bits, too. Null: nowhere.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Quantised {
    pub codes: DevicePointer,
    pub scales: DevicePointer,
}

impl Quantised {
    pub const NOWHERE: Quantised = Quantised { codes: DevicePointer::NULL, scales: DevicePointer::NULL };
}

/// Parts of one launch.
pub const MOST_PARTS: usize = 4;

/// The KV cache of one layer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Cache {
    pub data: DevicePointer,
    pub cache_type: u32,
    pub cells: u32,
    pub kv_heads: u32,
    pub key_length: u32,
    pub value_length: u32,
    pub for_a_batch: u32,
}

arguments! {
    /// Of what a device is measured by.
    MeasureArguments {
        to: DevicePointer,
        rounds: u32,
        unused: u32,
    }
    ProductArguments {
        parts: [Part; MOST_PARTS],
        part_count: u32,
        column_count: u32,
        padded: u32,
        float_stride: u32,
        floats: DevicePointer,
        codes: DevicePointer,
        scales: DevicePointer,
        halves: DevicePointer,
        half_scales: DevicePointer,
        choices: DevicePointer,
        tiles: DevicePointer,
        sorted_pairs: DevicePointer,
        used: u32,
        by_token: u32,
    }
    NormArguments {
        from: DevicePointer,
        to: DevicePointer,
        weight: DevicePointer,
        bias: DevicePointer,
        rows: DevicePointer,
        from_stride: u32,
        to_stride: u32,
        length: u32,
        epsilon: f32,
        quantised: Quantised,
    }
    QuantiseArguments {
        from: DevicePointer,
        to: Quantised,
        stride: u32,
        length: u32,
    }
    HalveArguments {
        from: DevicePointer,
        halves: DevicePointer,
        scales: DevicePointer,
        stride: u32,
        length: u32,
        padded: u32,
    }
    ActivateArguments {
        gate: DevicePointer,
        up: DevicePointer,
        stride: u32,
        length: u32,
        activation: u32,
        alpha: f32,
        limit: f32,
        quantised: Quantised,
    }
    CombineArguments {
        to: DevicePointer,
        from: DevicePointer,
        by: DevicePointer,
        stride: u32,
        length: u32,
        scale: f32,
    }
    CapArguments {
        values: DevicePointer,
        count: u64,
        scale: f32,
        softcap: f32,
    }
    RotationsArguments {
        frequencies: DevicePointer,
        tokens: DevicePointer,
        to: DevicePointer,
        stride: u32,
        pairs: u32,
        magnitude: f32,
    }
    HeadsArguments {
        cache: Cache,
        query: DevicePointer,
        key: DevicePointer,
        value: DevicePointer,
        tokens: DevicePointer,
        query_norm: DevicePointer,
        key_norm: DevicePointer,
        rotations: DevicePointer,
        rotation_stride: u32,
        pairs: u32,
        neighbours: u32,
        heads: u32,
        query_stride: u32,
        key_stride: u32,
        value_stride: u32,
        epsilon: f32,
    }
    SpreadArguments {
        rows: DevicePointer,
        stride: u32,
        length: u32,
    }
    AttendArguments {
        cache: Cache,
        query: DevicePointer,
        to: DevicePointer,
        partials: DevicePointer,
        tokens: DevicePointer,
        spans: DevicePointer,
        sinks: DevicePointer,
        heads: u32,
        query_stride: u32,
        to_stride: u32,
        window: u32,
        causal: u32,
        count: u32,
        splits: u32,
        scale: f32,
        softcap: f32,
    }
    ChooseArguments {
        logits: DevicePointer,
        selection_bias: DevicePointer,
        choices: DevicePointer,
        count: u32,
        used: u32,
        gating: u32,
        groups: u32,
        groups_used: u32,
        renormalise: u32,
        scale: f32,
    }
    SumExpertsArguments {
        to: DevicePointer,
        from: DevicePointer,
        choices: DevicePointer,
        used: u32,
        length: u32,
    }
    SortArguments {
        choices: DevicePointer,
        sorted_pairs: DevicePointer,
        tiles: DevicePointer,
        pairs: u32,
        experts: u32,
        most_tiles: u32,
        tile_columns: u32,
    }
}
