//! The embedded image's web server, spoken to over real connections as a stranger would. It runs
//! outside any container, with a network helper that the test plays.
//!
//! The unit tests of its parts run here as well, since the server is no crate of its own.

#[allow(dead_code, reason = "its main function is called by nobody here")]
#[path = "../image/hello/main.rs"]
mod hello;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hello::json::Value;

/// No answer takes nearly as long; it only ends a test that would otherwise hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of its own for each test, on a port of its own.
struct Server {
    process: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(status_socket: &Path) -> Self {
        let mut process = Command::new(env!("CORACLE_HELLO"))
            .arg("127.0.0.1:0")
            .arg(status_socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        Self { process, addr }
    }

    fn without_helper() -> Self {
        Self::start(Path::new("/nonexistent/status.sock"))
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            reader: BufReader::new(stream),
        }
    }

    fn end_with(mut self, signal: nix::sys::signal::Signal) -> ExitStatus {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.id() as i32), signal)
            .unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when the test has ended it, which is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        Value::parse(self.text()).unwrap()
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response()
    }

    fn response(&mut self) -> Response {
        let mut response = self.head();
        let len = response.header("content-length").unwrap().parse().unwrap();
        response.body.resize(len, 1);
        self.reader.read_exact(&mut response.body).unwrap();
        response
    }

    /// A response up to its body.
    fn head(&mut self) -> Response {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(
                self.reader.read_line(&mut line).unwrap() > 0,
                "the server has closed the connection"
            );
            match line.strip_suffix("\r\n").expect("lines end in CRLF") {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].strip_prefix("HTTP/1.1 ").unwrap()[..3]
            .parse()
            .unwrap();
        let header = |line: &String| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Response {
            status,
            headers: lines[1..].iter().map(header).collect(),
            body: Vec::new(),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.reader.get_ref().local_addr().unwrap()
    }

    /// Asserts that nothing more comes, and that the connection was closed and not reset.
    fn assert_closed(mut self) {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn serves_the_page_on_one_connection_again_and_again() {
    let server = Server::without_helper();
    let mut client = server.connect();
    for _ in 0..3 {
        let page = client.get("/");
        assert_eq!(
            (page.status, page.header("connection")),
            (200, Some("keep-alive"))
        );
        assert_eq!(
            page.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert!(page.header("date").unwrap().ends_with(" GMT"));
        assert!(
            page.text().starts_with("<!doctype html>")
                && page.text().trim_end().ends_with("</html>")
        );
        assert!(page.text().contains(&client.addr().port().to_string()));
        assert!(page.text().contains("Network helper: not available."));
    }
    let facts = client.get("/status.json").json();
    assert_eq!(facts.get("server").unwrap().u64("requests"), Some(4));
    assert_eq!(facts.get("server").unwrap().u64("connections"), Some(1));
    assert_eq!(
        facts.get("client").unwrap().u64("port"),
        Some(client.addr().port().into())
    );
    assert_eq!(facts.get("network"), Some(&Value::Null));
    let hostname = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(facts.str("hostname"), Some(hostname.as_str()));
    assert!(!facts.elements("uid_map").is_empty() && !facts.elements("gid_map").is_empty());
}

#[test]
fn answers_requests_that_were_sent_ahead_and_in_pieces() {
    let server = Server::without_helper();
    let mut client = server.connect();
    client.send("GET /download?bytes=3 HTTP/1.1\r\nHost: test\r\n\r\n\r\nHEAD / HTTP/1.1\nHost: test\n\nGET /nothing HT");
    assert_eq!(client.response().body, [0, 0, 0]);
    let head = client.head();
    assert_eq!(head.status, 200);
    assert!(
        head.header("content-length")
            .unwrap()
            .parse::<usize>()
            .unwrap()
            > 1000
    );
    for byte in "TP/1.1\r\nHost: test\r\n\r\n".bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().status, 404);
}

#[test]
fn downloads_as_much_as_is_asked_for() {
    let server = Server::without_helper();
    let mut client = server.connect();
    for len in [0, 1, 300_000] {
        let response = client.get(&format!("/download?bytes={len}"));
        assert_eq!(response.status, 200);
        assert!(response.body.len() == len && response.body.iter().all(|&byte| byte == 0));
    }
    assert_eq!(
        client
            .get("/status.json")
            .json()
            .get("server")
            .unwrap()
            .u64("bytes_sent"),
        Some(300_001)
    );
    for wrong in ["-1", "", "many", "10737418241", "99999999999999999999"] {
        assert_eq!(
            client.get(&format!("/download?bytes={wrong}")).status,
            400,
            "{wrong}"
        );
    }
    client.send("HEAD /download HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().header("content-length"), Some("1073741824"));
    // Who stops reading is no problem for the next one.
    client.send("GET /download HTTP/1.1\r\nHost: test\r\n\r\n");
    drop(client);
    assert_eq!(server.connect().get("/").status, 200);
}

#[test]
fn refuses_and_then_closes() {
    let server = Server::without_helper();
    let long = "x".repeat(9000);
    for (request, status) in [
        ("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello".to_owned(), 405),
        ("PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(), 405),
        ("DELETE / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(), 405),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/3.0\r\nHost: test\r\n\r\n".to_owned(), 505),
        (format!("GET / HTTP/1.1\r\nHost: test\r\nCookie: {long}\r\n\r\n"), 431),
    ] {
        let mut client = server.connect();
        client.send(&request);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (status, Some("close")), "{request}");
        assert_eq!(response.header("allow").is_some(), status == 405);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        client.assert_closed();
    }
}

#[test]
fn closes_when_asked_to() {
    let server = Server::without_helper();
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(request);
        assert_eq!(client.response().header("connection"), Some("close"));
        client.assert_closed();
    }
    let client = server.connect();
    client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    client.assert_closed();
}

#[test]
fn tells_which_path_carries_the_visitor() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("status.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = Server::start(&socket);
    let (add_client, clients) = mpsc::channel::<SocketAddr>();
    // Ends with the test's process; a server that asks after that gets no answer, like from a
    // helper that died.
    thread::spawn(move || {
        let mut flows = Vec::new();
        for stream in listener.incoming() {
            flows.extend(clients.try_iter().map(|client| {
                format!(r#"{{"protocol":"tcp","initiator":"host","guest":"10.0.2.100:8080","remote":"{client}","path":"kernel"}}"#)
            }));
            let document = format!(
                r#"{{"version":"0.1.0","guest":["10.0.2.100"],"connections_total":41,"bytes_to_guest":1000,
                    "bytes_from_guest":2000000,"flows":[{}]}}"#,
                flows.join(",")
            );
            stream.unwrap().write_all(document.as_bytes()).unwrap();
        }
    });

    let mut client = server.connect();
    add_client.send(client.addr()).unwrap();
    let facts = client.get("/status.json").json();
    let network = facts.get("network").unwrap();
    assert_eq!(
        (network.str("path"), network.u64("connections_total")),
        (Some("kernel"), Some(41))
    );
    assert_eq!(
        (network.u64("in_engine"), network.u64("in_kernel")),
        (Some(0), Some(1))
    );
    let page = client.get("/");
    assert!(page.text().contains("data-path=\"kernel\"") && page.text().contains("2.00 MB"));
    // Another visitor's connection is not in the document.
    assert!(
        server
            .connect()
            .get("/")
            .text()
            .contains("data-path=\"unknown\"")
    );
}

#[test]
fn turns_away_more_clients_than_it_has_places_for() {
    let server = Server::without_helper();
    // Each place is taken for certain once its client has been answered.
    let mut clients: Vec<Client> = Vec::new();
    let busy = loop {
        let mut client = server.connect();
        client.send("HEAD /download HTTP/1.1\r\nHost: test\r\n\r\n");
        let response = client.head();
        if response.status != 200 {
            break response;
        }
        clients.push(client);
        assert!(clients.len() <= hello::MAX_CONNECTIONS);
    };
    assert_eq!((busy.status, clients.len()), (503, hello::MAX_CONNECTIONS));
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert_eq!(
        clients[0].get("/").status,
        200,
        "those who have a place keep it"
    );
}

#[test]
fn ends_at_once_when_told_to() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    for signal in [SIGTERM, SIGINT] {
        let server = Server::without_helper();
        let _client = server.connect();
        assert_eq!(server.end_with(signal).code(), Some(0));
    }
}
