//! How long it takes to start a container that does nothing, network included: `coracle run` beside Podman and bubblewrap.
//!
//! Unlike the other figures these run directly as the user, in no world of ours. The container's root file system is made
//! for the purpose: our own executable under the name `true`, and the libraries it is linked with.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::peers;
use crate::stats::Summary;

/// A way to start a container, and how long each start took.
#[derive(Debug, Serialize, Deserialize)]
pub struct Startup {
    pub name: String,
    pub version: String,
    pub command: Vec<String>,
    pub millis: Vec<f64>,
}

impl Startup {
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.millis)
    }
}

/// Times every runner that is installed, interleaved; adds a line to `missing` for each that is not or does not work.
pub fn measure(rounds: u32, missing: &mut Vec<String>) -> Result<Vec<Startup>> {
    let root = RootFs::create()?;
    let mut startups = Vec::new();
    for (name, alternatives) in contenders(&root.path) {
        match first_that_works(&alternatives) {
            Ok((program, command)) => {
                let version = peers::version(&program)?;
                let command = command
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                startups.push(Startup {
                    name,
                    version,
                    command,
                    millis: Vec::new(),
                });
            }
            Err(e) => missing.push(format!("{name}: {e:#}")),
        }
    }
    for _ in 0..rounds {
        for startup in &mut startups {
            let words: Vec<OsString> = startup.command.iter().map(OsString::from).collect();
            startup.millis.push(start(&words)?);
        }
    }
    Ok(startups)
}

/// Names, and for each the commands to try in turn.
fn contenders(root: &Path) -> Vec<(String, Vec<Vec<OsString>>)> {
    let words = |program: &Path, text: &str| -> Vec<OsString> {
        let mut words = vec![program.into()];
        words.extend(text.split(' ').map(|word| {
            if word == "ROOT" {
                root.into()
            } else {
                OsString::from(word)
            }
        }));
        words
    };
    let find = |name: &str| peers::built_with_us(name).or_else(|| peers::find_program(name));
    let command = |name, text: &str| {
        find(name)
            .map(|program| words(&program, text))
            .into_iter()
            .collect()
    };
    let mut all = vec![
        (
            "coracle run".into(),
            command("coracle", "run --rm --rootfs ROOT /bin/true"),
        ),
        (
            "bwrap, no network".into(),
            command(
                "bwrap",
                "--unshare-all --bind ROOT / --proc /proc --dev /dev /bin/true",
            ),
        ),
    ];
    for network in ["slirp4netns", "pasta", "none"] {
        // Podman's default runtime need not work on every system; runc refuses the least.
        let run = format!("run --rm --network {network} --rootfs ROOT /bin/true");
        let mut tries: Vec<Vec<OsString>> = command("podman", &run);
        tries.extend::<Vec<_>>(command("podman", &format!("--runtime runc {run}")));
        all.push((format!("podman, {network}"), tries));
    }
    all
}

fn first_that_works(alternatives: &[Vec<OsString>]) -> Result<(PathBuf, &Vec<OsString>)> {
    let mut result = Err(anyhow::anyhow!("not installed"));
    for command in alternatives {
        match start(command) {
            Ok(_) => return Ok((PathBuf::from(&command[0]), command)),
            Err(e) => result = Err(e),
        }
    }
    result
}

/// Runs the command to its end; milliseconds.
fn start(command: &[OsString]) -> Result<f64> {
    let [program, args @ ..] = command else {
        bail!("an empty command")
    };
    let started = Instant::now();
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {}", program.to_string_lossy()))?;
    let elapsed = started.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}",
            said.lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("failed and said nothing")
                .trim()
        );
    }
    Ok(elapsed.as_secs_f64() * 1_000.0)
}

/// A directory that is a container's root file system, removed when dropped.
struct RootFs {
    path: PathBuf,
}

impl RootFs {
    fn create() -> Result<RootFs> {
        let path = std::env::temp_dir().join(format!("coracle-benches-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        let root = RootFs { path };
        for directory in ["bin", "proc", "sys", "dev", "etc", "tmp", "run"] {
            fs::create_dir_all(root.path.join(directory))
                .context("failed to create a directory of the container")?;
        }
        copy(Path::new("/proc/self/exe"), &root.path.join("bin/true"))?;
        let maps =
            fs::read_to_string("/proc/self/maps").context("failed to read our own mappings")?;
        for library in libraries(&maps) {
            let target = root
                .path
                .join(library.strip_prefix("/").unwrap_or(&library));
            fs::create_dir_all(target.parent().unwrap_or(&root.path))
                .context("failed to create a library directory")?;
            copy(&library, &target)?;
        }
        // The loader's name is fixed in the executable and is usually a link to what is mapped.
        for loader in ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(Path::new) {
            let target = root.path.join(loader.strip_prefix("/").unwrap_or(loader));
            if loader.exists() && !target.exists() {
                fs::create_dir_all(target.parent().unwrap_or(&root.path))
                    .context("failed to create a loader directory")?;
                copy(loader, &target)?;
            }
        }
        Ok(root)
    }
}

impl Drop for RootFs {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("failed to remove {}: {e}", self.path.display());
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to).map(|_| ());
    copied.with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))
}

/// The shared objects among the mappings of `/proc/PID/maps`.
fn libraries(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| {
        line.split_once('/')
            .map(|(_, path)| PathBuf::from(format!("/{path}")))
    });
    paths
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(".so"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_shared_objects_of_the_mappings() {
        let maps = "55d0-55d1 r--p 0 fe:00 1  /usr/bin/x\n\
                    7f00-7f01 r--p 0 fe:00 2  /usr/lib/libc.so.6\n\
                    7f01-7f02 r-xp 0 fe:00 2  /usr/lib/libc.so.6\n\
                    7f03-7f04 r--p 0 fe:00 3  /usr/lib/ld-linux-x86-64.so.2\n\
                    7ffd-7ffe rw-p 0 00:00 0  [stack]\n";
        let found: Vec<PathBuf> = libraries(maps).into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/usr/lib/ld-linux-x86-64.so.2"),
                Path::new("/usr/lib/libc.so.6")
            ]
        );
    }

    #[test]
    fn our_own_root_file_system_runs_us_as_true_and_goes_away() {
        let path = {
            let root = RootFs::create().unwrap();
            assert!(root.path.join("bin/true").is_file());
            root.path.clone()
        };
        assert!(!path.exists());
    }

    #[test]
    fn a_failing_runner_says_why() {
        let command = [
            "sh",
            "-c",
            "echo first >&2; echo no such network >&2; exit 1",
        ]
        .map(OsString::from);
        assert_eq!(start(&command).unwrap_err().to_string(), "no such network");
        assert!(
            first_that_works(&[])
                .unwrap_err()
                .to_string()
                .contains("not installed")
        );
    }
}
