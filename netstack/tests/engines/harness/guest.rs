//! What runs behind a helper, in a container or where an engine has put it: this program again,
//! by the name `guest`. And the case's side of it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use testbed::netns::Netns;
use testbed::traffic::{Pattern, STALL, assert_end, limit, pass, try_connect, udp};

use super::eventually;
use super::load::{answer, ask};

/// Where the guest's service listens, for TCP and UDP.
pub const SERVICE_PORT: u16 = 7000;

/// Runs the guest's program if this process is one.
pub fn as_guest() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let (program, words) = words.split_first()?;
    if Path::new(program).file_name() != Some(OsStr::new("guest")) {
        return None;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => serve(),
        ["exchange", server, length] => {
            exchange(&connect(server), length.parse().expect("a number of bytes"))
        }
        ["answer"] => {
            let any = (Ipv6Addr::UNSPECIFIED, SERVICE_PORT);
            answer(&TcpListener::bind(any).expect("listen"));
        }
        ["ask", server] => print!("{}", ask(server.parse().expect("an address and a port"))),
        ["greet", server] => println!("{}", greeted(&connect(server)).expect("a greeting")),
        ["datagram", server] => datagram(server),
        _ => panic!("no such part of the guest's program: {words:?}"),
    }
    Some(ExitCode::SUCCESS)
}

/// Tells each client the address that it has here. Then, or at once by UDP, it gets back what it
/// sends. Ends by SIGTERM.
fn serve() {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().expect("block SIGTERM");
    let any = (Ipv6Addr::UNSPECIFIED, SERVICE_PORT);
    let listener = TcpListener::bind(any).expect("listen");
    let socket = UdpSocket::bind(any).expect("bind");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    std::thread::spawn(move || {
        let mut datagram = [0; 65536];
        while let Ok((len, client)) = socket.recv_from(&mut datagram) {
            let answer = [greeting(client).as_bytes(), &datagram[..len]].concat();
            let _ = socket.send_to(&answer, client);
        }
    });
    term.wait().expect("wait for SIGTERM");
}

fn echo(mut stream: TcpStream) {
    let Ok(client) = stream.peer_addr() else {
        return;
    };
    let _ = stream.write_all(greeting(client).as_bytes());
    let _ = std::io::copy(&mut &stream, &mut &stream);
}

fn greeting(client: SocketAddr) -> String {
    format!("{}\n", client.ip().to_canonical())
}

/// A server that is not there yet is waited for, but a refusal or silence is passed on.
fn connect(server: &str) -> TcpStream {
    let server: SocketAddr = server.parse().expect("an address and a port");
    let stream = TcpStream::connect_timeout(&server, STALL);
    let stream = stream.unwrap_or_else(|error| panic!("connect to {server}: {error}"));
    limit(&stream);
    stream
}

/// Sends `length` bytes to an echo and compares what comes back.
fn exchange(stream: &TcpStream, length: usize) {
    let pattern = Pattern::new(1);
    pass(stream, stream, &mut [pattern.clone(), pattern], length);
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("shut down");
    assert_end(&mut &*stream);
}

fn datagram(server: &str) {
    let server: SocketAddr = server.parse().expect("an address and a port");
    let any: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).expect("bind");
    socket.set_read_timeout(Some(STALL)).expect("read deadline");
    socket.connect(server).expect("connect");
    socket.send(b"guest").expect("send");
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..len], b"guest");
}

/// The guest's service, as `from` reaches it at a published port.
pub struct Service<'a> {
    pub from: &'a Netns,
    pub entry: SocketAddr,
}

impl<'a> Service<'a> {
    pub fn at(from: &'a Netns, address: IpAddr, port: u16) -> Self {
        Self {
            from,
            entry: (address, port).into(),
        }
    }

    /// Waits until it answers: engines do not know when a program in a container is ready, and some
    /// helpers take a client before that.
    pub fn wait(&self) -> &Self {
        let what = format!("the service answers at {}", self.entry);
        eventually(&what, Duration::from_secs(20), || self.greet().is_ok());
        self
    }

    /// The same for a program that [`answer`]s.
    pub fn wait_for_answer(&self) {
        let what = format!("{} answers", self.entry);
        eventually(&what, Duration::from_secs(20), || {
            try_connect(self.from, self.entry, STALL).is_ok_and(|mut stream| {
                stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0]).is_ok()
            })
        });
    }

    /// Whether nobody listens at its entry.
    pub fn is_closed(&self) -> bool {
        let tried = try_connect(self.from, self.entry, STALL);
        tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// The address by which the service knows this client, by TCP.
    pub fn tcp_client(&self) -> IpAddr {
        self.greet()
            .unwrap_or_else(|error| panic!("{}: {error}", self.entry))
            .1
    }

    /// The same by UDP, which may lose what comes before the service is ready.
    pub fn udp_client(&self) -> IpAddr {
        let any: IpAddr = match self.entry {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = udp(self.from, any, 0);
        socket.connect(self.entry).expect("connect");
        socket.send(b"client").expect("send");
        let mut answer = [0; 128];
        let len = socket
            .recv(&mut answer)
            .unwrap_or_else(|error| panic!("{} by UDP: {error}", self.entry));
        let text = std::str::from_utf8(&answer[..len]).expect("text");
        let (client, echoed) = text.split_once('\n').expect("a line");
        assert_eq!(echoed, "client");
        client.parse().expect("an address")
    }

    /// Sends `length` bytes and compares what comes back.
    pub fn exchange(&self, length: usize) {
        let (stream, _) = self.greet().expect("the service answers");
        exchange(&stream, length);
    }

    /// A connection on which the service has told who the client is.
    pub fn greet(&self) -> std::io::Result<(TcpStream, IpAddr)> {
        let stream = try_connect(self.from, self.entry, STALL)?;
        let client = greeted(&stream)?;
        Ok((stream, client))
    }
}

/// The address by which the service knows us, its first line.
fn greeted(stream: &TcpStream) -> std::io::Result<IpAddr> {
    // Byte by byte: nothing behind the line may be taken.
    let mut line = String::new();
    BufReader::with_capacity(1, stream.take(64)).read_line(&mut line)?;
    let ended = |_| std::io::ErrorKind::UnexpectedEof.into();
    line.trim_end().parse().map_err(ended)
}
