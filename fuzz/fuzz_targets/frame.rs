//! The frame parser, and what a core without any flow makes of one frame: at most one action and a
//! few answers, each of which a guest's kernel takes.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run frame -- -max_total_time=600
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::core::vnet::{Offload, VNET_HEADER_LEN};
use netstack::core::{Action, CoreConfig, Core, Instant};
use testbed::core_config;
use testbed::kernel::CountingWire;

fuzz_target!(|frame: &[u8]| {
    if let Some((offload, rest)) = Offload::split(frame) {
        let mut written = [0; VNET_HEADER_LEN];
        offload.write(&mut written);
        assert_eq!(
            Offload::split(&written).map(|(offload, _)| offload),
            Some(offload)
        );
        assert_eq!(rest.len() + VNET_HEADER_LEN, frame.len());
    }
    let now = Instant::from_millis(1);
    let config = CoreConfig {
        guest_mac: None,
        ..core_config()
    };
    let mut core = Core::new(config, now);
    core.set_resolvers(vec![([192, 0, 2, 53], 53).into()]);
    let mut wire = CountingWire::default();
    if let Some(Action::Dial { to, .. } | Action::SendDatagram { to, .. }) =
        core.handle_frame(frame, now, &mut wire)
    {
        let ip = to.ip().to_canonical();
        assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    }
    assert!(wire.frames <= 1, "{} answers to one frame", wire.frames);
    assert_eq!(core.poll_touched(), None, "there is no flow to serve");
});
