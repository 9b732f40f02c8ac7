//! The kernels' sources, embedded in the binary: text for NVRTC, or for the host's emulation.

/// One `.cu` file: one module on the device, one library under emulation.
#[derive(Debug)]
pub(crate) struct Source {
    /// File name.
    pub(crate) name: &'static str,
    /// Its text.
    pub(crate) text: &'static str,
}

impl Source {
    /// All that it includes on the device, directly or not.
    pub(crate) fn includes(&self) -> Vec<&'static Source> {
        self.reach(|header| !header.name.starts_with("emulation/"))
    }

    /// All that it includes under emulation.
    pub(crate) fn includes_emulated(&self) -> Vec<&'static Source> {
        self.reach(|_| true)
    }

    fn reach(&self, wanted: impl Fn(&Source) -> bool) -> Vec<&'static Source> {
        let mut reached: Vec<&'static Source> = Vec::new();
        let (mut text, mut at) = (self.text, 0);
        loop {
            for header in HEADERS.iter().filter(|header| wanted(header)) {
                let include = format!("#include \"{}\"", header.name);
                if text.contains(&include) && reached.iter().all(|old| old.name != header.name) {
                    reached.push(header);
                }
            }
            let Some(header) = reached.get(at) else { return reached };
            (text, at) = (header.text, at + 1);
        }
    }
}

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!(concat!("../../cuda/", $name)) }
    };
}

/// What sources include, in no order.
pub(crate) static HEADERS: [Source; 29] = [
    source!("prelude.cuh"),
    source!("ptx.cuh"),
    source!("ptx90.cuh"),
    source!("emulation/emulate.h"),
    source!("emulation/hopper.h"),
    source!("quantized.cuh"),
    source!("kv_fp8.cuh"),
    source!("halves.cuh"),
    source!("row_norm.cuh"),
    source!("few_rows.cuh"),
    source!("linear_epilogue.cuh"),
    source!("linear_tile.cuh"),
    source!("slot_ring.cuh"),
    source!("linear_sums.cuh"),
    source!("linear_tensor.cuh"),
    source!("linear_bytes.cuh"),
    source!("linear_tilings.cuh"),
    source!("linear_result.cuh"),
    source!("attention_tile.cuh"),
    source!("attention_merge.cuh"),
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
pub(crate) static ATTENTION_FP8: Source = source!("attention_fp8.cu");
pub(crate) static ATTENTION_HOPPER: Source = source!("attention_hopper.cu");
pub(crate) static ATTENTION_SIZED: Source = source!("attention_sized.cu");
pub(crate) static EMBED: Source = source!("embed.cu");
pub(crate) static GATHER: Source = source!("gather.cu");
pub(crate) static KV_COPY: Source = source!("kv_copy.cu");
pub(crate) static LINEAR: Source = source!("linear.cu");
pub(crate) static LINEAR_BYTES: Source = source!("linear_bytes.cu");
pub(crate) static LINEAR_HOPPER: Source = source!("linear_hopper.cu");
pub(crate) static LINEAR_HOPPER_QUANTIZED: Source = source!("linear_hopper_quantized.cu");
pub(crate) static LINEAR_TENSOR: Source = source!("linear_tensor.cu");
pub(crate) static LINEAR_TENSOR_F16: Source = source!("linear_tensor_f16.cu");
pub(crate) static LINEAR_TENSOR_FP8: Source = source!("linear_tensor_fp8.cu");
pub(crate) static LINEAR_TILED: Source = source!("linear_tiled.cu");
pub(crate) static LINEAR_QUANTIZED: Source = source!("linear_quantized.cu");
pub(crate) static MOE: Source = source!("moe.cu");
pub(crate) static MOE_GROUP: Source = source!("moe_group.cu");
pub(crate) static NARROW_ROWS: Source = source!("narrow_rows.cu");
pub(crate) static NORM: Source = source!("norm.cu");
pub(crate) static QUANTIZE_ROWS: Source = source!("quantize_rows.cu");
pub(crate) static ROPE_STORE: Source = source!("rope_store.cu");
pub(crate) static SAMPLE: Source = source!("sample.cu");

/// Every source that ops are made of. What takes longest to compile comes first.
pub(crate) static SOURCES: [&Source; 23] = [
    &ATTENTION_SIZED,
    &ATTENTION_FP8,
    &LINEAR_TENSOR_FP8,
    &LINEAR_BYTES,
    &LINEAR_TENSOR,
    &LINEAR_TENSOR_F16,
    &LINEAR_QUANTIZED,
    &LINEAR_HOPPER,
    &LINEAR_HOPPER_QUANTIZED,
    &ATTENTION_HOPPER,
    &ATTENTION,
    &SAMPLE,
    &LINEAR,
    &LINEAR_TILED,
    &MOE,
    &MOE_GROUP,
    &NARROW_ROWS,
    &QUANTIZE_ROWS,
    &ROPE_STORE,
    &NORM,
    &EMBED,
    &GATHER,
    &KV_COPY,
];

#[cfg(any(test, feature = "suite"))]
pub(crate) static SUITE_CEILINGS: Source = source!("suite_ceilings.cu");
/// Hopper's instructions by themselves.
#[cfg(any(test, feature = "suite"))]
pub(crate) static SUITE_HOPPER: Source = source!("suite_hopper.cu");
#[cfg(any(test, feature = "suite"))]
pub(crate) static SUITE_WRAPPERS: Source = source!("suite_wrappers.cu");

/// What the hardware suite runs besides.
#[cfg(any(test, feature = "suite"))]
pub(crate) static SUITE_SOURCES: [&Source; 3] = [&SUITE_CEILINGS, &SUITE_HOPPER, &SUITE_WRAPPERS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let (mut sources, mut headers) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".cu") {
                sources.push(name);
            } else if name.ends_with(".cuh") {
                headers.push(name);
            }
        }
        let listed = SOURCES.iter().chain(&SUITE_SOURCES);
        let mut listed: Vec<_> = listed.map(|source| source.name.to_owned()).collect();
        listed.sort();
        sources.sort();
        assert_eq!(listed, sources);
        for name in headers {
            assert!(HEADERS.iter().any(|header| header.name == name), "{name}");
        }
    }

    #[test]
    fn the_device_needs_nothing_of_emulation() {
        let names = |reached: Vec<&'static Source>| -> Vec<_> {
            reached.iter().map(|header| header.name).collect()
        };
        assert_eq!(names(NORM.includes()), ["row_norm.cuh", "prelude.cuh", "ptx.cuh"]);
        assert!(names(NORM.includes_emulated()).contains(&"emulation/emulate.h"));
        assert!(names(ATTENTION.includes()).contains(&"attention_tile.cuh"));
    }
}
