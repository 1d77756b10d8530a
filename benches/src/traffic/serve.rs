//! The service behind request, connect and memory cells: answers each HTTP request head with a
//! fixed response and closes after one that says `Connection: close`. Plain HTTP/1.1, so that wrk
//! can be pointed at it for a cross-check.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Result;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Event, Poller, RESPONSE_BYTES, Sockets, accept, emit};

/// Serves until killed.
pub fn run(sockets: &Sockets, address: SocketAddr) -> Result<()> {
    let listener = sockets.listen(address)?;
    let poller = Poller::new()?;
    poller.add(&listener, EpollFlags::EPOLLIN, LISTENER)?;
    emit(Event::Ready)?;
    let mut service = Service {
        poller,
        clients: Vec::new(),
        response: response(),
    };
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = service.poller.wait(&mut events, Duration::from_secs(60))?;
        for event in &events[..count] {
            match event.data() {
                LISTENER => service.accept_some(&listener)?,
                token => service.answer(token as usize),
            }
        }
    }
}

const LISTENER: u64 = u64::MAX;
/// Connections accepted per wake-up, so that a burst of new ones does not starve the open ones.
const ACCEPTS_PER_TURN: usize = 64;
/// No request head of ours or of wrk comes near this.
const HEAD_LIMIT: usize = 1024;

struct Service {
    poller: Poller,
    /// Indexed by descriptor number.
    clients: Vec<Option<Client>>,
    response: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    head: Vec<u8>,
}

impl Service {
    fn accept_some(&mut self, listener: &TcpListener) -> Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(stream) = accept(listener)? else {
                break;
            };
            let index = stream.as_raw_fd() as usize;
            self.poller
                .add(&stream, EpollFlags::EPOLLIN, index as u64)?;
            if self.clients.len() <= index {
                self.clients.resize_with(index + 1, || None);
            }
            self.clients[index] = Some(Client {
                stream,
                head: Vec::new(),
            });
        }
        Ok(())
    }

    fn answer(&mut self, index: usize) {
        let Some(Some(client)) = self.clients.get_mut(index) else {
            return;
        };
        if !client.answer(&self.response) {
            // Dropping the stream closes it and takes it out of epoll.
            self.clients[index] = None;
        }
    }
}

impl Client {
    /// Whether the connection stays open. A client that breaks the protocol or the connection is
    /// its own business: the generator at the other end counts it.
    fn answer(&mut self, response: &[u8]) -> bool {
        let mut buffer = [0_u8; HEAD_LIMIT];
        let bytes = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(bytes) => bytes,
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        };
        // Nearly always the whole head arrives at once and needs no copy.
        if self.head.is_empty() && buffer[..bytes].ends_with(b"\r\n\r\n") {
            return self.respond(is_last(&buffer[..bytes]), response);
        }
        self.head.extend_from_slice(&buffer[..bytes]);
        if !self.head.ends_with(b"\r\n\r\n") {
            return self.head.len() < HEAD_LIMIT;
        }
        let last = is_last(&self.head);
        self.head.clear();
        self.respond(last, response)
    }

    fn respond(&mut self, last: bool, response: &[u8]) -> bool {
        // One response is in flight per connection, so the socket's buffer has room for all of it.
        matches!(self.stream.write(response), Ok(bytes) if bytes == response.len()) && !last
    }
}

fn is_last(head: &[u8]) -> bool {
    const CLOSE: &[u8] = b"Connection: close";
    head.windows(CLOSE.len()).any(|window| window == CLOSE)
}

fn response() -> Vec<u8> {
    // The head has 64 bytes whatever the three-digit length is.
    let body = RESPONSE_BYTES
        - "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 000\r\n\r\n".len();
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n")
            .into_bytes();
    response.resize(RESPONSE_BYTES, b'.');
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::request_head;

    #[test]
    fn the_response_is_as_long_as_it_says() {
        let response = response();
        assert_eq!(response.len(), RESPONSE_BYTES);
        let text = String::from_utf8(response).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
    }

    #[test]
    fn only_the_last_request_closes() {
        let address = "127.0.0.1:1".parse().unwrap();
        assert!(is_last(&request_head(address, true)));
        assert!(!is_last(&request_head(address, false)));
    }
}
