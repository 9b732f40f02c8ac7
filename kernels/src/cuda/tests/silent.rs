//! A device that does nothing: what remains is the host's work, and which kernels it asked for.

use std::alloc::Layout;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use crate::cuda::driver::{
    DevicePointer, Driver, Fill, GraphIndex, HostPointer, Launch, MarkIndex,
};
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::error::KernelError;

/// Runs nothing.
#[derive(Debug, Default)]
pub(in crate::cuda) struct Silent {
    is_hopper: bool,
    host: Mutex<HashMap<usize, Layout>>,
    launched: Mutex<BTreeSet<&'static str>>,
}

/// As long as somebody waits for a device that has nothing to do.
const WAIT: Duration = Duration::from_micros(50);

impl Silent {
    /// With all that Hopper has.
    pub(in crate::cuda) fn hopper() -> Self {
        Silent { is_hopper: true, ..Silent::default() }
    }

    /// Names of kernels that were launched.
    pub(in crate::cuda) fn launched(&self) -> BTreeSet<&'static str> {
        self.launched.lock().unwrap().clone()
    }
}

impl Driver for Silent {
    fn name(&self) -> String {
        "nothing".to_owned()
    }

    fn capability(&self) -> (u32, u32) {
        if self.is_hopper { (9, 0) } else { (8, 0) }
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
        spec.check()?;
        Ok(TensorMap([0; 128]))
    }

    fn allocate(&self, _bytes: usize, _what: &str) -> Result<DevicePointer, KernelError> {
        // Of the host's memory, too, for whoever counts that.
        drop(std::hint::black_box(Box::new(0u8)));
        Ok(DevicePointer(256))
    }

    unsafe fn release(&self, _pointer: DevicePointer) {}

    unsafe fn upload_with(
        &self,
        _to: DevicePointer,
        _bytes: usize,
        _fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        Ok(())
    }

    unsafe fn download(&self, _from: DevicePointer, _bytes: &mut [u8]) -> Result<(), KernelError> {
        std::thread::sleep(WAIT);
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        let [_, y, z] = launch.grid.blocks;
        assert!(y <= 65_535 && z <= 65_535, "{launch:?}");
        assert!(launch.grid.shared_bytes <= self.shared_bytes_max(), "{launch:?}");
        self.launched.lock().unwrap().insert(launch.name);
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
