//! Copies in the order of the stream, and the memory that they share with the host.

use super::*;
use crate::cuda::driver::MarkIndex;
use crate::cuda::host_buffer::HostBuffer;
use crate::cuda::plain::bytes_of;
use crate::cuda::staging::{SETS, Staging, StagingPlan};

fn late(seed: u64) -> Arc<dyn Driver> {
    Arc::new(Emulated::new(&folder(), seed))
}

/// What is there, while the device runs nothing more than it was made to.
fn peek(pointer: DevicePointer, len: usize) -> Vec<u32> {
    // SAFETY: emulated memory is the host's, and one thread runs all.
    unsafe { std::slice::from_raw_parts(pointer.0 as *const u32, len) }.to_vec()
}

#[test]
fn a_copy_reads_the_host_when_it_runs() {
    let mut seen = [0; 2];
    for seed in 0..64 {
        let driver = late(seed);
        let device = DeviceBuffer::new(&driver, 4, "a test").unwrap();
        let mut host = HostBuffer::new(&driver, 4).unwrap();
        // SAFETY: memory of this size; what is written too early is what is looked for.
        unsafe {
            host.write(0, &[1u32]);
            driver.copy_in(device.pointer(), host.pointer(0), 4).unwrap();
            host.write(0, &[2u32]);
        }
        let mut bytes = [0; 4];
        device.download(0, &mut bytes).unwrap();
        seen[u32::from_le_bytes(bytes) as usize - 1] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 40, "quick and late: {seen:?}");
}

#[test]
fn a_wait_runs_what_lies_before_its_mark_and_no_more() {
    let mut seen = std::collections::HashSet::new();
    for seed in 0..64 {
        let driver = late(seed);
        let device = DeviceBuffer::new(&driver, 4, "a test").unwrap();
        let mut host = HostBuffer::new(&driver, 8).unwrap();
        // SAFETY: memory of this size.
        unsafe {
            host.write(0, &[1u32, 2]);
            driver.copy_in(device.pointer(), host.pointer(0), 4).unwrap();
            driver.mark(MarkIndex(0)).unwrap();
            driver.copy_in(device.pointer(), host.pointer(4), 4).unwrap();
        }
        driver.wait(MarkIndex(0)).unwrap();
        seen.insert(peek(device.pointer(), 1)[0]);
        driver.wait(MarkIndex(1)).unwrap();
        assert_ne!(peek(device.pointer(), 1)[0], 0, "a mark that was never set changes nothing");
    }
    assert_eq!(seen, [1, 2].into());
}

#[test]
fn a_failure_is_told_to_whoever_asks_next_and_ends_the_device() {
    let driver = late(2);
    let device = DeviceBuffer::new(&driver, 4, "a test").unwrap();
    let host = HostBuffer::new(&driver, 8).unwrap();
    // SAFETY: the red zone takes what is too much.
    let _ = unsafe { driver.copy_in(device.pointer(), host.pointer(0), 8) };
    for _ in 0..2 {
        assert!(matches!(device.download(0, &mut [0; 4]), Err(KernelError::Fault(_))));
    }
}

#[test]
fn captures_record_launches_with_their_parameters_and_nothing_else() {
    use crate::cuda::gather::Gather;
    let driver = late(3);
    let bed = Bed { driver: driver.clone() };
    let (x, rows, out) = (bed.floats(&[1.0, 2.0, 3.0]), bed.words(&[0]), bed.poison(3));
    let gather =
        Box::new(Gather { x: x.pointer(), rows: rows.pointer(), out: out.pointer(), cols: 3 });
    driver.begin_capture().unwrap();
    // SAFETY: buffers of these rows.
    unsafe { gather.launch(&*driver, 1) }.unwrap();
    assert!(driver.begin_capture().is_err() && driver.mark(MarkIndex(0)).is_err());
    assert!(driver.wait(MarkIndex(0)).is_err() && x.upload(0, &[0; 4]).is_err());
    drop(gather);
    let graph = driver.end_capture().unwrap();
    assert!(read_floats(&out, 3).iter().all(|value| value.is_nan()), "recorded, not run");
    // SAFETY: as above.
    unsafe { driver.replay(graph) }.unwrap();
    assert_eq!(read_floats(&out, 3), [1.0, 2.0, 3.0]);
    x.upload(0, bytes_of(&[4.0f32])).unwrap();
    // SAFETY: as above.
    unsafe { driver.replay(graph) }.unwrap();
    assert_eq!(read_floats(&out, 3), [4.0, 2.0, 3.0]);
    driver.release_graph(graph);
    // SAFETY: there is none.
    assert!(unsafe { driver.replay(graph) }.is_err() && driver.end_capture().is_err());
}

#[test]
fn arrays_reach_their_places_and_a_set_is_not_written_before_it_is_free() {
    let driver = late(4);
    let mut plan = StagingPlan::default();
    let (near, aside) = (plan.place::<u32>(5), plan.place_aside::<u32>(40_000));
    let (next, behind) = (plan.place::<f32>(3), plan.place_aside::<u32>(2));
    let mut staging = Staging::new(&driver, &plan).unwrap();
    for round in 0..4 {
        let set = staging.begin().unwrap();
        staging.write_padded(&near, &[round, 8], (9, 4)).unwrap();
        staging.write(&next, &[0.5]).unwrap();
        staging.write(&behind, &[round, 6]).unwrap();
        staging.write(&aside, &[]).unwrap();
        assert!(staging.write(&near, &[0; 6]).is_err() && staging.write(&behind, &[0; 3]).is_err());
        staging.send().unwrap();
        assert!(staging.write(&near, &[7]).is_err(), "a copy may still read it");
        driver.mark(staging.mark(set)).unwrap();
        driver.wait(staging.mark(set)).unwrap();
        assert_eq!(peek(staging.pointer(&near), 4), [round, 8, 9, 9]);
        assert_eq!(peek(staging.pointer(&next), 1), [0.5f32.to_bits()]);
        assert_eq!(peek(staging.pointer(&behind), 2), [round, 6]);
        staging.free(set);
    }
    for _ in 0..SETS {
        staging.begin().unwrap();
        staging.write(&near, &[1]).unwrap();
        staging.send().unwrap();
    }
    assert!(staging.begin().is_err(), "all sets are in flight");
}
