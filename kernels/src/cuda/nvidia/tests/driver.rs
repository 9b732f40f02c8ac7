//! Opening a driver, memory, launches, and what becomes of errors.

use std::sync::Arc;

use super::machine::Machine;
use super::{open, open_with};
use crate::cuda::GpuOptions;
use crate::cuda::driver::{
    DeviceBuffer, DevicePointer, Driver, Grid, Launch, MarkIndex, UPLOAD_MAX,
};
use crate::cuda::emulated::Emulated;
use crate::cuda::emulated_map::encode;
use crate::cuda::host_buffer::HostBuffer;
use crate::cuda::norm::{Norm, Put};
use crate::cuda::nvidia::Places;
use crate::cuda::plain::bytes_of;
use crate::cuda::source::{NORM, Source};
use crate::cuda::tensor_map::{Axis, TensorMapSpec};
use crate::cuda::tests::{folder, noises};
use crate::dtype::DType;
use crate::error::KernelError;

const ROWS: u32 = 5;
const COLS: usize = 72;

fn upload(driver: &Arc<dyn Driver>, values: &[f32]) -> Result<DeviceBuffer, KernelError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let buffer = DeviceBuffer::new(driver, bytes.len(), "a test")?;
    buffer.upload(0, &bytes)?;
    Ok(buffer)
}

fn norm_of(x: &DeviceBuffer, weight: &DeviceBuffer, out: &DeviceBuffer) -> Norm {
    let [x, weight, out] = [x, weight, out].map(DeviceBuffer::pointer);
    Norm { x, weight, out, cols: COLS as u32, eps: 1e-6 }
}

/// Bytes of a norm of noise.
fn normed(driver: &Arc<dyn Driver>) -> Result<Vec<u8>, KernelError> {
    let x = upload(driver, &noises(1, ROWS as usize * COLS))?;
    let weight = upload(driver, &noises(2, COLS))?;
    let out = DeviceBuffer::new(driver, ROWS as usize * COLS * 4, "a test")?;
    // SAFETY: buffers of as many rows and columns.
    unsafe { norm_of(&x, &weight, &out).launch(&**driver, Put::Store, ROWS) }?;
    let mut bytes = vec![0; ROWS as usize * COLS * 4];
    out.download(0, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn a_kernel_gives_through_the_driver_what_it_gives_under_emulation() {
    let machine = Machine::new("log");
    let driver = open(&machine);
    let emulated: Arc<dyn Driver> = Arc::new(Emulated::new(&folder(), 1));
    assert_eq!(normed(&driver).unwrap(), normed(&emulated).unwrap());
    // Threads and shared memory are those of its source, or the driver would have refused.
    let launched = machine.calls_of("cuLaunchKernelEx");
    assert!(launched.len() == 1 && launched[0].starts_with("norm_f32 5 1 1 "), "{launched:?}");
    assert!(launched[0].ends_with(" early"), "{launched:?}");
    // Shared memory: the most that a block of this card may have, less what the code declares.
    let bounds = machine.calls_of("cuFuncSetAttribute");
    assert!(bounds.len() >= 2 && bounds.iter().all(|bound| bound == "8 231424"), "{bounds:?}");
    assert!(driver.name().contains("Emulated H200") && driver.name().contains("9.0"));
}

#[test]
fn tensors_are_told_to_the_driver_as_they_are() {
    let machine = Machine::new("");
    let driver = open(&machine);
    let axis = |size, stride, taken| Axis { size, stride, taken };
    let flat = [axis(40, 2, 64), axis(9, 80, 8)];
    let deep = [axis(24, 2, 16), axis(9, 48, 256), axis(4, 720, 3)];
    for (axes, swizzled, format) in [(&flat[..], true, DType::Bf16), (&deep, false, DType::F16)] {
        let spec = TensorMapSpec { address: DevicePointer(4096), format, axes, swizzled };
        // The driver of the tests encodes a map as the emulation does.
        assert_eq!(driver.tensor_map(&spec).unwrap().0, encode(&spec).0);
        let unaligned = TensorMapSpec { address: DevicePointer(4098), ..spec };
        assert!(driver.tensor_map(&unaligned).is_err());
        // A thread that has not asked for anything yet.
        let elsewhere = std::thread::scope(|scope| {
            scope.spawn(|| driver.tensor_map(&spec).map(|map| map.0)).join().unwrap()
        });
        assert_eq!(elsewhere.unwrap(), encode(&spec).0);
    }
    assert_eq!(driver.capability(), (9, 0));
}

#[test]
fn memory_is_zeroed_counted_and_given_back() {
    let machine = Machine::new("memory 1048576");
    let driver = open(&machine);
    let free = || driver.memory().unwrap().unwrap().free;
    let before = free();
    let buffer = DeviceBuffer::new(&driver, 1000, "a test").unwrap();
    assert_eq!(before - free(), 1000);
    let mut bytes = [1; 1000];
    buffer.download(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 1000]);
    buffer.upload(10, b"seven").unwrap();
    buffer.upload(1000, b"").unwrap();
    buffer.download(8, &mut bytes[..9]).unwrap();
    assert_eq!(&bytes[..9], b"\0\0seven\0\0");
    drop(buffer);
    assert_eq!(free(), before);
}

#[test]
fn memory_that_is_not_there_is_told_with_what_it_was_for() {
    let machine = Machine::new("memory 4096");
    let driver = open(&machine);
    match DeviceBuffer::new(&driver, 5000, "a large thing") {
        Err(KernelError::OutOfMemory { what, bytes: 5000 }) => assert_eq!(what, "a large thing"),
        other => panic!("{other:?}"),
    }
    // And is no fault: less of it still fits.
    assert!(DeviceBuffer::new(&driver, 4000, "a smaller thing").is_ok());
}

fn fault(result: Result<Vec<u8>, KernelError>) -> String {
    match result {
        Err(KernelError::Fault(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_that_fails_is_a_fault_with_the_names_of_call_and_error() {
    for (call, code, name) in [
        ("cuLaunchKernelEx", 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)"),
        ("cuMemcpyHtoDAsync_v2", 1, "CUDA_ERROR_INVALID_VALUE (1)"),
        ("cuStreamSynchronize", 700, "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access"),
    ] {
        let machine = Machine::new(&format!("fail {call} {code} 0"));
        let driver = open(&machine);
        let reason = fault(normed(&driver));
        assert!(reason.contains(name), "{reason}");
        let call = call.trim_end_matches("_v2");
        assert!(reason.contains(call) || reason.contains("norm_f32"), "{reason}");
    }
}

#[test]
fn a_kernel_that_touches_what_nobody_has_is_a_fault_that_stays() {
    let machine = Machine::new("");
    let driver = open(&machine);
    let wild = Norm {
        x: DevicePointer(64),
        weight: DevicePointer(64),
        out: DevicePointer(64),
        cols: COLS as u32,
        eps: 1e-6,
    };
    let buffer = upload(&driver, &[0.0; 4]).unwrap();
    // SAFETY: none; that is the test. Emulation reports the access.
    unsafe { wild.launch(&*driver, Put::Store, 1) }.unwrap();
    let mut bytes = [0; 16];
    for _ in 0..2 {
        let reason = fault(buffer.download(0, &mut bytes).map(|()| bytes.to_vec()));
        assert!(reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{reason}");
    }
    assert!(std::fs::read_to_string(machine.path("faults")).unwrap().contains("norm_f32"));
}

#[test]
fn a_launch_that_does_not_fit_its_kernel_never_reaches_the_driver() {
    let machine = Machine::new("log");
    let driver = open(&machine);
    let parameters = [0u8; 64];
    let fitting = Launch {
        source: &NORM,
        name: "norm_f32",
        threads: 512,
        grid: Grid { blocks: [1, 1, 1], shared_bytes: 0 },
        parameters: parameters.as_ptr().cast(),
        parameter_bytes: size_of::<Norm>(),
    };
    let grid = Grid { blocks: [1, 1, 1], shared_bytes: 232_448 };
    for (launch, told) in [
        (Launch { parameter_bytes: 64, ..fitting }, "64"),
        (Launch { grid, ..fitting }, "232448"),
        (Launch { name: "norm_f99", ..fitting }, "norm.cu was loaded without norm_f99"),
    ] {
        // SAFETY: refused before anything is read.
        let reason = fault(unsafe { driver.launch(&launch) }.map(|()| vec![]));
        assert!(reason.contains(told), "{reason}");
    }
    assert_eq!(machine.calls_of("cuLaunchKernelEx"), [""; 0]);
}

#[test]
fn any_thread_may_call_and_the_end_gives_everything_back() {
    let machine = Machine::new("log");
    let driver = open(&machine);
    let here = normed(&driver).unwrap();
    let there = std::thread::spawn({
        let driver = Arc::clone(&driver);
        move || normed(&driver).unwrap()
    });
    assert_eq!(there.join().unwrap(), here);
    drop(driver);
    let calls = machine.calls();
    assert_eq!(calls.last().map(|call| call.trim()), Some("cuDevicePrimaryCtxRelease_v2"));
    assert_eq!(machine.calls_of("cuStreamDestroy_v2").len(), 1);
    for (taken, given) in
        [("cuMemAlloc_v2", "cuMemFree_v2"), ("cuModuleLoadData", "cuModuleUnload")]
    {
        let [taken, given] = [taken, given].map(|call| machine.calls_of(call).len());
        assert!(taken == given && taken > 0);
    }
}

#[test]
fn copies_and_launches_run_in_order_and_marks_wait_for_them() {
    let machine = Machine::new("");
    let driver = open(&machine);
    let first = driver.reserve_marks(4).unwrap();
    let (bytes, marks) = (ROWS as usize * COLS * 4, [first, first.next(3)]);
    assert!(driver.reserve_marks(1).unwrap() == first.next(4), "nobody shares marks");
    let mut host = HostBuffer::new(&driver, bytes).unwrap();
    // SAFETY: nothing was asked for yet.
    assert!(unsafe { host.values::<f32>(ROWS as usize * COLS) }.iter().all(|value| *value == 0.0));
    let x = DeviceBuffer::new(&driver, bytes, "a test").unwrap();
    let out = DeviceBuffer::new(&driver, bytes, "a test").unwrap();
    let weight = upload(&driver, &noises(2, COLS)).unwrap();
    let norm = norm_of(&x, &weight, &out);
    // SAFETY: buffers of as many bytes; the host's bytes are touched behind marks alone.
    let got = unsafe {
        host.write(0, &noises(1, ROWS as usize * COLS));
        driver.copy_in(x.pointer(), host.pointer(0), bytes).unwrap();
        driver.mark(marks[0]).unwrap();
        norm.launch(&*driver, Put::Store, ROWS).unwrap();
        driver.wait(marks[0]).unwrap();
        // The copy has run: its bytes may change.
        host.write(0, &vec![f32::NAN; ROWS as usize * COLS]);
        driver.copy_out(host.pointer(0), out.pointer(), bytes).unwrap();
        driver.mark(marks[1]).unwrap();
        driver.wait(marks[1]).unwrap();
        bytes_of(host.values::<f32>(ROWS as usize * COLS)).to_vec()
    };
    assert_eq!(got, normed(&driver).unwrap());
    assert!(fault(driver.wait(MarkIndex(9)).map(|()| vec![])).contains("mark 9 is nobody's"));
}

#[test]
fn a_graph_runs_its_launches_again_with_the_parameters_they_had() {
    let machine = Machine::new("log");
    let driver = open(&machine);
    let bytes = ROWS as usize * COLS * 4;
    let x = upload(&driver, &noises(1, ROWS as usize * COLS)).unwrap();
    let weight = upload(&driver, &noises(2, COLS)).unwrap();
    let out = DeviceBuffer::new(&driver, bytes, "a test").unwrap();
    driver.begin_capture().unwrap();
    // SAFETY: buffers of these rows, which live longer than the graph.
    unsafe { norm_of(&x, &weight, &out).launch(&*driver, Put::Add, ROWS) }.unwrap();
    // SAFETY: as above.
    unsafe { norm_of(&out, &weight, &x).launch(&*driver, Put::Store, ROWS) }.unwrap();
    let graph = driver.end_capture().unwrap();
    let read = |buffer: &DeviceBuffer| {
        let mut read = vec![0; bytes];
        buffer.download(0, &mut read).unwrap();
        read
    };
    // Recorded, not run.
    assert_eq!(read(&out), vec![0; bytes]);
    // SAFETY: the buffers are there.
    unsafe { driver.replay(graph) }.unwrap();
    let (first, second) = (read(&out), read(&x));
    assert_eq!(first, normed(&driver).unwrap());
    assert_ne!(second, first);
    // SAFETY: as above.
    unsafe { driver.replay(graph) }.unwrap();
    assert_ne!(read(&out), first);
    assert_eq!(machine.calls_of("cuGraphLaunch"), ["2", "2"]);
    driver.release_graph(graph);
    // SAFETY: refused.
    let reason = fault(unsafe { driver.replay(graph) }.map(|()| vec![]));
    assert!(reason.contains("graph 0 is not there"), "{reason}");
}

/// Runs on a thread that has called nothing yet.
fn on_a_new_thread<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(call).join().unwrap())
}

#[test]
fn every_call_may_be_the_first_of_its_thread() {
    let machine = Machine::new("memory 1048576");
    let driver = open(&machine);
    let (x, weight) = (noises(1, ROWS as usize * COLS), noises(2, COLS));
    let (x, weight) = (upload(&driver, &x).unwrap(), upload(&driver, &weight).unwrap());
    let out = on_a_new_thread(|| DeviceBuffer::new(&driver, COLS * 4, "a test").unwrap());
    let free = on_a_new_thread(|| driver.memory().unwrap().unwrap().free);
    let host = on_a_new_thread(|| HostBuffer::new(&driver, 64).unwrap());
    on_a_new_thread(|| out.upload(0, &[1; 8]).unwrap());
    let mark = on_a_new_thread(|| driver.reserve_marks(1).unwrap());
    on_a_new_thread(|| driver.mark(mark).unwrap());
    on_a_new_thread(|| driver.wait(mark).unwrap());
    // SAFETY: buffers of a row at least, and 64 bytes on either side.
    unsafe {
        on_a_new_thread(|| driver.copy_in(out.pointer(), host.pointer(0), 64).unwrap());
        on_a_new_thread(|| driver.copy_out(host.pointer(0), out.pointer(), 64).unwrap());
        on_a_new_thread(|| norm_of(&x, &weight, &out).launch(&*driver, Put::Store, 1).unwrap());
    }
    let mut row = vec![0; COLS * 4];
    on_a_new_thread(|| out.download(0, &mut row).unwrap());
    assert_eq!(row, normed(&driver).unwrap()[..COLS * 4]);
    on_a_new_thread(|| driver.begin_capture().unwrap());
    let graph = on_a_new_thread(|| driver.end_capture().unwrap());
    // SAFETY: an empty graph.
    on_a_new_thread(|| unsafe { driver.replay(graph) }.unwrap());
    on_a_new_thread(|| driver.release_graph(graph));
    on_a_new_thread(|| drop(host));
    on_a_new_thread(|| drop(out));
    assert_eq!(driver.memory().unwrap().unwrap().free, free + COLS as u64 * 4);
}

#[test]
fn uploads_of_any_length_pass_through_two_pieces_and_wait_for_no_copy() {
    let machine = Machine::new("log");
    let driver = open(&machine);
    let bytes: Vec<u8> = (0..3 * UPLOAD_MAX as u32 + 12_345)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let buffer = DeviceBuffer::new(&driver, bytes.len() + 8, "a test").unwrap();
    buffer.upload(8, &bytes).unwrap();
    let mut short = |place: &mut [u8]| {
        place.copy_from_slice(&[7; 8]);
        Ok(())
    };
    buffer.upload_with(0, 8, &mut short).unwrap();
    buffer.upload(0, &[]).unwrap();
    // A refusal copies nothing, and the next upload is as ever.
    let mut refuse = |place: &mut [u8]| {
        place.fill(9);
        Err(KernelError::Unsupported("a test".into()))
    };
    assert!(buffer.upload_with(0, 4, &mut refuse).is_err());
    assert_eq!(machine.calls_of("cuMemHostAlloc").len(), 2);
    assert_eq!(machine.calls_of("cuMemcpyHtoDAsync_v2").len(), 5);
    assert_eq!(machine.calls_of("cuStreamSynchronize"), [""; 0]);
    let mut read = vec![0; bytes.len() + 8];
    buffer.download(0, &mut read).unwrap();
    assert!(read[..8] == [7; 8] && read[8..] == bytes);
    drop((buffer, driver));
    let [allocated, freed] =
        ["cuMemHostAlloc", "cuMemFreeHost"].map(|call| machine.calls_of(call).len());
    assert_eq!(allocated, freed);
}

#[test]
fn bytes_are_ours_again_when_an_upload_returns_and_host_memory_outlives_its_copies() {
    let machine = Machine::new("");
    let driver = open(&machine);
    let buffer = DeviceBuffer::new(&driver, 64, "a test").unwrap();
    let mut bytes = [1; 64];
    buffer.upload(0, &bytes).unwrap();
    bytes.fill(2);
    let mut read = [0; 64];
    buffer.download(0, &mut read).unwrap();
    assert_eq!(read, [1; 64]);
    let mut host = HostBuffer::new(&driver, 64).unwrap();
    // SAFETY: nothing was asked for yet, and 64 bytes on either side.
    unsafe {
        host.write(0, &[3u32; 16]);
        driver.copy_in(buffer.pointer(), host.pointer(0), 64).unwrap();
    }
    drop(host);
    buffer.download(0, &mut read).unwrap();
    assert_eq!(bytes_of(&[3u32; 16]), read);
}

/// Why a GPU cannot be used.
fn refusal(machine: &Machine) -> String {
    match open_with(&machine.lasting_places(), &[&NORM]) {
        Err(KernelError::Unsupported(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_driver_without_a_usable_gpu_says_why() {
    for (behaviour, told) in [
        ("gpus 0", "sees no GPU: check nvidia-smi"),
        (
            "init 802",
            "CUDA_ERROR_SYSTEM_NOT_READY (802): what a driver would say; is nvidia-fabricmanager",
        ),
        ("version 12020", "is too old: it knows CUDA 12.2, and 12.4 or newer is needed"),
        ("capability 75", "has compute capability 7.5; the kernels need 8.0"),
        (
            "fail cuDevicePrimaryCtxRetain 2 0",
            "cannot be taken: cuDevicePrimaryCtxRetain failed with",
        ),
        (
            "fail cuModuleLoadData 209 0",
            "the driver refuses the kernels of norm.cu: cuModuleLoadData",
        ),
    ] {
        let reason = refusal(&Machine::new(behaviour));
        assert!(reason.contains(told), "{behaviour}: {reason}");
    }
    let machine = Machine::new("gpus 2");
    let nvidia = super::super::open(
        GpuOptions { index: 2, ..GpuOptions::default() },
        &machine.places(),
        &[],
        &|_| (),
    );
    let reason = nvidia.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(reason.contains("there is no GPU 2; this process sees 2: 0 to 1"), "{reason}");
}

#[test]
fn a_library_that_is_no_driver_is_told_from_none() {
    let text = "extern \"C\" int cuInit(unsigned) { return 0; }\n\
                extern \"C\" int cuDriverGetVersion(int* v) { *v = 13000; return 0; }\n";
    let reason = refusal(&Machine::with_driver(text));
    assert!(reason.contains("has no cuGetErrorName"), "{reason}");
}

#[test]
fn a_file_that_is_no_library_is_told_from_none() {
    let machine = Machine::with_file("libcuda.so.1", "no library");
    let reason = refusal(&machine);
    assert!(reason.starts_with("no NVIDIA driver: libcuda.so.1 does not open: "), "{reason}");
}

#[test]
fn a_library_beside_the_one_that_the_loader_knows_is_told() {
    let machine = Machine::new("");
    drop(open(&machine));
    let folder = machine.copy_aside("libcuda.so.1");
    let places = Places { first: vec![folder.clone()], ..machine.lasting_places() };
    let reason = open_with(&places, &[&NORM]).unwrap_err().to_string();
    let found = folder.join("libcuda.so.1");
    assert!(reason.contains(&format!("{} was found, but", found.display())), "{reason}");
    assert!(reason.contains("emulated-kernels") && reason.contains("LD_LIBRARY_PATH"), "{reason}");
}

#[test]
fn kernels_begin_early_where_the_card_can_unless_asked_not_to() {
    let begins_early = |behaviour: &str, one_by_one: bool| {
        let machine = Machine::new(behaviour);
        let gpu = GpuOptions { one_by_one, ..GpuOptions::default() };
        let taken = super::super::open(gpu, &machine.lasting_places(), &[&NORM], &|_| ());
        let driver: Arc<dyn Driver> = Arc::new(taken.unwrap().0);
        normed(&driver).unwrap();
        machine.calls_of("cuLaunchKernelEx").iter().any(|call| call.ends_with(" early"))
    };
    assert!(begins_early("log", false));
    assert!(!begins_early("log", true));
    assert!(!begins_early("log\ncapability 80", false));
}

static HASTY: Source = Source {
    name: "hasty.cu",
    text: "#include \"prelude.cuh\"\n\
           struct Hasty { u32* out; };\n\
           static emulate::Kernel hasty_kernel(\"hasty\", 32, sizeof(Hasty), [](const void* p) {\n\
               if (thread_index() > 0) wait_for_kernels();\n\
               ((const Hasty*)p)->out[thread_index()] = 1;\n\
           });\n",
};

#[test]
fn a_kernel_that_begins_early_and_does_not_wait_is_a_fault() {
    for (behaviour, is_fault) in [("", true), ("capability 80", false)] {
        let machine = Machine::new(behaviour);
        let (driver, _) = open_with(&machine.places(), &[&HASTY]).unwrap();
        let out = DeviceBuffer::new(&driver, 128, "a test").unwrap();
        let parameters = out.pointer();
        let launch = Launch {
            source: &HASTY,
            name: "hasty",
            threads: 32,
            grid: Grid { blocks: [1, 1, 1], shared_bytes: 0 },
            parameters: (&raw const parameters).cast(),
            parameter_bytes: 8,
        };
        // SAFETY: the kernel's own struct, and as many words as it writes.
        unsafe { driver.launch(&launch) }.unwrap();
        assert_eq!(out.download(0, &mut [0; 128]).is_err(), is_fault);
        if is_fault {
            let told = std::fs::read_to_string(machine.path("faults")).unwrap();
            assert!(told.contains("hasty: thread 0 never waits"), "{told}");
        }
    }
}
