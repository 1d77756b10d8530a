//! coracle-net, as `coracle run` or any engine starts it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Attached, Wanted};
use crate::procfs::Processes;
use crate::worker::Program;

pub fn attach(program: &Path, wanted: Wanted) -> Result<Attached> {
    let mut helper = Program::new(program)?;
    let ready = helper.ready_fd()?;
    helper.args([
        "--configure",
        &format!("--mtu={}", wanted.mtu),
        &format!("--ready-fd={ready}"),
    ]);
    helper.args(wanted.rules().map(|rule| format!("--publish={rule}")));
    helper.args([wanted.guest.to_string(), "tap0".into()]);
    let mut running = helper.start()?;
    running.wait_ready()?;
    Ok(Attached {
        guest: None,
        address: None,
        processes: Processes::new(vec![running.pid()], Vec::new()),
        ready: Some(running.started.elapsed()),
        _programs: vec![running],
    })
}

/// Brings `coracle-net` and `coracle` beside us up to date when we were started by `cargo run`,
/// which built only ourselves. Started in any other way we measure what is there.
pub fn build_if_run_by_cargo() -> Result<()> {
    let (Some(cargo), Some(package)) = (
        std::env::var_os("CARGO"),
        std::env::var_os("CARGO_MANIFEST_DIR"),
    ) else {
        return Ok(());
    };
    let own = std::env::current_exe().context("failed to find our own executable")?;
    let profile_dir = own.parent().context("our executable is in a directory")?;
    let target_dir = profile_dir
        .parent()
        .context("the profile's directory is in the target directory")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(cargo)
        .args([
            "build",
            "--profile",
            profile,
            "--package",
            "coracle-netstack",
            "--package",
            "coracle",
        ])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(package)
        .status()
        .context("failed to start cargo")?;
    if !status.success() {
        bail!("failed to build coracle-net and coracle: cargo ended with {status}");
    }
    Ok(())
}
