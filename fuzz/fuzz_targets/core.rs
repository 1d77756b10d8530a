//! The whole core under a hostile guest and a moody host, with the fuzzer's bytes in place of a
//! seed: each byte is a decision of the scenario in `testbed::hostile`, which says what must
//! hold.
//!
//! ```sh
//! cargo install cargo-fuzz
//! RUSTC_BOOTSTRAP=1 cargo fuzz run core -- -max_len=16384 -len_control=0 -max_total_time=600
//! ```
//!
//! Without `-len_control=0` the first hours go to scenarios of a hundred decisions, which hardly
//! get a connection open.

#![no_main]

use libfuzzer_sys::fuzz_target;
use testbed::entropy::Entropy;
use testbed::hostile::World;

fuzz_target!(|data: &[u8]| {
    let mut entropy = Entropy::Bytes(data);
    let mut world = World::new(&mut entropy);
    while !entropy.is_exhausted() {
        world.step(&mut entropy);
    }
    world.wind_down();
});
