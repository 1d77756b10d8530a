//! What a caller hands down to every program that it starts: descriptors, signal dispositions and
//! mask, file mode mask, limits.
//!
//! [`Inherited::put_in_order`] comes first in `main`, so that nothing here depends on who called.
//! What the container's command is to find as the caller left it, the soft limits, is kept and
//! given back right before the command is executed. The nice value, the scheduling policy and the
//! out-of-memory score are the caller's to choose and stay.

use nix::sys::signal::Signal;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use serde::{Deserialize, Serialize};

use crate::sys;

/// What is left of the caller's settings.
#[derive(Debug, Clone)]
pub struct Inherited {
    umask: Mode,
    ignored: Vec<Signal>,
    /// For a container's command.
    pub limits: SoftLimits,
}

/// The soft limits that coracle raises for itself, as the caller had them. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftLimits {
    open_files: Option<u64>,
    file_size: Option<u64>,
    cpu_seconds: Option<u64>,
}

/// Signals that a caller ignores on purpose: `nohup`, and a shell for jobs that a Ctrl-C at its
/// terminal is not meant for.
const MAY_BE_IGNORED: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

/// For a process that has nothing more to do with the one that executed it: of all that was handed
/// down it keeps its standard streams, environment and working directory. All signals are blocked.
pub fn put_behind() {
    sys::close_from(3);
    sys::block_all_signals();
    sys::reset_actions();
    SoftLimits::current().raise();
    umask(UMASK);
}

/// Every file that is made has the mode that the code asks for.
const UMASK: Mode = Mode::WGRP.union(Mode::WOTH);

impl Inherited {
    pub fn put_in_order() -> Self {
        // What the caller left open is for none of the processes that come of this one.
        sys::close_from(3);
        let ignored: Vec<_> = MAY_BE_IGNORED
            .into_iter()
            .filter(|signal| sys::is_ignored(*signal as i32))
            .collect();
        sys::reset_signals();
        ignored.iter().copied().for_each(sys::ignore);
        // A closed pipe and a file that grows beyond a limit are errors of the call that meets
        // them.
        sys::ignore(Signal::SIGPIPE);
        sys::ignore(Signal::SIGXFSZ);
        let limits = SoftLimits::current();
        limits.raise();
        Self {
            umask: umask(UMASK),
            ignored,
            limits,
        }
    }

    /// Puts everything back, for a command that is the caller's own.
    pub fn restore(&self) {
        self.limits.restore();
        umask(self.umask);
        sys::reset_signals();
        self.ignored.iter().copied().for_each(sys::ignore);
    }
}

impl SoftLimits {
    fn current() -> Self {
        let [open_files, file_size, cpu_seconds] = Self::RESOURCES.map(|r| getrlimit(r).current);
        Self {
            open_files,
            file_size,
            cpu_seconds,
        }
    }

    /// For a container's command, unless the caller wants its own limits for it: as many open files
    /// as it may have, up to what programs that close all of them can take.
    pub fn with_open_files_raised(self) -> Self {
        /// As Podman's default.
        const OPEN_FILES: u64 = 1 << 20;
        Self {
            open_files: Some(OPEN_FILES),
            ..self
        }
    }

    const RESOURCES: [Resource; 3] = [Resource::Nofile, Resource::Fsize, Resource::Cpu];

    /// Each limit as high as this process may set it.
    fn raise(&self) {
        for resource in Self::RESOURCES {
            let maximum = getrlimit(resource).maximum;
            let raised = Rlimit {
                current: maximum,
                maximum,
            };
            // Cannot fail: a soft limit may always be raised to the hard one.
            let _ = setrlimit(resource, raised);
        }
    }

    /// Sets the limits for what this process executes next. A hard limit that is lower by now stays
    /// what it is.
    pub fn restore(&self) {
        let values = [self.open_files, self.file_size, self.cpu_seconds];
        for (resource, soft) in Self::RESOURCES.into_iter().zip(values) {
            let maximum = getrlimit(resource).maximum;
            let current = match (soft, maximum) {
                (Some(soft), Some(hard)) => Some(soft.min(hard)),
                (soft, hard) => soft.or(hard),
            };
            // Cannot fail: the soft limit is not above the hard one.
            let _ = setrlimit(resource, Rlimit { current, maximum });
        }
    }
}
