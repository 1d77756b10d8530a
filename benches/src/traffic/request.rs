//! Keep-alive requests: `connections` connections with one request in flight each; every latency is kept.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Event, Poller, RESPONSE_BYTES, Report, Sockets, emit, request_head};
use crate::stats::Latencies;

/// Runs the load and reports it.
///
/// Fails when a connection breaks: with keep-alive nothing may, so there is no figure without the cause.
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
    let mut latencies = Latencies::with_capacity(1 << 20);
    let mut begun: Option<Instant> = None;
    let warm_until = Instant::now() + warm;
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let now = Instant::now();
        match begun {
            None if now >= warm_until => {
                emit(Event::Begin)?;
                begun = Some(Instant::now());
            }
            Some(start) if now.duration_since(start) >= measure => {
                let stuck = clients.iter().filter(|client| client.sent < start).count() as u64;
                let errors =
                    (stuck > 0).then(|| ("connection without an answer".to_string(), stuck));
                return emit(Event::Done(Report {
                    errors: errors.into_iter().collect(),
                    seconds: now.duration_since(start).as_secs_f64(),
                    operations: latencies.len() as u64,
                    latency: latencies.summary(),
                    ..Report::default()
                }));
            }
            _ => {}
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
                let latency = client.sent.elapsed();
                // Only what was asked and answered within the measured part counts.
                if begun.is_some_and(|start| client.sent >= start) {
                    latencies.record(latency);
                }
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
