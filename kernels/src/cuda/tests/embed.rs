//! embed.cu and gather.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::embed::Embed;
use crate::cuda::gather::Gather;
use crate::reference::Matrix;
use crate::weight_format::WeightFormat;

const VOCAB: usize = 37;
const PENDING: u32 = u32::MAX;

/// A table of noise on the device, with the values that it stands for.
struct Table {
    codes: DeviceBuffer,
    scales: Option<DeviceBuffer>,
    stride: usize,
    stands_for: Matrix,
}

fn table(bed: &Bed, format: WeightFormat, cols: usize) -> Table {
    let values = noises(1, VOCAB * cols);
    let wide = values.iter().map(|&value| f64::from(value)).collect();
    let stands_for = Matrix { rows: VOCAB, cols, data: wide }.stored(format);
    match format {
        WeightFormat::Plain(dtype) => {
            let stride = crate::cuda::linear::stride_of(cols, dtype);
            let rows = values.chunks_exact(cols);
            let padded = rows.flat_map(|row| row.iter().copied().chain(vec![0.0; stride - cols]));
            let codes = bed.numbers(&padded.collect::<Vec<f32>>(), dtype);
            Table { codes, scales: None, stride, stands_for }
        }
        WeightFormat::Quantized(quantization) => {
            let OnDevice { codes, scales } = OnDevice::new(bed, quantization, &values, cols);
            let stride = code_bytes(quantization, cols);
            Table { codes, scales: Some(scales), stride, stands_for }
        }
    }
}

/// Three sequences in slots 2, 0, 4; the last row of each is pending.
fn embeds(bed: &Bed, format: impl Into<WeightFormat>, cols: usize) -> Result<bool, KernelError> {
    let format = format.into();
    let table = table(bed, format, cols);
    let ids = [5, PENDING, 36, 0, PENDING, PENDING];
    let (row_seq, seq_slot) = ([0, 0, 1, 1, 1, 2], [2, 0, 4]);
    let last_tokens = [11, 99, 12, 99, 13];
    let want_ids = [5, 12, 36, 0, 11, 13];
    let x = bed.poison(ids.len() * cols);
    let on = (bed.words(&ids), bed.words(&row_seq), bed.words(&seq_slot), bed.words(&last_tokens));
    let embed = Embed {
        table: table.codes.pointer(),
        scales: table.scales.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer),
        ids: on.0.pointer(),
        row_seq: on.1.pointer(),
        seq_slot: on.2.pointer(),
        last_tokens: on.3.pointer(),
        x: x.pointer(),
        cols: cols as u32,
        stride: table.stride as u32,
        scale: 3.0,
    };
    // SAFETY: buffers of these rows.
    unsafe { embed.launch(&*bed.driver, format, ids.len() as u32) }?;
    let want: Vec<f32> = want_ids
        .iter()
        .flat_map(|&id| table.stands_for.row(id))
        .map(|&value| value as f32 * 3.0)
        .collect();
    Ok(read_floats(&x, want.len()) == want)
}

#[test]
fn rows_of_the_table_are_taken_by_id_or_by_slot() {
    for seed in SEEDS {
        let plain = [DType::F32, DType::Bf16, DType::F16].map(WeightFormat::from);
        for format in plain.into_iter().chain(Quantization::ALL.map(WeightFormat::from)) {
            for cols in [1, 48, 200] {
                assert!(embeds(&Bed::new(seed, None), format, cols).unwrap(), "{format:?} {cols}");
            }
        }
    }
}

/// Rows of a table of any width on a device, and rows that are gathered.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let (format, cols) =
        (dice.of(&[DType::Bf16, DType::F16, DType::F32]), dice.size(most.min(8192)));
    let run = move |bed: &Bed| Ok(embeds(bed, format, cols)? && gathers(bed)?);
    (format!("rows of {cols}, {format:?}"), Box::new(run))
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "p.seq_slot[p.row_seq[row]]", to: "p.row_seq[row]" },
        Fault { from: "p.table + id * p.stride)[col]);", to: "p.table + id * p.cols)[col]);" },
        Fault { from: "* p.scale", to: "" },
        Fault { from: "(u64)row * p.cols", to: "(u64)(row + 1) * p.cols" },
        Fault { from: "blockIdx.y * EMBED_THREADS", to: "2 * blockIdx.y * EMBED_THREADS" },
        Fault { from: "id == PENDING_TOKEN", to: "id == PENDING_TOKEN - 1" },
    ];
    // 50 columns of bf16 are padded; 150 take two blocks.
    assert_caught(&faults, |bed| {
        Ok(embeds(bed, DType::Bf16, 50)? && embeds(bed, DType::Bf16, 150)?)
    });
}

#[test]
fn planted_faults_of_quantized_tables_show() {
    let both = |bed: &Bed, quantization| {
        Ok(embeds(bed, quantization, 50)? && embeds(bed, quantization, 150)?)
    };
    let faults = [
        Fault { from: "(const signed char*)p.table", to: "(const u8*)p.table" },
        Fault { from: "SCALED)) + col / SCALED", to: "SCALED))" },
    ];
    assert_caught(&faults, |bed| both(bed, Quantization::Q8_0));
    let faults = [
        Fault { from: "+ element % 16]", to: "+ element / 2]" },
        Fault { from: "(element / 16 * 4) & 15) - 8", to: "(element / 16 * 4) & 15) - 7" },
        Fault { from: "SCALED)) + block", to: "SCALED))" },
    ];
    assert_caught(&faults, |bed| both(bed, Quantization::Q4_0));
    let faults = [
        Fault { from: "(code & 0x7f) << 7", to: "(code & 0x7f) << 6" },
        Fault { from: "(const float*)p.scales)[id]", to: "(const float*)p.scales)[0]" },
    ];
    assert_caught(&faults, |bed| both(bed, Quantization::Fp8));
}

fn gathers(bed: &Bed) -> Result<bool, KernelError> {
    let (cols, rows) = (200, [4, 0, 4, 6]);
    let x = noises(1, 7 * cols);
    let out = bed.poison(rows.len() * cols);
    let (on_x, on_rows) = (bed.floats(&x), bed.words(&rows));
    let gather = Gather {
        x: on_x.pointer(),
        rows: on_rows.pointer(),
        out: out.pointer(),
        cols: cols as u32,
    };
    // SAFETY: buffers of these rows.
    unsafe { gather.launch(&*bed.driver, rows.len() as u32) }?;
    let want: Vec<f32> =
        rows.iter().flat_map(|&row| &x[row as usize * cols..][..cols]).copied().collect();
    Ok(read_floats(&out, want.len()) == want)
}

#[test]
fn rows_are_gathered() {
    for seed in SEEDS {
        assert!(gathers(&Bed::new(seed, None)).unwrap());
    }
    let faults = [
        Fault { from: "p.rows[blockIdx.x]", to: "blockIdx.x" },
        Fault { from: "col < p.cols", to: "col + 1 < p.cols" },
        Fault { from: "blockIdx.y * GATHER_THREADS", to: "0" },
        Fault { from: "(u64)blockIdx.x * p.cols", to: "0" },
        Fault { from: "to[col] = from[col]", to: "to[col] += from[col]" },
    ];
    assert_caught(&faults, gathers);
}
