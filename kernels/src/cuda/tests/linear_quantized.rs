//! linear_quantized.cu, and what all quantized weights of few rows have in common.

use super::dice::Dice;
#[cfg(test)]
use super::linear::few;
use super::linear::{Case, EPILOGUES};
use super::*;
use crate::reference::error;
use crate::weight_format::Quantization;

/// A product of any format, a few rows at a time.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let rows = dice.size(40.min(most / 16));
    let k = dice.size(8192.min(most / rows / 2));
    let n = dice.size(8192.min(most / rows / k)).next_multiple_of(2);
    let (epilogue, biased) = (dice.of(&EPILOGUES), dice.once_in(2));
    let quantization = dice.of(&Quantization::ALL);
    let blocks = dice.of(&[1, 8, 132]);
    let plain = Case::plain(rows, n, k, quantization);
    let case = Case { biased, epilogue, blocks, ..plain };
    (format!("{case:?}"), Box::new(move |bed: &Bed| case.is_right(bed)))
}

#[test]
fn shapes_formats_and_rows() {
    for quantization in Quantization::ALL {
        for (rows, n, k) in
            [(1, 1, 1), (1, 9, 300), (2, 16, 64), (3, 7, 1100), (8, 33, 40), (19, 10, 136)]
        {
            for seed in SEEDS {
                let blocks = seed as u32 - 1;
                let case = Case { blocks, ..Case::plain(rows, n, k, quantization) };
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn biases_and_epilogues() {
    for (epilogue, quantization) in EPILOGUES.into_iter().zip(Quantization::ALL.iter().cycle()) {
        for (biased, n) in [(true, 22), (false, 10)] {
            let case = Case { biased, epilogue, ..Case::plain(5, n, 80, *quantization) };
            assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
        }
    }
}

/// A row that is not finite gives no number, and its neighbours are as ever.
#[test]
fn a_row_that_is_not_finite_poisons_itself_alone() {
    let (n, k) = (9, 70);
    for quantization in Quantization::ALL {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let bed = Bed::new(3, None);
            let mut x = noises(1, 2 * k);
            x[k + 66] = bad;
            let got = Case::plain(2, n, k, quantization).run_on(&bed, &x).unwrap();
            assert!(got[n..].iter().all(|value| !value.is_finite()), "{quantization:?}");
            assert!(error(&got[..n], &Case::plain(1, n, k, quantization).reference()) < 2e-5);
        }
    }
}

#[test]
fn planted_faults_of_quantized_rows_show() {
    let faults = [
        Fault { from: "steps + 12582912.0f", to: "steps + 12582912.5f + 0.5f" },
        Fault { from: "distance /= 2) most", to: "distance /= 4) most" },
        Fault { from: "<< (8 * i)", to: "<< (8 * (3 - i))" },
        Fault { from: "/ 127.0f", to: "/ 128.0f" },
        Fault { from: "if (block >= blocks) return;", to: "" },
        Fault { from: "sync_warp();\n        bring();", to: "bring();" },
        Fault { from: "step * SCALE_BYTES + lane_index() % LANES", to: "lane_index() % LANES" },
        Fault { from: "next + lane_index() / LANES)", to: "next)" },
        Fault { from: "own < scale_bytes", to: "own + SCALES < scale_bytes" },
    ];
    assert_caught(&faults, few(Quantization::Q8_0));
    assert_caught(&faults, few(Quantization::Q4_0));
}

#[test]
fn planted_faults_of_q8_0_show() {
    let faults = [
        Fault { from: "lane_index() / F::PIECES]", to: "lane_index() / 4]" },
        Fault { from: "piece / F::PIECES]", to: "piece]" },
        Fault { from: "scale_stride(div_up(p.k, SCALED))", to: "div_up(p.k, SCALED)" },
        Fault { from: "scales[row * blocks + piece", to: "scales[piece" },
        Fault { from: "rounded_product(scale[i], own", to: "rounded_product(scale[0], own" },
        Fault { from: "[k % PIECE / 4] = own.word", to: "[0] = own.word" },
    ];
    assert_caught(&faults, few(Quantization::Q8_0));
}

#[test]
fn planted_faults_of_q4_0_show() {
    let faults = [
        Fault { from: "OFFSET = 8", to: "OFFSET = 7" },
        Fault { from: ">> i / 4 * 4 & 0x0f0f0f0f", to: ">> i / 4 * 4" },
        Fault { from: "[part * 4 + i % 4]", to: "[i % 4]" },
        Fault { from: "dots[i] = own.start", to: "dots[i] = 0" },
        Fault { from: "-F::OFFSET * sum", to: "F::OFFSET * sum" },
        Fault { from: "sum += shuffle_xor(sum, distance)", to: "sum += shuffle_xor(sum, 1)" },
    ];
    assert_caught(&faults, few(Quantization::Q4_0));
}
