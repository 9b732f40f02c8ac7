//! embed.cu and gather.cu.

use super::*;
use crate::cuda::embed::Embed;
use crate::cuda::gather::Gather;

const VOCAB: usize = 37;
const PENDING: u32 = u32::MAX;

/// Three sequences in slots 2, 0, 4; the last row of each is pending.
fn embeds(bed: &Bed, format: DType, cols: usize) -> Result<bool, KernelError> {
    let stride = crate::cuda::linear::stride_of(cols, format);
    let table = noises(1, VOCAB * stride);
    let ids = [5, PENDING, 36, 0, PENDING, PENDING];
    let (row_seq, seq_slot) = ([0, 0, 1, 1, 1, 2], [2, 0, 4]);
    let last_tokens = [11, 99, 12, 99, 13];
    let want_ids = [5, 12, 36, 0, 11, 13];
    let x = bed.poison(ids.len() * cols);
    let on = (
        bed.numbers(&table, format),
        bed.words(&ids),
        bed.words(&row_seq),
        bed.words(&seq_slot),
        bed.words(&last_tokens),
    );
    let embed = Embed {
        table: on.0.pointer(),
        ids: on.1.pointer(),
        row_seq: on.2.pointer(),
        seq_slot: on.3.pointer(),
        last_tokens: on.4.pointer(),
        x: x.pointer(),
        cols: cols as u32,
        stride: stride as u32,
        scale: 3.0,
    };
    // SAFETY: buffers of these rows.
    unsafe { embed.launch(&*bed.driver, format, ids.len() as u32) }?;
    let want: Vec<f32> = want_ids
        .iter()
        .flat_map(|id| &table[id * stride..id * stride + cols])
        .map(|&value| crate::reference::round(f64::from(value), format) as f32 * 3.0)
        .collect();
    Ok(read_floats(&x, want.len()) == want)
}

#[test]
fn rows_of_the_table_are_taken_by_id_or_by_slot() {
    for seed in SEEDS {
        for format in [DType::F32, DType::Bf16, DType::F16] {
            for cols in [1, 48, 200] {
                assert!(embeds(&Bed::new(seed, None), format, cols).unwrap(), "{format:?} {cols}");
            }
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "p.seq_slot[p.row_seq[row]]", to: "p.row_seq[row]" },
        Fault { from: "(u64)id * p.stride", to: "(u64)id * p.cols" },
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
