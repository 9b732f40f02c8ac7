//! The kernels' sources, embedded in the binary: text for NVRTC, or for the host's emulation.

/// One `.cu` file: one module on the device, one library under emulation.
#[derive(Debug)]
pub(crate) struct Source {
    /// File name.
    pub(crate) name: &'static str,
    /// Its text.
    pub(crate) text: &'static str,
}

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!(concat!("../../cuda/", $name)) }
    };
}

/// What sources include, in no order.
pub(crate) static HEADERS: [Source; 13] = [
    source!("prelude.cuh"),
    source!("ptx.cuh"),
    source!("emulation/emulate.h"),
    source!("attention_tile.cuh"),
    source!("attention_ring.cuh"),
    source!("attention_plain.cuh"),
    source!("attention_tensor.cuh"),
    source!("attention_units.cuh"),
    source!("sample_parameters.cuh"),
    source!("sample_row.cuh"),
    source!("sample_select.cuh"),
    source!("sample_draw.cuh"),
    source!("sample_describe.cuh"),
];

pub(crate) static ATTENTION: Source = source!("attention.cu");
pub(crate) static ATTENTION_SIZED: Source = source!("attention_sized.cu");
pub(crate) static EMBED: Source = source!("embed.cu");
pub(crate) static GATHER: Source = source!("gather.cu");
pub(crate) static LINEAR: Source = source!("linear.cu");
pub(crate) static MOE: Source = source!("moe.cu");
pub(crate) static NORM: Source = source!("norm.cu");
pub(crate) static ROPE_STORE: Source = source!("rope_store.cu");
pub(crate) static SAMPLE: Source = source!("sample.cu");
