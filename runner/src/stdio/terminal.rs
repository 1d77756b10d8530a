//! Pseudo-terminals: opening one and living in it, setting the caller's own terminal raw and back,
//! and window sizes.
//!
//! Copying between the two terminals, and telling when the window was resized (SIGWINCH), is the
//! caller's part.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr, tcsetwinsize,
};

pub use rustix::termios::Winsize;

use super::ProgramEnds;
use crate::sys;

/// The multiplexer of a container's own devpts instance.
pub const PTMX: &str = "/dev/pts/ptmx";
/// What could not be done when a [`Pty`] cannot be had.
pub const NO_TERMINAL: &str = "cannot open a terminal in the container";

/// Both ends of a new pseudo-terminal, close-on-exec; neither becomes anybody's controlling
/// terminal by being opened.
#[derive(Debug)]
pub struct Pty {
    /// The end of whoever shows the terminal. Reading it fails with EIO once all slave descriptors
    /// are closed.
    pub master: OwnedFd,
    /// The end of the programs that run in the terminal.
    pub slave: OwnedFd,
}

impl Pty {
    /// Opens a terminal of the devpts instance whose multiplexer is `ptmx`. Called in the
    /// container's mount namespace, it is one that programs in the container find by name
    /// (ttyname(3)).
    ///
    /// The slave comes from the master (TIOCGPTPEER, Linux 4.13) and not by its path: what is found
    /// under /dev/pts may be something else by the time it is opened, which was CVE-2025-52565.
    pub fn open_from(ptmx: &Path) -> io::Result<Self> {
        let master = open(
            ptmx,
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        Ok(Self { master, slave })
    }

    /// Makes it the terminal of this process's session, which this process leads, and its standard
    /// streams. Returns the master, which does not block: a terminal whose program does not read
    /// must not hold up whoever shows it.
    pub fn inhabit(self) -> io::Result<OwnedFd> {
        sys::set_controlling_terminal(self.slave.as_fd())?;
        ProgramEnds::all(self.slave)?.install()?;
        rustix::io::ioctl_fionbio(&self.master, true)?;
        Ok(self.master)
    }
}

/// Keeps a terminal in raw mode: every byte passes unchanged, Ctrl-C included. Dropping it restores
/// the mode it found.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
    /// What becomes of unread input in the end.
    at_end: OptionalActions,
}

impl RawMode {
    /// Fails with ENOTTY when `terminal` is none.
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Drain, not flush: what the user has typed ahead is for the container.
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self {
            terminal,
            before,
            at_end: OptionalActions::Drain,
        })
    }

    /// Passes output unchanged, for a program whose own terminal has processed it, and hides the
    /// terminal's answers to it. Ctrl-C keeps its meaning.
    ///
    /// Fails with ENOTTY when `terminal` is none.
    pub fn for_output(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut plain = before.clone();
        plain.output_modes.remove(OutputModes::OPOST);
        plain
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Drain, &plain)?;
        Ok(Self {
            terminal,
            before,
            // Answers that nobody has read are not for the next program.
            at_end: OptionalActions::Flush,
        })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Fails only when the terminal is gone, and with it the need.
        let _ = tcsetattr(&self.terminal, self.at_end, &self.before);
    }
}

/// The size of the terminal's window in characters. Fails with ENOTTY when `terminal` is none.
pub fn window_size(terminal: impl AsFd) -> io::Result<Winsize> {
    Ok(rustix::termios::tcgetwinsize(terminal)?)
}

/// Sets the size of the window; when it changes, the terminal's foreground process group gets
/// SIGWINCH.
pub fn set_window_size(terminal: impl AsFd, size: Winsize) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, size)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::termios::InputModes;

    use super::*;

    /// Not /dev/pts/ptmx, which hosts keep at mode 000.
    fn open() -> Pty {
        Pty::open_from(Path::new("/dev/ptmx")).unwrap()
    }

    #[test]
    fn joins_two_ends_that_no_program_inherits() {
        let Pty { master, slave } = open();
        for end in [&master, &slave] {
            assert!(fcntl_getfd(end).unwrap().contains(FdFlags::CLOEXEC));
            assert!(rustix::termios::isatty(end));
        }
        let name = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).unwrap();
        assert!(name.starts_with("/dev/pts"), "{}", name.display());

        File::from(slave.try_clone().unwrap())
            .write_all(b"hello\n")
            .unwrap();
        let mut output = [0; 16];
        let mut master = File::from(master);
        let length = master.read(&mut output).unwrap();
        assert_eq!(&output[..length], b"hello\r\n");

        drop(slave);
        let end = master.read(&mut output).unwrap_err();
        assert_eq!(
            end.raw_os_error(),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let pty = open();
        let modes = || {
            let now = tcgetattr(&pty.slave).unwrap();
            (
                now.local_modes
                    .contains(LocalModes::ISIG | LocalModes::ECHO),
                now.input_modes.contains(InputModes::ICRNL),
            )
        };
        assert_eq!(modes(), (true, true));
        let guard = RawMode::enter(&pty.slave).unwrap();
        assert_eq!(modes(), (false, false));
        drop(guard);
        assert_eq!(modes(), (true, true));
    }

    #[test]
    fn output_that_is_processed_already_passes_unchanged() {
        let pty = open();
        let guard = RawMode::for_output(&pty.slave).unwrap();
        let mut slave = File::from(pty.slave.try_clone().unwrap());
        let mut master = File::from(pty.master.try_clone().unwrap());
        master.write_all(b"\x1b[1;1R").unwrap();
        slave.write_all(b"a\r\n").unwrap();
        let mut output = [0; 16];
        let length = master.read(&mut output).unwrap();
        assert_eq!(&output[..length], b"a\r\n", "no second CR, no echo");
        let modes = tcgetattr(&pty.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ISIG), "Ctrl-C works");
        drop(guard);
        assert!(
            tcgetattr(&pty.slave)
                .unwrap()
                .output_modes
                .contains(OutputModes::OPOST)
        );
    }

    #[test]
    fn the_window_has_one_size_at_both_ends() {
        let pty = open();
        let size = Winsize {
            ws_row: 43,
            ws_col: 132,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        set_window_size(&pty.master, size).unwrap();
        let seen = window_size(&pty.slave).unwrap();
        assert_eq!((seen.ws_row, seen.ws_col), (43, 132));
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(&file).is_err());
        assert!(window_size(&file).is_err());
    }
}
