//! The embedded image's only program: a web server that shows a visitor what is special about where
//! it runs.
//!
//! It depends on the standard library alone, is linked statically, and is at home as PID 1 of an
//! otherwise empty root file system. One thread serves one connection; how many there may be, how
//! long each may take and how large a request may be is bounded. Panics end a thread, never the
//! server.
//!
//! `coracle-hello [LISTEN [STATUS-SOCKET]]`, by default on port 8080 of every address.

mod http;
pub mod json;
mod network;
mod page;
mod site;
mod sys;
mod visit;

use std::env;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use site::Site;

/// Connections served at once; more are told to come back.
pub const MAX_CONNECTIONS: usize = 512;

/// Enough for the deepest call here, with a good margin; the default of 2 MiB would be reserved for
/// each connection.
const STACK_LEN: usize = 256 * 1024;

/// Where the runner puts the network helper's status socket in the embedded image.
const STATUS_SOCKET: &str = "/run/coracle/status.sock";

fn main() -> ExitCode {
    sys::end_on_signals();
    let mut args = env::args().skip(1);
    let listen_addr = args.next();
    let status_socket = args.next().unwrap_or_else(|| STATUS_SOCKET.to_owned());
    match listen(listen_addr.as_deref()) {
        Ok(listener) => serve(listener, Arc::new(Site::new(status_socket.into()))),
        Err(error) => {
            eprintln!(
                "coracle-hello: cannot listen on {}: {error}",
                listen_addr.as_deref().unwrap_or("port 8080")
            );
            ExitCode::FAILURE
        }
    }
}

fn listen(addr: Option<&str>) -> io::Result<TcpListener> {
    let listener = match addr {
        Some(addr) => TcpListener::bind(addr)?,
        // An IPv6 socket takes IPv4 clients too; where IPv6 is switched off there is none.
        None => TcpListener::bind("[::]:8080").or_else(|_| TcpListener::bind("0.0.0.0:8080"))?,
    };
    // Nobody may be there to read it, which is no reason to give up.
    let _ = writeln!(
        io::stdout(),
        "coracle-hello: listening on {}",
        listener.local_addr()?
    );
    Ok(listener)
}

fn serve(listener: TcpListener, site: Arc<Site>) -> ! {
    /// Out of descriptors or memory: some connection has to end first.
    const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // The client has already gone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(_) => {
                thread::sleep(PAUSE_AFTER_ERROR);
                continue;
            }
        };
        let Some(place) = Place::take(&open) else {
            http::turn_away(stream);
            continue;
        };
        let site = site.clone();
        let spawned = thread::Builder::new().stack_size(STACK_LEN).spawn(move || {
            let _place = place;
            serve_connection(stream, &site);
        });
        // Without a thread the closure is dropped, and with it the connection and its place.
        if spawned.is_err() {
            thread::sleep(PAUSE_AFTER_ERROR);
        }
    }
}

/// Answers one request after the other until either side has had enough.
fn serve_connection(stream: TcpStream, site: &Site) {
    let Ok(peer) = stream.peer_addr() else { return };
    let since = Instant::now();
    site.count_connection();
    let mut connection = http::Connection::new(stream);
    while let Ok(Some(request)) = connection.next_request() {
        let answer = match &request {
            Ok(request) => site.answer(request, peer, since),
            Err(refusal) => site::refuse(*refusal),
        };
        match connection.send(request.ok().as_ref(), answer) {
            Ok(sent) => site.count_sent(sent),
            Err(_) => return,
        }
    }
    connection.close();
}

/// One of the [`MAX_CONNECTIONS`], given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(open.clone());
        (open.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
