//! What tests, fuzz targets and benches of coracle share. Nothing that is shipped uses it.
//!
//! - For the core in memory: [`packet`] writes and reads frames, [`kernel`] does with a frame what
//!   a guest's kernel would, [`clients`] are those of DHCP, [`core_config`] is the usual network,
//!   [`hostile`] is a core under attack, and [`entropy`] decides what happens to it.
//! - For real namespaces: [`trial`] runs a test in a process of its own, [`wait`] waits with a
//!   deadline, [`netns`] is a network namespace, [`family`] has addresses, [`links`] makes
//!   links, addresses and routes, [`traffic`] checks itself, [`resolver`] is a DNS server.
//! - For root file systems: [`libraries`] are those of this program.

pub mod clients;
pub mod entropy;
pub mod family;
pub mod hostile;
pub mod kernel;
pub mod libraries;
pub mod links;
pub mod netns;
pub mod packet;
pub mod resolver;
pub mod traffic;
pub mod trial;
pub mod wait;

use netstack::core::autoconf::Autoconf;
use netstack::core::flow::HashKey;
use netstack::core::policy::Policy;
use netstack::core::tcp::Promote;
use netstack::core::{CoreConfig, Limits};
use netstack::network::Network;

/// A core on the usual network, both families, with the MTU of an Ethernet link. It promotes
/// nothing, and the guest knows its addresses.
pub fn core_config() -> CoreConfig {
    CoreConfig {
        addresses: Network::default().addresses(),
        autoconf: Autoconf::default(),
        policy: Policy::default(),
        mtu: 1500,
        mac: packet::GATEWAY_MAC,
        guest_mac: Some(packet::GUEST_MAC),
        udp_segmentation: true,
        promote: Promote::Off,
        limits: Limits::default(),
        random_seed: 1,
        hash_key: HashKey(1, 2),
    }
}
