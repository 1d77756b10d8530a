//! Connections between the helper and a program on this same machine: its remote's address is one
//! of the host's own.
//!
//! No network lies between the two, so there is nothing to be found out about it. A congestion
//! control that paces, as BBR does, only makes such a connection wait: it halves its throughput and
//! more. These get one that does not pace. Every other connection keeps the host's choice.
//!
//! Which of the two a connection is, shows only when it is there, and pacing that has begun stays
//! for the life of a socket (Linux 6.18). So each one begins without, and those that lead elsewhere
//! get the host's choice before they carry anything.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Algorithms that do not pace, the better one first. Linux always has the second.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// What connections on this machine get. The default leaves everything as the host has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalLeg(Option<Congestion>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Congestion {
    unpaced: &'static str,
    /// For connections to elsewhere.
    hosts_choice: String,
}

impl LocalLeg {
    /// Asks the kernel what this network namespace's sockets use, and what they may use
    /// (`net.ipv4.tcp_allowed_congestion_control`). Where the host's choice does not pace, or
    /// nothing else is allowed, there is nothing to do.
    pub fn find() -> Self {
        Self(Congestion::find().unwrap_or_default())
    }

    /// For a TCP socket that is to be connected, or whose accepted sockets are. A failure, here and
    /// later, leaves a connection slower and nothing else.
    pub fn begin(&self, socket: impl AsFd) {
        if let Some(congestion) = &self.0 {
            let _ = sockopt::set_tcp_congestion(socket, congestion.unpaced);
        }
    }

    /// For the same one, or an accepted one, as soon as it is connected.
    pub fn settle(&self, socket: impl AsFd) {
        if let Some(congestion) = &self.0
            && !is_local(&socket)
        {
            let _ = sockopt::set_tcp_congestion(&socket, &congestion.hosts_choice);
        }
    }
}

impl Congestion {
    fn find() -> io::Result<Option<Self>> {
        let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let hosts_choice = sockopt::tcp_congestion(&socket)?;
        if UNPACED.contains(&hosts_choice.as_str()) {
            return Ok(None);
        }
        let may_use = |name: &&str| sockopt::set_tcp_congestion(&socket, name).is_ok();
        Ok(UNPACED.into_iter().find(may_use).map(|unpaced| Self {
            unpaced,
            hosts_choice,
        }))
    }
}

/// The kernel gives a connection to one of the host's addresses that same address as its source,
/// and 127.0.0.1 to all of 127.0.0.0/8.
fn is_local(socket: impl AsFd) -> bool {
    let ends = (
        rustix::net::getsockname(&socket),
        rustix::net::getpeername(&socket),
    );
    let (Ok(own), Ok(Some(remote))) = ends else {
        return false;
    };
    let ip = |address| SocketAddr::try_from(address).map(|address| address.ip().to_canonical());
    match (ip(own), ip(remote)) {
        (Ok(own), Ok(remote)) => own == remote || remote.is_loopback(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Of a host that paces, with what every host has.
    fn leg() -> LocalLeg {
        LocalLeg(Some(Congestion {
            unpaced: "reno",
            hosts_choice: "cubic".to_owned(),
        }))
    }

    #[test]
    fn connections_on_this_machine_do_not_pace() {
        for address in ["127.0.0.1", "127.0.0.77", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            leg().begin(&listener);
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            leg().settle(&server);
            assert_eq!(sockopt::tcp_congestion(&server).unwrap(), "reno");
            leg().begin(&client);
            leg().settle(&client);
            assert_eq!(sockopt::tcp_congestion(&client).unwrap(), "reno");
        }
    }

    /// One that is not connected is to nobody here.
    #[test]
    fn connections_to_elsewhere_keep_the_hosts_choice() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        leg().begin(&socket);
        assert_eq!(sockopt::tcp_congestion(&socket).unwrap(), "reno");
        leg().settle(&socket);
        assert_eq!(sockopt::tcp_congestion(&socket).unwrap(), "cubic");
    }

    #[test]
    fn what_is_found_may_be_used_and_does_not_pace() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        LocalLeg::find().begin(&listener);
        let congestion = sockopt::tcp_congestion(&listener).unwrap();
        assert!(UNPACED.contains(&congestion.as_str()), "{congestion}");
    }
}
