//! What a client of the control socket sends, and what a server greets with: whatever is understood
//! reads the same when it is written and read again, and no part of a message is taken for a whole.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run pesto -- -max_total_time=60 -max_len=65536
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use portfwd::forward::wire::{MAX_UPDATE, greeting, read_greeting, read_update, update};

fuzz_target!(|bytes: &[u8]| {
    match read_update(bytes) {
        Ok(Some(tables)) => {
            let again = update(&tables);
            assert_eq!(read_update(&again[..again.len() - 1]), Ok(None));
            assert_eq!(read_update(&again), Ok(Some(tables.clone())));
            assert_eq!(read_greeting(&greeting(&tables)), Ok(Some(tables)));
        }
        Ok(None) => assert!(bytes.len() < MAX_UPDATE),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(Some(tables)) = read_greeting(bytes) {
        assert_eq!(read_greeting(&greeting(&tables)), Ok(Some(tables)));
    }
});
