//! Every row and unit is some block's, once, and blocks end at about the same time.

use std::collections::HashMap;

use super::noise;
use crate::batch::{Batch, NO_SLOT};
use crate::cuda::attention::{AttentionPiece, UNIT, WHOLE};
use crate::cuda::attention_plan::{AttentionPlan, PlanShape, TileRows};
use crate::device::Limits;

const BLOCK: u32 = 16;

const LIMITS: Limits = Limits {
    max_tokens: 400,
    max_seqs: 6,
    max_logits_rows: 0,
    vocab: 0,
    max_model_len: 9000,
    max_top: 0,
};

/// Sequences of (rows, rows of padding behind them, position of the first row).
fn batch(seqs: &[(u32, u32, u32)]) -> Batch {
    let mut batch = Batch::new(1);
    batch.clear();
    for &(num_rows, padding, position) in seqs {
        let group = &mut batch.groups[0];
        group.slots.extend((0..num_rows).map(|_| 0));
        group.slots.extend((0..padding).map(|_| NO_SLOT));
        group.push_table((0..(position + num_rows).div_ceil(BLOCK)).map(|_| 0));
        batch.ids.resize(group.slots.len(), 0);
        batch.query_start.push(batch.ids.len() as u32);
        batch.kv_len.push(position + num_rows + padding);
    }
    batch
}

/// Units that a row sees.
fn units(position: u32, window: Option<u32>) -> std::ops::RangeInclusive<u32> {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    first / UNIT..=position / UNIT
}

fn part(plan: &AttentionPlan, range: std::ops::Range<u32>) -> &[AttentionPiece] {
    &plan.pieces()[range.start as usize..range.end as usize]
}

/// Pieces of a kernel: no more rows than it takes, the longest first.
fn check_order(pieces: &[AttentionPiece], rows: std::ops::RangeInclusive<u32>) {
    assert!(pieces.iter().all(|piece| rows.contains(&piece.num_rows)));
    assert!(pieces.windows(2).all(|pair| pair[0].num_units >= pair[1].num_units));
}

/// A split tile's pieces follow each other over its units, as do their places.
fn check_split(plan: &AttentionPlan, shape: &PlanShape, tile: &AttentionPiece) {
    let of_tile = |piece: &&AttentionPiece| piece.row == tile.row;
    let pieces = plan.pieces()[..plan.split().start as usize].iter().filter(of_tile);
    let mut pieces: Vec<_> = pieces.copied().collect();
    pieces.sort_by_key(|piece| piece.first_unit);
    assert!(pieces.len() > 1);
    let mut unit = tile.first_unit;
    for piece in &pieces {
        assert!(piece.num_units > 0);
        let skipped = (unit - tile.first_unit) * tile.num_rows * shape.group;
        let (first_unit, partial) = (unit, tile.partial + skipped);
        assert_eq!(
            *piece,
            AttentionPiece { first_unit, num_units: piece.num_units, partial, ..*tile }
        );
        unit += piece.num_units;
    }
    assert_eq!(unit, tile.first_unit + tile.num_units);
}

fn check(plan: &AttentionPlan, shape: &PlanShape, seqs: &[(u32, u32, u32)], batch: &Batch) {
    let TileRows { narrow, wide } = shape.rows;
    check_order(part(plan, plan.wide()), narrow + 1..=wide.unwrap_or(0));
    check_order(part(plan, plan.narrow()), 1..=narrow);
    let mut taken = Vec::new();
    for tile in part(plan, plan.split()) {
        check_split(plan, shape, tile);
        taken.push(tile.partial..tile.partial + tile.num_units * tile.num_rows * shape.group);
    }
    taken.sort_by_key(|rows| rows.start);
    assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
    let room = shape.room(&LIMITS);
    assert!(taken.last().is_none_or(|last| last.end as usize <= room.partial_rows));

    // Times that a row's unit is computed, and that a row is written.
    let (mut computed, mut written) = (HashMap::new(), vec![0; batch.num_tokens()]);
    for (at, piece) in plan.pieces().iter().enumerate() {
        let is_split_tile = plan.split().contains(&(at as u32));
        for row in piece.row..piece.row + piece.num_rows {
            written[row as usize] += u32::from(is_split_tile || piece.partial == WHOLE);
            for unit in piece.first_unit..piece.first_unit + piece.num_units {
                *computed.entry((row, unit)).or_insert(0) += u32::from(!is_split_tile);
            }
        }
    }
    assert!(written.iter().all(|&times| times == 1), "{seqs:?}");
    assert!(computed.values().all(|&times| times == 1));
    for (seq, &(num_rows, _, position)) in seqs.iter().enumerate() {
        let first = batch.query_start[seq];
        for row in 0..num_rows {
            for unit in units(position + row, shape.window) {
                assert!(computed.contains_key(&(first + row, unit)), "{seqs:?} {row} {unit}");
            }
        }
        let of_seq =
            |piece: &&AttentionPiece| (first..batch.query_start[seq + 1]).contains(&piece.row);
        for piece in plan.pieces().iter().filter(of_seq) {
            assert_eq!(piece.position - position, piece.row - first);
            assert_eq!(piece.table, batch.groups[0].table_start[seq]);
            assert_eq!(piece.num_blocks as usize, batch.groups[0].table(seq).len());
        }
    }
}

#[test]
fn every_unit_of_every_row_is_computed_once() {
    let (mut num_split, mut num_wide) = (0, 0);
    for case in 0..400 {
        let random =
            |col: usize, bound: u32| ((noise(case, col) + 1.0) / 2.0 * bound as f32) as u32;
        let seqs: Vec<_> = (0..random(0, 7) as usize)
            .map(|seq| {
                let num_rows = [1, 1, 0, 1 + random(10 + seq, 60)][random(20 + seq, 4) as usize];
                (
                    num_rows,
                    random(30 + seq, 4),
                    random(40 + seq, [300, 8900][random(5, 2) as usize]),
                )
            })
            .collect();
        let group = [1, 5, 8, 16][random(2, 4) as usize];
        let shape = PlanShape {
            group,
            num_kv: 1 + random(3, 3),
            window: [None, None, Some(1), Some(600)][random(1, 4) as usize],
            rows: TileRows {
                narrow: 16 / group,
                wide: [None, Some(64 / group)][random(4, 2) as usize],
            },
            blocks: [1, 7, 264][random(6, 3) as usize],
        };
        let batch = batch(&seqs);
        let mut plan = AttentionPlan::with_room(shape, &LIMITS);
        let place = plan.pieces().as_ptr();
        plan.make(&batch, &batch.groups[0]);
        check(&plan, &shape, &seqs, &batch);
        assert!(
            plan.pieces().as_ptr() == place && plan.pieces().len() <= shape.room(&LIMITS).pieces
        );
        num_split += plan.split().len();
        num_wide += plan.wide().len();
    }
    assert!(num_split > 100 && num_wide > 100, "{num_split} {num_wide}");
}

const SHAPE: PlanShape = PlanShape {
    group: 4,
    num_kv: 8,
    window: None,
    rows: TileRows { narrow: 4, wide: Some(16) },
    blocks: 264,
};

fn planned(shape: PlanShape, seqs: &[(u32, u32, u32)]) -> AttentionPlan {
    let limits = Limits { max_tokens: 4096, max_seqs: 256, max_model_len: 65536, ..LIMITS };
    let mut plan = AttentionPlan::with_room(shape, &limits);
    let batch = batch(seqs);
    plan.make(&batch, &batch.groups[0]);
    plan
}

#[test]
fn few_long_sequences_fill_the_device_and_many_are_left_whole() {
    let blocks = |seqs: &[_]| planned(SHAPE, seqs).split().start * SHAPE.num_kv;
    let fills = SHAPE.blocks * 3 / 4..=SHAPE.blocks * 5 / 4;
    for num_seqs in [1, 2, 3, 7, 20] {
        let filled = blocks(&vec![(1, 0, 16000); num_seqs]);
        assert!(fills.contains(&filled), "{num_seqs}: {filled}");
    }
    // As many as the device has places for: nothing is won.
    for num_seqs in [33, 40, 200] {
        assert!(planned(SHAPE, &vec![(1, 0, 4000); num_seqs]).split().is_empty());
    }
    // One among many that is far longer than its share.
    let mut seqs = vec![(1, 0, 500); 40];
    seqs.push((1, 0, 60000));
    let plan = planned(SHAPE, &seqs);
    assert_eq!(plan.split().len(), 1);
    let longest = part(&plan, plan.narrow()).iter().map(|piece| piece.num_units).max();
    assert!(longest <= Some(10), "{longest:?}");
    // A chunk of a prompt has blocks enough.
    assert!(planned(SHAPE, &[(2048, 0, 0)]).split().is_empty());
}

#[test]
fn where_the_workspace_ends_the_longest_are_split() {
    let shape = PlanShape { num_kv: 1, ..SHAPE };
    let seqs: Vec<_> = (0..20).map(|seq| (1, 0, 60000 - seq * 100)).collect();
    let plan = planned(shape, &seqs);
    let split: Vec<_> = part(&plan, plan.split()).iter().map(|tile| tile.row).collect();
    assert!((16..20).contains(&split.len()), "{split:?}");
    assert!(split.iter().enumerate().all(|(at, &row)| at as u32 == row));
}

#[test]
fn padded_plans_launch_by_the_bucket_alone() {
    let limits = Limits { max_tokens: 4096, max_seqs: 256, max_model_len: 65536, ..LIMITS };
    let (mut padded, mut num_split) = (AttentionPlan::with_room(SHAPE, &limits), 0);
    for bucket in [1, 4, 40, 256] {
        padded.clear();
        padded.pad(bucket);
        let empty = (padded.narrow(), padded.split());
        assert!(padded.pieces().iter().all(|piece| *piece == AttentionPiece::default()));
        for case in 0..40 {
            let num_seqs = [1, bucket.div_ceil(2), bucket][case % 3];
            let position =
                |seq| ((noise(case as u64, seq) + 1.0) * [200.0, 30000.0][case % 2]) as u32;
            let seqs: Vec<_> = (0..num_seqs).map(|seq| (1, 0, position(seq))).collect();
            let (batch, plan) = (batch(&seqs), planned(SHAPE, &seqs));
            padded.make(&batch, &batch.groups[0]);
            padded.pad(bucket);
            assert_eq!(
                (padded.narrow(), padded.split(), padded.wide()),
                (empty.0.clone(), empty.1.clone(), 0..0)
            );
            for (of_padded, of_plan) in
                [(padded.narrow(), plan.narrow()), (padded.split(), plan.split())]
            {
                let (pieces, padding) = part(&padded, of_padded).split_at(of_plan.len());
                assert_eq!(pieces, part(&plan, of_plan));
                assert!(padding.iter().all(|piece| *piece == AttentionPiece::default()));
            }
            assert!(padded.pieces().len() <= SHAPE.room(&limits).pieces);
            num_split += plan.split().len();
        }
    }
    assert!(num_split > 200, "{num_split}");
}
