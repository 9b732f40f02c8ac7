//! attention_hopper.cu.

use super::attention::{Case, Seq, Way, Wide, case, seq};
use super::*;

const SPLIT: Way = Way { blocks: 1000, wide: Wide::Hopper };
const WHOLE: Way = Way { blocks: 1, wide: Wide::Hopper };

/// Prompts and chunks of them that begin and end before, at and behind the end of a tile of keys; a
/// decode; padding behind rows and alone.
const RAGGED: [Seq; 5] =
    [seq(1, 640, 23, 2), seq(2, 0, 37, 0), seq(3, 530, 1, 0), seq(4, 100, 70, 0), seq(5, 3, 0, 19)];

fn check(cases: &[Case]) {
    for (case, seed) in cases.iter().zip(1..) {
        let want = case.want(&RAGGED);
        for way in [SPLIT, WHOLE] {
            let got = case.run(&Bed::new(seed, None), way, &RAGGED).unwrap();
            assert!(case.matches(way, &got, &want), "{case:?} {way:?}");
        }
    }
}

#[test]
fn heads_of_known_sizes() {
    check(&[
        Case { block: 64, has_sinks: true, ..case(4, 2, 64, DType::Bf16) },
        Case { window: Some(20), ..case(5, 1, 80, DType::Bf16) },
        Case { block: 128, window: Some(129), ..case(2, 2, 96, DType::F16) },
        Case { block: 32, window: Some(257), has_sinks: true, ..case(8, 1, 128, DType::Bf16) },
        Case { soft_cap: Some(2.0), ..case(2, 1, 256, DType::Bf16) },
    ]);
}

#[test]
fn heads_of_the_other_type_and_many_on_one() {
    check(&[
        Case { soft_cap: Some(2.0), window: Some(300), ..case(3, 1, 64, DType::F16) },
        Case { block: 64, ..case(2, 1, 128, DType::F16) },
        Case { block: 256, has_sinks: true, ..case(24, 1, 64, DType::Bf16) },
    ]);
}

#[test]
fn how_rows_are_cut_changes_no_bit() {
    let cases = [
        Case { window: Some(290), has_sinks: true, ..case(4, 2, 64, DType::Bf16) },
        Case { block: 64, ..case(5, 1, 80, DType::F16) },
    ];
    for case in cases {
        let run = |seed, seqs: &[Seq]| case.run(&Bed::new(seed, None), WHOLE, seqs).unwrap();
        let prompt = run(4, &[seq(1, 470, 90, 0)]);
        let others = [
            run(5, &[seq(1, 470, 30, 0), seq(2, 0, 40, 0)]),
            run(6, &[seq(2, 7, 9, 0), seq(1, 499, 61, 3)]),
            run(7, &[seq(1, 512, 20, 0)]),
        ];
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (other, rows) in others.iter().zip([30, 61, 20]) {
            let common = other.iter().filter(|((id, at), _)| *id == 1 && *at != usize::MAX);
            let same = common.map(|(at, row)| assert_eq!(bits(row), bits(&prompt[at]), "{at:?}"));
            assert_eq!(same.count(), rows);
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        // The ring: parity, both waits, what is announced, who frees a slot and when.
        Fault { from: "parity ^= 1;", to: "" },
        Fault { from: "ring.parity ^ 1);", to: "ring.parity);" },
        Fault { from: "wait_phase(ring.empty + ring.slot, ring.parity ^ 1);", to: "" },
        Fault { from: "wait_phase(full + slot, parity);", to: "" },
        Fault { from: "(M::PANELS * LINE_BYTES << bits)", to: "(LINE_BYTES << bits)" },
        Fault { from: "M::CONSUMERS * (WARPGROUP / WARP));", to: "1);" },
        Fault { from: "            publish_barriers();\n", to: "" },
        Fault { from: "            wait_products<1>();\n", to: "" },
        Fault {
            from: "            wait_products<0>();\n            hold_sums(values);",
            to: "            wait_products<1>();",
        },
        // Turns.
        Fault {
            from: "if (index + 1 < M::CONSUMERS || step + 1 < span.steps.to) pass_by",
            to: "if (false) pass_by",
        },
        Fault { from: "if (index + 1 == M::CONSUMERS && span", to: "if (false && span" },
        // What is copied, and what is nobody's.
        Fault { from: "span.tile.kv_head) <<", to: "0) <<" },
        Fault { from: "panel * BOX_COLUMNS, row", to: "0, row" },
        Fault { from: "+ M::KEYS) + (1u << bits) - 1) >> bits", to: "+ M::KEYS)) >> bits" },
        Fault { from: "        if (span.is_whole(step)) return;\n", to: "        return;\n" },
        Fault {
            from: "{0, 0, 0, 0};\n        }\n        publish_stores();",
            to: "{0, 0, 0, 0};\n        }",
        },
        // Operands.
        Fault { from: "(piece % 8 ^ row % 8) * 16", to: "piece % 8 * 16" },
        Fault {
            from: "        publish_stores();\n        meet_at(OWN_PLACE + index, WARPGROUP);\n    }\n\n    // Asks for the scores",
            to: "        meet_at(OWN_PLACE + index, WARPGROUP);\n    }\n\n    // Asks for the scores",
        },
        Fault { from: "panel * M::QUERY_PANEL_BYTES + at), b", to: "at), b" },
        Fault { from: "operand(slot, LINES_BYTES, M::PANEL_BYTES)", to: "operand(slot)" },
        Fault { from: "i * 16 * LINE_BYTES", to: "i * 8 * LINE_BYTES" },
        // What rows see, and what is kept of a tile.
        Fault { from: "step * M::KEYS < common.from ||", to: "" },
        Fault { from: "(step + 1) * M::KEYS > common.to", to: "false" },
        Fault { from: "larger == minus_infinity() ? 0.0f : larger;", to: "larger;" },
        Fault { from: "shuffle_xor(larger, 2)", to: "shuffle_xor(larger, 1)" },
        Fault { from: "values[i] *= keep[i % 4 / 2];", to: "" },
        Fault { from: "sum[i] = fused(sum[i], keep[i],", to: "sum[i] = fused(sum[i], 1.0f," },
        Fault { from: "fused(-2.0f * cap,", to: "fused(-cap," },
        // Results.
        Fault {
            from: "return keep / fused(sum, keep, fast_exp2(sink - larger));",
            to: "return keep / sum;",
        },
        Fault { from: "max[i] * LN_2", to: "max[i]" },
        Fault { from: "parts = {0, tile.piece.num_pieces};", to: "parts = {0, 1};" },
        Fault { from: "if (is_padded) out = {0.0f, 0.0f};", to: "" },
    ];
    let full = Case { window: Some(300), has_sinks: true, ..case(8, 2, 64, DType::F16) };
    let capped = Case { block: 64, soft_cap: Some(2.0), ..case(4, 1, 80, DType::F16) };
    let seqs = [seq(1, 700, 9, 0), seq(2, 250, 40, 2)];
    let wanted = [full, capped].map(|case| (case, case.want(&seqs)));
    assert_caught_in("attention_hopper.cu", &faults, |bed| {
        for (case, want) in &wanted {
            for way in [SPLIT, WHOLE] {
                if !case.matches(way, &case.run(bed, way, &seqs)?, want) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    });
}
