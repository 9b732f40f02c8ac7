//! The plan against its own promises.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn request<'a>(groups: &'a [GroupNeed], budget: u64) -> KvRequest<'a> {
    KvRequest {
        groups,
        block_size: 16,
        max_model_len: 100,
        max_num_seqs: 8,
        max_chunk: 32,
        budget,
        setting: "kv-cache-memory-bytes",
    }
}

fn full(bytes_per_block: u64) -> GroupNeed {
    GroupNeed { kind: KvGroupKind::Full, bytes_per_block }
}

#[test]
fn no_more_blocks_than_can_ever_be_used_or_paid() {
    let groups = [full(1000)];
    let plan = plan_kv(&request(&groups, u64::MAX)).unwrap();
    assert_eq!((plan.num_blocks, plan.full_length_seqs), (vec![56], 8.0));
    let plan = plan_kv(&request(&groups, 10_999)).unwrap();
    assert_eq!((plan.num_blocks, plan.bytes), (vec![10], 10_000));
}

#[test]
fn a_window_needs_fewer_blocks() {
    let groups = [full(1000), GroupNeed { kind: KvGroupKind::Window(20), bytes_per_block: 3000 }];
    let plan = plan_kv(&request(&groups, u64::MAX)).unwrap();
    assert_eq!(plan.num_blocks, [56, 8 * 5]);
}

#[test]
fn a_refusal_says_what_would_fit() {
    let groups = [full(1000)];
    let error = plan_kv(&request(&groups, 6_999)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "one sequence of 100 tokens needs 6.8 KiB of KV cache, there is room for 6.8 KiB: lower \
         max-model-len to 96 or raise kv-cache-memory-bytes"
    );
    let none = plan_kv(&request(&groups, 10)).unwrap_err();
    assert_eq!(
        none.to_string(),
        "the KV cache has room for 10 bytes, and its smallest part, a block of 16 tokens, needs \
         1000 bytes: raise kv-cache-memory-bytes (one sequence of 100 tokens needs 6.8 KiB)"
    );
}

#[test]
fn a_share_counts_weights_and_what_is_free() {
    let machine = MachineMemory { limit: 1000 * MIB, available: 900 * MIB };
    let fixed = |weights: u64, activations: u64, scratch: u64| FixedBytes {
        weights: weights * MIB,
        activations: activations * MIB,
        scratch: scratch * MIB,
        page_locked: 1 << 40,
    };
    let budget =
        |share, fixed| kv_budget(KvBudget::Share(share), &machine, (&fixed, 0), &Beside::default());
    assert_eq!(budget(0.5, fixed(0, 70, 30)), Ok((500 - 100 - 192) * MIB));
    assert_eq!(budget(1.0, fixed(60, 10, 30)), Ok((900 - 40 - 192) * MIB));
    assert_eq!(budget(1.0, fixed(60, 10, 130)), Ok((900 - 140 - 192) * MIB));
    let none = budget(0.2, fixed(60, 10, 30)).unwrap_err();
    assert!(none.to_string().starts_with("weights, activations and scratch take 100.0 MiB of the"));
    let alone = Beside::default();
    let bytes = kv_budget(KvBudget::Bytes(7), &machine, (&fixed(1 << 40, 0, 0), 0), &alone);
    assert_eq!(bytes, Ok(7));
}

#[test]
fn models_to_come_get_their_weights_and_an_equal_part_of_the_rest() {
    let machine = MachineMemory { limit: 2000 * MIB, available: 2000 * MIB };
    let fixed = FixedBytes { weights: 100 * MIB, activations: 8 * MIB, scratch: 0, page_locked: 0 };
    let budget_with = |least: u64, (promised, to_come, models_to_come)| {
        let beside = Beside { promised: promised * MIB, to_come: to_come * MIB, models_to_come };
        let of_it = (&fixed, least * MIB);
        kv_budget(KvBudget::Share(0.5), &machine, of_it, &beside).unwrap() / MIB
    };
    let budget =
        |promised, to_come, models_to_come| budget_with(0, (promised, to_come, models_to_come));
    assert_eq!(budget(0, 0, 0), 1000 - 108 - 192);
    assert_eq!(budget(0, 200, 1), (1000 - 200 - 108 - 192) / 2);
    assert_eq!(budget(300, 0, 0), 1000 - 300 - 108 - 192);
    // Who needs more than an equal part gets it: the least that others need is left to them already.
    assert_eq!(budget_with(400, (0, 200, 1)), 400);
    assert_eq!(budget_with(501, (0, 200, 1)), 500, "more is not there");
    assert_eq!(budget_with(400, (0, 0, 0)), 700);
}

#[test]
fn the_least_is_one_sequence_or_what_was_asked_for() {
    let groups = [full(1000)];
    let least = |budget| least_kv(budget, &request(&groups, 0));
    assert_eq!(least(KvBudget::Share(0.5)), Ok(7000));
    assert_eq!(least(KvBudget::Bytes(10_999)), Ok(10_000));
    assert_eq!(least(KvBudget::Bytes(1 << 40)), Ok(56_000), "no more than is of use");
    assert!(matches!(least(KvBudget::Bytes(6_999)), Err(MemoryError::OneSequence { .. })));
}

proptest! {
    #[test]
    fn every_plan_is_paid_for_and_holds_one_sequence(
        bytes in proptest::collection::vec(1u64..1 << 40, 1..4),
        window in 1u32..200_000,
        max_model_len in 1u32..1 << 26,
        max_num_seqs in 1u32..10_000,
        max_chunk in 1u32..100_000,
        budget: u64,
    ) {
        let groups: Vec<GroupNeed> = bytes
            .iter()
            .enumerate()
            .map(|(i, bytes_per_block)| GroupNeed {
                kind: if i == 0 { KvGroupKind::Full } else { KvGroupKind::Window(window) },
                bytes_per_block: *bytes_per_block,
            })
            .collect();
        let request = KvRequest {
            max_model_len, max_num_seqs, max_chunk, ..request(&groups, budget)
        };
        match plan_kv(&request) {
            Ok(plan) => {
                prop_assert!(plan.bytes <= budget);
                for (group, blocks) in groups.iter().zip(&plan.num_blocks) {
                    prop_assert!(*blocks >= blocks_of_one(&request, group, max_model_len));
                }
            }
            Err(MemoryError::OneSequence { fits, .. }) => {
                prop_assert!(bytes_of_one(&request, fits) <= u128::from(budget));
                prop_assert!(bytes_of_one(&request, fits + 1) > u128::from(budget));
            }
            Err(MemoryError::NoBlock { block, .. }) => prop_assert!(block > budget),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
