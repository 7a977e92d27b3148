//! What the operating system says this process uses. Read from `/proc`; where there is none the figures are absent.

/// Figures of the process, each absent where it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessFigures {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) open_files: Option<usize>,
    pub(crate) threads: Option<u64>,
}

impl ProcessFigures {
    pub(crate) fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second();
        let page = rustix::param::page_size() as u64;
        let open_files = std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
        Self { open_files, ..Self::of_stat(&stat, ticks, page) }
    }

    /// The fields are counted from behind the program's name, which may hold anything, brackets included.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn of_stat(stat: &str, ticks_per_second: u64, page_bytes: u64) -> Self {
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').collect());
        // proc(5) numbers the state, which comes first here, as field 3.
        let field = |number: usize| fields.get(number - 3)?.trim().parse::<u64>().ok();
        let ticks = field(14).zip(field(15)).map(|(user, system)| user + system);
        Self {
            cpu_seconds: ticks.map(|ticks| ticks as f64 / ticks_per_second as f64),
            resident_bytes: field(24).map(|pages| pages * page_bytes),
            open_files: None,
            threads: field(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_program_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 7 0 99 1000000 25 18446744073709551615 1";
        for name in ["dwcp", "a) (b", ") S 9 9"] {
            let figures = ProcessFigures::of_stat(&format!("42 ({name}) {rest}"), 100, 4096);
            assert_eq!(figures.cpu_seconds, Some(2.0), "{name}");
            assert_eq!((figures.resident_bytes, figures.threads), (Some(25 * 4096), Some(7)), "{name}");
        }
        assert_eq!(ProcessFigures::of_stat("", 100, 4096), ProcessFigures::default());
        assert_eq!(ProcessFigures::of_stat("1 (x) S", 100, 4096), ProcessFigures::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_and_threads() {
        let figures = ProcessFigures::read();
        assert!(figures.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(figures.threads.is_some_and(|count| count >= 1) && figures.open_files.is_some());
    }
}
