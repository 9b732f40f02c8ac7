//! The noise of sampling: Philox4x32-10, a counter-based generator.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A block
//! is a pure function of key and counter, so a token's noise depends on the request's seed, the
//! choice and the output position alone: never on the batch, the slot or what ran before.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const NUM_ROUNDS: usize = 10;

/// The block of 128 random bits at `counter` under `key`.
pub(crate) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..NUM_ROUNDS {
        let even = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let odd = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (odd >> 32) as u32 ^ counter[1] ^ key[0],
            odd as u32,
            (even >> 32) as u32 ^ counter[3] ^ key[1],
            even as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// The uniform number in `[0, 1)` that decides output token `output_position`: 53 bits.
pub(crate) fn uniform(seed: u64, choice: u32, output_position: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let block = philox4x32([output_position, choice, 0, 0], key);
    let bits = u64::from(block[1]) << 32 | u64::from(block[0]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_known_answers() {
        // Random123, kat_vectors, philox4x32 with 10 rounds.
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn seed_choice_and_position_each_change_the_number() {
        let base = uniform(1, 0, 0);
        for other in [uniform(2, 0, 0), uniform(1 << 40, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)]
        {
            assert!((0.0..1.0).contains(&other));
            assert_ne!(base, other);
        }
    }
}
