//! Starting pasta for the world's guest, and changing its rules.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{World, exit_by};

pub const READY_WITHIN: Duration = Duration::from_secs(30);

/// A pasta in the foreground, for the world's guest.
pub struct Pasta {
    child: Child,
    pid_file: PathBuf,
}

impl Pasta {
    /// Returns once it is ready. What `options` do not say is not forwarded.
    pub fn start(world: &World, options: &[&str]) -> Self {
        let pid_file = world.dir.join("pasta.pid");
        let mut command = command(world, options);
        command.arg("--pid").arg(&pid_file).arg(target(world));
        let mut pasta = Self {
            child: command.spawn().expect("start pasta"),
            pid_file,
        };
        let deadline = Instant::now() + READY_WITHIN;
        while fs::read(&pasta.pid_file).map_or(0, |text| text.len()) == 0 {
            let ended = pasta.child.try_wait().expect("look after pasta");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{command:?}: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        pasta
    }

    /// Runs one that gives up, and returns its exit code and what it said.
    pub fn fail(world: &World, options: &[&str]) -> (i32, String) {
        let mut command = command(world, options);
        let child = command.arg(target(world)).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("start pasta");
        if exit_by(&mut child, Instant::now() + READY_WITHIN).is_none() {
            child.kill().expect("kill pasta");
            panic!("{command:?} did not fail");
        }
        let Output { status, stderr, .. } = child.wait_with_output().expect("read its words");
        let text = String::from_utf8_lossy(&stderr).into_owned();
        (status.code().expect("an exit code"), text)
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, Signal::SIGTERM);
        let ended = exit_by(&mut self.child, Instant::now() + READY_WITHIN);
        let _ = fs::remove_file(&self.pid_file);
        if !std::thread::panicking() {
            assert!(ended.is_some(), "pasta does not end");
        }
    }
}

fn command(world: &World, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-net"));
    command
        .arg0("pasta")
        .current_dir(&world.dir)
        .args(["--foreground", "--quiet", "--config-net"])
        .args(options);
    for option in ["-t", "-u", "-T", "-U"] {
        if !options.contains(&option) {
            command.args([option, "none"]);
        }
    }
    command
}

fn target(world: &World) -> String {
    world.guest.pid.to_string()
}

/// Changes rules, or shows them.
pub fn pesto(socket: &Path, options: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_coracle-net"))
        .arg0("pesto")
        .args(options)
        .arg(socket)
        .output()
        .expect("run pesto");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().expect("an exit code"), text)
}

pub fn pesto_succeeds(socket: &Path, options: &[&str]) -> String {
    let (code, text) = pesto(socket, options);
    assert_eq!(code, 0, "{text}");
    text
}
