//! Load that takes as long as it is told to, and how much of it got through.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use testbed::traffic::{STALL, limit};

/// How fast a server was, asked by [`ask`].
pub struct Figures {
    /// Of one connection, to the server.
    pub megabytes_per_second: f64,
    /// One after the other on one connection, a byte each way.
    pub requests_per_second: f64,
    /// One after the other, with a request each.
    pub connections_per_second: f64,
}

/// Serves clients for ever. A byte that comes alone is a request and is sent back, everything else
/// is only taken.
pub fn answer(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer_one(stream));
    }
}

fn answer_one(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(1) if stream.write_all(&buffer[..1]).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Asks a server that [`answer`]s.
pub fn ask(server: SocketAddr) -> Figures {
    Figures {
        megabytes_per_second: stream(server),
        requests_per_second: {
            let mut stream = connect(server);
            rate(|| request(&mut stream))
        },
        connections_per_second: rate(|| request(&mut connect(server))),
    }
}

/// A server has taken all when it closes.
fn stream(server: SocketAddr) -> f64 {
    let mut stream = connect(server);
    let (since, zeroes) = (Instant::now(), vec![0; CHUNK]);
    let mut sent = 0;
    while since.elapsed() < LENGTH {
        stream.write_all(&zeroes).expect("send");
        sent += zeroes.len();
    }
    stream.shutdown(Shutdown::Write).expect("shut down");
    stream.read_to_end(&mut Vec::new()).expect("read the end");
    sent as f64 / 1e6 / since.elapsed().as_secs_f64()
}

fn request(stream: &mut TcpStream) {
    stream.write_all(b"?").expect("ask");
    stream.read_exact(&mut [0]).expect("be answered");
}

/// How often `act` is possible, a second.
fn rate(mut act: impl FnMut()) -> f64 {
    let since = Instant::now();
    let mut count = 0;
    while since.elapsed() < LENGTH {
        act();
        count += 1;
    }
    f64::from(count) / since.elapsed().as_secs_f64()
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&server, STALL)
        .unwrap_or_else(|error| panic!("connect to {server}: {error}"));
    limit(&stream);
    stream
}

const CHUNK: usize = 256 * 1024;
const LENGTH: Duration = Duration::from_secs(1);

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            megabytes_per_second,
            requests_per_second,
            connections_per_second,
        } = self;
        writeln!(f, "MB/s {megabytes_per_second:.0}")?;
        writeln!(f, "requests/s {requests_per_second:.0}")?;
        writeln!(f, "connections/s {connections_per_second:.0}")
    }
}
