//! Counts what this thread allocates, so that a decoder that lets a length prefix choose its memory is caught by a number
//! and not by the machine's size. It wraps the system's allocator and knows nothing of who allocates.
//!
//! The one unsafe file of the repository's proofs: a global allocator cannot be written otherwise.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; it only counts and forwards")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[derive(Debug)]
struct Meter;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    // A thread that is ending has no counters any more, and nobody who would read them.
    let _ = LIVE.try_with(|live| {
        let now = live.get().saturating_add_unsigned(bytes);
        live.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

fn shrink(bytes: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get().saturating_sub_unsigned(bytes)));
}

// SAFETY: every call is forwarded to `System` unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        shrink(layout.size());
        moved
    }
}

#[global_allocator]
static METER: Meter = Meter;

/// Runs `work` and tells how many bytes this thread held at once beyond what it held before.
pub fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get().saturating_sub(before)).unwrap_or(0))
}

/// What a decoder may hold for each byte it was given. A `Bytes` or `Vec` of 4 bytes on the wire is 24 to 32 in memory
/// and a growing list is there twice while it moves.
const PER_BYTE: usize = 64;
/// What it may hold for nothing: a byte string of any claimed length is read a MiB at a time.
const FREE_BYTES: usize = (1 << 20) + (64 << 10);

/// Runs a decoder over `bytes` and insists that its memory is in proportion to them.
///
/// # Panics
/// When it is not.
pub fn bounded<T>(bytes: &[u8], decoder: impl FnOnce() -> T) -> T {
    let (result, peak) = peak_bytes(decoder);
    let allowed = FREE_BYTES + PER_BYTE * bytes.len();
    assert!(
        peak <= allowed,
        "decoding {} bytes held {peak} bytes at once, {allowed} are allowed",
        bytes.len()
    );
    result
}
