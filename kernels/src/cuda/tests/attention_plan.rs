//! Every row and unit is some block's, once, and blocks end at about the same time.

use std::collections::HashMap;
use std::ops::Range;

use super::noise;
use crate::batch::{Batch, NO_SLOT};
use crate::cuda::attention::{AttentionPiece, UNIT, WHOLE};
use crate::cuda::attention_plan::{AttentionPlan, PlanShape, TileKind};
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

/// A split tile's pieces follow each other over its units, as do their places: of units or, in parts, of
/// pieces.
///
/// Returns the places.
fn check_split(plan: &AttentionPlan, shape: &PlanShape, meeting: u32) -> Range<u32> {
    let of_tile = |piece: &&AttentionPiece| piece.partial != WHOLE && piece.meeting == meeting;
    let mut pieces: Vec<_> = plan.pieces().iter().filter(of_tile).copied().collect();
    pieces.sort_by_key(|piece| piece.first_unit);
    assert!(pieces.len() > 1);
    let first = pieces[0];
    let in_parts = shape.wide_in_parts && first.num_rows > shape.narrow.rows;
    let (mut unit, mut parts_before) = (first.first_unit, 0);
    for piece in &pieces {
        assert!(piece.num_units > 0);
        let &AttentionPiece { num_units, .. } = piece;
        let partial = first.partial + parts_before * first.num_rows * shape.group;
        let num_pieces = pieces.len() as u32;
        let place = AttentionPiece { parts_before, partial, num_pieces, ..first };
        assert_eq!(*piece, AttentionPiece { first_unit: unit, num_units, ..place });
        unit += num_units;
        parts_before += if in_parts { 1 } else { num_units };
    }
    first.partial..first.partial + parts_before * first.num_rows * shape.group
}

fn check(plan: &AttentionPlan, shape: &PlanShape, seqs: &[(u32, u32, u32)], batch: &Batch) {
    let (narrow, wide) = (shape.narrow.rows, shape.wide.map(|kind| kind.rows));
    check_order(part(plan, plan.wide()), narrow + 1..=wide.unwrap_or(0));
    check_order(part(plan, plan.narrow()), 1..=narrow);
    let meetings = 0..plan.num_split() as u32;
    let mut taken: Vec<_> = meetings.map(|meeting| check_split(plan, shape, meeting)).collect();
    taken.sort_by_key(|rows| rows.start);
    assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
    let room = shape.room(&LIMITS);
    assert!(plan.num_split() * shape.groups as usize <= room.arrivals);
    assert!(taken.last().is_none_or(|last| last.end as usize <= room.partial_rows));

    // Times that a row's unit is computed, and that a row is written.
    let (mut computed, mut written) = (HashMap::new(), vec![0; batch.num_tokens()]);
    for piece in plan.pieces() {
        assert!(piece.partial == WHOLE || (piece.meeting as usize) < plan.num_split());
        for row in piece.row..piece.row + piece.num_rows {
            // One of those that share a tile writes it.
            written[row as usize] += u32::from(piece.parts_before == 0);
            for unit in piece.first_unit..piece.first_unit + piece.num_units {
                *computed.entry((row, unit)).or_insert(0) += 1;
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
    let (mut num_split, mut num_in_parts, mut num_wide) = (0, 0, 0);
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
        let wide = [None, Some(64), Some(128)][random(4, 3) as usize];
        let kind = |score_rows, col| TileKind {
            rows: score_rows / group,
            blocks: [1, 7, 264][random(col, 3) as usize],
        };
        let shape = PlanShape {
            group,
            groups: 1 + random(3, 3),
            head_dim: 128,
            window: [None, None, Some(1), Some(600)][random(1, 4) as usize],
            narrow: kind(16, 6),
            wide: wide.map(|score_rows| kind(score_rows, 7)),
            wide_in_parts: wide == Some(128),
        };
        let batch = batch(&seqs);
        let mut plan = AttentionPlan::with_room(shape, &LIMITS);
        let place = plan.pieces().as_ptr();
        plan.make(&batch, &batch.groups[0]);
        check(&plan, &shape, &seqs, &batch);
        assert!(
            plan.pieces().as_ptr() == place && plan.pieces().len() <= shape.room(&LIMITS).pieces
        );
        num_split += plan.num_split();
        let is_part = |piece: &&AttentionPiece| piece.num_pieces > 0 && shape.wide_in_parts;
        num_in_parts += part(&plan, plan.wide()).iter().filter(is_part).count();
        num_wide += plan.wide().len();
    }
    let all = [num_split, num_in_parts, num_wide];
    assert!(num_split > 100 && num_in_parts > 20 && num_wide > 100, "{all:?}");
}

const SHAPE: PlanShape = PlanShape {
    group: 4,
    groups: 8,
    head_dim: 128,
    window: None,
    narrow: TileKind { rows: 4, blocks: 264 },
    wide: Some(TileKind { rows: 32, blocks: 132 }),
    wide_in_parts: true,
};

fn planned(shape: PlanShape, seqs: &[(u32, u32, u32)]) -> AttentionPlan {
    let limits = Limits { max_tokens: 4096, max_seqs: 256, max_model_len: 65536, ..LIMITS };
    let mut plan = AttentionPlan::with_room(shape, &limits);
    let batch = batch(seqs);
    plan.make(&batch, &batch.groups[0]);
    plan
}

/// When the last of a launch's blocks ends, in units: each place takes the next piece when it is free.
fn time(pieces: &[AttentionPiece], kind: TileKind) -> u32 {
    let mut places = vec![0; (kind.blocks / SHAPE.groups) as usize];
    for piece in pieces {
        let first = places.iter_mut().min().unwrap();
        *first += piece.num_units + 1;
    }
    places.into_iter().max().unwrap()
}

/// The same, if work could be cut at will.
fn least_time(pieces: &[AttentionPiece], kind: TileKind) -> u32 {
    let units: u32 = pieces.iter().map(|piece| piece.num_units).sum();
    units.div_ceil(kind.blocks / SHAPE.groups)
}

#[test]
fn few_long_sequences_fill_the_device_and_many_are_left_whole() {
    for num_seqs in [1, 2, 3, 7, 10, 20, 30] {
        let plan = planned(SHAPE, &vec![(1, 0, 16000); num_seqs]);
        let pieces = part(&plan, plan.narrow());
        let (time, least) = (time(pieces, SHAPE.narrow), least_time(pieces, SHAPE.narrow));
        assert!(time <= least * 5 / 4 + 3, "{num_seqs}: {time} of {least}");
    }
    // As many as the device has places for: nothing is won.
    for num_seqs in [33, 40, 200] {
        assert_eq!(planned(SHAPE, &vec![(1, 0, 4000); num_seqs]).num_split(), 0);
    }
    // One among many that is far longer than its share.
    let mut seqs = vec![(1, 0, 500); 40];
    seqs.push((1, 0, 60000));
    let plan = planned(SHAPE, &seqs);
    assert_eq!(plan.num_split(), 1);
    let longest = part(&plan, plan.narrow()).iter().map(|piece| piece.num_units).max();
    assert!(longest <= Some(10), "{longest:?}");
    // A chunk of a prompt has blocks enough.
    assert_eq!(planned(SHAPE, &[(2048, 0, 0)]).num_split(), 0);
}

#[test]
fn few_wide_tiles_fill_the_device_whatever_else_is_in_the_step() {
    // Rows of one chunk behind so many others; decodes beside them have a launch of their own.
    for rows in [32, 100, 500, 600, 700] {
        for others in [0, 30] {
            let mut seqs = vec![(1, 0, 9000); others];
            seqs.push((rows, 0, 30000));
            let plan = planned(SHAPE, &seqs);
            let kind = SHAPE.wide.unwrap();
            let pieces = part(&plan, plan.wide());
            let (time, least) = (time(pieces, kind), least_time(pieces, kind));
            assert!(time <= least * 3 / 2 + 3, "{rows} rows: {time} of {least}");
            let alone = planned(SHAPE, &[(rows, 0, 30000)]);
            assert_eq!(pieces.len(), part(&alone, alone.wide()).len());
        }
    }
}

#[test]
fn where_the_workspace_ends_the_longest_are_split() {
    // Room for 64 score rows of each group; a sequence has 8.
    let shape = PlanShape { head_dim: 256, group: 8, ..SHAPE };
    let seqs: Vec<_> = (0..20).map(|seq| (1, 0, 60000 - seq * 100)).collect();
    let plan = planned(shape, &seqs);
    let firsts =
        plan.pieces().iter().filter(|piece| piece.num_pieces > 0 && piece.parts_before == 0);
    let mut split: Vec<_> = firsts.map(|piece| piece.row).collect();
    split.sort_unstable();
    assert!((8..20).contains(&split.len()), "{split:?}");
    assert!(split.iter().enumerate().all(|(at, &row)| at as u32 == row));
}

#[test]
fn padded_plans_launch_by_the_bucket_alone() {
    let limits = Limits { max_tokens: 4096, max_seqs: 256, max_model_len: 65536, ..LIMITS };
    let (mut padded, mut num_split) = (AttentionPlan::with_room(SHAPE, &limits), 0);
    for bucket in [1, 4, 40, 256] {
        padded.clear();
        padded.pad(bucket);
        let empty = padded.narrow();
        assert!(padded.pieces().iter().all(|piece| *piece == AttentionPiece::default()));
        for case in 0..40 {
            let num_seqs = [1, bucket.div_ceil(2), bucket][case % 3];
            let position =
                |seq| ((noise(case as u64, seq) + 1.0) * [200.0, 30000.0][case % 2]) as u32;
            let seqs: Vec<_> = (0..num_seqs).map(|seq| (1, 0, position(seq))).collect();
            let (batch, plan) = (batch(&seqs), planned(SHAPE, &seqs));
            padded.make(&batch, &batch.groups[0]);
            padded.pad(bucket);
            assert_eq!((padded.narrow(), padded.wide()), (empty.clone(), 0..0));
            let (pieces, padding) = part(&padded, padded.narrow()).split_at(plan.narrow().len());
            assert_eq!(pieces, part(&plan, plan.narrow()));
            assert!(padding.iter().all(|piece| *piece == AttentionPiece::default()));
            assert!(padded.pieces().len() <= SHAPE.room(&limits).pieces);
            num_split += plan.num_split();
        }
    }
    assert!(num_split > 200, "{num_split}");
}
