//! From which of the host's addresses the guest's traffic leaves. The host's routes decide where
//! none is given.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use crate::sys;

/// An address in each family, if it is to be that one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Outbound {
    /// Binds a new socket of the family of `like`. The kernel chooses a port when the socket is
    /// used, so that it can choose one that is taken towards other remotes (Linux 4.2).
    ///
    /// EADDRNOTAVAIL when the host does not have the address any more.
    pub fn bind(self, socket: impl AsFd, like: IpAddr) -> io::Result<()> {
        let address = match like {
            IpAddr::V4(_) => self.v4.map(IpAddr::from),
            IpAddr::V6(_) => self.v6.map(IpAddr::from),
        };
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
            v6: None,
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
        socket.send(b"?", None, remote).unwrap();
        let (_, sender) = receiver.recv_from(&mut [0]).unwrap();
        assert_eq!(sender.ip(), outbound.v4.unwrap());
    }

    #[test]
    fn a_foreign_address_is_an_error() {
        let outbound = Outbound {
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            v6: None,
        };
        let error = dial::socket_for(([127, 0, 0, 1], 9).into(), outbound).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        dial::socket_for("[::1]:9".parse().unwrap(), outbound).unwrap();
    }
}
