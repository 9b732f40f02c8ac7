//! moe.cu, and linear.cu with experts.

use super::*;
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::moe::{Combine, Route};
use crate::ops::Routing;
use crate::reference::{self, Matrix, error};

const ROWS: usize = 5;

fn routes(bed: &Bed, routing: Routing, renormalize: bool) -> Result<bool, KernelError> {
    let (num_experts, num_chosen) = (70, 6);
    // Scores on a grid: some are equal.
    let scores: Vec<f32> =
        noises(1, ROWS * num_experts).into_iter().map(|x| (x * 8.0).round() / 2.0).collect();
    let (experts, weights) = (bed.poison(ROWS * num_chosen), bed.poison(ROWS * num_chosen));
    let on_scores = bed.floats(&scores);
    let route = Route {
        scores: on_scores.pointer(),
        experts: experts.pointer(),
        weights: weights.pointer(),
        num_experts: num_experts as u32,
        num_chosen: num_chosen as u32,
        routing: u32::from(routing == Routing::Sigmoid),
        renormalize: u32::from(renormalize),
    };
    // SAFETY: buffers of these rows.
    unsafe { route.launch(&*bed.driver, ROWS as u32) }?;
    let want: Vec<(usize, f64)> = scores
        .chunks(num_experts)
        .flat_map(|scores| {
            let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
            reference::route(&scores, num_chosen, routing, renormalize)
        })
        .collect();
    let got = read_words(&experts, want.len());
    let same = got.iter().zip(&want).all(|(&got, want)| got as usize == want.0);
    let weights_wanted: Vec<f64> = want.iter().map(|want| want.1).collect();
    Ok(same && error(&read_floats(&weights, want.len()), &weights_wanted) < 1e-5)
}

#[test]
fn the_largest_scores_are_chosen() {
    for routing in [Routing::Softmax, Routing::Sigmoid] {
        for renormalize in [false, true] {
            for seed in SEEDS {
                assert!(routes(&Bed::new(seed, None), routing, renormalize).unwrap());
            }
        }
    }
}

#[test]
fn scores_without_numbers_still_choose_experts() {
    let bed = Bed::new(1, None);
    let (experts, weights) = (bed.poison(2), bed.poison(2));
    let scores = bed.poison(9);
    let route = Route {
        scores: scores.pointer(),
        experts: experts.pointer(),
        weights: weights.pointer(),
        num_experts: 9,
        num_chosen: 2,
        routing: 0,
        renormalize: 0,
    };
    // SAFETY: buffers of this row.
    unsafe { route.launch(&*bed.driver, 1) }.unwrap();
    assert_eq!(read_words(&experts, 2), [0, 1]);
}

/// One product with experts: rows of `x` each meet two of four matrices.
fn multiplies(bed: &Bed) -> Result<bool, KernelError> {
    let (n, k, num_experts, format) = (10, 72, 4, DType::Bf16);
    let stride = stride_of(k, format);
    let chosen = [1, 3, 0, 2, 0, 1, 2, 3, 3, 1];
    let (x, weight) = (noises(1, ROWS * k), noises(2, num_experts * n * k));
    let out = bed.poison(chosen.len() * n);
    let (on_x, on_weight) = (bed.floats(&x), bed.numbers(&weight, format));
    let on_chosen = bed.words(&chosen);
    assert_eq!(stride, k);
    let pointers = [on_x.pointer(), on_weight.pointer(), out.pointer()];
    let linear = Linear {
        experts: on_chosen.pointer(),
        rows_per_x: 2,
        ..Linear::plain(pointers, chosen.len(), (n, k), format)
    };
    // SAFETY: buffers of these shapes.
    unsafe { linear.launch(&*bed.driver, format) }?;
    let mut want = Vec::new();
    for (row, &expert) in chosen.iter().enumerate() {
        let x: Vec<f64> = x[row / 2 * k..][..k].iter().map(|&x| f64::from(x)).collect();
        let matrix = &weight[expert as usize * n * k..][..n * k];
        let data = matrix.iter().map(|&w| f64::from(w)).collect();
        let weight = Matrix { rows: n, cols: k, data }.rounded(format);
        want.extend(reference::linear(&x, &weight, None, format));
    }
    Ok(error(&read_floats(&out, want.len()), &want) < 2e-5)
}

#[test]
fn rows_meet_their_experts() {
    for seed in SEEDS {
        assert!(multiplies(&Bed::new(seed, None)).unwrap());
    }
    let faults = [
        Fault { from: "p.experts[first_row]", to: "p.experts[0]" },
        Fault { from: "(matrix * p.n + n) * p.stride", to: "(matrix * p.k + n) * p.stride" },
        Fault { from: "((first_row + row) / p.rows_per_x)", to: "(first_row + row)" },
        Fault { from: "n + 1 < p.n ? n + 1 : n", to: "n" },
        Fault { from: "first_row + row < p.rows) finish", to: "first_row < 2) finish" },
    ];
    assert_caught(&faults, multiplies);
}

fn combines(bed: &Bed) -> Result<bool, KernelError> {
    let (cols, num_chosen) = (150, 3);
    let (outer, weights) = (noises(1, ROWS * num_chosen * cols), noises(2, ROWS * num_chosen));
    let before = noises(3, ROWS * cols);
    let (on_outer, on_weights, x) = (bed.floats(&outer), bed.floats(&weights), bed.floats(&before));
    let combine = Combine {
        outer: on_outer.pointer(),
        weights: on_weights.pointer(),
        x: x.pointer(),
        cols: cols as u32,
        num_chosen: num_chosen as u32,
    };
    // SAFETY: buffers of these rows.
    unsafe { combine.launch(&*bed.driver, ROWS as u32) }?;
    let want: Vec<f64> = (0..ROWS * cols)
        .map(|i| {
            let (row, col) = (i / cols, i % cols);
            let term = |e: usize| {
                let at = row * num_chosen + e;
                f64::from(weights[at]) * f64::from(outer[at * cols + col])
            };
            f64::from(before[i]) + (0..num_chosen).map(term).sum::<f64>()
        })
        .collect();
    Ok(error(&read_floats(&x, want.len()), &want) < 1e-5)
}

#[test]
fn experts_outputs_are_added_by_weight() {
    for seed in SEEDS {
        assert!(combines(&Bed::new(seed, None)).unwrap());
    }
    let faults = [
        Fault { from: "p.x[row * p.cols + col] += sum", to: "p.x[row * p.cols + col] = sum" },
        Fault { from: "fused(weights[i]", to: "fused(weights[0]" },
        Fault { from: "row * p.num_chosen * p.cols", to: "row * p.cols" },
        Fault {
            from: "i < p.num_chosen; i++) sum = fused",
            to: "i + 1 < p.num_chosen; i++) sum = fused",
        },
        Fault { from: "blockIdx.y * COMBINE_THREADS", to: "0" },
    ];
    assert_caught(&faults, combines);
}

#[test]
fn planted_faults_of_routing_show() {
    let faults = [
        Fault { from: "other_expert < expert", to: "other_expert > expert" },
        Fault { from: "!taken[e] && ", to: "" },
        Fault { from: "p.routing == SOFTMAX ?", to: "p.routing == SIGMOID ?" },
        Fault { from: "sum > 0.0f ? to[e] / sum : 0.0f", to: "to[e]" },
        Fault {
            from: "chosen[i] = expert;\n        }\n        sync_warp();",
            to: "chosen[i] = expert;\n        }",
        },
        Fault { from: "score / sum", to: "score / 2.0f" },
        Fault { from: "place += chosen[j] < chosen[i]", to: "place += j < i" },
    ];
    assert_caught(&faults, |bed| {
        Ok(routes(bed, Routing::Softmax, true)? && routes(bed, Routing::Softmax, false)?)
    });
}
