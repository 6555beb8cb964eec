//! The last seam: the two functions of the C library through which a process learns the time and gets randomness.
//!
//! Everything above them (std's clocks and hash maps, tokio's scheduler, uuids, random numbers, timestamps) is thereby
//! part of the simulation, in shipped code and in libraries, without a line in either. On a thread that runs a seed,
//! `getrandom` draws from that seed and `clock_gettime` answers virtual time; all other threads get the real ones.
//!
//! Hazards: a thread is good for one run, since std's hash maps count on from the keys they drew first on their thread;
//! and a process is good for one run that shall replay, since tokio mixes a count of the runtimes so far into its own
//! randomness. Whoever runs many seeds gives each a process (`main.rs`, `tests/seeds.rs`).

#![allow(unsafe_code, reason = "the C library's own signatures")]

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};

use tokio::time::Instant;

/// Virtual runs begin here: 2026-01-01T00:00:00Z, and 1,000 s after the machine's start.
const EPOCH: i64 = 1_767_225_600;
const UPTIME: i64 = 1_000;

thread_local! {
    /// The generator's state; none on a thread that runs no seed.
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    /// When the run's virtual time began; none before and after.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Reading virtual time must not read it again.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` on a thread of its own whose randomness is `seed`'s and whose time is virtual.
///
/// # Panics
/// When `body` does.
pub fn on_seeded_thread<T: Send + 'static>(seed: u64, body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        RANDOM.set(Some(seed ^ 0x9e37_79b9_7f4a_7c15));
        body()
    });
    match thread.expect("a thread can be started").join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// From here on the clocks of this thread show tokio's (paused) time. Call it inside the runtime.
pub fn begin_time() {
    BEGAN.set(Some(Instant::now()));
}

/// Before the runtime is left.
pub fn end_time() {
    BEGAN.set(None);
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// As the C library's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = RANDOM.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the kernel's own function, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
    }
    RANDOM.set(Some(state));
    length as isize
}

/// # Safety
/// As the C library's: `time` points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let simulated = RANDOM.try_with(Cell::get).ok().flatten().is_some();
    if !simulated || !matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME) {
        // SAFETY: the kernel's own function, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    let mut elapsed = std::time::Duration::ZERO;
    if let Some(began) = BEGAN.get()
        && !READING.replace(true)
    {
        elapsed = Instant::now().saturating_duration_since(began);
        READING.set(false);
    }
    let base = if clock == libc::CLOCK_REALTIME { EPOCH } else { UPTIME };
    // SAFETY: the caller vouches for it.
    unsafe {
        (*time).tv_sec = base + elapsed.as_secs() as i64;
        (*time).tv_nsec = i64::from(elapsed.subsec_nanos());
    }
    0
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn sample() -> (Vec<u32>, u64, Duration, Duration) {
        let map: HashMap<u32, u32> = (0..100).map(|n| (n, n)).collect();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            begin_time();
            let (started, real) = (std::time::Instant::now(), SystemTime::now());
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let passed = (started.elapsed(), real.elapsed().expect("time goes forward"));
            end_time();
            (map.into_keys().collect(), rand::random(), passed.0, passed.1)
        })
    }

    #[test]
    fn hash_maps_random_numbers_and_clocks_belong_to_the_seed() {
        let one = on_seeded_thread(1, sample);
        assert_eq!(one, on_seeded_thread(1, sample), "the same seed gives the same");
        assert_ne!(one.0, on_seeded_thread(2, sample).0, "another seed gives another order");
        assert_ne!(one.1, on_seeded_thread(2, sample).1, "and other numbers");
        assert_eq!((one.2, one.3), (Duration::from_secs(3600), Duration::from_secs(3600)));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        assert!(now.as_secs() > 1_700_000_000, "other threads have the real time");
    }
}
