//! Which numbers of a range occurred in this step: two rows that write one place would race.

/// Marks of the indices `0..len`, forgotten as a whole at no cost.
pub(crate) struct Distinct {
    /// The round in which an index was last taken.
    taken_in: Vec<u32>,
    round: u32,
}

impl Distinct {
    /// Nothing taken.
    pub(crate) fn new(len: usize) -> Self {
        Distinct { taken_in: vec![0; len], round: 0 }
    }

    /// Forgets what was taken.
    pub(crate) fn clear(&mut self) {
        self.round = self.round.wrapping_add(1);
        // Once in four billion rounds, marks of the round's last occurrence must go.
        if self.round == 0 {
            self.taken_in.fill(0);
            self.round = 1;
        }
    }

    /// Whether `index` is in range and was not taken since the last [`Distinct::clear`].
    pub(crate) fn is_free(&self, index: u32) -> bool {
        self.taken_in.get(index as usize).is_some_and(|&taken_in| taken_in != self.round)
    }

    /// Takes `index`; false if it is out of range or was taken since the last [`Distinct::clear`].
    pub(crate) fn take(&mut self, index: u32) -> bool {
        match self.taken_in.get_mut(index as usize) {
            Some(taken_in) => std::mem::replace(taken_in, self.round) != self.round,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_taken_once_a_round() {
        let mut distinct = Distinct::new(3);
        for round in [0, 1, u32::MAX - 1, u32::MAX] {
            distinct.round = round;
            distinct.clear();
            assert!(distinct.take(0) && distinct.take(2));
            assert!(!distinct.take(0) && !distinct.take(3));
            assert!(distinct.is_free(1) && !distinct.is_free(2) && !distinct.is_free(3));
        }
    }
}
