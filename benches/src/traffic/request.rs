//! Keep-alive requests: `connections` connections with one request in flight each; every latency is
//! kept.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::tally::Tally;
use super::{Event, Poller, RESPONSE_BYTES, Sockets, emit, request_head};

/// Runs the load and reports it.
///
/// Fails when a connection breaks: with keep-alive nothing may, so there is no figure without the
/// cause.
pub fn run(
    sockets: &Sockets,
    address: SocketAddr,
    connections: u32,
    warm: Duration,
    measure: Duration,
) -> Result<()> {
    let head = request_head(address, false);
    let poller = Poller::new()?;
    let mut clients = Vec::new();
    for (index, stream) in sockets
        .connect_all(address, connections)?
        .into_iter()
        .enumerate()
    {
        poller.add(&stream, EpollFlags::EPOLLIN, index as u64)?;
        clients.push(Client {
            stream,
            sent: Instant::now(),
            missing: RESPONSE_BYTES,
        });
    }
    for client in &mut clients {
        client.send(&head)?;
    }
    let mut tally = Tally::new(warm, measure);
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let now = Instant::now();
        if let Some(start) = tally.advance(now)? {
            let stuck = clients.iter().filter(|client| client.sent < start).count() as u64;
            let report = tally.report(start, now, "connection without an answer", stuck);
            return emit(Event::Done(report));
        }
        let count = poller.wait(&mut events, Duration::from_millis(20))?;
        if let Some(stuck) = clients
            .iter()
            .find(|_| count == 0)
            .filter(|c| c.sent.elapsed() > SILENCE)
        {
            bail!(
                "no answer for {:?} on {:?}",
                stuck.sent.elapsed(),
                stuck.stream
            );
        }
        for event in &events[..count] {
            let client = &mut clients[event.data() as usize];
            if client.receive()? {
                tally.answered(client.sent);
                client.send(&head)?;
            }
        }
    }
}

/// No answer for this long: the path is dead, not slow.
const SILENCE: Duration = Duration::from_secs(10);

struct Client {
    stream: TcpStream,
    sent: Instant,
    /// Bytes of the response still to come.
    missing: usize,
}

impl Client {
    fn send(&mut self, head: &[u8]) -> Result<()> {
        self.sent = Instant::now();
        self.missing = RESPONSE_BYTES;
        let bytes = self.stream.write(head)?;
        if bytes != head.len() {
            bail!("sent {bytes} of {} bytes into an empty socket", head.len());
        }
        Ok(())
    }

    /// Whether the response is complete.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0_u8; 2 * RESPONSE_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed a keep-alive connection"),
            Ok(bytes) if bytes > self.missing => {
                bail!("{} bytes more than one response", bytes - self.missing)
            }
            Ok(bytes) => {
                self.missing -= bytes;
                Ok(self.missing == 0)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
