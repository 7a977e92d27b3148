//! The only place where clocks are read: the core is told what time it is.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dwcp_base::{Micros, Now};

/// The node's clocks; monotonic time counts from when this was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        // A wall clock before 1970 reads as 1970: log time then rests on the other replicas' clocks.
        Now { mono: self.mono(), wall_ms: wall_ms().unwrap_or(0) }
    }

    pub(crate) fn mono(&self) -> Micros {
        Micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Milliseconds since 1970; `None` when the clock stands before that.
pub(crate) fn wall_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
