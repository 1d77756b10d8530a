//! A registry that does what a case wants: it serves one image over plain HTTP, and can be told to
//! break off, to lie, or to ask for a password.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::recipe::{Packed, Recipe, digest};

/// What a request is answered with.
#[derive(Clone, Default)]
pub struct Answers {
    /// By path, `/v2/...`: media type and content.
    files: HashMap<String, (String, Vec<u8>)>,
    /// Blobs are cut after so many bytes of each answer.
    pub cut_after: Option<usize>,
    /// Parts are not sent: a request for one gets the whole.
    pub no_parts: bool,
    /// `Basic` credentials that every request needs, or the one for a token.
    pub password: Option<String>,
    /// Every request needs this token, which is got from the same server.
    pub token: Option<&'static str>,
    /// Answers everything with this status.
    pub status: Option<(u16, &'static str)>,
}

pub struct Server {
    address: String,
    pub answers: Arc<Mutex<Answers>>,
    /// Every request's line, with its range.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves an image as `team/app:1`.
    pub fn start(image: &Recipe) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("bound").to_string(),
            answers: Arc::default(),
            requests: Arc::default(),
        };
        server.serve_image(image);
        let (answers, requests) = (Arc::clone(&server.answers), Arc::clone(&server.requests));
        // Ends with the trial's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, requests) = (Arc::clone(&answers), Arc::clone(&requests));
                std::thread::spawn(move || answer(&stream, &answers, &requests));
            }
        });
        server
    }

    pub fn serve_image(&self, image: &Recipe) {
        let manifest = self.add(image);
        let tag = "/v2/team/app/manifests/1";
        let mut answers = self.answers.lock().expect("a lock");
        let file = answers.files[&format!("/v2/team/app/manifests/{manifest}")].clone();
        answers.files.insert(tag.to_owned(), file);
    }

    /// Adds an image's blobs and its manifest, whose digest is returned.
    pub fn add(&self, image: &Recipe) -> String {
        let mut answers = self.answers.lock().expect("a lock");
        let mut manifest = String::new();
        for (path, content) in image.oci_files(Packed::Gzip) {
            let Some(hex) = path.strip_prefix("blobs/sha256/") else {
                continue;
            };
            let name = format!("sha256:{hex}");
            let text = String::from_utf8_lossy(&content);
            let is_manifest = text.contains("\"layers\":[{");
            if is_manifest {
                manifest.clone_from(&name);
                let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
                let path = format!("/v2/team/app/manifests/{name}");
                answers.files.insert(path, (media_type, content.clone()));
            }
            let blob = ("application/octet-stream".to_owned(), content);
            answers
                .files
                .insert(format!("/v2/team/app/blobs/{name}"), blob);
        }
        manifest
    }

    /// Puts something in the place of the manifest.
    pub fn serve_manifest(&self, media_type: &str, content: &[u8]) {
        let mut answers = self.answers.lock().expect("a lock");
        let file = (media_type.to_owned(), content.to_vec());
        let by_digest = format!("/v2/team/app/manifests/{}", digest(content));
        answers.files.insert(by_digest, file.clone());
        answers
            .files
            .insert("/v2/team/app/manifests/1".to_owned(), file);
    }

    /// Changes the content of each blob, or manifest, whose path has `part` in it.
    pub fn tamper(&self, part: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut answers = self.answers.lock().expect("a lock");
        let matching = answers
            .files
            .iter_mut()
            .filter(|(path, _)| path.contains(part));
        matching.for_each(|(_, (_, content))| change(content));
    }

    pub fn name(&self) -> String {
        format!("{}/team/app:1", self.address)
    }

    pub fn registry(&self) -> &str {
        &self.address
    }

    pub fn asked(&self, part: &str) -> usize {
        let requests = self.requests.lock().expect("a lock");
        requests.iter().filter(|line| line.contains(part)).count()
    }
}

fn answer(stream: &TcpStream, answers: &Mutex<Answers>, requests: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut range, mut auth, mut len) = (String::new(), None, String::new(), 0);
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => {
                // What TLS begins with is no text. This is what most servers say.
                let _ = { stream }.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
                return;
            }
        }
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).is_err() {
                return;
            }
            let header = header.trim_end().to_owned();
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(": ").unwrap_or((&header, ""));
            match &*name.to_ascii_lowercase() {
                "range" => {
                    let first = value.trim_start_matches("bytes=").split('-').next();
                    range = first.and_then(|first| first.parse::<usize>().ok());
                }
                "authorization" => value.clone_into(&mut auth),
                "content-length" => len = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let _ = reader.by_ref().take(len).read_to_end(&mut Vec::new());
        // A proxy is told where to ask, which is here.
        let uri = line.split(' ').nth(1).unwrap_or_default();
        let path = match uri.strip_prefix("http://").and_then(|uri| uri.find('/')) {
            Some(at) => uri["http://".len() + at..].to_owned(),
            None => uri.to_owned(),
        };
        let now = answers.lock().expect("a lock").clone();
        let shown = format!("{path} from {}", range.unwrap_or(0));
        requests.lock().expect("a lock").push(shown);
        let asks_for_token = path.starts_with("/token");
        let wanted = match (now.token, &now.password) {
            (Some(token), _) if !asks_for_token => Some(format!("Bearer {token}")),
            (_, Some(password)) => Some(format!("Basic {password}")),
            _ => None,
        };
        let address = stream.local_addr().expect("connected");
        let challenge = match now.token {
            Some(_) if !asks_for_token => {
                format!("Bearer realm=\"http://{address}/token\",service=\"test\"")
            }
            _ => "Basic realm=\"test\"".to_owned(),
        };
        let challenge = format!("text/plain\r\nWWW-Authenticate: {challenge}");
        let (status, media_type, content) = match (now.status, now.files.get(&path)) {
            _ if wanted.is_some_and(|wanted| wanted != auth) => {
                ("401 Unauthorized".to_owned(), &*challenge, Vec::new())
            }
            _ if asks_for_token => {
                let token = now.token.unwrap_or_default();
                let body = format!("{{\"token\":\"{token}\"}}").into_bytes();
                ("200 OK".to_owned(), "application/json", body)
            }
            (Some((code, body)), _) if path != "/v2/" => {
                (format!("{code} Said"), "application/json", body.into())
            }
            _ if path == "/v2/" => ("200 OK".to_owned(), "application/json", b"{}".to_vec()),
            (_, None) => {
                let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#;
                (
                    "404 Not Found".to_owned(),
                    "application/json",
                    body.to_vec(),
                )
            }
            (_, Some((media_type, content))) => match range.filter(|_| !now.no_parts) {
                Some(first) if first > 0 && first <= content.len() => (
                    "206 Partial Content".to_owned(),
                    &**media_type,
                    content[first..].to_vec(),
                ),
                _ => ("200 OK".to_owned(), &**media_type, content.clone()),
            },
        };
        let mut out = stream;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            content.len()
        );
        let sent = match now.cut_after.filter(|_| path.contains("/blobs/")) {
            Some(max) if content.len() > max => {
                let _ = out.write_all(head.as_bytes());
                let _ = out.write_all(&content[..max]);
                return;
            }
            _ => out
                .write_all(head.as_bytes())
                .and_then(|()| out.write_all(&content)),
        };
        if sent.is_err() {
            return;
        }
    }
}
