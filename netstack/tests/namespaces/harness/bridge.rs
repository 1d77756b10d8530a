//! A bridge in the guest, and containers on it: network namespaces with addresses of the bridge's
//! own network. Who forwards, translates or filters their packets is the case's matter.

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::{Family, Netns, World};

/// The networks 10.N.0.0/16 and fdN::/64, in which the guest has 1. `N` are two decimal digits.
pub struct Bridge<'w> {
    world: &'w World,
    name: String,
    number: u8,
}

impl<'w> Bridge<'w> {
    /// Without a container yet. The guest's tap must be up.
    pub fn add(world: &'w World, number: u8) -> Self {
        let bridge = Self {
            world,
            name: format!("br{number}"),
            number,
        };
        let (guest, name) = (&world.guest.net, &bridge.name);
        guest.link(|links| links.add_bridge(name)?.up(name));
        for family in Family::BOTH {
            let address = bridge.address(family, 1);
            guest.link(|links| links.add_address(name, address, prefix_len(family)));
            guest.wait_until_local(address);
        }
        bridge
    }

    /// The address of this network that ends in `last`, which are decimal digits.
    pub fn address(&self, family: Family, last: u8) -> IpAddr {
        let number = self.number;
        let text = match family {
            Family::V4 => format!("10.{number}.0.{last}"),
            Family::V6 => format!("fd{number}::{last}"),
        };
        text.parse().expect("an address")
    }

    /// A container with the addresses that end in `last`, whose way out is the guest.
    pub fn add_container(&self, last: u8) -> Netns {
        let container = Netns::create();
        let (guest, name) = (&self.world.guest.net, &self.name);
        let port = self.port(last);
        guest.link(|links| {
            links
                .add_veth(&port, "eth0", container.as_fd())?
                .join(&port, name)?
                .up(&port)
        });
        container.sysctl("ipv4/ping_group_range", "0 0");
        // As Docker has it: whoever gets the address next is the same neighbour. Otherwise the
        // guest would talk to the old one for seconds (arp(7), locktime).
        let mac = [2, 0, 10, self.number, 0, last];
        container.link(|links| links.set_mac("eth0", mac)?.up("eth0"));
        for family in Family::BOTH {
            let address = self.address(family, last);
            let guest = self.address(family, 1);
            container.link(|links| {
                links
                    .add_address("eth0", address, prefix_len(family))?
                    .add_route(family.unspecified(), 0, guest)
            });
            container.wait_until_local(address);
        }
        container
    }

    /// Takes the link of that container away: nothing it says any more is heard.
    pub fn cut_off(&self, last: u8) {
        let port = self.port(last);
        self.world.guest.net.link(|links| links.remove(&port));
    }

    fn port(&self, last: u8) -> String {
        format!("{}.{last}", self.name)
    }
}

fn prefix_len(family: Family) -> u8 {
    match family {
        Family::V4 => 16,
        Family::V6 => 64,
    }
}
