//! Somebody at a terminal, who runs coracle in it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::pty::openpty;

use super::{DEADLINE, World, eventually, wait};

/// Somebody at a terminal with coracle in it.
pub struct Session {
    terminal: File,
    child: std::process::Child,
    seen: Vec<u8>,
}

impl Session {
    pub fn start(world: &World, args: &[String]) -> Self {
        let pty = openpty(None, None).expect("a terminal");
        resize(&pty.master, 41, 99);
        let slave = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let child = world
            .coracle(args)
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("coracle");
        let master = File::from(pty.master);
        rustix::io::ioctl_fionbio(&master, true).expect("non-blocking");
        Self {
            terminal: master,
            child,
            seen: Vec::new(),
        }
    }

    /// The same, and waits for the prompt of a shell.
    pub fn with_shell(world: &World, args: &[String]) -> Self {
        let mut session = Self::start(world, args);
        session.wait_for("# ");
        session
    }

    pub fn say(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("written");
    }

    /// Presses Ctrl-C until the shell asks again. One may come before the job is in the foreground,
    /// and is lost.
    pub fn interrupt(&mut self) {
        self.seen.clear();
        eventually("the shell asks again", || {
            self.say("\x03");
            std::thread::sleep(Duration::from_millis(50));
            let mut buffer = [0; 4096];
            let count = self.terminal.read(&mut buffer).unwrap_or(0);
            self.seen.extend_from_slice(&buffer[..count]);
            self.seen.windows(2).any(|window| window == b"# ")
        });
    }

    /// Says a command and waits for its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str, answer: &str) {
        self.seen.clear();
        self.say(command);
        self.say("\n");
        self.wait_for(answer);
    }

    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        let since = Instant::now();
        while !self
            .seen
            .windows(text.len())
            .any(|window| window == text.as_bytes())
        {
            let seen = String::from_utf8_lossy(&self.seen);
            assert!(
                since.elapsed() < DEADLINE,
                "not within {DEADLINE:?}: {text:?} in {seen:?}"
            );
            match self.terminal.read(&mut buffer) {
                Ok(count) => self.seen.extend_from_slice(&buffer[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        resize(
            &self.terminal.try_clone().expect("a descriptor").into(),
            rows,
            columns,
        );
        // Without a controlling terminal the kernel tells nobody.
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).expect("told");
    }

    pub fn end(mut self) -> Option<i32> {
        wait(&mut self.child).code()
    }
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = runner::terminal::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    runner::terminal::set_window_size(terminal, size).expect("resized");
}
