//! The control socket of `pesto`, by which callers replace the forwarding rules while the helper is
//! at work (`portfwd::forward::wire`).
//!
//! A client is told the rules and answers with those that are to be, so each needs the socket to
//! itself meanwhile, or the changes of two would be lost in each other: clients take turns, and who
//! lets others wait has a deadline. One whose update fails is told why in plain text, which is more
//! than pasta does; then, as in pasta, the connection is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use portfwd::forward::wire::{self, MAX_UPDATE, Tables};
use rustix::event::epoll::EventFlags;
use rustix::net::{RecvFlags, recv};
use tracing::debug;

use super::SocketFile;
use super::clients::{Clients, Watch, receive, send};
use super::socket_file::{PrivateSocketError, listen_privately};
use crate::core::{Duration, Instant};

/// Who carries out what clients ask for.
pub trait Forwarder {
    /// The rules as they are.
    fn tables(&self) -> &Tables;

    /// Whether these could take their place, all of them; if not, nothing has changed, and the text
    /// says why.
    fn replace(&mut self, tables: Tables) -> Result<(), String>;
}

/// What a client may take for its turn, and again for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at a path.
#[derive(Debug)]
pub struct PortControl {
    file: SocketFile,
    clients: Clients<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It is somebody else's turn.
    Waits,
    HasTurn {
        unsent: Vec<u8>,
        received: Vec<u8>,
        deadline: Instant,
    },
    IsTold {
        unsent: Vec<u8>,
        deadline: Instant,
    },
}

impl PortControl {
    /// Listens at `path`, for this user only. A socket that is there but that nobody serves any
    /// more is replaced, if it belongs to this user; anything else is left alone.
    pub fn open(path: &Path) -> Result<Self, PrivateSocketError> {
        let (listener, file) = listen_privately("control", path)?;
        let clients = Clients::new(listener)
            .map_err(|source| PrivateSocketError::open("control", path, source))?;
        Ok(Self { file, clients })
    }

    /// What is left to remove at the end.
    pub fn file(&self) -> SocketFile {
        self.file.clone()
    }

    /// To be called when the descriptor is readable, and at [`PortControl::deadline`]. Never waits
    /// for a client.
    ///
    /// Fails when there is no descriptor for a client, who waits: until there is one, the socket
    /// stays readable.
    pub fn serve(&mut self, forwarder: &mut impl Forwarder, now: Instant) -> io::Result<()> {
        // Only the end of a client that waits is of interest.
        let accepted = self.clients.accept(EventFlags::empty(), |stream| {
            let stage = Stage::Waits;
            Some(Client { stream, stage })
        });
        let mut turn_is_taken = false;
        self.clients.retain(|client, watch| {
            let stays = client.go_on(watch, &mut turn_is_taken, forwarder, now);
            turn_is_taken |= stays && matches!(client.stage, Stage::HasTurn { .. });
            stays
        });
        accepted
    }

    /// When to call [`PortControl::serve`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let deadline = |client: &Client| match client.stage {
            Stage::Waits => None,
            Stage::HasTurn { deadline, .. } | Stage::IsTold { deadline, .. } => Some(deadline),
        };
        self.clients.iter().filter_map(deadline).min()
    }
}

impl Client {
    /// Reads, answers, writes; false when it is done with.
    fn go_on(
        &mut self,
        watch: Watch<'_>,
        turn_is_taken: &mut bool,
        forwarder: &mut impl Forwarder,
        now: Instant,
    ) -> bool {
        if matches!(self.stage, Stage::Waits) {
            if *turn_is_taken {
                return self.is_silent();
            }
            self.stage = Stage::HasTurn {
                unsent: wire::greeting(forwarder.tables()),
                received: Vec::new(),
                deadline: now + PATIENCE,
            };
            watch.wait_for(&self.stream, EventFlags::IN | EventFlags::OUT);
        }
        if let Stage::HasTurn {
            unsent,
            received,
            deadline,
        } = &mut self.stage
        {
            if !unsent.is_empty() && !send(&mut self.stream, unsent) {
                if !unsent.is_empty() {
                    return false;
                }
                watch.wait_for(&self.stream, EventFlags::IN);
            }
            let more = receive(&self.stream, received, MAX_UPDATE);
            let update = match wire::read_update(received) {
                Ok(None) => return matches!(more, Ok(true)) && now < *deadline,
                Ok(Some(tables)) => forwarder.replace(tables),
                Err(error) => Err(error.to_string()),
            };
            let Err(why) = update else {
                return false;
            };
            debug!(%why, "refused new forwarding rules");
            self.stage = Stage::IsTold {
                unsent: why.into_bytes(),
                deadline: now + PATIENCE,
            };
            watch.wait_for(&self.stream, EventFlags::OUT);
        }
        let Stage::IsTold { unsent, deadline } = &mut self.stage else {
            return true;
        };
        send(&mut self.stream, unsent) && now < *deadline
    }

    /// Whether a client that waits has neither gone nor spoken out of turn.
    fn is_silent(&self) -> bool {
        let peeked = recv(
            &self.stream,
            &mut [0u8; 1][..],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        );
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

impl AsFd for PortControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clients.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use portfwd::PortRange;
    use portfwd::forward::PortOption;

    use super::*;

    const NOW: Instant = Instant::ZERO;

    fn later() -> Instant {
        NOW + PATIENCE
    }

    /// Takes every table but one with port 1.
    #[derive(Default)]
    struct Rules {
        tables: Tables,
        replaced: usize,
    }

    impl Forwarder for Rules {
        fn tables(&self) -> &Tables {
            &self.tables
        }

        fn replace(&mut self, tables: Tables) -> Result<(), String> {
            if tables
                .inbound
                .rules()
                .iter()
                .any(|rule| rule.ports.first() == 1)
            {
                return Err("port 1 is taken".to_owned());
            }
            self.tables = tables;
            self.replaced += 1;
            Ok(())
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        control: PortControl,
        rules: Rules,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let control = PortControl::open(&dir.path().join("control")).unwrap();
            Self {
                dir,
                control,
                rules: Rules::default(),
            }
        }

        fn connect(&self) -> UnixStream {
            let client = UnixStream::connect(self.dir.path().join("control")).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        fn serve(&mut self, now: Instant) {
            self.control.serve(&mut self.rules, now).unwrap();
        }
    }

    fn tables(spec: &str) -> Tables {
        let mut tables = Tables::default();
        PortOption::TcpInbound
            .add(spec, PortRange::EPHEMERAL, &mut tables.inbound)
            .unwrap();
        tables
    }

    /// What has come, and whether the end has.
    fn heard(client: &mut UnixStream) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let is_over = client.read_to_end(&mut bytes).is_ok();
        (bytes, is_over)
    }

    #[test]
    fn rules_are_told_and_replaced() {
        let mut place = Place::new();
        let mut client = place.connect();
        place.serve(NOW);
        let (greeting, is_over) = heard(&mut client);
        assert_eq!(wire::read_greeting(&greeting), Ok(Some(Tables::default())));
        assert!(!is_over);
        let update = wire::update(&tables("8080:80"));
        let (head, tail) = update.split_at(30);
        client.write_all(head).unwrap();
        place.serve(NOW);
        assert_eq!(place.rules.replaced, 0);
        client.write_all(tail).unwrap();
        place.serve(NOW);
        assert_eq!(place.rules.tables, tables("8080:80"));
        assert_eq!(heard(&mut client), (Vec::new(), true));
    }

    #[test]
    fn a_client_that_only_looks_changes_nothing() {
        let mut place = Place::new();
        place.rules.tables = tables("80");
        let mut client = place.connect();
        client.shutdown(Shutdown::Write).unwrap();
        place.serve(NOW);
        let (greeting, is_over) = heard(&mut client);
        assert_eq!(wire::read_greeting(&greeting), Ok(Some(tables("80"))));
        assert!(is_over);
        assert_eq!(place.rules.replaced, 0);
    }

    #[test]
    fn who_asks_for_what_cannot_be_is_told_why() {
        let mut place = Place::new();
        for (update, why) in [
            (wire::update(&tables("1")), "port 1 is taken"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no forwarding table 71"),
        ] {
            let mut client = place.connect();
            place.serve(NOW);
            heard(&mut client);
            client.write_all(&update).unwrap();
            place.serve(NOW);
            let (answer, is_over) = heard(&mut client);
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.contains(why) && is_over, "{answer}");
        }
        assert_eq!(place.rules.replaced, 0);
    }

    #[test]
    fn clients_take_turns_and_a_dead_one_has_its_end() {
        let mut place = Place::new();
        let mut first = place.connect();
        let mut second = place.connect();
        let third = place.connect();
        place.serve(NOW);
        assert!(!heard(&mut first).0.is_empty());
        assert_eq!(heard(&mut second), (Vec::new(), false));
        // It goes before it was its turn.
        drop(third);
        place.serve(NOW);
        assert_eq!(place.control.clients.iter().len(), 2);
        assert_eq!(place.control.deadline(), Some(later()));
        place.serve(later());
        assert!(heard(&mut first).1);
        assert!(!heard(&mut second).0.is_empty());
        second.write_all(&wire::update(&tables("80"))).unwrap();
        place.serve(later());
        assert_eq!(place.rules.tables, tables("80"));
        assert_eq!(place.control.deadline(), None);
    }

    #[test]
    fn who_speaks_out_of_turn_is_let_go() {
        let mut place = Place::new();
        let _first = place.connect();
        place.serve(NOW);
        let mut second = place.connect();
        second.write_all(b"x").unwrap();
        place.serve(NOW);
        assert!(heard(&mut second).1 || place.control.clients.iter().len() == 1);
        assert_eq!(place.control.clients.iter().len(), 1);
    }
}
