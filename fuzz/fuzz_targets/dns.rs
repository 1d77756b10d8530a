//! Queries that names of the engine may answer: whatever comes, an answer is a response to it that
//! fits its way.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run dns -- -max_total_time=60 -max_len=1500
//! ```

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use netstack::core::dns::{Carrier, HostNames, answer, failure};

/// What a datagram may have, whatever the asker says.
const MOST: usize = 1232;
const ASKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 89, 0, 7));

fuzz_target!(|query: &[u8]| {
    let texts = ["a=10.89.0.5,fd89::5", "a=10.89.0.6", "b.c=10.89.0.7@10.89.0.0/24"];
    let names = texts.map(|text| text.parse().expect("a name"));
    let names = HostNames::new(names).expect("few names");
    for carrier in [Carrier::Udp, Carrier::Tcp] {
        if let Some(answer) = answer(query, carrier, &names, ASKER) {
            assert_eq!(answer[..2], query[..2]);
            assert!(answer[2] & 0x80 != 0 && answer.len() <= MOST);
        }
    }
    if let Some(failure) = failure(query) {
        assert_eq!(failure[..2], query[..2]);
        assert!(failure[2] & 0x80 != 0 && failure.len() <= query.len());
    }
});
