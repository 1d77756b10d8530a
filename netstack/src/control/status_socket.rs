//! The sockets by which a helper tells its status: whoever connects to one reads the JSON document,
//! then the end of the stream; another is for a collector of metrics, which asks for them by HTTP.
//!
//! No client can delay the helper: an answer goes into the socket's send buffer as far as it fits,
//! the rest waits for the client, and of those at most [`MAX_CLIENTS`](super::clients::MAX_CLIENTS)
//! are served. The driver polls one descriptor for all of a socket's, which is readable when there
//! is something to do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::epoll::EventFlags;

use super::clients::{Clients, Watch, receive, send};
use super::socket_file::{PrivateSocketError, listen_privately};
use super::{SocketFile, Status, metrics};

/// How a socket tells the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON. Nothing need be sent, and nothing is read.
    Document,
    /// The text form of Prometheus, for a GET request of any path.
    Metrics,
}

/// Listens at a path.
#[derive(Debug)]
pub struct StatusSocket {
    form: Form,
    file: SocketFile,
    /// Those who have not asked yet, or not taken all of their answer.
    clients: Clients<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Asks(Vec<u8>),
    IsAnswered(Vec<u8>),
}

/// Longer requests are answered as if they ended here: nothing in them matters but how they begin.
const MAX_REQUEST: usize = 8192;

impl StatusSocket {
    /// Listens at `path`, for this user only. A socket that is there but that nobody serves any
    /// more is replaced, if it belongs to this user; anything else is left alone.
    pub fn open(form: Form, path: &Path) -> Result<Self, PrivateSocketError> {
        let (listener, file) = listen_privately(form.name(), path)?;
        let clients = Clients::new(listener)
            .map_err(|source| PrivateSocketError::open(form.name(), path, source))?;
        Ok(Self {
            form,
            file,
            clients,
        })
    }

    /// What is left to remove at the end.
    pub fn file(&self) -> SocketFile {
        self.file.clone()
    }

    /// To be called when the descriptor is readable: answers each new client with what `status`
    /// returns, and goes on with those that were slow. `status` is called once if at all. Never
    /// blocks.
    ///
    /// Fails when there is no descriptor for a client, who waits: until there is one, the socket
    /// stays readable.
    pub fn serve(&mut self, status: impl FnOnce() -> Status) -> io::Result<()> {
        let form = self.form;
        let mut status = Some(status);
        let mut told = Vec::new();
        let mut tell = || {
            if let Some(status) = status.take() {
                told = form.write(&status());
            }
            told.clone()
        };
        self.clients
            .retain(|client, watch| client.go_on(watch, &mut tell));
        match form {
            Form::Document => self.clients.accept(EventFlags::OUT, |stream| {
                let mut client = Client {
                    stream,
                    stage: Stage::IsAnswered(tell()),
                };
                client.send().then_some(client)
            }),
            Form::Metrics => self.clients.accept(EventFlags::IN, |stream| {
                let stage = Stage::Asks(Vec::new());
                Some(Client { stream, stage })
            }),
        }
    }
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Document => "status",
            Self::Metrics => "metrics",
        }
    }

    fn write(self, status: &Status) -> Vec<u8> {
        match self {
            Self::Document => {
                serde_json::to_vec(status).expect("only maps with odd keys cannot be written")
            }
            Self::Metrics => {
                let text = metrics::text(status);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n",
                    metrics::CONTENT_TYPE,
                    text.len()
                );
                (head + &text).into_bytes()
            }
        }
    }
}

impl Client {
    /// Reads, answers, writes; false when it is done with.
    fn go_on(&mut self, watch: Watch<'_>, tell: &mut impl FnMut() -> Vec<u8>) -> bool {
        if let Stage::Asks(request) = &mut self.stage {
            let more = receive(&self.stream, request, MAX_REQUEST);
            let is_whole = request.len() >= MAX_REQUEST
                || request.windows(4).any(|bytes| bytes == b"\r\n\r\n");
            match more {
                Ok(true) if !is_whole => return true,
                Ok(_) if request.starts_with(b"GET ") => {
                    self.stage = Stage::IsAnswered(tell());
                }
                Ok(_) => self.stage = Stage::IsAnswered(NOT_GET.to_vec()),
                Err(_) => return false,
            }
            watch.wait_for(&self.stream, EventFlags::OUT);
        }
        self.send()
    }

    /// False when it is done with.
    fn send(&mut self) -> bool {
        match &mut self.stage {
            Stage::Asks(_) => true,
            Stage::IsAnswered(unsent) => send(&mut self.stream, unsent),
        }
    }
}

/// RFC 9110 15.5.6.
const NOT_GET: &[u8] = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";

impl AsFd for StatusSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clients.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::control::clients::MAX_CLIENTS;

    fn read(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn who_connects_reads_the_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let mut socket = StatusSocket::open(Form::Document, &path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = UnixStream::connect(&path).unwrap();
        socket.serve(|| Status::of_the_tests(1)).unwrap();
        let expected = serde_json::to_string(&Status::of_the_tests(1)).unwrap();
        assert_eq!(read(client), expected);
    }

    #[test]
    fn metrics_are_asked_for_by_http() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let mut socket = StatusSocket::open(Form::Metrics, &path).unwrap();
        let mut ask = |pieces: &[&[u8]]| {
            let mut client = UnixStream::connect(&path).unwrap();
            for piece in pieces {
                client.write_all(piece).unwrap();
                socket.serve(|| Status::of_the_tests(1)).unwrap();
            }
            // Taken as a client by the first turn, answered by the second.
            socket.serve(|| Status::of_the_tests(1)).unwrap();
            read(client)
        };
        let answer = ask(&[b"GET /metrics HTTP/1.1\r\n", b"Host: x\r\n\r\n"]);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(body, metrics::text(&Status::of_the_tests(1)));
        let refused = ask(&[b"POST / HTTP/1.1\r\n\r\n"]);
        assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
        let garbage = ask(&[&[b'x'; MAX_REQUEST]]);
        assert!(garbage.starts_with("HTTP/1.1 405 "), "{garbage}");
        assert_eq!(socket.clients.iter().len(), 0);
    }

    #[test]
    fn slow_clients_are_bounded_and_get_it_all_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let mut socket = StatusSocket::open(Form::Document, &path).unwrap();
        // Far more than a socket buffer takes.
        let document = serde_json::to_string(&Status::of_the_tests(10_000)).unwrap();
        let clients: Vec<_> = (0..MAX_CLIENTS + 4)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        socket.serve(|| Status::of_the_tests(10_000)).unwrap();
        assert_eq!(socket.clients.iter().len(), MAX_CLIENTS);
        socket.serve(|| unreachable!("there is no room")).unwrap();
        let readers: Vec<_> = clients
            .into_iter()
            .map(|client| std::thread::spawn(|| read(client)))
            .collect();
        while readers.iter().any(|reader| !reader.is_finished()) {
            socket.serve(|| Status::of_the_tests(10_000)).unwrap();
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap().len(), document.len());
        }
        assert_eq!(socket.clients.iter().len(), 0);
    }

    #[test]
    fn who_comes_after_too_many_clients_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let mut socket = StatusSocket::open(Form::Document, &path).unwrap();
        let slow: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        socket.serve(|| Status::of_the_tests(10_000)).unwrap();
        assert_eq!(socket.clients.iter().len(), MAX_CLIENTS);
        drop(slow);
        socket.serve(|| unreachable!("nobody new")).unwrap();
        let _late = UnixStream::connect(&path).unwrap();
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&Timespec::default())), Ok(1));
    }

    #[test]
    fn a_client_that_leaves_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let mut socket = StatusSocket::open(Form::Document, &path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        socket.serve(|| Status::of_the_tests(10_000)).unwrap();
        assert_eq!(socket.clients.iter().len(), 1);
        drop(client);
        socket.serve(|| unreachable!("nobody new")).unwrap();
        assert_eq!(socket.clients.iter().len(), 0);
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            StatusSocket::open(Form::Document, &path),
            Err(PrivateSocketError::Occupied(..))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        let served = StatusSocket::open(Form::Document, &path).unwrap();
        assert!(matches!(
            StatusSocket::open(Form::Document, &path),
            Err(PrivateSocketError::Served(..))
        ));
        // As after `kill -9`: the file stays.
        drop(served);
        let replaced = StatusSocket::open(Form::Document, &path).unwrap();

        // A successor's file is not removed.
        fs::remove_file(&path).unwrap();
        let successor = StatusSocket::open(Form::Document, &path).unwrap();
        replaced.file().remove();
        assert!(path.exists());
        successor.file().remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error() {
        let path = PathBuf::from("/").join("x".repeat(108));
        assert!(matches!(
            StatusSocket::open(Form::Document, &path),
            Err(PrivateSocketError::Open { .. })
        ));
    }
}
