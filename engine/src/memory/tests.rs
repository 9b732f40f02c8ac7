//! The plan against its own promises.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn request<'a>(groups: &'a [GroupNeed], budget: u64) -> KvRequest<'a> {
    KvRequest { groups, block_size: 16, max_model_len: 100, max_num_seqs: 8, max_chunk: 32, budget }
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
        error,
        MemoryError::OneSequence { max_model_len: 100, needed: 7000, budget: 6_999, fits: 96 }
    );
    assert!(error.to_string().contains("lower max-model-len to 96"), "{error}");
    let none = plan_kv(&request(&groups, 10)).unwrap_err();
    assert!(matches!(none, MemoryError::OneSequence { fits: 0, .. }));
}

#[test]
fn a_share_counts_weights_and_what_is_free() {
    let machine = MachineMemory { limit: 1000 * MIB, available: 900 * MIB };
    let budget = |share, fixed, resident| {
        kv_budget(KvBudget::Share(share), &machine, fixed * MIB, resident * MIB)
    };
    assert_eq!(budget(0.5, 100, 0), Ok((500 - 100 - 192) * MIB));
    assert_eq!(budget(1.0, 100, 60), Ok((900 - 40 - 192) * MIB));
    assert!(budget(0.2, 100, 0).is_err());
    let bytes = kv_budget(KvBudget::Bytes(7), &machine, u64::MAX, 0);
    assert_eq!(bytes, Ok(7));
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
            groups: &groups, block_size: 16, max_model_len, max_num_seqs, max_chunk, budget,
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
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
