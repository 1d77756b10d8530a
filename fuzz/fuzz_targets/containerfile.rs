//! The Containerfile, the least trusted text that the runner reads: whatever is understood can be
//! carried out without a panic as far as words go, and a refusal names a line that is there.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run containerfile -- -max_total_time=60 -max_len=4096
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner::untrusted::containerfile;

fuzz_target!(|text: &str| {
    if let Err((line, defect)) = containerfile(text) {
        assert!(line >= 1 && line <= text.lines().count().max(1), "{line}");
        assert!(!defect.is_empty());
    }
});
