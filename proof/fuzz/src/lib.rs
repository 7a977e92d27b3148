//! What every fuzz target is: bytes handed to one target of `decoders`, half of the mutations sealed again there.

pub use libfuzzer_sys;

/// A whole fuzz target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        use $crate::libfuzzer_sys;

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            let limit = max_size.min(data.len());
            decoders::damage_and_seal($name, &mut data[..limit], size, seed)
                .unwrap_or_else(|| libfuzzer_sys::fuzzer_mutate(data, size, max_size))
        });
        libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::run($name, data));
    };
}
