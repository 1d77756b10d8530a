//! How long it takes to start a container that does nothing: `coracle run` beside Podman, runc and
//! bubblewrap. The latter two make an empty network namespace, and so does one of Podman's starts.
//!
//! Unlike the other figures these run directly as the user, in no world of ours. The container's
//! root file system is made for the purpose: our own executable under the name `true`, and the
//! libraries it is linked with.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use testbed::libraries::libraries;

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

/// Times every runner that is installed, interleaved; adds a line to `missing` for each that is not
/// or does not work.
pub fn measure(rounds: u32, missing: &mut Vec<String>) -> Result<Vec<Startup>> {
    let files = Files::create()?;
    let mut startups = Vec::new();
    for (name, alternatives) in contenders(&files) {
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
fn contenders(files: &Files) -> Vec<(String, Vec<Vec<OsString>>)> {
    let words = |program: &Path, text: &str| -> Vec<OsString> {
        let mut words = vec![program.into()];
        words.extend(text.split(' ').map(|word| {
            if word == "ROOT" {
                files.root().into()
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
    if let Some(program) = peers::find_program("runc") {
        let command = files.runc_command(&program);
        all.push(("runc, no network".into(), command.into_iter().collect()));
    }
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

/// A directory with a container's root file system and a bundle for runc, removed when dropped.
struct Files {
    path: PathBuf,
}

impl Files {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("coracle-benches-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        let files = Self { path };
        for directory in ["bin", "proc", "sys", "dev", "etc", "tmp", "run"] {
            fs::create_dir_all(files.root().join(directory))
                .context("failed to create a directory of the container")?;
        }
        files.add(Path::new("/proc/self/exe"), Path::new("/bin/true"))?;
        for library in libraries().context("failed to read our own mappings")? {
            files.add(&library, &library)?;
        }
        // The loader's name is fixed in the executable and is usually a link to what is mapped.
        for loader in ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(Path::new) {
            if loader.exists() {
                files.add(loader, loader)?;
            }
        }
        Ok(files)
    }

    fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Copies a file to a place in the container's root file system, unless something is there.
    fn add(&self, from: &Path, to: &Path) -> Result<()> {
        let target = self.root().join(to.strip_prefix("/").unwrap_or(to));
        if target.exists() {
            return Ok(());
        }
        fs::create_dir_all(target.parent().unwrap_or(&self.path))
            .context("failed to create a directory of the container")?;
        fs::copy(from, &target)
            .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// How runc starts the container: from a bundle made of what it proposes for a normal user
    /// itself.
    fn runc_command(&self, runc: &Path) -> Result<Vec<OsString>> {
        let bundle = self.path.join("bundle");
        fs::create_dir_all(&bundle).context("failed to create a bundle for runc")?;
        start(&[
            runc.into(),
            "spec".into(),
            "--rootless".into(),
            "--bundle".into(),
            bundle.clone().into(),
        ])?;
        let file = bundle.join("config.json");
        let proposed = fs::read(&file).context("runc spec left no config.json")?;
        let config = bundle_config(serde_json::from_slice(&proposed)?, &self.root())?;
        fs::write(&file, config.to_string()).context("failed to write a bundle for runc")?;
        let state = self.path.join("runc");
        let words: [OsString; 7] = [
            runc.into(),
            "--root".into(),
            state.into(),
            "run".into(),
            "--bundle".into(),
            bundle.into(),
            "coracle-benches".into(),
        ];
        Ok(words.into())
    }
}

/// A bundle's configuration for `/bin/true` in `root`, with a network namespace as everybody else
/// has.
fn bundle_config(mut proposed: Value, root: &Path) -> Result<Value> {
    proposed["process"]["terminal"] = false.into();
    proposed["process"]["args"] = json!(["/bin/true"]);
    proposed["root"] = json!({"path": root, "readonly": true});
    let namespaces = proposed["linux"]["namespaces"].as_array_mut();
    let namespaces = namespaces.context("runc spec names no namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "network"}));
    Ok(proposed)
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("failed to remove {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_root_file_system_runs_us_as_true_and_goes_away() {
        let path = {
            let files = Files::create().unwrap();
            assert!(files.root().join("bin/true").is_file());
            files.path.clone()
        };
        assert!(!path.exists());
    }

    #[test]
    fn a_bundle_keeps_what_runc_proposes_but_for_what_is_started_and_where() {
        let proposed = json!({
            "process": {"terminal": true, "args": ["sh"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "user"}]},
        });
        let config = bundle_config(proposed, Path::new("/somewhere")).unwrap();
        assert_eq!(
            config["process"],
            json!({"terminal": false, "args": ["/bin/true"], "cwd": "/"})
        );
        assert_eq!(config["root"]["path"], "/somewhere");
        let types = config["linux"]["namespaces"].as_array().unwrap().iter();
        let types: Vec<&str> = types.map(|one| one["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["pid", "user", "network"]);
        assert!(bundle_config(json!({}), Path::new("/")).is_err());
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
