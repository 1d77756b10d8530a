//! Podman as the machine's user calls it, with storage and an image of the case's own.

use crate::harness::{Machine, Outcome, SERVICE_PORT, image, skip};

pub struct Podman<'a> {
    pub machine: &'a Machine,
    /// What comes before the subcommand.
    options: Vec<String>,
}

impl<'a> Podman<'a> {
    /// Skips the case where Podman is not installed.
    pub fn new(machine: &'a Machine) -> Self {
        machine.need("podman");
        machine.need("runc");
        let [root, run_root] = ["storage", "run"].map(|dir| machine.make_dir(dir));
        let options = [
            format!("--root={}", root.display()),
            format!("--runroot={}", run_root.display()),
            "--storage-driver=vfs".into(),
            "--events-backend=file".into(),
            "--cgroup-manager=cgroupfs".into(),
            "--runtime=runc".into(),
        ];
        let podman = Self {
            machine,
            options: options.into(),
        };
        let archive = image::archive(machine);
        podman.call(&["import", &archive, IMAGE]).expect();
        podman
    }

    /// Skips the case unless Podman is at least of this major version.
    pub fn since(self, major: u32) -> Self {
        let version = self.call(&["--version"]).expect();
        let number = version
            .rsplit(' ')
            .next()
            .and_then(|version| version.split('.').next());
        let installed: u32 = number
            .and_then(|number| number.parse().ok())
            .expect("a version");
        if installed < major {
            skip(format!(
                "it is for Podman {major} and later, and this is {version}"
            ));
        }
        self
    }

    /// Skips the case unless netavark makes this Podman's networks.
    pub fn need_netavark(&self) {
        let backend = self
            .call(&["info", "--format={{.Host.NetworkBackend}}"])
            .expect();
        if backend != "netavark" {
            skip(format!(
                "Podman's networks are made by {backend} (package netavark)"
            ));
        }
    }

    /// One more option before the subcommand.
    pub fn option(mut self, option: String) -> Self {
        self.options.push(option);
        self
    }

    /// A subcommand, to its end.
    pub fn call(&self, words: &[&str]) -> Outcome {
        let options = self.options.iter().map(String::as_str);
        let all: Vec<&str> = ["podman"]
            .into_iter()
            .chain(options)
            .chain(words.iter().copied())
            .collect();
        self.machine.run(&all)
    }

    /// Runs a program in a container of its own.
    pub fn run(&self, options: &[&str], program: &[&str]) -> Outcome {
        self.call(&[&["run", "--rm"], CONTAINER, options, &[IMAGE], program].concat())
    }

    /// Starts a container with the guest's service in it.
    pub fn serve(&self, name: &str, options: &[&str]) {
        self.start(name, options, &[GUEST, "serve"]);
    }

    /// Starts a container with another program in it.
    pub fn start(&self, name: &str, options: &[&str], program: &[&str]) {
        let named = ["run", "--detach", "--name", name];
        self.call(&[&named, CONTAINER, options, &[IMAGE], program].concat())
            .expect();
    }

    pub fn remove(&self, name: &str) {
        self.call(&["rm", "--force", name]).expect();
    }
}

/// The guest's program in a container.
pub const GUEST: &str = "/guest";

/// What `podman run --publish` gets behind the port of the host.
pub fn published(entry: &str) -> [String; 2] {
    ["tcp", "udp"].map(|protocol| format!("--publish={entry}:{SERVICE_PORT}/{protocol}"))
}

const IMAGE: &str = "test";
/// For each container: the guest's program, and no limits that a normal user could not set.
const CONTAINER: &[&str] = &["--ulimit=host", "--volume=/opt/programs/guest:/guest:ro"];
