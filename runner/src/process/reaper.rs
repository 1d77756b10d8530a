//! Process 1 of a container that was started with `--init`: it passes signals on to the command and
//! reaps whatever ends.
//!
//! The kernel spares process 1 of a PID namespace every signal that it has no handler for, and
//! hands it all orphans. A program that is not written for that place neither ends at SIGTERM nor
//! reaps.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open, setpgid};

use crate::isolation::namespaces;
use crate::sys::{self, NewNamespaces};

/// Returns in a child, which is to become the command. The calling process stays behind and ends
/// with the child's exit code.
pub fn part() -> io::Result<()> {
    sys::block_all_signals();
    match sys::clone_process(NewNamespaces::NONE, None)? {
        Some(command) => {
            // Whoever waits for the command's start waits for these to close.
            sys::close_from(3);
            rustix::thread::set_name(c"coracle-init")?;
            attend(command.pid)
        }
        None => take_terminal(),
    }
}

/// Puts the command in a process group of its own, to which the terminal's signals go: they do not
/// reach it twice then.
fn take_terminal() -> io::Result<()> {
    setpgid(None, None)?;
    let stdin = rustix::stdio::stdin();
    if rustix::termios::isatty(stdin) {
        // SIGTTOU, which a background group gets for this, is still blocked.
        rustix::termios::tcsetpgrp(stdin, rustix::process::getpid())?;
    }
    Ok(())
}

fn attend(command: Pid) -> ! {
    // Fails for want of memory only; then the command's signals are lost, but not its end.
    let pidfd = pidfd_open(command, PidfdFlags::empty()).ok();
    loop {
        if let (Ok(signal), Some(pidfd)) = (sys::wait_for_signal(), &pidfd)
            && signal != libc::SIGCHLD
        {
            // Fails only when the command has ended.
            let _ = sys::send_signal(pidfd.as_fd(), signal);
        }
        let ended = |(pid, code)| (pid == command).then_some(code);
        if let Some(code) = namespaces::reap().into_iter().find_map(ended) {
            std::process::exit(code)
        }
    }
}
