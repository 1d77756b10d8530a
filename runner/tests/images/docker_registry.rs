//! The real registry, Debian's docker-registry, with TLS and passwords where a case wants them; and
//! a line to it that can be cut.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::caller::program;
use crate::harness::{World, eventually, skip};
use crate::recipe::put;

/// docker-registry, until it is dropped.
pub struct Registry {
    pub address: String,
    config: PathBuf,
    child: Child,
}

/// A line to a registry that is cut once so many bytes of its answers have passed.
pub struct Line {
    pub address: String,
    /// How many may pass still.
    left: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
}

impl Line {
    pub fn allow(&self, bytes: usize) {
        self.left.store(bytes, Ordering::SeqCst);
        self.passed.store(0, Ordering::SeqCst);
    }

    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Copy, Default)]
pub struct Options {
    /// With a certificate of `authority.crt`'s in the world.
    pub tls: bool,
    /// It wants to be told "me" and "secret".
    pub password: bool,
}

impl Registry {
    pub fn start(world: &World) -> Self {
        Self::with(world, Options::default())
    }

    pub fn with(world: &World, options: Options) -> Self {
        if program("docker-registry").is_none() {
            skip("docker-registry is not installed");
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("bound").to_string();
        drop(free);
        let dir = world.path("registry");
        fs::create_dir(&dir).expect("a directory");
        let dir = dir.display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {dir}}}, delete: {{enabled: true}}}}\n"
        );
        if options.password {
            // By bcrypt, which is all that it takes.
            let line = b"me:$2b$05$hIosnAXagEb9PKp5ODQhW.Cn69sLOlVoP4r7s/flCsi7cT3Qwqi2m\n";
            let file = put(world, "htpasswd", line);
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                file.display()
            );
        }
        let tls = match options.tls {
            true => {
                let (certificate, key) = certify(world);
                format!(
                    ", tls: {{certificate: {}, key: {}}}",
                    certificate.display(),
                    key.display()
                )
            }
            false => String::new(),
        };
        config += &format!("http: {{addr: '{address}'{tls}}}\n");
        let config = put(world, "registry.yml", config.as_bytes());
        let child = serve(&config, &address);
        Self {
            address,
            config,
            child,
        }
    }

    /// Kills it, as a machine does that loses its power, and starts it again.
    pub fn restart(&mut self, meanwhile: impl FnOnce()) {
        self.child.kill().expect("killed");
        self.child.wait().expect("a child");
        meanwhile();
        self.child = serve(&self.config, &self.address);
    }

    /// Another address of the same registry, whose answers are cut.
    pub fn line(&self) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let line = Line {
            address: listener.local_addr().expect("bound").to_string(),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            passed: Arc::default(),
        };
        let registry = self.address.clone();
        let (left, passed) = (line.left.clone(), line.passed.clone());
        // Ends with the trial's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&registry) else {
                    continue;
                };
                let (left, passed) = (left.clone(), passed.clone());
                std::thread::spawn(move || answer(&client, &server, &left, &passed));
            }
        });
        line
    }

    /// Another address of the same registry, where each connection is cut after so many bytes of
    /// its client's.
    pub fn cut_after(&self, max: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let registry = self.address.clone();
        // Ends with the trial's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&registry) else {
                    continue;
                };
                std::thread::spawn(move || carry(&client, &server, max));
            }
        });
        address
    }
}

fn serve(config: &Path, address: &str) -> Child {
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry");
    eventually("the registry listens", || {
        TcpStream::connect(address).is_ok()
    });
    child
}

fn answer(client: &TcpStream, server: &TcpStream, left: &AtomicUsize, passed: &AtomicUsize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut { client }, &mut { server });
            let _ = server.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 16 * 1024];
        while let Ok(len @ 1..) = { server }.read(&mut buffer) {
            let take = |left: usize| left.checked_sub(len);
            let may_pass = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
            if may_pass.is_err() || { client }.write_all(&buffer[..len]).is_err() {
                break;
            }
            passed.fetch_add(len, Ordering::SeqCst);
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn carry(client: &TcpStream, server: &TcpStream, max: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut { server }, &mut { client });
            let _ = client.shutdown(Shutdown::Both);
        });
        let (mut left, mut buffer) = (max, [0; 16 * 1024]);
        while left > 0 {
            let wanted = left.min(buffer.len());
            match { client }.read(&mut buffer[..wanted]) {
                Ok(len) if len > 0 && { server }.write_all(&buffer[..len]).is_ok() => left -= len,
                _ => break,
            }
        }
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    });
}

/// Makes `authority.crt`, and a certificate of its for 127.0.0.1.
fn certify(world: &World) -> (PathBuf, PathBuf) {
    if program("openssl").is_none() {
        skip("openssl is not installed");
    }
    let openssl = |words: &str| {
        let made = Command::new("openssl")
            .args(words.split(' '))
            .current_dir(world.path("."))
            .output()
            .expect("openssl");
        assert!(made.status.success(), "openssl {words}: {made:?}");
    };
    put(world, "names", b"subjectAltName=IP:127.0.0.1\n");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout authority.key -out authority.crt -days 2 -subj /CN=authority"
    ));
    openssl(&format!(
        "req -new {key} -keyout server.key -out server.csr -subj /CN=registry"
    ));
    openssl(
        "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial \
         -out server.crt -days 2 -extfile names",
    );
    world.give_away(&world.path("authority.crt"));
    (world.path("server.crt"), world.path("server.key"))
}
