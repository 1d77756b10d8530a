//! What the network helper tells of itself: counters, and the path that each connection takes.
//!
//! The helper writes one JSON document to whoever connects to its status socket. However many
//! visitors ask, it is asked by one thread at a time and no more often than every [`MIN_AGE`]; the
//! others go on with what is known.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::json::Value;

/// How old an answer may be.
const MAX_AGE: Duration = Duration::from_millis(50);

/// How old it is at least before another is asked for: a visitor who came after it is not in it.
const MIN_AGE: Duration = Duration::from_millis(5);

/// How long the helper may take over one answer.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Largest answer, in bytes: some 30,000 flows.
const MAX_LEN: u64 = 8 * 1024 * 1024;

/// Who carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The TCP engine in user space.
    Engine,
    /// A splice between two sockets in the kernel.
    Kernel,
}

/// One answer of the helper.
#[derive(Debug, Default)]
pub struct Status {
    pub connections_total: u64,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    /// How many connections each carries now.
    pub in_engine: usize,
    pub in_kernel: usize,
    /// Published TCP connections by the client's address.
    clients: HashMap<SocketAddr, Carrier>,
}

impl Status {
    /// Who carries the connection from this client, if the answer is recent enough to know.
    pub fn carrier_of(&self, client: SocketAddr) -> Option<Carrier> {
        self.clients.get(&canonical(client)).copied()
    }

    /// Reads an answer; `None` when it is no JSON. What it does not say counts as nothing.
    pub fn parse(document: &str) -> Option<Self> {
        let document = Value::parse(document)?;
        let counter = |key| document.u64(key).unwrap_or(0);
        let mut status = Self {
            connections_total: counter("connections_total"),
            bytes_to_guest: counter("bytes_to_guest"),
            bytes_from_guest: counter("bytes_from_guest"),
            ..Self::default()
        };
        for flow in document.elements("flows") {
            let carrier = match flow.str("path") {
                Some("engine") => Carrier::Engine,
                Some("kernel") => Carrier::Kernel,
                _ => continue,
            };
            if flow.str("protocol") != Some("tcp") {
                continue;
            }
            match carrier {
                Carrier::Engine => status.in_engine += 1,
                Carrier::Kernel => status.in_kernel += 1,
            }
            if flow.str("initiator") == Some("host")
                && let Some(client) = flow.str("remote").and_then(|remote| remote.parse().ok())
            {
                status.clients.insert(canonical(client), carrier);
            }
        }
        Some(status)
    }
}

/// The helper behind a status socket, which need not be there.
pub struct Helper {
    socket: PathBuf,
    latest: Mutex<Option<Answer>>,
    /// Held by the one thread that is asking.
    asking: Mutex<()>,
}

#[derive(Clone)]
struct Answer {
    asked: Instant,
    status: Option<Arc<Status>>,
}

impl Helper {
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            latest: Mutex::new(None),
            asking: Mutex::new(()),
        }
    }

    /// The helper's status, if possible as it was after `since`, when the visitor had come; `None`
    /// when there is no helper, or it does not answer as it should.
    pub fn status(&self, since: Instant) -> Option<Arc<Status>> {
        let latest = self
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let is_good = |answer: &Answer| answer.asked >= since && answer.asked.elapsed() < MAX_AGE;
        match latest {
            Some(answer) if is_good(&answer) => answer.status,
            latest => match self.asking.try_lock() {
                Ok(_asking) => {
                    if let Some(answer) = latest {
                        thread::sleep(MIN_AGE.saturating_sub(answer.asked.elapsed()));
                    }
                    self.renew()
                }
                Err(_) => latest.and_then(|answer| answer.status),
            },
        }
    }

    fn renew(&self) -> Option<Arc<Status>> {
        let asked = Instant::now();
        let status = ask(&self.socket)
            .and_then(|text| Status::parse(&text))
            .map(Arc::new);
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Answer {
            asked,
            status: status.clone(),
        });
        status
    }
}

fn ask(socket: &Path) -> Option<String> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = UnixStream::connect(socket).ok()?;
    let mut answer = Vec::new();
    let mut block = [0; 16 * 1024];
    loop {
        // A timeout of zero would be an error, which is as well.
        stream
            .set_read_timeout(Some(deadline.saturating_duration_since(Instant::now())))
            .ok()?;
        match stream.read(&mut block).ok()? {
            0 => return String::from_utf8(answer).ok(),
            len => answer.extend_from_slice(&block[..len]),
        }
        if answer.len() as u64 > MAX_LEN {
            return None;
        }
    }
}

/// IPv4 addresses as such, also where an IPv6 socket shows them mapped.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"version":"0.1.0","guest":["10.0.2.100","fd00::100"],"connections_total":9,"bytes_to_guest":100,
        "bytes_from_guest":200,"flows":[
        {"protocol":"tcp","initiator":"host","guest":"10.0.2.100:8080","remote":"10.0.2.2:41234","path":"engine"},
        {"protocol":"tcp","initiator":"host","guest":"[fd00::100]:8080","remote":"[2001:db8::7]:443","path":"kernel"},
        {"protocol":"tcp","initiator":"guest","guest":"10.0.2.100:43210","remote":"198.51.100.7:443","path":"kernel"},
        {"protocol":"udp","initiator":"guest","guest":"10.0.2.100:43210","remote":"198.51.100.7:53","path":"engine"},
        {"protocol":"tcp","initiator":"host","remote":"somewhere","path":"engine"},
        {"protocol":"tcp","initiator":"host","remote":"192.0.2.1:1","path":"a later one"}]}"#;

    #[test]
    fn finds_the_visitors_own_connection() {
        let status = Status::parse(DOCUMENT).unwrap();
        let carrier = |client: &str| status.carrier_of(client.parse().unwrap());
        assert_eq!(carrier("10.0.2.2:41234"), Some(Carrier::Engine));
        assert_eq!(carrier("[::ffff:10.0.2.2]:41234"), Some(Carrier::Engine));
        assert_eq!(carrier("[2001:db8::7]:443"), Some(Carrier::Kernel));
        // The container's own connection to that address is another one.
        assert_eq!(carrier("198.51.100.7:443"), None);
        assert_eq!(carrier("192.0.2.1:1"), None);
    }

    #[test]
    fn counts_what_each_carries() {
        let status = Status::parse(DOCUMENT).unwrap();
        assert_eq!((status.in_engine, status.in_kernel), (2, 2));
        assert_eq!(
            (
                status.connections_total,
                status.bytes_to_guest,
                status.bytes_from_guest
            ),
            (9, 100, 200)
        );
    }

    #[test]
    fn takes_a_document_that_says_little() {
        let status = Status::parse("{}").unwrap();
        assert_eq!((status.connections_total, status.in_engine), (0, 0));
        assert!(Status::parse("not json").is_none());
    }
}
