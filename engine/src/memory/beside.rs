//! Several models in one process: what others hold, and whether one more fits beside them.
//!
//! Asked before anything of a model is in memory. What was promised counts as taken although the
//! system has not seen it yet: a KV cache takes its pages when they are first written.

use super::{KvBudget, MachineMemory, MemoryError, RESERVE_BYTES};

/// What other models of this process hold, or are about to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Bytes of the host's memory that were promised to models that are loaded.
    pub promised: u64,
    /// Bytes that models which are loaded after this one need at least,
    pub to_come: u64,
    /// and how many they are: what is left for KV caches is shared with them in equal parts.
    pub models_to_come: u32,
}

/// What a loaded model holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// Packed weights.
    pub weights: u64,
    /// Activation buffers and rope tables.
    pub activations: u64,
    /// What the device takes to run steps.
    pub scratch: u64,
    /// KV blocks.
    pub kv_cache: u64,
    /// Of the host's memory, if the rest is a device's own.
    pub page_locked: u64,
    /// Whether all of it is a device's own memory.
    pub is_devices: bool,
}

impl ModelMemory {
    /// Bytes of all parts, wherever they are.
    pub fn total(&self) -> u64 {
        let parts = [self.weights, self.activations, self.scratch, self.kv_cache];
        parts.iter().fold(0, |sum: u64, part| sum.saturating_add(*part))
    }

    /// Bytes of the host's memory.
    pub fn on_host(&self) -> u64 {
        if self.is_devices { self.page_locked } else { self.total() }
    }
}

/// The least that a model needs, known before any of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeastNeed {
    /// Bytes of packed weights.
    pub weights: u64,
    /// Bytes of activation buffers and rope tables.
    pub activations: u64,
    /// Bytes that the device takes to run steps.
    pub scratch: u64,
    /// Bytes of the KV cache: what was asked for, or one sequence of the maximum length.
    pub kv_cache: u64,
}

impl LeastNeed {
    /// Bytes of all of it.
    pub fn total(&self) -> u64 {
        let parts = [self.weights, self.activations, self.scratch, self.kv_cache];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

impl Beside {
    /// This machine as it is for one more model, which has packed `packed` bytes so far: what is
    /// promised and not yet in memory is not free.
    pub fn machine(&self, packed: u64) -> MachineMemory {
        let untouched = match self.promised {
            0 => 0,
            promised => {
                promised.saturating_add(packed).saturating_sub(MachineMemory::resident_bytes())
            }
        };
        let MachineMemory { limit, available } = MachineMemory::read();
        MachineMemory { limit, available: available.saturating_sub(untouched) }
    }

    /// Bytes that one more model may take of `machine`, and of how many in all.
    pub fn room(&self, budget: KvBudget, machine: &MachineMemory) -> (u64, u64) {
        let (allowed, reserve) = match budget {
            KvBudget::Bytes(_) => (machine.limit, 0),
            KvBudget::Share(share) => ((machine.limit as f64 * share) as u64, RESERVE_BYTES),
        };
        let left = allowed.saturating_sub(self.promised).min(machine.available);
        (left.saturating_sub(self.to_come.saturating_add(reserve)), allowed)
    }

    /// Refuses a model that needs more than there is room for. `smaller` are ways to need less,
    /// with the bytes of their weights.
    pub fn fits(
        &self,
        need: &LeastNeed,
        smaller: &[(&'static str, u64)],
        budget: KvBudget,
        machine: &MachineMemory,
    ) -> Result<(), MemoryError> {
        let (room, allowed) = self.room(budget, machine);
        if need.total() <= room {
            return Ok(());
        }
        let would_fit =
            |(_, weights): &&(_, u64)| LeastNeed { weights: *weights, ..*need }.total() <= room;
        Err(MemoryError::NoRoom {
            need: *need,
            room,
            allowed,
            promised: self.promised,
            smaller: smaller.iter().find(would_fit).map(|(name, _)| *name),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(limit: u64, available: u64) -> MachineMemory {
        MachineMemory { limit: limit * MIB, available: available * MIB }
    }

    fn beside(promised: u64, to_come: u64) -> Beside {
        Beside { promised: promised * MIB, to_come: to_come * MIB, models_to_come: 0 }
    }

    fn need(weights: u64, activations: u64, kv_cache: u64) -> LeastNeed {
        LeastNeed {
            weights: weights * MIB,
            activations: activations * MIB,
            scratch: 3 * MIB,
            kv_cache: kv_cache * MIB,
        }
    }

    #[test]
    fn what_others_were_promised_is_taken() {
        let share = KvBudget::Share(0.5);
        let room = |beside: Beside, machine| beside.room(share, &machine).0 / MIB;
        assert_eq!(room(beside(0, 0), machine(2000, 2000)), 1000 - 192);
        assert_eq!(room(beside(300, 0), machine(2000, 2000)), 700 - 192);
        assert_eq!(room(beside(300, 100), machine(2000, 2000)), 600 - 192);
        assert_eq!(
            room(beside(300, 0), machine(2000, 400)),
            400 - 192,
            "less is free than allowed"
        );
        assert_eq!(room(beside(2000, 0), machine(2000, 2000)), 0);
        let bytes = KvBudget::Bytes(1);
        assert_eq!(beside(300, 0).room(bytes, &machine(2000, 2000)), (1700 * MIB, 2000 * MIB));
    }

    #[test]
    fn a_refusal_has_the_numbers_and_what_would_fit() {
        let (beside, machine, share) = (beside(100, 0), machine(1000, 1000), KvBudget::Share(0.7));
        let fits = |need, smaller: &[_]| beside.fits(&need, smaller, share, &machine);
        // 700 − 100 − 192
        assert_eq!(fits(need(297, 8, 100), &[]), Ok(()));
        assert!(fits(need(298, 8, 100), &[]).is_err());
        let smaller = [("q8_0", 298 * MIB), ("q4_0", 170 * MIB)];
        assert_eq!(
            fits(need(560, 8, 100), &smaller).unwrap_err().to_string(),
            "the model needs 671.0 MiB at least (weights 560.0 MiB, activations 8.0 MiB, scratch \
             3.0 MiB, KV cache 100.0 MiB), and there is room for 408.0 MiB of the 700.0 MiB that all models may take: \
             the others hold 100.0 MiB; with quantization q4_0 it would fit"
        );
        let alone = Beside::default().fits(&need(900, 8, 100), &smaller[..1], share, &machine);
        assert_eq!(
            alone.unwrap_err().to_string(),
            "the model needs 1011.0 MiB at least (weights 900.0 MiB, activations 8.0 MiB, scratch \
             3.0 MiB, KV cache 100.0 MiB), and there is room for 508.0 MiB of the 700.0 MiB that all models may take; \
             with quantization q8_0 it would fit"
        );
        let none = fits(need(900, 8, 100), &[]).unwrap_err().to_string();
        assert!(none.ends_with("unload another, or lower max-model-len or max-num-seqs"), "{none}");
    }

    proptest! {
        /// Whatever is loaded one after another, the promises never exceed what is allowed.
        #[test]
        fn promises_stay_within_what_is_allowed(
            limit in 200u64..4000,
            share in 0.1f64..1.0,
            needs in proptest::collection::vec((0u64..900, 0u64..100, 0u64..400), 1..12),
        ) {
            let machine = machine(limit, limit);
            let mut promised = 0;
            for (weights, activations, kv_cache) in needs {
                let need = need(weights, activations, kv_cache);
                let beside = Beside { promised, ..Beside::default() };
                if beside.fits(&need, &[], KvBudget::Share(share), &machine).is_ok() {
                    promised += need.total();
                }
            }
            let allowed = (machine.limit as f64 * share) as u64;
            prop_assert!(promised <= allowed.saturating_sub(RESERVE_BYTES));
        }
    }

    #[test]
    fn memory_of_a_device_is_not_the_hosts() {
        let parts = ModelMemory {
            weights: 5,
            activations: 4,
            scratch: 3,
            kv_cache: 2,
            ..Default::default()
        };
        assert_eq!((parts.total(), parts.on_host()), (14, 14));
        let on_device = ModelMemory { page_locked: 1, is_devices: true, ..parts };
        assert_eq!((on_device.total(), on_device.on_host()), (14, 1));
    }
}
