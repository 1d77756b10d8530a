//! The API socket of slirp4netns, by which callers publish ports while the helper is at work:
//! `add_hostfwd`, `list_hostfwd`, `remove_hostfwd`. Some requests are our own: `list_egress` and
//! `set_egress`; `list_names`, `add_name` and `remove_name`.
//!
//! A connection is one request, one JSON object of less than [`MAX_REQUEST`] bytes, and its answer.
//! A request is answered as soon as it is whole, and at the end of what a client sends. Answers are
//! those of slirp4netns byte for byte, but that a list comes in the form of its manual as well as
//! in that of its program; and addresses may be IPv6. A client delays nobody: it has a deadline,
//! and at most [`MAX_CLIENTS`](super::clients::MAX_CLIENTS) are served at a time.
//!
//! With `add_hostfwd` a client may hand over the port's socket (SCM_RIGHTS), which listens, if it
//! is one of TCP, and does not block. So a port may be bound before there is anybody to serve it.

mod requests;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::epoll::EventFlags;
use tracing::debug;

use self::requests::{BadRequest, Table, first_value};
pub use self::requests::{Forward, Publisher};
use super::SocketFile;
use super::clients::{Clients, Watch, receive_handed, send};
use crate::core::{Duration, Instant};

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot open API socket {path}: {source}")]
pub struct SlirpApiError {
    path: PathBuf,
    source: io::Error,
}

/// Longer requests are refused.
const MAX_REQUEST: usize = 4096;
/// What a client may take for its request, and again for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at a path.
#[derive(Debug)]
pub struct SlirpApi {
    file: SocketFile,
    clients: Clients<Client>,
    table: Table,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    stage: Stage,
    /// What it has handed over.
    socket: Option<OwnedFd>,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    Asks(Vec<u8>),
    IsAnswered(Vec<u8>),
}

impl SlirpApi {
    /// Listens at `path`, in place of whatever is there, with the mode that the umask leaves: all
    /// as slirp4netns does. `guest` has the guest's addresses, the preferred ones first.
    pub fn open(path: &Path, guest: Vec<IpAddr>) -> Result<Self, SlirpApiError> {
        let open = || {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(Self {
                file: SocketFile::of(path)?,
                clients: Clients::new(listener)?,
                table: Table::new(guest),
            })
        };
        open().map_err(|source| SlirpApiError {
            path: path.to_owned(),
            source,
        })
    }

    /// What is left to remove at the end.
    pub fn file(&self) -> SocketFile {
        self.file.clone()
    }

    /// To be called when the descriptor is readable, and at [`SlirpApi::deadline`]. Never waits for
    /// a client.
    ///
    /// Fails when there is no descriptor for a client, who waits: until there is one, the socket
    /// stays readable.
    pub fn serve(&mut self, publisher: &mut impl Publisher, now: Instant) -> io::Result<()> {
        let accepted = self.clients.accept(EventFlags::IN, |stream| {
            Some(Client {
                stream,
                stage: Stage::Asks(Vec::new()),
                socket: None,
                deadline: now + PATIENCE,
            })
        });
        let table = &mut self.table;
        self.clients
            .retain(|client, watch| client.go_on(watch, table, publisher, now));
        accepted
    }

    /// When to call [`SlirpApi::serve`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.deadline).min()
    }
}

impl Client {
    /// Reads, answers, writes; false when it is done with.
    fn go_on(
        &mut self,
        watch: Watch<'_>,
        table: &mut Table,
        publisher: &mut impl Publisher,
        now: Instant,
    ) -> bool {
        if let Stage::Asks(request) = &mut self.stage {
            let more = receive_handed(&self.stream, request, MAX_REQUEST, &mut self.socket);
            let is_late = now >= self.deadline;
            let request = match more {
                Ok(true) if !is_late && request.len() < MAX_REQUEST => match first_value(request) {
                    Some(request) => request,
                    None => return true,
                },
                Ok(_) if request.len() >= MAX_REQUEST => Err(BadRequest::TooLarge),
                Ok(_) => first_value(request).unwrap_or(Err(BadRequest::Unparsable)),
                Err(_) => return false,
            };
            let socket = self.socket.take();
            let answer = request.and_then(|request| table.answer(&request, socket, publisher));
            debug!(?answer, "answered a request for a port");
            self.stage = Stage::IsAnswered(match answer {
                Ok(answer) => answer,
                Err(why) => why.to_json(),
            });
            self.deadline = now + PATIENCE;
            watch.wait_for(&self.stream, EventFlags::OUT);
        }
        let Stage::IsAnswered(unsent) = &mut self.stage else {
            return true;
        };
        send(&mut self.stream, unsent) && now < self.deadline
    }
}

impl AsFd for SlirpApi {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clients.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::mem::MaybeUninit;
    use std::net::Shutdown;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::control::clients::MAX_CLIENTS;
    use crate::core::dns::{HostName, HostNameError, HostNames};
    use crate::core::egress::Egress;

    const NOW: Instant = Instant::ZERO;

    /// Publishes everything but port 1.
    #[derive(Default)]
    struct Ports(Vec<u64>, Egress, HostNames, Vec<OwnedFd>);

    impl Publisher for Ports {
        fn publish(&mut self, id: u64, forward: &Forward, socket: Option<OwnedFd>) -> bool {
            self.0.push(id);
            self.3.extend(socket);
            forward.host.port() != 1
        }

        fn withdraw(&mut self, id: u64) {
            self.0.retain(|published| *published != id);
        }

        fn egress(&self) -> &Egress {
            &self.1
        }

        fn set_egress(&mut self, egress: Egress) {
            self.1 = egress;
        }

        fn names(&self) -> &HostNames {
            &self.2
        }

        fn add_name(&mut self, name: HostName) -> Result<u64, HostNameError> {
            self.2.add(name)
        }

        fn remove_name(&mut self, id: u64) -> bool {
            self.2.remove(id)
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        api: SlirpApi,
        ports: Ports,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let guest = vec!["10.0.2.100".parse().unwrap(), "fd00::100".parse().unwrap()];
            let api = SlirpApi::open(&dir.path().join("api"), guest).unwrap();
            Self {
                dir,
                api,
                ports: Ports::default(),
            }
        }

        fn connect(&self) -> UnixStream {
            UnixStream::connect(self.dir.path().join("api")).unwrap()
        }

        fn serve(&mut self, now: Instant) {
            self.api.serve(&mut self.ports, now).unwrap();
        }

        fn ask(&mut self, request: &[u8]) -> String {
            let mut client = self.connect();
            client.write_all(request).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            self.serve(NOW);
            rest(client)
        }
    }

    fn rest(mut client: UnixStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    fn add(arguments: &str) -> Vec<u8> {
        format!("{{\"execute\":\"add_hostfwd\",\"arguments\":{{{arguments}}}}}").into_bytes()
    }

    #[test]
    fn ports_come_and_go_and_their_ids_are_not_used_again() {
        let mut place = Place::new();
        let tcp = add(r#""proto":"tcp","host_port":8080,"guest_port":80"#);
        assert_eq!(place.ask(&tcp), r#"{"return":{"id":1}}"#);
        let v6 = add(
            r#""proto":"udp","host_addr":"::1","host_port":53,"guest_addr":"","guest_port":5353"#,
        );
        assert_eq!(place.ask(&v6), r#"{"return":{"id":2}}"#);
        let entries = r#"[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80},{"id":2,"proto":"udp","host_addr":"::1","host_port":53,"guest_addr":"fd00::100","guest_port":5353}]"#;
        let list = br#"{"execute":"list_hostfwd"}"#;
        let expected = format!(r#"{{"return":{{"entries":{entries}}},"entries":{entries}}}"#);
        assert_eq!(place.ask(list), expected);
        let remove = br#"{"execute":"remove_hostfwd","arguments":{"id":2}}"#;
        assert_eq!(place.ask(remove), r#"{"return":{}}"#);
        assert_eq!(place.ports.0, [1]);
        assert!(
            place
                .ask(remove)
                .contains("remove_hostfwd: bad arguments.id")
        );
        let taken = add(r#""proto":"tcp","host_port":1,"guest_port":80"#);
        assert!(place.ask(&taken).contains("slirp_add_hostfwd failed"));
        assert_eq!(place.ask(&tcp), r#"{"return":{"id":3}}"#);
    }

    #[test]
    fn a_socket_comes_along_with_the_request() {
        let mut place = Place::new();
        let client = place.connect();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [listener.as_fd(), listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let request = add(r#""proto":"tcp","host_port":8080,"guest_port":80"#);
        let parts = [IoSlice::new(&request)];
        sendmsg(&client, &parts, &mut control, SendFlags::empty()).unwrap();
        place.serve(NOW);
        assert_eq!(rest(client), r#"{"return":{"id":1}}"#);
        // One of the two: a request is about one port.
        let [socket] = &place.ports.3[..] else {
            panic!("{:?}", place.ports.3)
        };
        let bound = rustix::net::getsockname(socket).unwrap();
        let bound = std::net::SocketAddr::try_from(bound).unwrap();
        assert_eq!(bound, listener.local_addr().unwrap());
    }

    #[test]
    fn bad_arguments_are_named_in_the_peers_order() {
        let mut place = Place::new();
        for (arguments, name) in [
            ("", "proto"),
            (r#""proto":"sctp""#, "proto"),
            (r#""proto":"tcp","host_addr":"x""#, "host_addr"),
            (r#""proto":"tcp""#, "host_port"),
            (r#""proto":"tcp","host_port":"80""#, "host_port"),
            (r#""proto":"tcp","host_port":65536"#, "host_port"),
            (
                r#""proto":"tcp","host_port":80,"guest_addr":"x""#,
                "guest_addr",
            ),
            (r#""proto":"tcp","host_port":80"#, "guest_port"),
            (
                r#""proto":"tcp","host_port":80,"guest_port":-1"#,
                "guest_port",
            ),
        ] {
            let answer = place.ask(&add(arguments));
            let expected = format!(
                "{{\"error\":{{\"desc\":\"bad request: add_hostfwd: bad arguments.{name}\"}}}}"
            );
            assert_eq!(answer, expected, "{arguments}");
        }
        assert!(place.ports.0.is_empty());
    }

    #[test]
    fn egress_rules_are_set_and_listed() {
        let mut place = Place::new();
        let set = |rules: &str| {
            format!(r#"{{"execute":"set_egress","arguments":{{"rules":{rules}}}}}"#).into_bytes()
        };
        let list = br#"{"execute":"list_egress"}"#;
        assert_eq!(place.ask(list), r#"{"return":{"rules":[]}}"#);
        let rules = r#"["allow:tcp:[2001:db8::]/32:443","deny"]"#;
        assert_eq!(place.ask(&set(rules)), r#"{"return":{}}"#);
        let listed = format!(r#"{{"return":{{"rules":{rules}}}}}"#);
        assert_eq!(place.ask(list), listed);
        for (bad, why) in [
            (r#""deny""#, "not a list"),
            ("[7]", "not a list"),
            (r#"["deny","x"]"#, r#"\"x\" is not an egress rule"#),
        ] {
            let answer = place.ask(&set(bad));
            assert!(answer.contains(why), "{answer}");
        }
        assert_eq!(place.ask(list), listed);
        assert_eq!(place.ask(&set("[]")), r#"{"return":{}}"#);
        assert_eq!(place.ask(list), r#"{"return":{"rules":[]}}"#);
    }

    #[test]
    fn names_come_and_go_and_are_listed() {
        let mut place = Place::new();
        let list = br#"{"execute":"list_names"}"#;
        assert_eq!(place.ask(list), r#"{"return":{"names":[]}}"#);
        let add = |arguments: &str| {
            format!(r#"{{"execute":"add_name","arguments":{{{arguments}}}}}"#).into_bytes()
        };
        let db =
            add(r#""name":"db","addresses":["10.89.0.5","fd89::5"],"networks":["10.89.0.0/24"]"#);
        assert_eq!(place.ask(&db), r#"{"return":{"id":1}}"#);
        let web = add(r#""name":"web","addresses":["10.89.0.6"]"#);
        assert_eq!(place.ask(&web), r#"{"return":{"id":2}}"#);
        let remove = br#"{"execute":"remove_name","arguments":{"id":2}}"#;
        assert_eq!(place.ask(remove), r#"{"return":{}}"#);
        assert!(place.ask(remove).contains("remove_name: bad arguments.id"));
        let left = r#"{"return":{"names":[{"addresses":["10.89.0.5","fd89::5"],"id":1,"name":"db","networks":["10.89.0.0/24"]}]}}"#;
        assert_eq!(place.ask(list), left);
        for (bad, why) in [
            (
                r#""addresses":["10.0.0.1"]"#,
                "add_name: bad arguments.name",
            ),
            (r#""name":"a b","addresses":["10.0.0.1"]"#, "arguments.name"),
            (
                r#""name":"a","addresses":"10.0.0.1""#,
                "arguments.addresses",
            ),
            (r#""name":"a","addresses":["x"]"#, "arguments.addresses"),
            (r#""name":"a","addresses":[]"#, "has no address"),
            (
                r#""name":"a","addresses":["10.0.0.1"],"networks":["10.0.0.1/8"]"#,
                "arguments.networks",
            ),
        ] {
            let answer = place.ask(&add(bad));
            assert!(answer.contains(why), "{bad}: {answer}");
        }
        assert_eq!(place.ask(list), left);
    }

    #[test]
    fn a_request_is_answered_as_soon_as_it_is_whole() {
        let mut place = Place::new();
        let mut client = place.connect();
        client.write_all(br#"{"execute":"#).unwrap();
        place.serve(NOW);
        assert_eq!(place.api.clients.iter().len(), 1);
        client.write_all(br#""list_hostfwd"}"#).unwrap();
        place.serve(NOW);
        assert!(rest(client).starts_with(r#"{"return":{"entries":[]}"#));
        assert_eq!(place.api.clients.iter().len(), 0);
    }

    #[test]
    fn slow_and_many_clients_delay_nobody() {
        let mut place = Place::new();
        let slow: Vec<_> = (0..MAX_CLIENTS + 1).map(|_| place.connect()).collect();
        place.serve(NOW);
        assert_eq!(place.api.clients.iter().len(), MAX_CLIENTS);
        assert_eq!(place.api.deadline(), Some(NOW + PATIENCE));
        place.serve(NOW + PATIENCE);
        place.serve(NOW + PATIENCE);
        assert_eq!(place.api.clients.iter().len(), 1);
        let text = rest(slow.into_iter().next().unwrap());
        assert!(text.contains("cannot parse JSON"), "{text}");
    }

    #[test]
    fn garbage_is_refused() {
        let mut place = Place::new();
        for (request, why) in [
            (&b""[..], "cannot parse JSON"),
            (b"x", "cannot parse JSON"),
            (b"{\"execute\"", "cannot parse JSON"),
            (&[b'['; 3000], "cannot parse JSON"),
            (&[b'y'; MAX_REQUEST - 1], "cannot parse JSON"),
            (&[b'y'; MAX_REQUEST], "too large message"),
            (b"[]", "json_object() failed"),
            (b"{}", "no execute found"),
            (b"{\"execute\":7}", "no execute found"),
            (b"{\"execute\":\"\xff\"}", "unknown execute"),
        ] {
            let expected = format!("{{\"error\":{{\"desc\":\"bad request: {why}\"}}}}");
            assert_eq!(place.ask(request), expected, "{request:?}");
        }
        let with_more = b"{\"execute\":\"list_hostfwd\"}\0more";
        assert!(place.ask(with_more).contains("entries"));
    }
}
