//! What the allocator keeps of freed memory: a process that unloads a model gives its memory back.
//!
//! Asked of glibc alone; other allocators decide for themselves. Never on the path of a step, which
//! allocates nothing.

/// From this size on, memory comes from the system and goes back to it when it is freed,
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OF_ITS_OWN_BYTES: libc::c_int = 1 << 20;

/// and so much stays free at the end of each thread's heap at most.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 512 << 10;

/// Lets the allocator keep little of what is freed. Left alone it learns from the large pieces of
/// a load to keep up to 64 MiB for every thread that loaded. Call once, before threads are started.
pub fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: two numbers for the allocator, which takes its own locks.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OF_ITS_OWN_BYTES);
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Gives pages back that hold nothing any more, those between pieces that are in use among them.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: asks the allocator to release what is free; it takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
