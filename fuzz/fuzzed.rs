//! What every target of cargo-fuzz needs: the target by its name, an allocator that counts, and a clock.
use std::time::Duration;

#[path = "../tests/it/common/memory.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod memory;
mod targets;

/// Gives `data` to the target `name` and checks what it needs.
pub fn check(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    targets::check(*target, data, |call| {
        let began = processor_time();
        let peak = memory::peak_of(call).max(0) as usize;
        (peak, processor_time() - began)
    });
}

/// The processor time that this thread has taken. A fuzzer runs for hours beside other programs, which the time of a
/// wall clock would count as well. A call that waits for ever is left to libFuzzer's own `-timeout`.
#[allow(unsafe_code, reason = "the standard library has no such clock")]
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid, and is written during the call alone.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "this system does not count the processor time of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
