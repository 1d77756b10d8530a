//! One question of the comparison, and its name.
//!
//! A [`Cell`] is one question ("TCP bulk, outbound, guest sends, one flow, MTU 1500, cubic, IPv4");
//! every peer answers it in every round. A cell's name is its words joined by `/`, and `--only`
//! picks cells by those words, so names are part of the interface. Stored baselines hold cells by
//! value: a field that is added later needs a default.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One question put to every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    pub work: Work,
    pub route: Route,
    /// MTU of the guest's interface in bytes. The host reference has none and ignores it.
    pub mtu: u16,
    /// TCP congestion control in the guest. Without meaning for UDP.
    pub congestion: Congestion,
    /// The same on the host, where the helper is, and on the other machine.
    #[serde(default)]
    pub host_congestion: Congestion,
    #[serde(default)]
    pub family: Family,
}

/// What the traffic looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `flows` TCP connections at full speed in one direction.
    Bulk { way: Way, flows: u32 },
    /// UDP from or to `flows` client sockets: unpaced, and then at the highest rate that loses no
    /// more than one in a thousand.
    Datagrams {
        way: Way,
        flows: u32,
        /// Many datagrams per system call, with UDP_SEGMENT at the sender and UDP_GRO at the
        /// receiver.
        segmented: bool,
    },
    /// Keep-alive HTTP: one request of 100 bytes in flight per connection, answered by 600 bytes.
    Request { connections: u32 },
    /// The same over UDP: a datagram of 100 bytes in flight per socket, answered by one of 600
    /// bytes.
    Exchange { sockets: u32 },
    /// New connections, `at_once` at any time: connect, request, response, close.
    Connect { at_once: u32 },
    /// As `Connect`, until `connections` are through; then memory and descriptors must be what they
    /// were.
    Soak { connections: u32 },
    /// Memory and descriptors of the helper while `connections` are open, and after they closed.
    Memory { connections: u32 },
}

/// Which end connects to which, and where the helper stands in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// The guest connects to a service on the host's uplink address.
    Outbound,
    /// A client on the host's loopback address connects to a published port of the guest.
    Published,
    /// A client on another machine (a namespace behind a veth pair) connects to a published port of
    /// the guest.
    PublishedRemote,
}

/// Where bulk bytes and datagrams flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    FromGuest,
    ToGuest,
}

/// TCP congestion control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    #[default]
    Cubic,
    Bbr,
}

/// Address family of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    #[default]
    Ipv4,
    Ipv6,
}

impl Work {
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Datagrams { .. } | Self::Exchange { .. })
    }
}

impl Congestion {
    /// The kernel's name of the algorithm.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join("/"))
    }
}

impl Cell {
    /// An IPv4 cell at the helpers' favourite MTU.
    pub fn new(work: Work, route: Route) -> Self {
        Self {
            work,
            route,
            mtu: 65520,
            congestion: Congestion::Cubic,
            host_congestion: Congestion::Cubic,
            family: Family::Ipv4,
        }
    }

    /// The words of the cell's name, in order.
    pub fn words(&self) -> Vec<String> {
        let route = match self.route {
            Route::Outbound => "outbound",
            Route::Published => "published",
            Route::PublishedRemote => "published-remote",
        };
        let (kind, load) = self.load();
        let transport = if self.work.is_udp() {
            "udp"
        } else {
            self.congestion.name()
        };
        let family = match self.family {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        };
        let mut words = vec![kind.to_string(), route.into()];
        words.extend(load);
        words.extend([format!("mtu-{}", self.mtu), transport.into(), family.into()]);
        if self.host_congestion != Congestion::default() {
            words.push(format!("host-{}", self.host_congestion.name()));
        }
        words
    }

    /// The first word, and those that say how much of it.
    fn load(&self) -> (&'static str, Vec<String>) {
        let word = |way| match way {
            Way::FromGuest => "from-guest".to_string(),
            Way::ToGuest => "to-guest".to_string(),
        };
        match self.work {
            Work::Bulk { way, flows } => ("bulk", vec![word(way), format!("flows-{flows}")]),
            Work::Datagrams {
                way,
                flows,
                segmented,
            } => {
                let calls = if segmented { "segmented" } else { "single" };
                let flows = format!("flows-{flows}");
                ("datagrams", vec![word(way), flows, calls.into()])
            }
            Work::Request { connections } => {
                ("request", vec![format!("connections-{connections}")])
            }
            Work::Exchange { sockets } => ("exchange", vec![format!("sockets-{sockets}")]),
            Work::Connect { at_once } => ("connect", vec![format!("at-once-{at_once}")]),
            Work::Soak { connections } => ("soak", vec![format!("connections-{connections}")]),
            Work::Memory { connections } => ("memory", vec![format!("connections-{connections}")]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_tcp_from_udp_and_the_families_apart() {
        let way = Way::ToGuest;
        let bulk = Cell::new(Work::Bulk { way, flows: 8 }, Route::PublishedRemote);
        assert_eq!(
            bulk.to_string(),
            "bulk/published-remote/to-guest/flows-8/mtu-65520/cubic/ipv4"
        );
        let work = Work::Datagrams {
            way,
            flows: 1,
            segmented: true,
        };
        let udp = Cell {
            mtu: 1500,
            family: Family::Ipv6,
            ..Cell::new(work, Route::Outbound)
        };
        assert_eq!(
            udp.to_string(),
            "datagrams/outbound/to-guest/flows-1/segmented/mtu-1500/udp/ipv6"
        );
        let host_congestion = Congestion::Bbr;
        let on_bbr = Cell {
            host_congestion,
            ..bulk
        };
        assert_eq!(on_bbr.to_string(), format!("{bulk}/host-bbr"));
    }

    #[test]
    fn cells_of_older_reports_were_ipv4() {
        let stored = r#"{"work":{"request":{"connections":64}},"route":"outbound","mtu":65520,"congestion":"cubic"}"#;
        let cell: Cell = serde_json::from_str(stored).unwrap();
        let work = Work::Request { connections: 64 };
        assert_eq!(cell, Cell::new(work, Route::Outbound));
    }
}
