//! `coracle-net hook`: the network of a container whose runtime has none of its own. It is called
//! by the runtime's hooks: as createRuntime (LXC: start-host) it attaches the network from the
//! background and returns when it is up, as poststop (LXC: post-stop) it sees to it that the
//! background process has ended.
//!
//! Nothing is written anywhere: what has to be known of the background process at the end, the
//! kernel knows (`process::claim`). That process ends with the container in any case; the second
//! hook makes it wait until published ports are free again.
//!
//! The words of the hook are those of whoever may have any program executed. Annotations are not,
//! see [`annotations`].

mod annotations;
mod call;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
};
use tracing::warn;

use self::annotations::AnnotationError;
use self::call::{Call, CallError, Container, Event};
use super::network_args::NetworkArgs;
use crate::config::{Config, ConfigError};
use crate::guest::{NamespaceError, TargetName};
use crate::logging::{Filter, InvalidFilter, VARIABLE};
use crate::process::Log;
use crate::process::background::{self, Daemon, Side};
use crate::process::claim::{Claim, ClaimError, Holder};
use crate::publish::PublishTo;
use crate::start::{self, StartError};
use crate::sys;

/// Gives a container of runc, crun or LXC its network, as a hook of theirs.
///
/// As a createRuntime hook it reads the container's state from standard input, attaches the network
/// to the container's namespaces, and returns when it is up. A process in the background carries
/// it, and ends with the container. As a poststop hook it waits for that end, so that ports are
/// free again.
#[derive(Debug, Parser)]
#[command(name = "hook", version, max_term_width = 110, after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,

    /// Name of the interface in the container
    #[arg(long, value_name = "NAME", default_value = "tap0")]
    interface: String,

    /// Publish nothing that the container's annotations ask for
    #[arg(long)]
    ignore_annotations: bool,

    /// What LXC adds: the container's name, `lxc`, and which hook it is.
    #[arg(hide = true)]
    words: Vec<String>,
}

const EXAMPLES: &str = "\
In the config.json of a container whose network namespace is its own:
    \"hooks\": {
        \"createRuntime\": [{\"path\": \"/usr/bin/coracle-net\", \"args\": [\"coracle-net\", \"hook\", \"-p\", \"8080:80\"]}],
        \"poststop\": [{\"path\": \"/usr/bin/coracle-net\", \"args\": [\"coracle-net\", \"hook\"]}]
    }

In the configuration of a container of LXC's:
    lxc.net.0.type = empty
    lxc.hook.start-host = coracle-net hook -p 8080:80
    lxc.hook.post-stop = coracle-net hook

Annotations of the container:
  coracle.publish   ports to publish besides: rules as behind --publish, with commas between them. An image may
                    have brought the annotation, so it gets no port that takes a privilege, and 256 at most

In the container:
  10.0.2.100, fd00::100   its own addresses
  10.0.2.2,   fd00::2     the gateway; the host's loopback with --allow-host-loopback
  10.0.2.3,   fd00::3     DNS, for the container's resolv.conf, which is not written

After it has returned, messages go to the system's log. CORACLE_LOG sets what is logged.";

/// Why there is no network, or why its process may not have ended.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("container {0:?}: {1}")]
    Container(String, Box<ContainerError>),
}

/// What went wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("{VARIABLE}: {0}")]
    Filter(#[from] InvalidFilter),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot make {0} an absolute path: {1}")]
    Path(PathBuf, #[source] io::Error),
    #[error("its process {0} cannot be found: {1}")]
    NoProcess(i32, #[source] io::Error),
    #[error("cannot go to the background: {0}")]
    Background(#[source] io::Error),
    #[error("the process in the background was killed before the network was up")]
    DaemonKilled,
    #[error("it ended while its network was made")]
    Ended,
    #[error(
        "{0}; crun lets nobody but root look into a container that does not run yet: for others, have \
         the hook in poststart"
    )]
    Hidden(#[source] NamespaceError),
    #[error(
        "it has no network namespace of its own: add {{\"type\": \"network\"}} to linux.namespaces of \
         its config.json, and have the hook in createRuntime"
    )]
    NoNetwork,
    #[error("{0}; a container needs the hook once")]
    Claim(#[from] ClaimError),
    #[error("cannot end process {0}, which carries its network: {1}")]
    End(i32, #[source] io::Error),
    #[error(transparent)]
    Start(StartError),
}

impl From<StartError> for ContainerError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Namespace(NamespaceError::OwnNetwork(_)) => Self::NoNetwork,
            StartError::Namespace(error @ NamespaceError::Forbidden { .. }) => Self::Hidden(error),
            error => Self::Start(error),
        }
    }
}

/// Does what the runtime calls for.
pub fn run(args: Args) -> Result<ExitCode, HookError> {
    sys::close_inherited();
    let Call { container, event } = Call::read(&args.words)?;
    let done = match event {
        Event::Created {
            process,
            annotations,
        } => {
            let wishes = match args.ignore_annotations {
                true => Ok(Vec::new()),
                false => annotations::publish(&annotations),
            };
            let config = wishes.map_err(ContainerError::from).and_then(|publish| {
                let mut config = args.config(process)?;
                config
                    .publish
                    .extend(publish.into_iter().map(PublishTo::from));
                Ok(config)
            });
            config.and_then(|config| attach(config, &container, process))
        }
        Event::Stopped => detach(&container),
    };
    done.map_err(|error| HookError::Container(container.id, error.into()))
}

impl Args {
    /// For the namespaces of `process`.
    fn config(self, process: Pid) -> Result<Config, ContainerError> {
        let target = TargetName::Process(process);
        let mut config = self.network.config(target, self.interface)?;
        // The background has another working directory.
        let Config {
            status_socket,
            metrics_socket,
            api_socket,
            pcap,
            ..
        } = &mut config;
        let paths = [status_socket, metrics_socket, api_socket, pcap];
        for path in paths.into_iter().flatten() {
            *path = std::path::absolute(&*path)
                .map_err(|error| ContainerError::Path(path.clone(), error))?;
        }
        Ok(config.check()?)
    }
}

/// Returns when the network is up. On failure nothing is left.
fn attach(config: Config, container: &Container, process: Pid) -> Result<ExitCode, ContainerError> {
    let filter = Filter::from_environment()?;
    let held = pidfd_open(process, PidfdFlags::empty())
        .map_err(|errno| ContainerError::NoProcess(process.as_raw_nonzero().get(), errno.into()))?;
    let caller = match background::enter().map_err(ContainerError::Background)? {
        Side::Caller(caller) => caller,
        Side::Daemon(daemon) => {
            let name = format!("coracle-net hook: container {:?}", container.id);
            return Ok(daemon.live(&name, |daemon| serve(config, container, &filter, daemon)));
        }
    };
    let daemon = match caller.wait() {
        Ok(daemon) => daemon,
        // It has said why.
        Err(Some(code)) => return Ok(ExitCode::from(code)),
        Err(None) => return Err(ContainerError::DaemonKilled),
    };
    if has_ended(&held) {
        // Its number may have become another process's before its namespaces were opened.
        let _ = kill_process(daemon, Signal::KILL);
        let _ = waitid(WaitId::Pid(daemon), WaitIdOptions::EXITED);
        return Err(ContainerError::Ended);
    }
    Ok(ExitCode::SUCCESS)
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
}

/// The copy's life.
fn serve(
    config: Config,
    container: &Container,
    filter: &Filter,
    daemon: Daemon,
) -> Result<(), ContainerError> {
    Log::to_caller(daemon.words.clone(), "coracle-net").start(filter);
    let _claim = match Claim::take(container.claim(), HANDED_ON_WITHIN) {
        Ok(claim) => Some(claim),
        Err(error @ ClaimError::Taken(_)) => return Err(error.into()),
        // Then only the container's end ends this process, and poststop does not wait for it.
        Err(error) => {
            warn!("container {:?}: {error}", container.id);
            None
        }
    };
    Ok(start::run(config, || daemon.announce())?)
}

fn detach(container: &Container) -> Result<ExitCode, ContainerError> {
    match Holder::find(container.claim()) {
        Ok(Some(holder)) => holder
            .end(ENDS_WITHIN)
            .map_err(|error| ContainerError::End(holder.number(), error))?,
        // What another user has there is nothing of this container's.
        Ok(None) | Err(ClaimError::Stranger(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A container of the same name, which has just ended, may still have its network.
const HANDED_ON_WITHIN: Duration = Duration::from_secs(2);
/// Of SIGTERM, and then of SIGKILL.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::Attachment;

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_arrive_and_paths_become_absolute() {
        let words = "hook -p 8080:80 --mtu 1500 --interface eth0 --pcap p --metrics-socket m --status-socket /s";
        let args = Args::try_parse_from(words.split(' ')).unwrap();
        let config = args.config(Pid::INIT).unwrap();
        let target = TargetName::Process(Pid::INIT);
        let tap = "eth0".to_owned();
        assert_eq!(config.attachment, Attachment::Namespace { target, tap });
        assert!(config.configure && config.mtu == Some(1500) && config.publish.len() == 1);
        assert!(config.pcap.unwrap().is_absolute());
        assert!(config.metrics_socket.unwrap().is_absolute());
        assert_eq!(config.status_socket, Some("/s".into()));
    }
}
