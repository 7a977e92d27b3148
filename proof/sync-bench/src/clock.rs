//! What a piece of work takes: by the clock on the wall, of this thread's processor and of the whole process', helpers
//! included. A neighbour on the same cores has no part in the processor's time but for what it does to the caches.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub wall: Duration,
    pub thread: Duration,
    pub process: Duration,
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).expect("time since the process began");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
}

impl Spent {
    /// Does the work; says what it took.
    pub fn on<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let wall = Instant::now();
        let (thread, process) = (read(ClockId::ThreadCPUTime), read(ClockId::ProcessCPUTime));
        let done = work();
        let spent = Self {
            wall: wall.elapsed(),
            thread: read(ClockId::ThreadCPUTime) - thread,
            process: read(ClockId::ProcessCPUTime) - process,
        };
        (done, spent)
    }

    /// As [`Self::on`], for the work that a row is about: `perf report --comm measured` shows it without what
    /// prepared it.
    pub fn measured<T>(work: impl FnOnce() -> T) -> (T, Self) {
        const NAME: &str = "/proc/self/comm";
        let before = std::fs::read_to_string(NAME).unwrap_or_default();
        // Only for whoever profiles: a system that gives no names measures the same.
        let _ = std::fs::write(NAME, "measured");
        let done = Self::on(work);
        let _ = std::fs::write(NAME, before.trim_end());
        done
    }

    pub fn add(&mut self, other: Self) {
        self.wall += other.wall;
        self.thread += other.thread;
        self.process += other.process;
    }
}

/// So many of something a second.
pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
