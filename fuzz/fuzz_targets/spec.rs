//! The grammar of `-p`, and of coracle-net's with an address in the guest: whatever is understood
//! reads the same when it is written and read again, and a refusal has something to say.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run spec -- -max_total_time=60
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::publish::PublishTo;
use portfwd::Publish;

fuzz_target!(|text: &str| {
    match text.parse::<Publish>() {
        Ok(rule) => {
            let again = rule.to_string();
            assert_eq!(again.parse(), Ok(rule.clone()), "{text} {again}");
            assert_eq!(rule.pairs().count(), rule.guest_ports.len());
            assert!(rule.pairs().all(|(_, guest)| guest != 0));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(published) = text.parse::<PublishTo>() {
        let again = published.to_string();
        assert_eq!(again.parse(), Ok(published), "{text} {again}");
    }
});
