//! Whose a connection is that goes over the tap: of a socket in the guest's network namespace, or
//! of somebody behind it whose packets are only forwarded, usually with another source address
//! (containers on a bridge behind masquerading, as Docker and netavark set them up). Connection
//! tracking knows (ctnetlink).

use std::net::{IpAddr, SocketAddr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::gate::GateError;
use crate::core::flow::Endpoints;
use crate::netlink::{Encoder, Netlink, NetlinkError};

/// Where a connection's other end in the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A socket of the guest's network namespace, with the very ends that show on the tap.
    Guest,
    /// Somebody behind it. These ends go into the snapshot (`forwarded`) and into the gate; frames
    /// that come out of the tap have other ones and cannot be written back as they are.
    Behind(Endpoints),
    /// A socket of the guest's network namespace whose addresses are translated on the way out. It
    /// cannot be diverted.
    Translated,
}

/// Access to connection tracking. Works from any thread.
#[derive(Debug)]
pub struct Conntrack {
    netfilter: Netlink,
    routes: Netlink,
}

impl Conntrack {
    /// That of the calling thread's network namespace.
    pub fn open() -> Result<Self, GateError> {
        let open = |protocol| Netlink::open(protocol).map_err(GateError::Open);
        Ok(Self {
            netfilter: open(libc::NETLINK_NETFILTER)?,
            routes: open(libc::NETLINK_ROUTE)?,
        })
    }

    /// Whose connection it is; `endpoints` are as they show on the tap.
    pub fn owner(&mut self, endpoints: &Endpoints) -> Result<Owner, NetlinkError> {
        let true_ends = self.untranslated(endpoints)?.unwrap_or(*endpoints);
        Ok(match self.is_local(true_ends.guest().ip())? {
            true if true_ends == *endpoints => Owner::Guest,
            true => Owner::Translated,
            false => Owner::Behind(true_ends),
        })
    }

    /// Drops the kernel's entry of a connection that belonged to somebody behind the guest, by its
    /// ends on the tap: diverted segments are not tracked, so it would stay for days. One that is
    /// not there is no error.
    pub fn forget(&mut self, endpoints: &Endpoints) -> Result<(), NetlinkError> {
        let deleted = self.netfilter.query(
            |encoder| request(encoder, IPCTNL_MSG_CT_DELETE, endpoints),
            |_| {},
        );
        match deleted {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            deleted => deleted,
        }
    }

    /// The ends that the connection has inside; `None` if it is not tracked.
    fn untranslated(&mut self, endpoints: &Endpoints) -> Result<Option<Endpoints>, NetlinkError> {
        let mut found = None;
        let asked = self.netfilter.query(
            |encoder| request(encoder, IPCTNL_MSG_CT_GET, endpoints),
            |answer| found = inside(answer, endpoints),
        );
        match asked.as_ref().map_err(NetlinkError::errno) {
            Ok(()) => Ok(found),
            // No such connection; no connection tracking in this kernel.
            Err(Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(None),
            Err(_) => asked.map(|()| None),
        }
    }

    /// Whether `address` is one of this network namespace.
    fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let route = self.routes.find_route(address, 0)?;
        Ok(route.is_some_and(|route| route.kind == libc::RTN_LOCAL))
    }
}

/// Asks for the entry that has segments from the remote to the guest, whichever side began the
/// connection.
fn request(encoder: &mut Encoder, kind: u16, endpoints: &Endpoints) {
    let kind = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | kind;
    encoder.message(kind, NLM_F_REQUEST | NLM_F_ACK, |message| {
        let (from, to) = (endpoints.remote(), endpoints.guest());
        let family = if from.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        const NFNETLINK_V0: u8 = 0;
        message.put(&[family as u8, NFNETLINK_V0, 0, 0]);
        message.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_IP, |ip| match (from.ip(), to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    ip.attribute(CTA_IP_V4_SRC, &from.octets());
                    ip.attribute(CTA_IP_V4_DST, &to.octets());
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    ip.attribute(CTA_IP_V6_SRC, &from.octets());
                    ip.attribute(CTA_IP_V6_DST, &to.octets());
                }
                _ => unreachable!("endpoints are of one family"),
            });
            tuple.nest(CTA_TUPLE_PROTO, |proto| {
                proto.attribute(CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]);
                proto.attribute(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes());
                proto.attribute(CTA_PROTO_DST_PORT, &to.port().to_be_bytes());
            });
        });
    });
}

/// An entry has two directions. One of them is that from the remote to the guest as it shows on the
/// tap; the source of the other is who sends inside, before translation.
fn inside(entry: &[u8], endpoints: &Endpoints) -> Option<Endpoints> {
    let directions = entry.get(NFGENMSG_LEN..)?;
    let original = direction(attribute(directions, CTA_TUPLE_ORIG)?)?;
    let reply = direction(attribute(directions, CTA_TUPLE_REPLY)?)?;
    let from_remote = (endpoints.remote(), endpoints.guest());
    let (source, destination) = if original == from_remote {
        reply
    } else {
        original
    };
    Endpoints::new(source, destination)
}

/// Source and destination of a CTA_TUPLE_*.
fn direction(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, proto) = (
        attribute(tuple, CTA_TUPLE_IP)?,
        attribute(tuple, CTA_TUPLE_PROTO)?,
    );
    let end = |v4, v6, port| {
        let address = match attribute(ip, v4) {
            Some(octets) => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
            None => IpAddr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?),
        };
        let port = u16::from_be_bytes(attribute(proto, port)?.try_into().ok()?);
        Some(SocketAddr::new(address, port))
    };
    Some((
        end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
    ))
}

/// The value of the first attribute of type `kind`.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    const HEADER_LEN: usize = 4;
    const TYPE_MASK: u16 = !(3 << 14);
    loop {
        let (header, _) = attributes.split_at_checked(HEADER_LEN)?;
        let len = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let value = attributes.get(HEADER_LEN..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(HEADER_LEN)..)?;
    }
}

const NFGENMSG_LEN: usize = 4;
/// linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_or_foreign_entries_are_nothing() {
        let ends = Endpoints::new(
            "10.0.2.100:5000".parse().unwrap(),
            "198.51.100.7:443".parse().unwrap(),
        )
        .unwrap();
        let mut encoder = Encoder::new(1);
        request(&mut encoder, IPCTNL_MSG_CT_GET, &ends);
        let tuple = &encoder.bytes()[16 + NFGENMSG_LEN..];
        assert_eq!(
            direction(attribute(tuple, CTA_TUPLE_ORIG).unwrap()),
            Some((ends.remote(), ends.guest()))
        );
        for len in 0..tuple.len() {
            assert_eq!(attribute(&tuple[..len], CTA_TUPLE_ORIG), None, "{len}");
        }
        // No reply direction, a length of nothing.
        assert_eq!(inside(&encoder.bytes()[16..], &ends), None);
        assert_eq!(attribute(&[0; 8], 1), None);
    }
}
