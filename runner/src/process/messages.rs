//! What the processes of a container tell each other, in the order in which it is said.
//!
//! ```text
//! monitor -> init      Start  Mounts*                             Go
//! init    -> monitor                  Terminal (with -t)   Prepared    | end of stream | Failed
//! monitor -> main      Warning*  Terminal (with -t)   Started | Failed     Exited
//! ```
//! The end of init's stream is the exec: the program runs.
//!
//! For a command that `exec` adds, a launcher is between main and the command in the monitor's
//! place, and is told first what to do.
//!
//! Either end hanging up early is a death and handled as such: init leaves when its monitor is
//! gone, the monitor ends the container when a main that waits for it is gone, and main cleans up
//! after a monitor that was killed.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::logging::ProcessLog;

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
    /// [`ContainerSpec`](crate::spec::ContainerSpec), which may be longer than a message, and the
    /// file to log to. This many mounts follow, [`Sources`](crate::rootfs::Sources) in pieces; none
    /// if init is to make them.
    Start { mounts: usize, log: ProcessLog },
    /// Some of them are attached.
    Mounts,
    /// The network is ready.
    Go,
}

/// From main to the launcher of `exec`.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// Run this. Attached are a pidfd of the container's init and a file with the
    /// [`ProcessSpec`](crate::spec::ProcessSpec), which may be longer than a message.
    Run,
}

/// From the monitor, or the launcher of `exec`, to main.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromMonitor {
    Warning(String),
    /// The master of the container's terminal is attached.
    Terminal,
    /// The program runs. Its pidfd is attached.
    Started,
    Failed(Failure),
    /// The container has ended with this code, and what was to be cleaned up has been.
    Exited(i32),
}
