//! norm.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::norm::{Norm, Put};
use crate::reference::{self, error};

const EPS: f32 = 1e-3;

/// Norms rows of `cols` and compares.
fn is_right(bed: &Bed, put: Put, rows: usize, cols: usize) -> Result<bool, KernelError> {
    let (x, weight) = (noises(1, rows * cols), noises(2, cols));
    let before = noises(3, rows * cols);
    let out = if put == Put::Add { bed.floats(&before) } else { bed.poison(rows * cols) };
    let (on_x, on_weight) = (bed.floats(&x), bed.floats(&weight));
    let norm = Norm {
        x: on_x.pointer(),
        weight: on_weight.pointer(),
        out: out.pointer(),
        cols: cols as u32,
        eps: EPS,
    };
    // SAFETY: buffers of these rows.
    unsafe { norm.launch(&*bed.driver, put, rows as u32) }?;
    let got = read_floats(&out, rows * cols);
    let weight: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    let want: Vec<f64> = x
        .chunks(cols)
        .zip(before.chunks(cols))
        .flat_map(|(x, before)| {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let y = reference::rms_norm(&x, &weight, f64::from(EPS));
            let kept = |before: f32| if put == Put::Add { f64::from(before) } else { 0.0 };
            y.into_iter().zip(before).map(|(y, &before)| kept(before) + y).collect::<Vec<_>>()
        })
        .collect();
    Ok(error(&got, &want) < 1e-5)
}

/// Rows of any width on a device.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let cols = dice.size(most);
    let (rows, put) = (dice.size((most / cols).max(1)), dice.of(&[Put::Store, Put::Add]));
    let words = format!("{rows} rows of {cols}, {put:?}");
    (words, Box::new(move |bed: &Bed| is_right(bed, put, rows, cols)))
}

#[test]
fn rows_of_any_width_are_normed() {
    for seed in SEEDS {
        for (rows, cols) in [(1, 1), (3, 31), (2, 256), (5, 1000), (1, 5003)] {
            for put in [Put::Store, Put::Add] {
                let bed = Bed::new(seed, None);
                assert!(is_right(&bed, put, rows, cols).unwrap(), "{rows} {cols} {put:?}");
            }
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "cols + eps", to: "cols + 10.0f * eps" },
        Fault { from: "(p.weight, first", to: "(p.weight, first ^ 1" },
        Fault { from: "/ (float)cols", to: "/ (float)(cols + 1)" },
        Fault { from: "first = thread_index();", to: "first = thread_index() + 1;" },
        Fault { from: "col < cols ? from[col] : 0.0f", to: "from[min_of(col, cols - 1)]" },
        Fault { from: "(u64)blockIdx.x * p.cols", to: "(u64)blockIdx.x * (p.cols - 1)" },
        Fault { from: "first += COUNT * THREADS", to: "first += COUNT / 2 * THREADS" },
    ];
    assert_caught(&faults, |bed| is_right(bed, Put::Store, 3, 4500));
}
