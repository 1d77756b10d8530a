//! From which of the host's addresses, and by which of its interfaces, the guest's traffic leaves.
//! The host's routes decide where neither is given.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use portfwd::InterfaceName;

use crate::sys;

/// An address and an interface in each family, if it is to be that one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub interface_v4: Option<InterfaceName>,
    pub interface_v6: Option<InterfaceName>,
}

impl Outbound {
    /// Binds a new socket that is to talk to `remote`, or to others of its family. The kernel
    /// chooses a port when the socket is used, so that it can choose one that is taken towards
    /// other remotes (Linux 4.2).
    ///
    /// EADDRNOTAVAIL when the host does not have the address any more, ENODEV when it lacks the
    /// interface; EPERM before Linux 5.7 for an interface.
    pub fn bind(self, socket: impl AsFd, remote: IpAddr) -> io::Result<()> {
        let (address, interface) = match remote {
            IpAddr::V4(_) => (self.v4.map(IpAddr::from), self.interface_v4),
            IpAddr::V6(_) => (self.v6.map(IpAddr::from), self.interface_v6),
        };
        // Loopback is where no interface leads.
        if let Some(interface) = interface.filter(|_| !remote.is_loopback()) {
            let name = interface.as_str().as_bytes();
            let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
            sys::set_socket_option(socket.as_fd(), level, option, name)?;
        }
        let Some(address) = address else {
            return Ok(());
        };
        let on = sys::int_option(1);
        let late = libc::IP_BIND_ADDRESS_NO_PORT;
        let _ = sys::set_socket_option(socket.as_fd(), libc::SOL_IP, late, &on);
        Ok(rustix::net::bind(socket, &SocketAddr::new(address, 0))?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::host::dial;

    #[test]
    fn traffic_leaves_from_the_address_that_was_given() {
        let outbound = Outbound {
            v4: Some(Ipv4Addr::new(127, 0, 0, 77)),
            ..Outbound::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        let socket = dial::socket_for(remote, outbound).unwrap();
        dial::dial(socket, remote).unwrap();
        let (_, client) = listener.accept().unwrap();
        assert_eq!(client.ip(), outbound.v4.unwrap());

        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = receiver.local_addr().unwrap();
        let socket = crate::host::UdpSocket::open(remote, outbound).unwrap();
        socket.send(b"?", None, None, remote).unwrap();
        let (_, sender) = receiver.recv_from(&mut [0]).unwrap();
        assert_eq!(sender.ip(), outbound.v4.unwrap());
    }

    #[test]
    fn a_foreign_address_is_an_error() {
        let outbound = Outbound {
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ..Outbound::default()
        };
        let error = dial::socket_for(([127, 0, 0, 1], 9).into(), outbound).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        dial::socket_for("[::1]:9".parse().unwrap(), outbound).unwrap();
    }

    #[test]
    fn an_interface_binds_what_is_not_for_loopback() {
        let outbound = Outbound {
            interface_v4: Some("lo".parse().unwrap()),
            ..Outbound::default()
        };
        let bound = |remote: &str| {
            let socket = dial::socket_for(remote.parse().unwrap(), outbound).unwrap();
            let mut name = [0; libc::IFNAMSIZ];
            let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
            let len = sys::socket_option(socket.as_fd(), level, option, &mut name).unwrap();
            name[..len].starts_with(b"lo")
        };
        assert!(bound("198.51.100.7:80"));
        assert!(!bound("127.0.0.1:80"));
        assert!(!bound("[2001:db8::7]:80"));
        let nowhere = Outbound {
            interface_v4: Some("nosuch0".parse().unwrap()),
            ..Outbound::default()
        };
        let error = dial::socket_for(([198, 51, 100, 7], 9).into(), nowhere).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn names_are_what_the_kernel_takes() {
        for name in ["eth0", "wlp0s20f3", "a-name-of-15-by", "\u{e9}th0"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "a/b", "a b", "a:1", "a-name-of-16-byt"] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name}");
        }
    }
}
