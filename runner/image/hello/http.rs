//! HTTP/1.1 (RFC 9112) as far as a few small resources need it: GET and HEAD, persistent
//! connections, no request bodies.
//!
//! A request that has a body, or cannot be understood, is answered and the connection closed after
//! it, so nothing is ever read from a place in the stream that the client meant otherwise.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Largest request line and header fields, in bytes.
const MAX_HEAD_LEN: usize = 8 * 1024;

/// How long a connection may be idle between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a request may take from its first byte to the end of its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the client may take none of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// The zeros that downloads are made of.
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub path: String,
    /// What follows the first `?`, if there is one.
    pub query: Option<String>,
    /// Whether the client may send another request.
    pub keep_alive: bool,
}

impl Request {
    /// The value of the first query parameter of this name, as it was sent.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let parameters = self.query.as_deref()?.split('&');
        parameters
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Reads a request's head, up to and without the empty line.
    fn parse(head: &[u8]) -> Result<Self, Refusal> {
        let head = str::from_utf8(head).map_err(|_| Refusal::BadRequest)?;
        let mut lines = head
            .split('\n')
            .map(|line| line.strip_suffix('\r').unwrap_or(line));
        let mut request_line = lines.next().unwrap_or("").split(' ');
        let (Some(method), Some(target), Some(version), None) = (
            request_line.next(),
            request_line.next(),
            request_line.next(),
            request_line.next(),
        ) else {
            return Err(Refusal::BadRequest);
        };
        let mut keep_alive = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ if version.starts_with("HTTP/") => return Err(Refusal::VersionNotSupported),
            _ => return Err(Refusal::BadRequest),
        };
        let mut hosts = 0;
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(Refusal::BadRequest)?;
            // RFC 9112 5.1: no space before the colon, and folded lines are obsolete.
            if !is_token(name) {
                return Err(Refusal::BadRequest);
            }
            let value = value.trim_matches([' ', '\t']);
            match name.to_ascii_lowercase().as_str() {
                "host" => hosts += 1,
                "connection" => {
                    let has = |option: &str| {
                        value
                            .split(',')
                            .any(|token| token.trim().eq_ignore_ascii_case(option))
                    };
                    if has("close") {
                        keep_alive = false;
                    } else if has("keep-alive") {
                        keep_alive = true;
                    }
                }
                "content-length" if value == "0" => {}
                "content-length" | "transfer-encoding" => return Err(Refusal::BodyNotWanted),
                _ => {}
            }
        }
        // RFC 9112 3.2: exactly one Host, and that in HTTP/1.1 always.
        if hosts > 1 || (hosts == 0 && version == "HTTP/1.1") {
            return Err(Refusal::BadRequest);
        }
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            other if is_token(other) => return Err(Refusal::MethodNotAllowed),
            _ => return Err(Refusal::BadRequest),
        };
        let (path, query) = split_target(target).ok_or(Refusal::BadRequest)?;
        Ok(Self {
            method,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            keep_alive,
        })
    }
}

/// Path and query of a request target in origin or absolute form (RFC 9112 3.2).
fn split_target(target: &str) -> Option<(&str, Option<&str>)> {
    if target.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return None;
    }
    let origin_form = match target.strip_prefix("http://") {
        Some(rest) => rest
            .find(['/', '?'])
            .map_or("/", |path_begins| &rest[path_begins..]),
        None if target.starts_with('/') => target,
        None => return None,
    };
    match origin_form.split_once('?') {
        Some(("", query)) => Some(("/", Some(query))),
        Some((path, query)) => Some((path, Some(query))),
        None => Some((origin_form, None)),
    }
}

/// RFC 9110 5.6.2: what methods and field names are made of.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    Timeout,
    BodyNotWanted,
    HeadTooLarge,
    Busy,
    VersionNotSupported,
}

impl Refusal {
    fn status(self) -> Status {
        match self {
            Self::BadRequest => Status(400, "Bad Request"),
            Self::NotFound => Status(404, "Not Found"),
            // A method that would have a body is not allowed either, whatever its name.
            Self::MethodNotAllowed | Self::BodyNotWanted => Status(405, "Method Not Allowed"),
            Self::Timeout => Status(408, "Request Timeout"),
            Self::HeadTooLarge => Status(431, "Request Header Fields Too Large"),
            Self::Busy => Status(503, "Service Unavailable"),
            Self::VersionNotSupported => Status(505, "HTTP Version Not Supported"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status(u16, &'static str);

/// What a client gets.
#[derive(Debug)]
pub struct Answer {
    status: Status,
    content_type: &'static str,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Text(Cow<'static, str>),
    Zeros(u64),
}

impl Answer {
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self {
            status: Status(200, "OK"),
            content_type,
            body: Body::Text(text.into()),
        }
    }

    /// So many bytes of nothing.
    pub fn zeros(len: u64) -> Self {
        Self {
            status: Status(200, "OK"),
            content_type: "application/octet-stream",
            body: Body::Zeros(len),
        }
    }

    pub fn refusal(refusal: Refusal, explanation: &'static str) -> Self {
        let status = refusal.status();
        let text = if explanation.is_empty() {
            format!("{} {}\n", status.0, status.1).into()
        } else {
            explanation.into()
        };
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: Body::Text(text),
        }
    }

    fn body_len(&self) -> u64 {
        match &self.body {
            Body::Text(text) => text.len() as u64,
            Body::Zeros(len) => *len,
        }
    }

    fn head(&self, keep_alive: bool) -> String {
        let Status(code, reason) = self.status;
        let allow = if code == 405 {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let retry = if code == 503 {
            "Retry-After: 1\r\n"
        } else {
            ""
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {code} {reason}\r\n\
             Date: {}\r\n\
             Server: coracle-hello\r\n\
             Content-Type: {}\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
             img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
             {allow}{retry}Connection: {connection}\r\n\r\n",
            http_date(SystemTime::now()),
            self.content_type,
            self.body_len(),
        )
    }
}

/// One client, from its first request to its last.
pub struct Connection {
    stream: TcpStream,
    /// What was received and not yet understood: part of a head, or requests sent ahead.
    received: Vec<u8>,
    /// Whether the last answer left the connection open.
    is_open: bool,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        // Answers are written in one piece, so there is nothing to gain from holding back segments.
        // Both fail only for a connection that is gone, which reading will notice.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        Self {
            stream,
            received: Vec::new(),
            is_open: true,
        }
    }

    /// Waits for a request; `None` once there will be no more.
    pub fn next_request(&mut self) -> io::Result<Option<Result<Request, Refusal>>> {
        if !self.is_open {
            return Ok(None);
        }
        let mut deadline = Instant::now()
            + if self.received.is_empty() {
                IDLE_TIMEOUT
            } else {
                HEAD_TIMEOUT
            };
        loop {
            // RFC 9112 2.2: empty lines before a request are to be ignored.
            let blank = self
                .received
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                .count();
            self.received.drain(..blank);
            if let Some((head_len, end_len)) = find_end_of_head(&self.received) {
                let request = Request::parse(&self.received[..head_len]);
                self.received.drain(..head_len + end_len);
                return Ok(Some(request));
            }
            if self.received.len() >= MAX_HEAD_LEN {
                return Ok(Some(Err(Refusal::HeadTooLarge)));
            }
            let had_begun = !self.received.is_empty();
            match self.receive(deadline) {
                Ok(0) => return Ok(None),
                Ok(_) if !had_begun => deadline = Instant::now() + HEAD_TIMEOUT,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(had_begun.then_some(Err(Refusal::Timeout)));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut block = [0; 4096];
        let room = (MAX_HEAD_LEN - self.received.len()).min(block.len());
        loop {
            match self.stream.read(&mut block[..room]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(len) => {
                    self.received.extend_from_slice(&block[..len]);
                    return Ok(len);
                }
            }
        }
    }

    /// Sends the answer to `request`, which is `None` when it could not be understood. Returns the
    /// bytes of the body that went out.
    pub fn send(&mut self, request: Option<&Request>, answer: Answer) -> io::Result<u64> {
        self.is_open = request.is_some_and(|request| request.keep_alive);
        let mut message = answer.head(self.is_open).into_bytes();
        if request.is_some_and(|request| request.method == Method::Head) {
            self.stream.write_all(&message)?;
            return Ok(0);
        }
        match &answer.body {
            Body::Text(text) => {
                message.extend_from_slice(text.as_bytes());
                self.stream.write_all(&message)?;
            }
            Body::Zeros(len) => {
                self.stream.write_all(&message)?;
                let mut left = *len;
                while left > 0 {
                    let piece = left.min(ZEROS.len() as u64);
                    self.stream.write_all(&ZEROS[..piece as usize])?;
                    left -= piece;
                }
            }
        }
        Ok(answer.body_len())
    }

    /// Ends the connection so that the client gets the last answer: what it sent beyond its request
    /// is read away first, as closing a socket with unread data resets it (RFC 9112 9.6).
    pub fn close(mut self) {
        const MAX_DISCARDED: usize = 256 * 1024;
        const PATIENCE: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + PATIENCE;
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut discarded = 0;
        while discarded < MAX_DISCARDED {
            self.received.clear();
            match self.receive(deadline) {
                Ok(0) | Err(_) => return,
                Ok(len) => discarded += len,
            }
        }
    }
}

/// Tells a client for whom there is no place to come back, without waiting for what it wanted.
pub fn turn_away(mut stream: TcpStream) {
    let answer = Answer::refusal(
        Refusal::Busy,
        "all places are taken, please come back in a moment\n",
    );
    let mut message = answer.head(false).into_bytes();
    if let Body::Text(text) = &answer.body {
        message.extend_from_slice(text.as_bytes());
    }
    // A new connection has room for so little. What it asks for has mostly come with it; left
    // unread, it would turn the end of the connection into a reset, which may overtake the answer.
    let _ = stream.set_nonblocking(true);
    let _ = stream.read(&mut [0; MAX_HEAD_LEN]);
    let _ = stream.write_all(&message);
}

/// Where the head ends, and the length of the end itself. RFC 9112 2.2 lets a line end in LF alone.
fn find_end_of_head(received: &[u8]) -> Option<(usize, usize)> {
    received
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .find_map(|(index, _)| {
            let after = &received[index + 1..];
            let end_len = if after.starts_with(b"\n") {
                2
            } else if after.starts_with(b"\r\n") {
                3
            } else {
                return None;
            };
            let has_cr = received[..index].ends_with(b"\r");
            Some((index - usize::from(has_cr), end_len + usize::from(has_cr)))
        })
}

/// RFC 9110 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(time: SystemTime) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = WEEKDAYS[(day % 7) as usize];
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let days_in = |month: usize| MONTHS[month].1 + u64::from(month == 1 && is_leap(year));
    while day >= days_in(month) {
        day -= days_in(month);
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{weekday}, {:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT",
        day + 1,
        MONTHS[month].0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Request, Refusal> {
        Request::parse(head.as_bytes())
    }

    #[test]
    fn reads_requests() {
        let request =
            parse("GET /download?a&bytes=10&bytes=20 HTTP/1.1\r\nHost: x\r\nAccept:*/*").unwrap();
        assert_eq!(
            (request.method, request.path.as_str(), request.keep_alive),
            (Method::Get, "/download", true)
        );
        assert_eq!(
            (
                request.parameter("bytes"),
                request.parameter("a"),
                request.parameter("b")
            ),
            (Some("10"), None, None)
        );

        let keep_alive = |head| parse(head).unwrap().keep_alive;
        assert!(!keep_alive("HEAD / HTTP/1.0"));
        assert!(keep_alive("HEAD / HTTP/1.0\nConnection: Keep-Alive"));
        assert!(!keep_alive(
            "HEAD / HTTP/1.1\r\nhost: x\r\nCONNECTION: upgrade, Close"
        ));
        assert!(keep_alive("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0"));
    }

    #[test]
    fn reads_targets_in_both_forms() {
        for (target, path, query) in [
            ("/", "/", None),
            ("/a?", "/a", Some("")),
            ("/a?b?c", "/a", Some("b?c")),
            ("http://host:80/a", "/a", None),
            ("http://host", "/", None),
            ("http://host?q", "/", Some("q")),
        ] {
            assert_eq!(split_target(target), Some((path, query)), "{target}");
        }
        for wrong in ["", "*", "a", "host:443", "https://host/", "/a\u{7f}", "/é"] {
            assert_eq!(split_target(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_understand_or_want() {
        for (head, refusal) in [
            ("", Refusal::BadRequest),
            ("GET /", Refusal::BadRequest),
            ("GET  / HTTP/1.1", Refusal::BadRequest),
            ("GET / HTTP/1.1", Refusal::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b", Refusal::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded", Refusal::BadRequest),
            ("GET / HTTP/1.1\r\nHost : a", Refusal::BadRequest),
            ("GET / ICY/1.1\r\nHost: a", Refusal::BadRequest),
            ("G\u{e9}T / HTTP/1.1\r\nHost: a", Refusal::BadRequest),
            ("GET / HTTP/2.0\r\nHost: a", Refusal::VersionNotSupported),
            ("DELETE / HTTP/1.1\r\nHost: a", Refusal::MethodNotAllowed),
            ("get / HTTP/1.1\r\nHost: a", Refusal::MethodNotAllowed),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5",
                Refusal::BodyNotWanted,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked",
                Refusal::BodyNotWanted,
            ),
        ] {
            assert_eq!(parse(head), Err(refusal), "{head:?}");
        }
        assert_eq!(
            Request::parse(b"GET /\xff HTTP/1.1"),
            Err(Refusal::BadRequest)
        );
    }

    #[test]
    fn finds_the_end_of_a_head_however_lines_end() {
        assert_eq!(find_end_of_head(b"a\r\nb\r\n\r\nrest"), Some((4, 4)));
        assert_eq!(find_end_of_head(b"a\nb\n\nrest"), Some((3, 2)));
        assert_eq!(find_end_of_head(b"a\n\r\n"), Some((1, 3)));
        assert_eq!(find_end_of_head(b"a\r\n\n"), Some((1, 3)));
        for unfinished in [&b""[..], b"a", b"a\r\n", b"a\r\n\r", b"a\r\nb\r\n"] {
            assert_eq!(find_end_of_head(unfinished), None);
        }
    }

    #[test]
    fn prints_dates_as_http_wants_them() {
        let date = |seconds| http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(date(1_795_305_599), "Sat, 21 Nov 2026 23:59:59 GMT");
    }
}
