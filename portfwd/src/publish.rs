//! The host sockets of a [`Publish`] rule: listening TCP or bound UDP, non-blocking and
//! close-on-exec.
//!
//! [`bind`] binds every port of a rule or none. A rule without an address gets a `0.0.0.0` and an
//! IPv6-only `[::]` socket per port, both on the same port number; where IPv6 is off, IPv4 alone
//! serves. [`Listener::adopt`] takes over a socket that another process bound and handed down.
//! Accepting, and what becomes of a connection, is the caller's.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::{fs, io};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::spec::{PortRange, Protocol, Publish};

/// A bound host socket of a rule: listening TCP or UDP.
#[derive(Debug)]
pub struct Listener {
    pub protocol: Protocol,
    /// Where it is bound: the real port, also when the kernel chose it.
    pub host: SocketAddr,
    pub guest_port: u16,
    pub socket: OwnedFd,
}

impl Publish {
    /// The rule with the ports that the kernel chose for `listeners`, which [`bind`] has made of
    /// it.
    pub fn resolved(&self, listeners: &[Listener]) -> Self {
        let mut rule = self.clone();
        let ports = || listeners.iter().map(|listener| listener.host.port());
        if let (Some(first), Some(last)) = (ports().min(), ports().max())
            && let Ok(ports) = PortRange::new(first, last)
        {
            rule.host_ports = ports;
        }
        rule
    }
}

impl Listener {
    /// Takes over `socket`, bound by another process for the single-port `rule`. The address is the
    /// socket's own.
    ///
    /// # Errors
    /// When the rule has several ports, or the descriptor is no listening TCP or bound UDP socket
    /// as the rule says.
    pub fn adopt(rule: &Publish, socket: OwnedFd) -> Result<Self, AdoptError> {
        if rule.guest_ports.len() != 1 {
            return Err(AdoptError::SeveralPorts);
        }
        let is = |protocol| sockopt::socket_protocol(&socket).map(|found| found == Some(protocol));
        let fits = match rule.protocol {
            Protocol::Tcp => is(ipproto::TCP)? && sockopt::socket_acceptconn(&socket)?,
            Protocol::Udp => is(ipproto::UDP)?,
        };
        let host = rustix::net::getsockname(&socket)?;
        let host = SocketAddr::try_from(host)
            .ok()
            .filter(|host| fits && host.port() != 0);
        let host = host.ok_or(AdoptError::WrongSocket(rule.protocol))?;
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        fcntl_setfl(&socket, fcntl_getfl(&socket)? | OFlags::NONBLOCK)?;
        Ok(Self {
            protocol: rule.protocol,
            host,
            guest_port: rule.guest_ports.first(),
            socket,
        })
    }

    /// The single-port rule that this socket serves; what [`Listener::adopt`] wants beside the
    /// descriptor.
    pub fn rule(&self) -> Publish {
        let single = |port| {
            PortRange::new(port, port)
                .expect("a bound socket's port and a rule's guest port are not 0")
        };
        Publish {
            protocol: self.protocol,
            host_addr: Some(self.host.ip()),
            host_ports: single(self.host.port()),
            guest_ports: single(self.guest_port),
        }
    }
}

/// The ports that this namespace's kernel gives to clients which do not ask for one; those of Linux
/// where it does not say.
pub fn ephemeral_ports() -> PortRange {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let read = |text: String| {
        let mut ports = text.split_ascii_whitespace().map(str::parse);
        let (Some(Ok(first)), Some(Ok(last))) = (ports.next(), ports.next()) else {
            return None;
        };
        PortRange::new(first, last).ok()
    };
    text.ok().and_then(read).unwrap_or(PortRange::EPHEMERAL)
}

/// Binds every port of `rule`, in ascending order; without an address IPv4 before IPv6. Ports that
/// the kernel chooses are in a row.
///
/// # Errors
/// [`BindError`] for the first port that cannot be bound; those bound before it are closed again.
pub fn bind(rule: &Publish) -> Result<Vec<Listener>, BindError> {
    let mut attempt = 1;
    loop {
        match bind_once(rule) {
            // The kernel chose a port whose neighbours, or whose twin in the other family, are not
            // free: let it choose again.
            Err(BindError::InUse(_))
                if rule.host_ports == PortRange::KERNEL_CHOSEN && attempt < PORT_CHOICES =>
            {
                attempt += 1;
            }
            bound => return bound,
        }
    }
}

/// How often the kernel may choose before free ports are given up.
const PORT_CHOICES: u32 = 32;

fn bind_once(rule: &Publish) -> Result<Vec<Listener>, BindError> {
    let mut listeners: Vec<Listener> = Vec::new();
    for (nth, (host_port, guest_port)) in (0..).zip(rule.pairs()) {
        // After the first one the kernel has no choice any more.
        let host_port = match listeners.first() {
            Some(first) if host_port == 0 => {
                let next = first.host.port().checked_add(nth);
                next.ok_or(BindError::InUse(first.host))?
            }
            _ => host_port,
        };
        let sockets = match rule.host_addr {
            Some(addr) => vec![open(rule.protocol, (addr, host_port).into())?],
            None => open_wildcard(rule.protocol, host_port)?,
        };
        listeners.extend(sockets.into_iter().map(|(host, socket)| Listener {
            protocol: rule.protocol,
            host,
            guest_port,
            socket,
        }));
    }
    Ok(listeners)
}

/// Why a host port cannot be published. The text is for the user: it names the address and the
/// remedy.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(
        "cannot bind {0}: address already in use; choose another host port or stop its owner (`ss -lntup` shows it)"
    )]
    InUse(SocketAddr),
    #[error(
        "cannot bind {addr}: ports below net.ipv4.ip_unprivileged_port_start ({floor}) need CAP_NET_BIND_SERVICE; \
         choose a host port from {floor} up or lower the limit (`sysctl net.ipv4.ip_unprivileged_port_start={}`)",
        addr.port()
    )]
    Privileged { addr: SocketAddr, floor: u16 },
    #[error(
        "cannot bind {0}: no interface of this host has the address; `ip address` lists them, no address means all"
    )]
    NotLocal(SocketAddr),
    #[error("cannot bind {0}: IPv6 is switched off on this host; publish on an IPv4 address")]
    NoIpv6(SocketAddr),
    #[error("cannot bind {0}: there is no interface of that name; `ip link` lists them")]
    NoInterface(SocketAddr),
    #[error(
        "cannot bind {0}: too many open files; publish fewer ports or raise the limit (`ulimit -n`)"
    )]
    TooManyFiles(SocketAddr),
    #[error("cannot bind {addr}: {source}")]
    Io { addr: SocketAddr, source: io::Error },
}

impl BindError {
    pub(crate) fn new(addr: SocketAddr, errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::InUse(addr),
            Errno::ADDRNOTAVAIL => Self::NotLocal(addr),
            Errno::AFNOSUPPORT => Self::NoIpv6(addr),
            Errno::NODEV => Self::NoInterface(addr),
            Errno::MFILE | Errno::NFILE => Self::TooManyFiles(addr),
            Errno::ACCESS if addr.port() < unprivileged_port_start() => Self::Privileged {
                addr,
                floor: unprivileged_port_start(),
            },
            _ => Self::Io {
                addr,
                source: errno.into(),
            },
        }
    }

    /// The system's own word for it, as other programs print it.
    pub fn system_text(&self) -> String {
        let errno = match self {
            Self::InUse(_) => Errno::ADDRINUSE,
            Self::Privileged { .. } => Errno::ACCESS,
            Self::NotLocal(_) => Errno::ADDRNOTAVAIL,
            Self::NoIpv6(_) => Errno::AFNOSUPPORT,
            Self::NoInterface(_) => Errno::NODEV,
            Self::TooManyFiles(_) => Errno::MFILE,
            Self::Io { source, .. } => match Errno::from_io_error(source) {
                Some(errno) => errno,
                None => return source.to_string(),
            },
        };
        nix::errno::Errno::from_raw(errno.raw_os_error())
            .desc()
            .to_owned()
    }
}

/// Why an inherited descriptor cannot serve a rule.
#[derive(Debug, Error)]
pub enum AdoptError {
    #[error("an inherited socket serves one port, the rule has several")]
    SeveralPorts,
    #[error("the inherited descriptor is not a {} socket", match .0 { Protocol::Tcp => "listening tcp", Protocol::Udp => "bound udp" })]
    WrongSocket(Protocol),
    #[error("failed to inspect the inherited descriptor: {0}")]
    Io(#[from] Errno),
}

/// Opens a socket for each family on one port number, IPv4 alone where IPv6 is off.
fn open_wildcard(protocol: Protocol, port: u16) -> Result<Vec<(SocketAddr, OwnedFd)>, BindError> {
    let v4 = open(protocol, (Ipv4Addr::UNSPECIFIED, port).into())?;
    match open(protocol, (Ipv6Addr::UNSPECIFIED, v4.0.port()).into()) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(BindError::NoIpv6(_) | BindError::NotLocal(_)) => Ok(vec![v4]),
        Err(error) => Err(error),
    }
}

fn open(protocol: Protocol, addr: SocketAddr) -> Result<(SocketAddr, OwnedFd), BindError> {
    let endpoint = Endpoint {
        protocol,
        addr,
        interface: None,
    };
    open_at(&endpoint).map_err(|errno| BindError::new(addr, errno))
}

impl Endpoint {
    /// Opens a socket there, non-blocking and close-on-exec.
    pub fn listen(&self) -> Result<OwnedFd, BindError> {
        match open_at(self) {
            Ok((_, socket)) => Ok(socket),
            Err(errno) => Err(BindError::new(self.addr, errno)),
        }
    }
}

/// Opens a socket at `endpoint`, and says where it is then.
fn open_at(endpoint: &Endpoint) -> Result<(SocketAddr, OwnedFd), Errno> {
    let Endpoint {
        protocol,
        addr,
        interface,
    } = *endpoint;
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(
        family,
        kind,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Past connections in TIME-WAIT must not block a restart. For UDP the option would share a
        // port that is in use.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if let Some(interface) = interface {
        // No privilege needed since Linux 5.7.
        setsockopt(&socket, BindToDevice, &interface.as_str().into())
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    }
    rustix::net::bind(&socket, &addr)?;
    if protocol == Protocol::Tcp {
        // With SO_REUSEADDR it is this call, not bind, that meets another listener.
        rustix::net::listen(&socket, BACKLOG)?;
    }
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((bound, socket))
}

/// Connections that may wait to be accepted: SOMAXCONN since Linux 5.4; the kernel caps it at
/// net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// The lowest port that needs no privilege (Linux 4.11), 1024 where the kernel does not say.
pub fn unprivileged_port_start() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    // The sysctl goes up to 65536: then no port is free, and 65535 says so well enough.
    text.ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .map_or(1024, |start| start.min(65535) as u16)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn bind_text(rule: &str) -> Result<Vec<Listener>, BindError> {
        bind(&rule.parse().unwrap())
    }

    fn ports(listeners: &[Listener]) -> Vec<u16> {
        listeners
            .iter()
            .map(|listener| listener.host.port())
            .collect()
    }

    fn is_nonblocking(listener: &Listener) -> bool {
        fcntl_getfl(&listener.socket)
            .unwrap()
            .contains(OFlags::NONBLOCK)
    }

    #[test]
    fn tcp_listener_accepts() {
        let [listener] = bind_text("127.0.0.1::80").unwrap().try_into().unwrap();
        assert_ne!(listener.host.port(), 0);
        assert_eq!(listener.guest_port, 80);
        assert!(is_nonblocking(&listener));
        assert!(
            rustix::io::fcntl_getfd(&listener.socket)
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );

        let mut client = TcpStream::connect(listener.host).unwrap();
        client.write_all(b"hello").unwrap();
        let (mut accepted, _) = TcpListener::from(listener.socket).accept().unwrap();
        let mut greeting = [0; 5];
        accepted.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"hello");
    }

    #[test]
    fn udp_socket_receives() {
        let [listener] = bind_text("127.0.0.1::53/udp").unwrap().try_into().unwrap();
        assert!(is_nonblocking(&listener));
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(b"query", listener.host)
            .unwrap();
        let mut query = [0; 16];
        let (len, _) = UdpSocket::from(listener.socket)
            .recv_from(&mut query)
            .unwrap();
        assert_eq!(&query[..len], b"query");
    }

    #[test]
    fn wildcard_binds_both_families_on_one_port() {
        let listeners = bind_text("80").unwrap();
        let port = listeners[0].host.port();
        assert_eq!(listeners[0].host, (Ipv4Addr::UNSPECIFIED, port).into());
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if TcpListener::bind("[::1]:0").is_ok() {
            assert_eq!(listeners[1].host, (Ipv6Addr::UNSPECIFIED, port).into());
            assert!(sockopt::ipv6_v6only(&listeners[1].socket).unwrap());
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        } else {
            assert_eq!(listeners.len(), 1);
        }
    }

    #[test]
    fn range_binds_a_socket_per_port() {
        let listeners = bind_text("127.0.0.1::7000-7003").unwrap();
        let guest_ports: Vec<_> = listeners
            .iter()
            .map(|listener| listener.guest_port)
            .collect();
        assert_eq!(guest_ports, [7000, 7001, 7002, 7003]);
        let first = listeners[0].host.port();
        assert_eq!(ports(&listeners), [first, first + 1, first + 2, first + 3]);
        let rule: Publish = "127.0.0.1::7000-7003".parse().unwrap();
        let resolved = format!("127.0.0.1:{first}-{}:7000-7003/tcp", first + 3);
        assert_eq!(rule.resolved(&listeners).to_string(), resolved);
    }

    #[test]
    fn clash_leaves_nothing_bound() {
        // An address of 127.0.0.0/8 that only this test uses, so that no other test takes the ports
        // between the two calls.
        let holder = TcpListener::bind("127.91.0.1:20002").unwrap();
        let error = bind_text("127.91.0.1:20000-20003:1-4").unwrap_err();
        assert!(matches!(error, BindError::InUse(addr) if addr == holder.local_addr().unwrap()));
        assert!(
            error
                .to_string()
                .starts_with("cannot bind 127.91.0.1:20002: address already in use"),
            "{error}"
        );

        drop(holder);
        assert_eq!(
            ports(&bind_text("127.91.0.1:20000-20003:1-4").unwrap()),
            [20000, 20001, 20002, 20003]
        );
    }

    #[test]
    fn two_rules_cannot_share_a_port() {
        for protocol in ["tcp", "udp"] {
            let first = bind_text(&format!("127.0.0.1::80/{protocol}")).unwrap();
            let again = format!("127.0.0.1:{}:80/{protocol}", first[0].host.port());
            assert!(
                matches!(bind_text(&again), Err(BindError::InUse(_))),
                "{protocol}"
            );
        }
    }

    #[test]
    fn port_in_time_wait_is_free() {
        let [listener] = bind_text("127.92.0.1:20000:80")
            .unwrap()
            .try_into()
            .unwrap();
        let mut client = TcpStream::connect(listener.host).unwrap();
        let acceptor = TcpListener::from(listener.socket);
        // The accepting side closes first, so TIME-WAIT is on the published port.
        drop(acceptor.accept().unwrap());
        drop(acceptor);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        bind_text("127.92.0.1:20000:80").unwrap();
    }

    #[test]
    fn foreign_address_is_refused() {
        let error = bind_text("192.0.2.1:8080:80").unwrap_err();
        assert!(
            matches!(error, BindError::NotLocal(addr) if addr.ip() == IpAddr::from([192, 0, 2, 1])),
            "{error}"
        );
    }

    #[test]
    fn privileged_port_names_limit_and_remedy() {
        let floor = unprivileged_port_start();
        let error = |port| BindError::new((Ipv4Addr::UNSPECIFIED, port).into(), Errno::ACCESS);
        assert!(matches!(error(floor), BindError::Io { .. }));
        if floor > 1 {
            let text = error(1).to_string();
            let limit = format!(
                "cannot bind 0.0.0.0:1: ports below net.ipv4.ip_unprivileged_port_start ({floor}) need"
            );
            assert!(text.starts_with(&limit), "{text}");
            assert!(
                text.contains("sysctl net.ipv4.ip_unprivileged_port_start=1`"),
                "{text}"
            );
        }
    }

    #[test]
    fn inherited_socket_is_adopted() {
        for spec in ["127.0.0.1::80/tcp", "127.0.0.1::80/udp"] {
            let [listener] = bind_text(spec).unwrap().try_into().unwrap();
            let rule = listener.rule();
            assert_eq!(
                rule.pairs().collect::<Vec<_>>(),
                [(listener.host.port(), 80)]
            );
            // As a child gets it: without close-on-exec, and possibly blocking.
            fcntl_setfd(&listener.socket, FdFlags::empty()).unwrap();
            fcntl_setfl(&listener.socket, OFlags::empty()).unwrap();
            let adopted = Listener::adopt(&rule, listener.socket).unwrap();
            assert_eq!(adopted.rule(), rule);
            assert!(is_nonblocking(&adopted));
            assert!(
                rustix::io::fcntl_getfd(&adopted.socket)
                    .unwrap()
                    .contains(FdFlags::CLOEXEC)
            );
        }
    }

    #[test]
    fn unfit_descriptors_are_not_adopted() {
        let adopt =
            |spec: &str, socket| Listener::adopt(&spec.parse().unwrap(), socket).unwrap_err();
        let udp = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(matches!(
            adopt("8080:80/tcp", udp()),
            AdoptError::WrongSocket(Protocol::Tcp)
        ));
        assert!(matches!(
            adopt("8080-8081:80-81/udp", udp()),
            AdoptError::SeveralPorts
        ));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(matches!(
            adopt("8080:80/tcp", connected.into()),
            AdoptError::WrongSocket(Protocol::Tcp)
        ));
        assert!(matches!(
            adopt("8080:80/udp", listener.into()),
            AdoptError::WrongSocket(Protocol::Udp)
        ));
        let unbound = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert!(matches!(
            adopt("8080:80/udp", unbound),
            AdoptError::WrongSocket(Protocol::Udp)
        ));
        let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        assert!(matches!(
            adopt("8080:80", file),
            AdoptError::Io(Errno::NOTSOCK)
        ));
    }
}
