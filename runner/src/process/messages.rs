//! What the processes of a container tell each other, in the order in which it is said.
//!
//! ```text
//! main    -> monitor  Start Listeners*                                     Foreground*
//! monitor -> main     Born   Warning* Terminal (with -t)   Started | Failed    Exited | Restarting
//!
//! monitor -> init     Start Mounts*                              Go
//! init    -> monitor            Terminal (with -t)   Prepared       | end of stream | Failed
//!
//! main     -> launcher  Launch          Run                               Foreground*
//! launcher -> main              Born         Terminal (with -t)  Started | Failed    Exited
//!
//! visitor -> monitor  Attach                                               Foreground*
//! monitor -> visitor           Terminal | Input | nothing        Started             Exited
//! ```
//! A visitor is whoever attaches to a container that runs (`monitor::door`).
//!
//! Main is whoever starts a container, or adds a command to one: then a launcher is between it and
//! the command in the monitor's place. The end of init's stream means that its program runs.
//!
//! Either end hanging up early is a death and handled as such: init leaves when its monitor is
//! gone, the monitor ends the container when a main that waits for it is gone, and main cleans up
//! after a monitor that was killed.

use std::path::PathBuf;

use netstack::logging::Filter;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::isolation::namespaces::Namespaces;
use crate::logging::ProcessLog;
use crate::state::{ContainerId, Dirs, Status};

/// From init to the monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// The master of the container's terminal is attached.
    Terminal,
    /// Only the exec is left to be done.
    Prepared {
        warnings: Vec<String>,
    },
    Failed(Failure),
}

/// From the monitor to init.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// Make this container. Attached are a file with the
    /// [`ContainerSpec`](crate::spec::ContainerSpec), which may be longer than a message, another
    /// with what its secrets say, and the file to log to. This many mounts follow,
    /// [`Sources`](crate::rootfs::Sources) in pieces; none if init is to make them.
    Start { mounts: usize, log: ProcessLog },
    /// Some of them are attached.
    Mounts,
    /// The network is ready.
    Go,
}

/// From main to the launcher of `exec` that it has executed.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// Become a launcher for a container that has these control groups. Attached are a pidfd of the
    /// container's init, and the program's ends of the command's standard streams.
    Launch {
        cgroups: Vec<PathBuf>,
    },
    /// Run this in a container that has these namespaces. Attached are a pidfd of the container's
    /// init, a file with the [`ProcessSpec`](crate::spec::ProcessSpec), which may be longer than a
    /// message, and the file to log to, if there is one.
    Run {
        namespaces: Namespaces,
        log: ProcessLog,
    },
    Foreground(FromForeground),
}

/// From main to the monitor that it has executed.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMonitor {
    /// Start this container. Attached are the program's ends of its standard streams, if main is to
    /// have the others.
    Start(Job),
    /// Some of the published ports are attached, each by a rule of its own.
    Listeners(Vec<String>),
    /// The first word of a visitor. Attached is where it takes the container's two outputs. Whether
    /// it wants to write to its input.
    Attach {
        input: bool,
    },
    Foreground(FromForeground),
}

/// From whoever serves the caller's terminal or streams.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromForeground {
    /// It leaves, and the program is to go on. Attached are its ends of the program's streams.
    Detached,
    /// There is no more input.
    InputEnded,
}

impl From<FromForeground> for ToMonitor {
    fn from(message: FromForeground) -> Self {
        Self::Foreground(message)
    }
}

impl From<FromForeground> for ToLauncher {
    fn from(message: FromForeground) -> Self {
        Self::Foreground(message)
    }
}

/// Which container a monitor answers for. What it is to be, its record and its specification tell.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub dirs: Dirs,
    pub id: ContainerId,
    /// How many published ports follow.
    pub listeners: usize,
    pub attached: bool,
    /// Whether the container's input is among what main has.
    pub input: bool,
    pub unstarted: Unstarted,
    /// How much it logs, and what it starts.
    pub filter: Filter,
}

/// What becomes of a container that could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unstarted {
    /// It was made to be started at once.
    Forget,
    /// It was there before, in this state.
    Keep(Status),
}

/// From the monitor, or the launcher of `exec`, to main.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromMonitor {
    /// The monitor, or the launcher, lives, and has this PID. Its pidfd is attached.
    Born(i32),
    Warning(String),
    /// The master of the container's terminal is attached.
    Terminal,
    /// Where the program's input is written is attached.
    Input,
    /// The program runs. Its pidfd is attached.
    Started,
    Failed(Failure),
    /// The container has ended with this code, and what was to be cleaned up has been.
    Exited(i32),
    /// The same, but for main only: the container is started again.
    Restarting(i32),
}
