//! Names of images, which become addresses of registries and keys of the store: one that is read
//! is the same when it is written and read again, and stays what it is within a path.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run reference -- -max_total_time=60 -max_len=600
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner::engine::{Destination, ImageName, ImageRef};

fuzz_target!(|text: &str| {
    let _ = text.parse::<Destination>();
    match text.parse::<ImageName>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(name) => {
            if let Ok(tag) = name.to_tag() {
                same_again(&tag);
            }
        }
    }
    if let Ok(name) = text.parse::<ImageRef>() {
        same_again(&name);
    }
});

fn same_again(name: &ImageRef) {
    let written = name.to_string();
    assert_eq!(written.parse().as_ref(), Ok(name), "{written}");
    let parts = written.split('/');
    assert!(parts.into_iter().all(|part| part != ".." && part != "." && !part.is_empty()));
}
