//! What takes the tap's place where there is no /dev/net/tun, as in CI jobs and unprivileged pods:
//! a pair of virtual Ethernet interfaces. One is the guest's; the other is in a network namespace
//! of its own, where a packet socket (packet(7)) reads and writes its frames.
//!
//! With PACKET_VNET_HDR the socket speaks of checksums and super-frames as a tap does. Linux 6.2 is
//! the first whose packet sockets carry UDP super-frames; before, they would lose those that the
//! guest sends. The hidden namespace lives as long as the socket, and both interfaces end with it.
//!
//! Reading: unlike a tap, a veth never tells a sender that the other end is full. What finds the
//! socket's buffer full is lost, so that the buffer is as large as the kernel lets it be.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tracing::debug;

use super::{Capabilities, Device, is_interface_name};
use crate::core::MacAddr;
use crate::netlink::{Netlink, NetlinkError};
use crate::sys;

/// The packet socket on the hidden end. It works from any thread.
#[derive(Debug)]
pub struct Veth {
    socket: OwnedFd,
    guest_mac: MacAddr,
    name: String,
}

/// Why there is no such pair.
#[derive(Debug, thiserror::Error)]
pub enum VethError {
    #[error("{0:?} is not a name for an interface: 1 to 15 bytes, no '/', no white space")]
    Name(String),
    #[error("a pair of virtual Ethernet interfaces needs Linux 6.2 to take the place of a tap")]
    TooOld,
    #[error("cannot choose an Ethernet address: {0}")]
    Random(#[source] io::Error),
    #[error("cannot make a network namespace for the end of {name} that is ours: {source}")]
    Namespace { name: String, source: io::Error },
    #[error("cannot make the interface {0}: there is one of that name")]
    Exists(String),
    #[error("cannot make the interface {name} without /dev/net/tun: {source}")]
    Create { name: String, source: NetlinkError },
    #[error("cannot open a packet socket on the other end of {name}: {source}")]
    Socket { name: String, source: io::Error },
}

impl Veth {
    /// Makes the interface `name` in the calling thread's network namespace, with `mac` or an
    /// address of our choice. It is gone when this is dropped, but for the time that the kernel
    /// takes to remove a namespace.
    pub fn create(name: &str, mac: Option<MacAddr>) -> Result<Self, VethError> {
        if !is_interface_name(name) {
            return Err(VethError::Name(name.to_owned()));
        }
        if !carries_udp_super_frames() {
            return Err(VethError::TooOld);
        }
        let guest_mac = match mac {
            Some(mac) => mac,
            None => random_mac().map_err(VethError::Random)?,
        };
        let socket = thread::scope(|scope| {
            // A thread has a network namespace of its own choice.
            let hidden = scope.spawn(|| open_hidden(name, guest_mac));
            hidden.join().expect("it does not panic")
        })?;
        Ok(Self {
            socket,
            guest_mac,
            name: name.to_owned(),
        })
    }

    /// The interface's name in the guest.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Leaves the guest's namespace for a new one, to be called on a thread that ends with it.
fn open_hidden(name: &str, guest_mac: MacAddr) -> Result<OwnedFd, VethError> {
    let namespace_error = |source| VethError::Namespace {
        name: name.to_owned(),
        source,
    };
    let guest = File::open("/proc/thread-self/ns/net").map_err(namespace_error)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| namespace_error(errno.into()))?;
    create_pair(name, guest_mac, guest.as_fd())?;
    open_socket().map_err(|source| VethError::Socket {
        name: name.to_owned(),
        source,
    })
}

/// Makes the pair: our end here, `name` in the namespace `guest`.
fn create_pair(name: &str, mac: MacAddr, guest: BorrowedFd<'_>) -> Result<(), VethError> {
    let create_error = |source| VethError::Create {
        name: name.to_owned(),
        source,
    };
    let deadline = Instant::now() + REMOVAL_WITHIN;
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE)
        .map_err(NetlinkError::from)
        .map_err(create_error)?;
    loop {
        let message = RouteNetlinkMessage::NewLink(pair(name, mac, guest));
        match netlink.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => break,
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                if Instant::now() >= deadline {
                    return Err(VethError::Exists(name.to_owned()));
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(create_error(error)),
        }
    }
    // Nothing of our own is ever said on this end: no ARP, no IPv6 address, if there is IPv6.
    let silent = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let silent = LinkUnspec::new_with_name(HIDDEN).append_extra_attribute(
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![silent])]),
    );
    if let Err(error) = set_link(&mut netlink, silent) {
        debug!(%error, "our end of the pair may have an IPv6 address");
    }
    let up = LinkUnspec::new_with_name(HIDDEN).arp(false).up();
    set_link(&mut netlink, up).map_err(create_error)
}

fn set_link(
    netlink: &mut Netlink,
    link: LinkMessageBuilder<LinkUnspec>,
) -> Result<(), NetlinkError> {
    netlink.request(RouteNetlinkMessage::SetLink(link.build()), 0)
}

fn pair(name: &str, mac: MacAddr, guest: BorrowedFd<'_>) -> LinkMessage {
    let theirs = LinkUnspec::new_with_name(name)
        .address(mac.to_vec())
        .setns_by_fd(guest.as_raw_fd())
        .build();
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(HIDDEN)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(theirs)))
        .mtu(MAX_MTU)
        .build()
}

/// On our end of the pair, which is the only interface here but for lo.
fn open_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol it takes nothing before it is bound.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    let on = sys::int_option(1);
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        sys::set_socket_option(socket.as_fd(), libc::SOL_PACKET, option, &on)?;
    }
    enlarge_buffer(socket.as_fd())?;
    sys::bind_to_interface(socket.as_fd(), if_nametoindex(HIDDEN)?)?;
    Ok(socket)
}

/// As far as the kernel allows (net.core.rmem_max, or more for who is root of the machine).
fn enlarge_buffer(socket: BorrowedFd<'_>) -> io::Result<()> {
    let len = sys::int_option(RECEIVE_BUFFER);
    let set = |option| sys::set_socket_option(socket, libc::SOL_SOCKET, option, &len);
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))
}

/// Linux 6.2 (virtio_net.h: VIRTIO_NET_HDR_GSO_UDP_L4).
fn carries_udp_super_frames() -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// One of the addresses that are for everybody to choose: the local bit set, the multicast bit
/// clear.
fn random_mac() -> io::Result<MacAddr> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & !1 | 2;
    Ok(mac)
}

/// Our end's name, in a namespace where there is no other.
const HIDDEN: &str = "coracle";
/// The kernel's most (ETH_MAX_MTU): the guest's end is what bounds packets.
const MAX_MTU: u32 = 65535;
const RECEIVE_BUFFER: i32 = 8 << 20;
/// How long the kernel may take to remove what an earlier helper has left.
const REMOVAL_WITHIN: Duration = Duration::from_secs(2);

impl Device for Veth {
    /// `ENETDOWN` once the guest has deleted its interface.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| {
            rustix::io::read(&self.socket, &mut *buffer)
        })?)
    }

    /// `WouldBlock` or `ENOBUFS` while too many frames wait for the guest, `EINVAL` and `EMSGSIZE`
    /// for a frame that is none, `ENETDOWN` or `ENXIO` once the interface is gone.
    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let pieces = [IoSlice::new(head), IoSlice::new(payload)];
        retry_on_intr(|| rustix::io::writev(&self.socket, &pieces))?;
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            udp_segmentation: true,
            guest_mac: Some(self.guest_mac),
        }
    }
}

impl AsFd for Veth {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MAX_FRAME_LEN, VNET_HEADER_LEN};
    use crate::testing::in_namespaces;

    #[test]
    fn is_there_once_and_ends_with_its_socket() {
        in_namespaces(
            module_path!(),
            "is_there_once_and_ends_with_its_socket",
            || {
                let mac = [2, 0, 0, 0, 0, 7];
                let mut veth = Veth::create("tap0", Some(mac)).unwrap();
                let index = if_nametoindex("tap0").expect("the guest's end");
                if_nametoindex(HIDDEN).expect_err("ours is elsewhere");
                assert_eq!(veth.capabilities().guest_mac, Some(mac));
                let mut buffer = vec![0; MAX_FRAME_LEN];
                let error = veth.receive(&mut buffer).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

                let mut netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
                let up = LinkUnspec::new_with_index(index).up().build();
                netlink
                    .request(RouteNetlinkMessage::SetLink(up), 0)
                    .unwrap();
                veth.transmit(&[0; VNET_HEADER_LEN], &[0xff; 60]).unwrap();
                drop(veth);
                // The name is free as soon as the kernel has removed the namespace.
                Veth::create("tap0", None).unwrap();
            },
        );
    }

    #[test]
    fn an_interface_of_the_guests_is_left_alone() {
        in_namespaces(
            module_path!(),
            "an_interface_of_the_guests_is_left_alone",
            || {
                let error = Veth::create("lo", None).unwrap_err().to_string();
                assert!(error.contains("lo: there is one of that name"), "{error}");
            },
        );
    }

    #[test]
    fn names_are_checked() {
        let error = Veth::create("a/b", None).unwrap_err();
        assert!(matches!(error, VethError::Name(_)), "{error}");
    }

    #[test]
    fn addresses_are_nobodys() {
        let mac = random_mac().unwrap();
        assert_eq!(mac[0] & 3, 2);
        assert_ne!(mac, random_mac().unwrap());
    }
}
