//! How the kernel would send something: one route, not a table of them.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::{Netlink, NetlinkError};

/// A route that the kernel has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRoute {
    /// Of the destination, in bits. That of a host unless [`AS_IN_TABLE`] asked for the route's.
    pub prefix_len: u8,
    /// `RTN_LOCAL`, `RTN_UNICAST` and others of linux/rtnetlink.h.
    pub kind: u8,
}

/// The answer is the route as it stands in the table (RTM_F_FIB_MATCH, Linux 4.13).
pub const AS_IN_TABLE: u32 = 0x2000;

impl Netlink {
    /// Asks, by a socket of NETLINK_ROUTE, for the route to `ip`. `flags` are 0 or [`AS_IN_TABLE`].
    pub fn find_route(
        &mut self,
        ip: IpAddr,
        flags: u32,
    ) -> Result<Option<FoundRoute>, NetlinkError> {
        let (family, bytes) = match ip {
            IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
        };
        let mut found = None;
        self.query(
            |encoder| {
                encoder.message(libc::RTM_GETROUTE, NLM_F_REQUEST | NLM_F_ACK, |message| {
                    // struct rtmsg: family, length of the destination in bits, six bytes of
                    // nothing, and flags.
                    message.put(&[family as u8, bytes.len() as u8 * 8]);
                    message.put(&[0; 6]);
                    message.put(&flags.to_ne_bytes());
                    message.attribute(libc::RTA_DST, &bytes);
                });
            },
            |answer| {
                if let &[_, prefix_len, _, _, _, _, _, kind, ..] = answer {
                    found = Some(FoundRoute { prefix_len, kind });
                }
            },
        )?;
        Ok(found)
    }
}
