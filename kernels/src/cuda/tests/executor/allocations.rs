//! Nothing is allocated on the host by steps, nor on the device.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use super::machine::{Machine, Mode};
use super::world::steps;
use crate::cuda::tests::silent::Silent;
use crate::device::{Executor, Step};
use crate::dtype::DType;

/// The system's allocator, and how often this thread asked it.
struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends counts no more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all that is done is to count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[test]
fn steps_allocate_nothing() {
    let driver = Arc::new(Silent::default());
    let mut executor = Machine::new(driver, DType::F32, Mode::Graphs).executor;
    let mut todo: Vec<Step> = Vec::new();
    todo.extend(steps(8, 200).into_iter().rev().map(|batch| Step { batch, ..Step::default() }));
    let mut done = Vec::with_capacity(todo.len());
    // The first round makes room in the outputs.
    for round in 0..2 {
        let before = ASKED.get();
        while let Some(step) = todo.pop() {
            executor.launch(step).unwrap();
            if let Some(next) = todo.pop() {
                executor.launch(next).unwrap();
                done.push(executor.finish().unwrap());
            }
            done.push(executor.finish().unwrap());
        }
        let asked = ASKED.get() - before;
        assert!(if round == 0 { asked > 0 } else { asked == 0 }, "round {round}: {asked}");
        done.reverse();
        std::mem::swap(&mut todo, &mut done);
    }
}
