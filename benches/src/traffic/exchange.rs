//! Request and response over UDP, as DNS has them: a service that answers each datagram, and a load
//! with one in flight per socket.
//!
//! A datagram begins with its number, which the answer repeats: an answer that comes after its
//! question was given up for lost belongs to nothing.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::tally::Tally;
use super::{Event, Poller, REQUEST_BYTES, RESPONSE_BYTES, Sockets, emit};

/// An answer is given up for lost after this long, and the next question asked: resolvers wait
/// longer, but only to be polite.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often sockets are searched for lost answers.
const SWEEP: Duration = Duration::from_millis(50);
const NUMBER_BYTES: usize = size_of::<u64>();

/// Answers until killed.
pub fn serve(sockets: &Sockets, address: SocketAddr) -> Result<()> {
    let socket = sockets.datagram(address)?;
    socket.set_nonblocking(false)?;
    emit(Event::Ready)?;
    let mut datagram = [0_u8; RESPONSE_BYTES];
    loop {
        // An error tells of an earlier answer that nobody wanted.
        if let Ok((_, client)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram, client);
        }
    }
}

/// Runs the load and reports it.
pub fn run(
    sockets: &Sockets,
    address: SocketAddr,
    count: u32,
    warm: Duration,
    measure: Duration,
) -> Result<()> {
    let poller = Poller::new()?;
    let mut clients = Vec::new();
    for index in 0..count {
        let socket = sockets.datagram_to(address)?;
        poller.add(&socket, EpollFlags::EPOLLIN, index.into())?;
        clients.push(Client::new(socket)?);
    }
    let mut events = [EpollEvent::empty(); 64];
    let mut lost = 0_u64;
    let mut tally = Tally::new(warm, measure);
    let mut next_sweep = Instant::now() + SWEEP;
    loop {
        let now = Instant::now();
        if let Some(start) = tally.advance(now)? {
            let report = tally.report(start, now, "question without an answer", lost);
            return emit(Event::Done(report));
        }
        if now >= next_sweep {
            next_sweep = now + SWEEP;
            for client in clients.iter_mut().filter(|c| c.sent.elapsed() > PATIENCE) {
                lost += u64::from(tally.counts(client.sent));
                client.ask()?;
            }
        }
        let count = poller.wait(&mut events, Duration::from_millis(20))?;
        for event in &events[..count] {
            let client = &mut clients[event.data() as usize];
            if client.is_answered()? {
                tally.answered(client.sent);
                client.ask()?;
            }
        }
    }
}

struct Client {
    socket: UdpSocket,
    number: u64,
    sent: Instant,
}

impl Client {
    fn new(socket: UdpSocket) -> Result<Self> {
        let mut client = Self {
            socket,
            number: 0,
            sent: Instant::now(),
        };
        client.ask()?;
        Ok(client)
    }

    fn ask(&mut self) -> Result<()> {
        self.number += 1;
        self.sent = Instant::now();
        let mut question = [0_u8; REQUEST_BYTES];
        question[..NUMBER_BYTES].copy_from_slice(&self.number.to_be_bytes());
        match self.socket.send(&question) {
            // Refused earlier, or no room now: the sweep finds it unanswered.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::WouldBlock
                ) =>
            {
                Ok(())
            }
            sent => sent.map(drop).context("failed to send a question"),
        }
    }

    fn is_answered(&mut self) -> Result<bool> {
        let mut answer = [0_u8; RESPONSE_BYTES];
        match self.socket.recv(&mut answer) {
            Ok(RESPONSE_BYTES) => Ok(answer[..NUMBER_BYTES] == self.number.to_be_bytes()),
            Ok(_) => Ok(false),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::WouldBlock
                ) =>
            {
                Ok(false)
            }
            Err(e) => Err(e).context("failed to receive an answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_earlier_question_is_none() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.local_addr().unwrap()).unwrap();
        let mut client = Client::new(socket).unwrap();
        let mut datagram = [0_u8; RESPONSE_BYTES];
        let (bytes, address) = server.recv_from(&mut datagram).unwrap();
        assert_eq!(bytes, REQUEST_BYTES);
        client.ask().unwrap();
        server.send_to(&datagram, address).unwrap();
        assert!(!client.is_answered().unwrap(), "late");
        server.recv_from(&mut datagram).unwrap();
        server.send_to(&datagram, address).unwrap();
        assert!(client.is_answered().unwrap());
    }
}
