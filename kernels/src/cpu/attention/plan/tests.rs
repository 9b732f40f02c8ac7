//! Every tile and unit is somebody's, once, and long rows are shared.

use std::collections::HashMap;

use super::*;
use crate::cpu::test_team::noise;

/// Sequences of (rows, rows of padding behind them, position of the first row).
fn batch(seqs: &[(usize, usize, usize)]) -> Batch {
    let mut batch = Batch::new(1);
    batch.clear();
    for &(num_rows, padding, position) in seqs {
        batch.groups[0].slots.extend(vec![0; num_rows]);
        batch.groups[0].slots.extend(vec![NO_SLOT; padding]);
        batch.ids.resize(batch.ids.len() + num_rows + padding, 0);
        batch.query_start.push(batch.ids.len() as u32);
        batch.kv_len.push((position + num_rows + padding) as u32);
    }
    batch
}

fn shape(group: usize, num_kv: usize, window: usize) -> TileShape {
    TileShape { group, num_kv, unit: 64, window }
}

fn plan(shape: TileShape, batch: &Batch, workers: usize) -> Plan<'_> {
    Plan::new(shape, batch, &batch.groups[0], workers)
}

#[test]
fn every_unit_of_every_row_is_computed_once() {
    let mut num_split = 0;
    for case in 0..300 {
        let random =
            |col: usize, bound: usize| ((noise(case, 0, col) + 1.0) / 2.0 * bound as f32) as usize;
        let seqs: Vec<_> = (0..random(0, 6))
            .map(|seq| {
                let num_rows = [1, 1, 0, 1 + random(10 + seq, 90)][random(20 + seq, 4)];
                (num_rows, random(30 + seq, 3), random(40 + seq, 700))
            })
            .collect();
        let window = [usize::MAX, usize::MAX, 1, 100][random(1, 4)];
        let shape = shape([1, 5, 8, 60][random(2, 4)], 1 + random(3, 3), window);
        let batch = batch(&seqs);
        for workers in 1..6 {
            let plan = plan(shape, &batch, workers);
            let mut times = HashMap::new();
            for worker in 0..workers {
                plan.for_each_piece(worker, |piece| {
                    let Piece { tile, units, cut } = piece;
                    if let Some(cut) = cut {
                        num_split += 1;
                        assert!(plan.may_split() && (1..workers).contains(&cut));
                        assert_eq!(plan.split_tile(cut), Some(tile));
                    } else {
                        assert_eq!(units, tile.units(&shape));
                    }
                    for row in tile.row..tile.row + tile.num_rows {
                        for unit in units.clone() {
                            *times.entry((row, tile.kv_head, unit)).or_insert(0) += 1;
                        }
                    }
                });
            }
            assert!(times.values().all(|&times| times == 1));
            for (seq, &(num_rows, _, position)) in seqs.iter().enumerate() {
                for row in 0..num_rows {
                    let units = shape.units(&shape.keys(position + row, 1));
                    for (kv_head, unit) in
                        (0..shape.num_kv).flat_map(|head| units.clone().map(move |u| (head, u)))
                    {
                        let row = batch.query_start[seq] as usize + row;
                        assert_eq!(times.get(&(row, kv_head, unit)), Some(&1));
                    }
                }
            }
        }
    }
    assert!(num_split > 100);
}

#[test]
fn one_long_row_is_shared_evenly() {
    let batch = batch(&[(1, 0, 64 * 30 - 1)]);
    for workers in 2..7 {
        let plan = plan(shape(7, 1, usize::MAX), &batch, workers);
        for worker in 0..workers {
            let mut units = 0;
            plan.for_each_piece(worker, |piece| units += piece.units.len());
            assert!((30 / workers..=30usize.div_ceil(workers)).contains(&units));
        }
    }
}
