//! Values of which each belongs to one worker at a time.
//!
//! The sampler's slots, rows and scratch are shared by the team, and within a command each is used
//! by one worker. The division of work says by which; this type only holds them.

use std::cell::UnsafeCell;

/// A fixed number of values, allocated at start.
pub(crate) struct Cells<T>(Box<[UnsafeCell<T>]>);

// SAFETY: a cell is only reached through `Cells::cell`, whose callers have it for themselves.
unsafe impl<T: Send> Sync for Cells<T> {}

impl<T> Cells<T> {
    /// `len` values made by `make`.
    pub(crate) fn new(len: usize, make: impl FnMut() -> T) -> Cells<T> {
        Cells(std::iter::repeat_with(make).take(len).map(UnsafeCell::new).collect())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Value number `index`.
    ///
    /// # Safety
    /// Between two barriers of the team, nobody else uses this value.
    #[expect(clippy::mut_from_ref, reason = "the team divides the cells; the contract is above")]
    pub(crate) unsafe fn cell(&self, index: usize) -> &mut T {
        // SAFETY: the caller has this cell for itself.
        unsafe { &mut *self.0[index].get() }
    }
}
