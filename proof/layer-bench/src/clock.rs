//! The processor's time of this thread: other work on the machine has no part in it, but for what it does to the caches.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

pub fn processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("time since the thread began");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
}

/// What this takes.
pub fn took(work: impl FnOnce()) -> Duration {
    let begun = processor();
    work();
    processor() - begun
}

/// The middle one.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    match of.len() {
        0 => 0.0,
        count if count % 2 == 1 => of[middle],
        _ => f64::midpoint(of[middle - 1], of[middle]),
    }
}
