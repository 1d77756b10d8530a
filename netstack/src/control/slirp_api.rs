//! The API socket of slirp4netns, by which callers publish ports while the helper is at work:
//! `add_hostfwd`, `list_hostfwd`, `remove_hostfwd`. Two requests are our own: `list_egress` and
//! `set_egress`.
//!
//! A connection is one request, one JSON object of less than [`MAX_REQUEST`] bytes, and its answer.
//! A request is answered as soon as it is whole, and at the end of what a client sends. Answers are
//! those of slirp4netns byte for byte, but that a list comes in the form of its manual as well as
//! in that of its program; and addresses may be IPv6. A client delays nobody: it has a deadline,
//! and at most [`MAX_CLIENTS`](super::clients::MAX_CLIENTS) are served at a time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use portfwd::Protocol;
use rustix::event::epoll::EventFlags;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::debug;

use super::SocketFile;
use super::clients::{Clients, Watch, receive, send};
use crate::core::egress::{Egress, EgressError, EgressRule};
use crate::core::{Duration, Instant};

/// A published port, as clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: SocketAddr,
    pub guest: SocketAddr,
}

/// Who carries out what clients ask for.
pub trait Publisher {
    /// Whether `forward` could be published; `id` names it from then on.
    fn publish(&mut self, id: u64, forward: &Forward) -> bool;

    fn withdraw(&mut self, id: u64);

    /// The rules that the guest is held to.
    fn egress(&self) -> &Egress;

    /// What the guest has open must obey the new rules, too.
    fn set_egress(&mut self, egress: Egress);
}

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

/// The published ports, and what requests do to them.
#[derive(Debug)]
struct Table {
    forwards: BTreeMap<u64, Forward>,
    /// Ids count up from 1 and are not used again.
    last_id: u64,
    /// The guest's addresses, IPv4 first.
    guest: Vec<IpAddr>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    stage: Stage,
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
                table: Table {
                    forwards: BTreeMap::new(),
                    last_id: 0,
                    guest,
                },
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
            let more = receive(&mut self.stream, request, MAX_REQUEST);
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
            let answer = request.and_then(|request| table.answer(&request, publisher));
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

impl Table {
    fn answer(
        &mut self,
        request: &Value,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let request = request.as_object().ok_or(BadRequest::NoObject)?;
        let execute = request.get("execute").and_then(Value::as_str);
        let arguments = request.get("arguments").unwrap_or(&Value::Null);
        match execute.ok_or(BadRequest::NoExecute)? {
            "add_hostfwd" => self.add(arguments, publisher),
            "list_hostfwd" => Ok(self.list()),
            "remove_hostfwd" => self.remove(arguments, publisher),
            "list_egress" => Ok(list_egress(publisher.egress())),
            "set_egress" => {
                publisher.set_egress(parse_egress(arguments)?);
                Ok(b"{\"return\":{}}".to_vec())
            }
            _ => Err(BadRequest::UnknownExecute),
        }
    }

    fn add(
        &mut self,
        arguments: &Value,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let forward = self.forward(arguments)?;
        let id = self.last_id + 1;
        if !publisher.publish(id, &forward) {
            return Err(BadRequest::NotPublished);
        }
        self.last_id = id;
        self.forwards.insert(id, forward);
        Ok(format!("{{\"return\":{{\"id\":{id}}}}}").into_bytes())
    }

    fn forward(&self, arguments: &Value) -> Result<Forward, BadRequest> {
        let protocol = match arguments["proto"].as_str() {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            _ => return Err(BadRequest::Argument("proto")),
        };
        let address = |key, default| match arguments[key].as_str() {
            None | Some("") => Ok(default),
            Some(text) => text.parse().map_err(|_| BadRequest::Argument(key)),
        };
        let port = |key| {
            let number = arguments[key].as_f64();
            let number = number.filter(|number| (1.0..65536.0).contains(number));
            number
                .map(|number| number as u16)
                .ok_or(BadRequest::Argument(key))
        };
        let host = SocketAddr::new(
            address("host_addr", Ipv4Addr::UNSPECIFIED.into())?,
            port("host_port")?,
        );
        let guest = SocketAddr::new(
            self.guest_address(arguments, host.ip())?,
            port("guest_port")?,
        );
        Ok(Forward {
            protocol,
            host,
            guest,
        })
    }

    /// The one that is asked for, or the guest's own of the family of `host` if it has such.
    fn guest_address(&self, arguments: &Value, host: IpAddr) -> Result<IpAddr, BadRequest> {
        const KEY: &str = "guest_addr";
        let has_family = |like: IpAddr| {
            self.guest
                .iter()
                .find(|own| own.is_ipv4() == like.is_ipv4())
        };
        let asked = match arguments[KEY].as_str() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| BadRequest::Argument(KEY))?),
        };
        match asked.filter(|ip: &IpAddr| !ip.is_unspecified()) {
            Some(ip) if has_family(ip).is_some() => Ok(ip),
            Some(_) => Err(BadRequest::Argument(KEY)),
            None => {
                let own = has_family(host).or(self.guest.first()).copied();
                own.ok_or(BadRequest::Argument(KEY))
            }
        }
    }

    fn list(&self) -> Vec<u8> {
        let entries: Vec<Entry> = self.forwards.iter().map(Entry::of).collect();
        let list = List {
            of_the_manual: Entries { entries: &entries },
            of_the_program: Entries { entries: &entries },
        };
        serde_json::to_vec(&list).expect("only maps with odd keys cannot be written")
    }

    fn remove(
        &mut self,
        arguments: &Value,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let id = arguments["id"].as_f64().unwrap_or_default() as u64;
        if self.forwards.remove(&id).is_none() {
            return Err(BadRequest::NoSuchId);
        }
        publisher.withdraw(id);
        Ok(b"{\"return\":{}}".to_vec())
    }
}

fn list_egress(egress: &Egress) -> Vec<u8> {
    let rules: Vec<String> = egress.rules().iter().map(EgressRule::to_string).collect();
    json!({"return": {"rules": rules}}).to_string().into_bytes()
}

fn parse_egress(arguments: &Value) -> Result<Egress, BadRequest> {
    let rules = arguments["rules"].as_array().ok_or(BadRequest::Rules)?;
    let rules = rules
        .iter()
        .map(|rule| Ok(rule.as_str().ok_or(BadRequest::Rules)?.parse()?))
        .collect::<Result<_, BadRequest>>()?;
    Ok(Egress::new(rules)?)
}

impl AsFd for SlirpApi {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clients.as_fd()
    }
}

/// As a list shows it; the order of fields is the peer's.
#[derive(Serialize)]
struct Entry {
    id: u64,
    proto: String,
    host_addr: IpAddr,
    host_port: u16,
    guest_addr: IpAddr,
    guest_port: u16,
}

impl Entry {
    fn of((id, forward): (&u64, &Forward)) -> Self {
        Self {
            id: *id,
            proto: forward.protocol.to_string(),
            host_addr: forward.host.ip(),
            host_port: forward.host.port(),
            guest_addr: forward.guest.ip(),
            guest_port: forward.guest.port(),
        }
    }
}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Entry],
}

#[derive(Serialize)]
struct List<'a> {
    #[serde(rename = "return")]
    of_the_manual: Entries<'a>,
    #[serde(flatten)]
    of_the_program: Entries<'a>,
}

/// Why a request was not carried out, in words that clients compare.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum BadRequest {
    #[error("too large message")]
    TooLarge,
    #[error("cannot parse JSON")]
    Unparsable,
    #[error("json_object() failed")]
    NoObject,
    #[error("no execute found")]
    NoExecute,
    #[error("unknown execute")]
    UnknownExecute,
    #[error("add_hostfwd: bad arguments.{0}")]
    Argument(&'static str),
    #[error("add_hostfwd: slirp_add_hostfwd failed")]
    NotPublished,
    #[error("remove_hostfwd: bad arguments.id")]
    NoSuchId,
    #[error("set_egress: bad arguments.rules: it is not a list of texts")]
    Rules,
    #[error("set_egress: bad arguments.rules: {0}")]
    Rule(#[from] EgressError),
}

impl BadRequest {
    fn to_json(&self) -> Vec<u8> {
        let desc = format!("bad request: {self}");
        json!({"error": {"desc": desc}}).to_string().into_bytes()
    }
}

/// The JSON value that `request` begins with; `None` if it is not whole yet. What comes behind a
/// value, or a NUL, does not count.
fn first_value(request: &[u8]) -> Option<Result<Value, BadRequest>> {
    let end = request.iter().position(|byte| *byte == 0);
    let is_ended = end.is_some();
    let text = String::from_utf8_lossy(&request[..end.unwrap_or(request.len())]);
    let mut values = serde_json::Deserializer::from_str(&text).into_iter();
    match values.next() {
        Some(Ok(value)) => Some(Ok(value)),
        Some(Err(error)) if !error.is_eof() || is_ended => Some(Err(BadRequest::Unparsable)),
        None if is_ended => Some(Err(BadRequest::Unparsable)),
        None | Some(Err(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use super::*;
    use crate::control::clients::MAX_CLIENTS;

    const NOW: Instant = Instant::ZERO;

    /// Publishes everything but port 1.
    #[derive(Default)]
    struct Ports(Vec<u64>, Egress);

    impl Publisher for Ports {
        fn publish(&mut self, id: u64, forward: &Forward) -> bool {
            self.0.push(id);
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
