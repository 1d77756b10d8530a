//! What a guest's DHCP clients and its router solicitations get for an answer: one at most, which a
//! guest's kernel takes, and nothing that grows. The first byte says what the rest is; of DHCPv4 it
//! is what follows the header, so that the fuzzer does not have to find that.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run autoconf -- -max_total_time=600
//! ```

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use netstack::core::autoconf::Dhcpv6;
use netstack::core::{Core, Instant};
use testbed::clients;
use testbed::kernel::CountingWire;

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let rest = &rest[..rest.len().min(20_000)];
    let client = [2, 0, 0, 0, 0, first];
    let frame = match first % 4 {
        0 => clients::dhcpv4_frame(clients::dhcpv4(client, first / 4, Ipv4Addr::UNSPECIFIED, rest)),
        1 => clients::dhcpv4_frame(rest.to_vec()),
        2 => clients::dhcpv6_frame(clients::dhcpv6(first / 4, rest)),
        _ => clients::dhcpv6_frame(rest.to_vec()),
    };
    let mut config = clients::core_config_for_clients();
    config.autoconf.dhcpv6 = Some(Dhcpv6 {
        address: Some("2001:db8::7".parse().expect("an address")),
    });
    let now = Instant::from_millis(1);
    let mut core = Core::new(config, now);
    let mut wire = CountingWire::default();
    for round in 1..=3 {
        assert!(core.handle_frame(&frame, now, &mut wire).is_none());
        assert!(wire.frames <= round, "{} answers to {round} frames", wire.frames);
    }
    assert!(core.addresses().guest.len() <= 4);
    assert_eq!(core.flow_count(), 0);
});
