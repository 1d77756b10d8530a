//! A container in the foreground: its streams, its signals and its exit code are the caller's.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::spec::Protocol;
use tracing::debug;

use super::repair;
use crate::cli::DetachArgs;
use crate::engine::{Engine, Launch, PublishedPort, published_ports};
use crate::failure::Failure;
use crate::images::builtin;
use crate::process::foreground::{Foreground, Outcome, Signals, UNREAD_EXIT_CODE, warn};
use crate::state::Container;
use crate::stdio::keys::DetachKeys;

/// The monitor of a container in the foreground belongs to this process, and ends before it. Where
/// it cannot, whoever adopts orphans has it.
pub fn adopt_orphans() {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// How the caller and a program go together.
#[derive(Debug, Clone)]
pub struct Bond {
    /// Whether the caller's standard input goes to the program.
    pub interactive: bool,
    /// Typed at the caller's terminal, they leave the program to itself.
    pub keys: Option<DetachKeys>,
    /// Whether signals are passed on to the program.
    pub passes_signals: bool,
}

impl Bond {
    /// As the flags say that the commands share.
    pub fn of(args: &DetachArgs, interactive: bool, passes_signals: bool) -> Self {
        Self {
            interactive,
            keys: Some(args.detach_keys.clone().unwrap_or_default()),
            passes_signals,
        }
    }
}

/// Serves the container at the caller's terminal, until it ends or the caller leaves it.
pub fn follow(
    launch: Launch,
    signals: Signals,
    bond: Bond,
    engine: &Engine,
) -> Result<u8, Failure> {
    let interactive = bond.interactive;
    if launch.container.tty && interactive && !io::stdin().is_terminal() {
        warn("the standard input is not a terminal; the container gets one all the same");
    }
    let url = (launch.container.image == builtin::DEFAULT).then(|| url(&launch.container));
    let (events, ends, monitor) = launch.into_parts();
    let ends = ends.ok_or_else(|| Failure::runner("no pipes were made for the foreground"))?;
    let mut foreground = Foreground::new(signals, events, ends, interactive)?
        .leaving_by(bond.keys, bond.passes_signals);
    if let Some(url) = url.flatten() {
        foreground = foreground.greeting(format!("open {url}"));
    }
    let outcome = foreground.serve();
    if matches!(outcome, Ok(Outcome::Exited(_) | Outcome::Lost) | Err(_)) {
        // Else it goes on, or stops the container, which may take its time.
        monitor.wait();
    }
    match outcome? {
        Outcome::Exited(code) => {
            debug!(code, "the container has ended");
            Ok(code as u8)
        }
        // The first end is the caller's, as with Podman.
        Outcome::Restarting(code) => Ok(code as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        Outcome::Detached => Ok(0),
        Outcome::DetachedBy(signal) => Ok(128 + signal as u8),
        Outcome::Lost => {
            repair(engine)?;
            Err(Failure::runner(
                "the container's monitor was killed, and the container with it",
            ))
        }
    }
}

/// Where a browser on this host finds what the built-in image serves.
fn url(container: &Container) -> Option<String> {
    let serves =
        |port: &PublishedPort| port.protocol == Protocol::Tcp && port.guest == builtin::PORT;
    let host = published_ports(container).into_iter().find(serves)?.host;
    let ip = match host.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(format!("http://{}", SocketAddr::new(ip, host.port())))
}
