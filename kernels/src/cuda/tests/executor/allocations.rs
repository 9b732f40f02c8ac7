//! Nothing is allocated on the host by steps, nor on the device.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::machine::{Machine, Mode};
use super::world::steps;
use crate::cuda::driver::{DevicePointer, Driver, GraphIndex, HostPointer, Launch, MarkIndex};
use crate::device::{Executor, Step};
use crate::dtype::DType;
use crate::error::KernelError;

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

/// A device that does nothing: what remains is the host's work.
#[derive(Debug, Default)]
struct Silent {
    host: Mutex<HashMap<usize, Layout>>,
}

impl Driver for Silent {
    fn name(&self) -> String {
        "nothing".to_owned()
    }

    fn allocate(&self, _bytes: usize, _what: &str) -> Result<DevicePointer, KernelError> {
        count();
        Ok(DevicePointer(256))
    }

    unsafe fn release(&self, _pointer: DevicePointer) {}

    unsafe fn upload(&self, _to: DevicePointer, _bytes: &[u8]) -> Result<(), KernelError> {
        Ok(())
    }

    unsafe fn download(&self, _from: DevicePointer, _bytes: &mut [u8]) -> Result<(), KernelError> {
        Ok(())
    }

    unsafe fn launch(&self, _launch: &Launch) -> Result<(), KernelError> {
        Ok(())
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        let layout = Layout::from_size_align(bytes.max(1), 256).unwrap();
        // SAFETY: not empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        self.host.lock().unwrap().insert(pointer as usize, layout);
        Ok(HostPointer(pointer))
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        if let Some(layout) = self.host.lock().unwrap().remove(&(pointer.0 as usize)) {
            // SAFETY: it was allocated with this layout.
            unsafe { std::alloc::dealloc(pointer.0, layout) };
        }
    }

    unsafe fn copy_in(
        &self,
        _to: DevicePointer,
        _from: HostPointer,
        _bytes: usize,
    ) -> Result<(), KernelError> {
        Ok(())
    }

    unsafe fn copy_out(
        &self,
        _to: HostPointer,
        _from: DevicePointer,
        _bytes: usize,
    ) -> Result<(), KernelError> {
        Ok(())
    }

    fn reserve_marks(&self, _count: u32) -> Result<MarkIndex, KernelError> {
        Ok(MarkIndex(0))
    }

    fn mark(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Ok(())
    }

    fn wait(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        Ok(GraphIndex(0))
    }

    unsafe fn replay(&self, _graph: GraphIndex) -> Result<(), KernelError> {
        Ok(())
    }

    fn release_graph(&self, _graph: GraphIndex) {}
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
