//! Threads that are run soon after they wake.
//!
//! A write passes several threads that each work for some microseconds and sleep: Linux lets whoever computes finish its
//! slice of about 3 ms before it runs one that wakes, which is many times what the disk takes. A thread may ask for a
//! shorter slice of its own (since Linux 6.12, no privilege needed): it is then run at once, for as much of the processor
//! in all as before, only in smaller pieces.

#![allow(unsafe_code, reason = "a system call without a wrapper")]

/// Short beside the scheduler's own, long beside a switch between threads; in nanoseconds.
const SLICE: u64 = 500_000;

/// Asks for the calling thread to be run soon after it wakes. Elsewhere than on a Linux that can, nothing changes.
pub fn prompt_thread() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the kernel reads as many bytes as `size` says, and writes none.
        let failed = unsafe {
            let mut wanted: libc::sched_attr = std::mem::zeroed();
            wanted.size = std::mem::size_of::<libc::sched_attr>() as u32;
            wanted.sched_policy = libc::SCHED_OTHER as u32;
            // As it is: niceness belongs to whoever started us.
            wanted.sched_nice = libc::getpriority(libc::PRIO_PROCESS, 0);
            wanted.sched_runtime = SLICE;
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0)
        };
        if failed != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "threads keep the scheduler's own slice");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The slice in force of the calling thread; 0 where the kernel tells none.
    fn slice() -> u64 {
        let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
        let size = std::mem::size_of::<libc::sched_attr>();
        // SAFETY: the kernel writes at most `size` bytes.
        let failed = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, 0) };
        assert_eq!(failed, 0);
        found.sched_runtime
    }

    #[test]
    fn a_prompt_thread_has_a_short_slice_and_its_niceness() {
        std::thread::spawn(|| {
            let before = slice();
            let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            prompt_thread();
            assert_eq!(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }, nice);
            // Kernels before 6.12 tell nothing and take nothing.
            assert!(before == 0 || slice() == SLICE, "{before} -> {}", slice());
        })
        .join()
        .expect("no panic");
    }
}
