//! Traffic that checks itself: a byte pattern that shows loss, repetition and reordering, echo
//! servers, and sockets whose every wait ends.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use crate::netns::Netns;
use crate::wait::readable_by;

/// No single read, write, connect or accept takes longer unless something is broken.
pub const STALL: Duration = Duration::from_secs(20);

/// Connects from inside `netns`, waiting at most [`STALL`].
pub fn connect(netns: &Netns, remote: SocketAddr) -> TcpStream {
    try_connect(netns, remote, STALL).unwrap_or_else(|error| panic!("connect to {remote}: {error}"))
}

/// Connects from inside `netns`. An expired `patience` is an error without an errno, unlike the
/// kernel's ETIMEDOUT.
pub fn try_connect(netns: &Netns, remote: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect_timeout(&remote, patience))?;
    limit(&stream);
    Ok(stream)
}

/// At least one retransmission of the SYN (after 1 s) may be needed while the old connection is
/// torn down.
const REUSED_WITHIN: Duration = Duration::from_secs(5);

/// Connects from inside `netns` and a given source address. While the kernel there still waits for
/// the last ACK of an earlier connection, it has no such tuple to give (EADDRNOTAVAIL).
pub fn connect_from(netns: &Netns, source: SocketAddr, remote: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + REUSED_WITHIN;
    loop {
        let error = match netns.run(|| try_connect_from(source, remote)) {
            Ok(stream) => return stream,
            Err(error) => error,
        };
        let still_there = error.kind() == io::ErrorKind::AddrNotAvailable;
        assert!(
            still_there && Instant::now() < deadline,
            "connect from {source}: {error}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn try_connect_from(source: SocketAddr, remote: SocketAddr) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(async {
        let socket = match source {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
        tokio::time::timeout(REUSED_WITHIN, socket.connect(remote)).await?
    })?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    limit(&stream);
    Ok(stream)
}

/// Gives each read and write on `stream` a deadline.
pub fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(STALL)).expect("read deadline");
    stream
        .set_write_timeout(Some(STALL))
        .expect("write deadline");
    stream.set_nodelay(true).expect("no delay");
}

/// Listens inside `netns`; port 0 picks one.
pub fn listen(netns: &Netns, address: IpAddr, port: u16) -> TcpListener {
    netns
        .run(|| TcpListener::bind((address, port)))
        .unwrap_or_else(|error| panic!("listen on {address}:{port}: {error}"))
}

/// Accepts one connection, waiting at most [`STALL`].
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let arrived = readable_by(listener, Instant::now() + STALL).expect("poll a listener");
    assert!(
        arrived,
        "no connection arrived at {:?}",
        listener.local_addr()
    );
    let (stream, client) = listener.accept().expect("accept");
    limit(&stream);
    (stream, client)
}

/// Asserts that no connection has ever reached `listener`.
pub fn assert_never_reached(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("non-blocking");
    match listener.accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        other => panic!("{:?} was reached: {other:?}", listener.local_addr()),
    }
}

/// A UDP socket inside `netns` whose reads have a deadline; port 0 picks one.
pub fn udp(netns: &Netns, address: IpAddr, port: u16) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind((address, port)));
    let socket = socket.unwrap_or_else(|error| panic!("bind UDP {address}:{port}: {error}"));
    socket.set_read_timeout(Some(STALL)).expect("read deadline");
    socket
}

/// Closes `stream` with a RST instead of a FIN.
pub fn reset(stream: TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream, sockopt::Linger, &linger).expect("SO_LINGER");
}

/// Sends `text` and checks that it comes back.
pub fn assert_echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).expect("send to the echo");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("hear the echo");
    assert!(back == text, "the echo differs");
}

/// Sends the next `length` bytes of `sent` from one end of a connection and expects those of
/// `received` at the other.
pub fn pass(
    mut sender: &TcpStream,
    mut receiver: &TcpStream,
    [sent, received]: &mut [Pattern; 2],
    length: usize,
) {
    std::thread::scope(|scope| {
        scope.spawn(move || sent.send(&mut sender, length).expect("send"));
        received.expect(&mut receiver, length);
    });
}

/// Asserts that nothing more comes: the peer has closed.
pub fn assert_end(stream: &mut impl Read) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("read up to the end");
    assert!(
        rest.is_empty(),
        "{} bytes after the expected end",
        rest.len()
    );
}

/// A long byte sequence in which every offset has its own surroundings: a pseudo-random block,
/// repeated. The block's length is prime, so that no multiple of a segment, page or buffer size
/// maps the sequence onto itself.
#[derive(Clone)]
pub struct Pattern {
    block: Arc<[u8]>,
    offset: usize,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        // xorshift64*, by G. Marsaglia and S. Vigna.
        let mut state = seed | 1;
        let next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
        };
        Self {
            block: std::iter::repeat_with(next).take(1_048_573).collect(),
            offset: 0,
        }
    }

    /// The same sequence from `offset` on.
    pub fn at(&self, offset: usize) -> Self {
        Self {
            block: self.block.clone(),
            offset,
        }
    }

    /// The next bytes, at most `limit` of them but at least one; [`Pattern::advance`] goes past
    /// them.
    pub fn peek(&self, limit: usize) -> &[u8] {
        let start = self.offset % self.block.len();
        &self.block[start..self.block.len().min(start + limit)]
    }

    pub fn advance(&mut self, count: usize) {
        self.offset += count;
    }

    /// Goes past `received`; an error tells the offset of the first byte that differs.
    pub fn compare(&mut self, mut received: &[u8]) -> Result<(), usize> {
        while !received.is_empty() {
            let sent = self.peek(received.len());
            let (now, rest) = received.split_at(sent.len());
            if sent != now {
                let equal = sent.iter().zip(now).take_while(|(a, b)| a == b).count();
                return Err(self.offset + equal);
            }
            self.advance(now.len());
            received = rest;
        }
        Ok(())
    }

    /// Sends the next `length` bytes.
    pub fn send(&mut self, stream: &mut impl Write, length: usize) -> io::Result<()> {
        self.send_counted(stream, length, &AtomicUsize::new(0))
    }

    /// The same; `progress` counts the bytes that the kernel took.
    pub fn send_counted(
        &mut self,
        stream: &mut impl Write,
        length: usize,
        progress: &AtomicUsize,
    ) -> io::Result<()> {
        let end = self.offset + length;
        while self.offset < end {
            let written = stream.write(self.peek((end - self.offset).min(CHUNK)))?;
            self.advance(written);
            progress.fetch_add(written, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads `length` bytes and panics at the first difference.
    pub fn expect(&mut self, stream: &mut impl Read, length: usize) {
        let end = self.offset + length;
        let mut buffer = vec![0; CHUNK];
        while self.offset < end {
            let wanted = (end - self.offset).min(CHUNK);
            let count = stream
                .read(&mut buffer[..wanted])
                .unwrap_or_else(|e| panic!("at byte {}: {e}", self.offset));
            assert!(
                count > 0,
                "the stream ends at byte {} instead of {end}",
                self.offset
            );
            if let Err(offset) = self.compare(&buffer[..count]) {
                panic!("byte {offset} differs");
            }
        }
    }
}

/// A TCP echo server on a thread inside a namespace. It echoes until the client's end, then closes.
pub struct EchoServer {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    pub fn start(netns: &Netns, address: IpAddr, port: u16) -> Self {
        Self::serve(
            netns,
            address,
            port,
            async |mut stream: tokio::net::TcpStream| {
                let mut buffer = vec![0; 16 * 1024];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => break,
                        Ok(count) => {
                            if stream.write_all(&buffer[..count]).await.is_err() {
                                break;
                            }
                        }
                    }
                }
            },
        )
    }

    /// A server that echoes one message of up to 64 bytes per connection and is the first to close.
    pub fn start_one_shot(netns: &Netns, address: IpAddr, port: u16) -> Self {
        Self::serve(
            netns,
            address,
            port,
            async |mut stream: tokio::net::TcpStream| {
                let mut buffer = [0; 64];
                if let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let _ = stream.write_all(&buffer[..count]).await;
                }
            },
        )
    }

    fn serve<F>(netns: &Netns, address: IpAddr, port: u16, service: F) -> Self
    where
        F: AsyncFn(tokio::net::TcpStream) + Clone + Send + 'static,
    {
        let listener = netns.run(|| {
            let socket = match address {
                IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
                IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
            };
            let socket = socket.expect("TCP socket");
            socket.set_reuseaddr(true).expect("SO_REUSEADDR");
            socket
                .bind((address, port).into())
                .unwrap_or_else(|error| panic!("echo on {address}:{port}: {error}"));
            socket
        });
        let address = listener.local_addr().expect("local address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (stop, mut stopped) = oneshot::channel();
        let (listening, ready) = std::sync::mpsc::channel();
        let thread = {
            let accepted = accepted.clone();
            netns.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                let tasks = tokio::task::LocalSet::new();
                tasks.block_on(&runtime, async move {
                    let listener = listener.listen(16 * 1024).expect("listen");
                    listening.send(()).expect("the starter waits");
                    loop {
                        let stream = tokio::select! {
                            _ = &mut stopped => break,
                            accept = listener.accept() => accept,
                        };
                        let Ok((stream, _)) = stream else { continue };
                        accepted.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.set_nodelay(true);
                        let service = service.clone();
                        tokio::task::spawn_local(async move { service(stream).await });
                    }
                });
            })
        };
        ready.recv_timeout(STALL).expect("the echo server listens");
        Self {
            address,
            accepted,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A UDP server inside `netns` that sends each datagram back to its sender.
pub fn udp_echo(netns: &Netns, address: IpAddr, port: u16) -> UdpEcho {
    let socket = udp(netns, address, port);
    let address = socket.local_addr().expect("local address");
    let worker = socket.try_clone().expect("duplicate a socket");
    worker
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("read deadline");
    let running = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let keep_running = running.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while keep_running.load(Ordering::Relaxed) {
            if let Ok((count, client)) = worker.recv_from(&mut buffer) {
                let _ = worker.send_to(&buffer[..count], client);
            }
        }
    });
    UdpEcho {
        address,
        running,
        thread: Some(thread),
    }
}

/// A running [`udp_echo`].
pub struct UdpEcho {
    pub address: SocketAddr,
    running: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How much a single write or read moves.
const CHUNK: usize = 256 * 1024;
