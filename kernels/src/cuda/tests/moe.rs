//! moe.cu and moe_group.cu, and products with experts.

use super::dice::Dice;
use super::linear::FORMATS;
use super::*;
use crate::cuda::CudaOptions;
use crate::cuda::expert_products::ExpertProducts;
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{TILINGS, Target};
use crate::cuda::linear_tensor::{Groups, TensorLinear};
use crate::cuda::moe::{Combine, Group, ROW_TILE_BYTES, Route};
use crate::cuda::quantize_rows::byte_rows_bytes;
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

/// A product with experts: each row of `x` meets `num_chosen` of the matrices.
#[derive(Clone, Copy, Debug)]
struct Mixed {
    rows: usize,
    num_chosen: usize,
    num_experts: usize,
    n: usize,
    k: usize,
    format: WeightFormat,
    deterministic: bool,
}

const FEW: Mixed = Mixed {
    rows: ROWS,
    num_chosen: 2,
    num_experts: 12,
    n: 10,
    k: 72,
    format: WeightFormat::Plain(DType::Bf16),
    deterministic: false,
};

impl Mixed {
    /// Experts of all rows; some have none, some have many.
    fn chosen(&self) -> Vec<u32> {
        let choices = (0..self.rows * self.num_chosen).map(|i| noise(3, i).powi(2));
        choices.map(|choice| (choice * self.num_experts as f32) as u32).collect()
    }

    fn run(&self, bed: &Bed) -> Result<Vec<f32>, KernelError> {
        let Mixed { n, k, num_experts, format, .. } = *self;
        let (x, weight) = (noises(1, self.rows * k), noises(2, num_experts * n * k));
        let chosen = self.chosen();
        let out = bed.poison(chosen.len() * n);
        let (on_x, on_weight) = (bed.floats(&x), StoredWeight::new(bed, format, &weight, k));
        let on_chosen = bed.words(&chosen);
        let linear = Linear {
            experts: on_chosen.pointer(),
            rows_per_x: self.num_chosen as u32,
            ..on_weight.linear([on_x.pointer(), out.pointer()], chosen.len(), (n, k))
        };
        let options = CudaOptions { deterministic: self.deterministic };
        let target = Target { options, ..Target::of(&*bed.driver, 16) };
        let most = (chosen.len(), num_experts);
        let bytes = byte_rows_bytes(self.rows, k);
        let products = ExpertProducts::new(&bed.driver, target, most, bytes)?;
        let (pairs, experts) = (chosen.len() as u32, num_experts as u32);
        let weights = (format, k as u32);
        // SAFETY: buffers of these shapes.
        let ways = unsafe { products.prepare(on_chosen.pointer(), pairs, experts, weights) }?;
        // SAFETY: as above.
        unsafe { products.launch(&linear, &ways, format) }?;
        Ok(read_floats(&out, chosen.len() * n))
    }

    fn want(&self) -> Vec<f64> {
        let Mixed { n, k, num_experts, format, .. } = *self;
        let (x, weight) = (noises(1, self.rows * k), noises(2, num_experts * n * k));
        let row = |(row, &expert): (usize, &u32)| {
            let x = &x[row / self.num_chosen * k..][..k];
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let matrix = &weight[expert as usize * n * k..][..n * k];
            let data = matrix.iter().map(|&w| f64::from(w)).collect();
            let weight = Matrix { rows: n, cols: k, data }.stored(format);
            reference::linear(&x, &weight, None, format)
        };
        self.chosen().iter().enumerate().flat_map(row).collect()
    }

    fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        Ok(error(&self.run(bed)?, &self.want()) < 2e-5)
    }
}

#[test]
fn rows_meet_their_experts() {
    let quantized = Quantization::ALL.map(WeightFormat::Quantized);
    for (seed, format) in (1..).zip([FEW.format].into_iter().chain(quantized)) {
        assert!(Mixed { format, ..FEW }.is_right(&Bed::new(seed, None)).unwrap(), "{format:?}");
    }
    let faults = [
        Fault { from: "p.experts[first_row]", to: "p.experts[0]" },
        Fault { from: "matrix * p.n +", to: "matrix +" },
        Fault { from: "p.rows - 1) / p.rows_per_x)", to: "p.rows - 1))" },
        Fault { from: "min_of(column, p.n - 1)", to: "0" },
        Fault { from: " || row >= p.rows", to: " || row > 2" },
    ];
    for format in [FEW.format, Quantization::Q8_0.into()] {
        assert_caught(&faults, |bed| Mixed { format, ..FEW }.is_right(bed));
    }
}

/// As many pairs as make tiles of 16, 32 and 64 rows, and more than one of them.
const MANY: [Mixed; 3] = [
    Mixed { rows: 40, num_chosen: 2, num_experts: 11, ..FEW },
    Mixed {
        rows: 70,
        num_chosen: 1,
        num_experts: 5,
        n: 130,
        format: WeightFormat::Plain(DType::F16),
        ..FEW
    },
    Mixed { rows: 90, num_chosen: 3, num_experts: 9, ..FEW },
];

#[test]
fn many_rows_meet_their_experts_by_expert() {
    for (mixed, seed) in MANY.into_iter().zip(1..) {
        assert!(mixed.is_right(&Bed::new(seed, None)).unwrap(), "{mixed:?}");
    }
    for quantization in Quantization::ALL {
        // Tails of columns and of blocks.
        let shapes = [MANY[0], Mixed { n: 130, k: 200, ..MANY[1] }, Mixed { k: 33, ..FEW }];
        for mixed in shapes {
            let mixed = Mixed { format: quantization.into(), ..mixed };
            assert!(mixed.is_right(&Bed::new(5, None)).unwrap(), "{mixed:?}");
        }
    }
    let plain = Mixed { format: DType::F32.into(), ..MANY[0] };
    assert!(plain.is_right(&Bed::new(1, None)).unwrap());
}

#[test]
fn deterministic_rows_have_the_same_bits_among_many() {
    for format in [DType::Bf16.into(), Quantization::Q4_0.into(), Quantization::Fp8.into()] {
        let many = Mixed { deterministic: true, format, ..MANY[2] };
        let all = many.run(&Bed::new(1, None)).unwrap();
        for rows in [1, 4, 50] {
            let some = Mixed { rows, ..many }.run(&Bed::new(2, None)).unwrap();
            assert_eq!(some, all[..some.len()], "{rows} {format:?}");
        }
    }
}

const TILE_ROWS: u32 = 16;
/// More pairs than threads read at once, the last thread's not whole.
const TURNS: Mixed = Mixed { rows: 1531, num_chosen: 3, num_experts: 5, ..FEW };

impl Mixed {
    /// Rows in ascending order of expert, and tiles of them: expert, first row, rows, 0.
    fn groups(&self) -> (Vec<u32>, Vec<[u32; 4]>) {
        let chosen = self.chosen();
        let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
        order.sort_by_key(|&pair| chosen[pair as usize]);
        let (mut tiles, mut first) = (Vec::new(), 0);
        for rows in order.chunk_by(|&a, &b| chosen[a as usize] == chosen[b as usize]) {
            for tile in rows.chunks(TILE_ROWS as usize) {
                tiles.push([chosen[tile[0] as usize], first, tile.len() as u32, 0]);
                first += tile.len() as u32;
            }
        }
        (order, tiles)
    }

    /// Whether the device groups the rows so.
    fn are_grouped(&self, bed: &Bed) -> Result<bool, KernelError> {
        let chosen = self.chosen();
        let (num_pairs, num_experts) = (chosen.len() as u32, self.num_experts as u32);
        let num_tiles = Group::tiles_max(num_pairs, num_experts, TILE_ROWS);
        let (experts, order) = (bed.words(&chosen), bed.poison(chosen.len()));
        let tiles = bed.poison(num_tiles as usize * ROW_TILE_BYTES / 4);
        let group = Group {
            experts: experts.pointer(),
            order: order.pointer(),
            tiles: tiles.pointer(),
            num_pairs,
            num_experts,
            num_tiles,
            tile_rows: TILE_ROWS,
        };
        // SAFETY: buffers of these numbers.
        unsafe { group.launch(&*bed.driver) }?;
        let (want_order, want_tiles) = self.groups();
        let words = read_words(&tiles, num_tiles as usize * 4);
        let (tiles, rest) = words.as_chunks().0.split_at(want_tiles.len());
        let is_rest_empty = rest.iter().all(|tile: &[u32; 4]| tile[2] == 0);
        Ok(read_words(&order, chosen.len()) == want_order && tiles == want_tiles && is_rest_empty)
    }

    /// Whether rows that the host grouped meet their experts.
    fn multiply_by_group(&self, bed: &Bed) -> Result<bool, KernelError> {
        let Mixed { n, k, num_experts, format, .. } = *self;
        let (order, tiles) = self.groups();
        let words = tiles.concat();
        let (on_order, on_tiles) = (bed.words(&order), bed.words(&words));
        let groups = Groups {
            order: on_order.pointer(),
            tiles: on_tiles.pointer(),
            num_tiles: tiles.len() as u32,
        };
        let (x, weight) = (noises(1, self.rows * k), noises(2, num_experts * n * k));
        let (on_x, on_weight) = (bed.floats(&x), StoredWeight::new(bed, format, &weight, k));
        let out = bed.poison(order.len() * n);
        let plain = on_weight.linear([on_x.pointer(), out.pointer()], order.len(), (n, k));
        let linear = Linear { rows_per_x: self.num_chosen as u32, ..plain };
        let (product, cut) = TensorLinear::grouped(linear, TILINGS[0], groups);
        // SAFETY: buffers of these shapes.
        unsafe { product.launch(&*bed.driver, &cut, format) }?;
        Ok(error(&read_floats(&out, order.len() * n), &self.want()) < 2e-5)
    }
}

#[test]
fn rows_are_grouped_by_expert() {
    for (mixed, seed) in MANY.into_iter().chain([FEW, TURNS]).zip(1..) {
        assert!(mixed.are_grouped(&Bed::new(seed, None)).unwrap(), "{mixed:?}");
    }
}

#[test]
fn planted_faults_of_grouping_show() {
    let faults = [
        Fault { from: "counts[i] = 0;", to: "" },
        Fault { from: "i < expert; i += GROUP", to: "i <= expert; i += GROUP" },
        Fault { from: "lane_index() < warp_index() ?", to: "lane_index() <= warp_index() ?" },
        Fault { from: "own & ((1u << lane_index()) - 1)", to: "own" },
        Fault { from: "p.order[to++]", to: "p.order[to]" },
        Fault { from: "next += sum & 0xffff", to: "next += sum >> 16" },
        Fault { from: "min_of(share.count - row, p.tile_rows)", to: "p.tile_rows" },
        Fault { from: "= in_warp;\n        sync_block();", to: "= in_warp;" },
        Fault { from: "== p.num_experts ? p.num_tiles", to: "== p.num_experts ? end_tile" },
    ];
    assert_caught(&faults, |bed| TURNS.are_grouped(bed));
}

#[test]
fn planted_faults_of_grouped_products_show() {
    assert!(MANY[0].multiply_by_group(&Bed::new(1, None)).unwrap());
    let faults = [
        Fault { from: "row / p.linear.rows_per_x", to: "row" },
        Fault { from: "tile.expert * p.linear.n", to: "0 * p.linear.n" },
        Fault { from: "first_row = tile.first", to: "first_row = 0" },
        Fault { from: "num_rows = tile.num_rows", to: "num_rows = M::ROWS" },
        Fault { from: "p.order[tile.first_row + i]", to: "tile.first_row + i" },
    ];
    assert_caught(&faults, |bed| MANY[0].multiply_by_group(bed));
}

#[test]
fn planted_faults_of_grouped_quantized_products_show() {
    let mixed = |quantization: Quantization| Mixed { format: quantization.into(), ..MANY[0] };
    let bytes = [
        Fault { from: "(u64)tile.expert * p.linear.n + min_of", to: "min_of" },
        Fault { from: "row / p.linear.rows_per_x", to: "row" },
        Fault { from: "first_row = tile.first", to: "first_row = 0" },
    ];
    for quantization in [Quantization::Q8_0, Quantization::Q4_0] {
        let check = |bed: &Bed| mixed(quantization).is_right(bed);
        assert_caught_in("linear_bytes.cu", &bytes, check);
    }
    let fp8 = [
        Fault { from: "scales[(u64)tile.expert * p.linear.n + n]", to: "scales[n]" },
        Fault { from: "(u64)tile.expert * p.linear.n * p.linear.stride", to: "0" },
    ];
    let check = |bed: &Bed| mixed(Quantization::Fp8).is_right(bed);
    assert_caught_in("linear_tensor_fp8.cu", &fp8, check);
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

/// The three kernels on a device, choices of any kind.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let routing = dice.of(&[Routing::Softmax, Routing::Sigmoid]);
    let renormalize = dice.once_in(2);
    let num_chosen = dice.size(4);
    let mixed = Mixed {
        rows: dice.size(most),
        num_chosen,
        num_experts: num_chosen + dice.size(16),
        n: dice.size(200),
        k: 8 * dice.size(40),
        format: dice.of(&FORMATS),
        deterministic: dice.once_in(2),
    };
    let words = format!("{routing:?}, renormalized: {renormalize}, {mixed:?}");
    let run = move |bed: &Bed| {
        Ok(routes(bed, routing, renormalize)? && combines(bed)? && mixed.is_right(bed)?)
    };
    (words, Box::new(run))
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
