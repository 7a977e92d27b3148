//! What a server says of a disk that is not what it was: an end torn by hand, a log or a whole directory put back from an older
//! copy, a log that can no longer be synced. Each with the exit code that `docs/operating/running.md` promises.

use super::*;

/// Everything in a folder, folders in it included.
fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_all(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).unwrap();
        }
    }
}

/// Puts a copy back in the place of what is there now.
fn put_back(copy: &Path, place: &Path) {
    std::fs::remove_dir_all(place).unwrap();
    copy_all(copy, place);
}

/// Where the last batch begins. Batches begin on pages (`docs/durable.md`).
fn last_batch(segment: &[u8]) -> usize {
    let mut pages = (1..segment.len() / 4096).map(|page| page * 4096);
    pages.rfind(|at| segment[*at..].starts_with(b"BTCH")).expect("the log has a batch")
}

#[test]
fn a_log_whose_last_record_is_torn_is_cut_with_a_warning_and_the_node_goes_on() {
    let mut trial = Trial::started(1, "datacenter");
    for (key, value) in [("a", "1"), ("b", "a-value-to-be-found-again-on-disk"), ("c", "3")] {
        trial.run(&["kv", "put", key, value]).ok();
    }
    trial.kill(0);
    let segment = newest_file_with(&trial.path("node0/data/wal"), b"a-value-to-be-found-again-on-disk")
        .expect("the value is in the log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = last_batch(&bytes);
    let end = at + 4096;
    assert!(bytes[at + 40..end].iter().any(|byte| *byte != 0), "there is something to tear off");
    bytes[at + 40..].fill(0);
    std::fs::write(&segment, bytes).unwrap();

    trial.start(0);
    trial.await_ready(1);
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    let said = trial.logs();
    let warned = |line: &&str| line.contains("WARN") && line.contains("an unfinished write at byte");
    let warnings: Vec<&str> = said.lines().filter(warned).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains(&format!("{name}: an unfinished write at byte {at} was cut off")), "{said}");
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "1\n", "what was before it is there");
    trial.run(&["kv", "put", "d", "4"]).ok();
}

#[test]
fn a_log_put_back_from_an_older_copy_is_refused() {
    let mut trial = Trial::started(1, "datacenter");
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.kill(0);
    let (wal, kept) = (trial.path("node0/data/wal"), trial.path("kept"));
    copy_all(&wal, &kept);
    // Each start remembers in the manifest how far the log had come.
    for value in ["2", "3"] {
        trial.start(0);
        trial.await_ready(1);
        trial.run(&["kv", "put", "a", value]).ok();
        trial.kill(0);
    }
    put_back(&kept, &wal);
    let words = ["ends before record", "its disk was rolled back to an older state", "dwcp member replace"];
    refused_server(&trial.config(0)).refused(1, &words);
}

/// The whole directory, so nothing on this disk tells. The others know what it signed since.
#[test]
fn a_disk_put_back_from_an_older_copy_is_found_out_by_the_peers_and_must_not_go_on() {
    let mut trial = Trial::started(4, "internet");
    trial.run(&["kv", "put", "a", "0"]).ok();
    trial.kill(0);
    let (data, kept) = (trial.path("node0/data"), trial.path("kept"));
    copy_all(&data, &kept);
    trial.start(0);
    trial.await_ready(4);
    // It is the primary still, or votes as a backup: either way it signs what the copy does not have.
    for number in 1..=20 {
        trial.run(&["kv", "put", "a", &number.to_string()]).ok();
    }
    trial.kill(0);
    put_back(&kept, &data);
    refused_server(&trial.config(0)).refused(3, &["this disk has forgotten votes", "dwcp member replace"]);
    let get = trial.run(&["kv", "get", "--timeout", "60", "--value-only", "a"]);
    assert_eq!(get.ok(), "20\n", "the others go on");
}

#[cfg(all(target_os = "linux", target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod failing_sync {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Stands before the C library's own function. A sync of a file in `wal` fails once there is a file `sync-fails` beside
    /// that folder, as it does when the disk below is broken; all others go through.
    const FAILING: &str = r#"
        use std::ffi::{c_int, c_long};
        unsafe extern "C" {
            fn syscall(number: c_long, ...) -> c_long;
            fn __errno_location() -> *mut c_int;
        }
        const FDATASYNC: c_long = if cfg!(target_arch = "aarch64") { 83 } else { 75 };
        const EIO: c_int = 5;
        #[unsafe(no_mangle)]
        pub extern "C" fn fdatasync(file: c_int) -> c_int {
            let path = std::fs::read_link(format!("/proc/self/fd/{file}")).unwrap_or_default();
            let folder = path.parent().filter(|folder| folder.ends_with("wal"));
            let fails = folder.is_some_and(|folder| folder.with_file_name("sync-fails").exists());
            if fails {
                unsafe { *__errno_location() = EIO };
                return -1;
            }
            unsafe { syscall(FDATASYNC, file) as c_int }
        }
    "#;

    fn build(folder: &Path) -> PathBuf {
        let (source, library) = (folder.join("failing.rs"), folder.join("libfailing.so"));
        std::fs::write(&source, FAILING).unwrap();
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(compiler)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
            .args([&library, &source])
            .output()
            .expect("whoever builds this has a compiler");
        assert!(built.status.success(), "{}", Ran::of(&built).err);
        library
    }

    #[test]
    fn a_node_whose_log_cannot_be_synced_aborts_at_once_and_keeps_what_it_acknowledged() {
        let mut trial = Trial::new(1, "datacenter");
        let library = build(trial.folder.path());
        let log = trial.path("node0/server.log");
        let mut child = spawn_server_with(&trial.config(0), &log, &[("LD_PRELOAD", &library)]);
        trial.await_ready(1);
        trial.run(&["kv", "put", "a", "1"]).ok();
        let fails = trial.path("node0/data/sync-fails");
        std::fs::write(&fails, "").unwrap();
        let put = trial.run(&["kv", "put", "--timeout", "5", "a", "2"]);
        assert_ne!(put.code, Some(0), "nothing is acknowledged that was not synced: {put:?}");

        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() > until {
                let _ = child.kill();
                panic!("it runs on: {}", trial.logs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // What a shell shows as 134.
        assert_eq!((status.code(), status.signal()), (None, Some(6)), "{}", trial.logs());
        let said = trial.logs();
        for words in ["the log cannot be trusted any more: aborting", "what is on disk is unknown"] {
            assert!(said.contains(words), "{words}: {said}");
        }

        std::fs::remove_file(&fails).unwrap();
        trial.start(0);
        trial.await_ready(1);
        let value = trial.run(&["kv", "get", "--value-only", "a"]).ok();
        assert!(["1\n", "2\n"].contains(&value.as_str()), "{value}");
    }
}
