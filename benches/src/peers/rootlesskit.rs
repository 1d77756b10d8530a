//! RootlessKit, with its builtin port driver, the default of rootless Docker and (as a library) of
//! Podman with slirp4netns, or with the ports of slirp4netns.
//!
//! RootlessKit makes the guest itself and insists on sub-IDs through `newuidmap`, which cannot work
//! inside the world's user namespace: it holds one ID and no setuid program. The programs
//! RootlessKit looks for in its PATH are therefore ourselves ([`shim`]), mapping just that one ID.
//! Nothing of the network or the port driver is affected.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Attached, Wanted};
use crate::namespaces::SCRATCH;
use crate::procfs::Processes;
use crate::worker::Program;

pub fn attach(
    program: &Path,
    slirp4netns: &Path,
    port_driver: &str,
    wanted: Wanted,
) -> Result<Attached> {
    let scratch = Path::new(SCRATCH);
    let own = std::env::current_exe().context("failed to find our own executable")?;
    let shims = scratch.join("shims");
    fs::create_dir(&shims).context("failed to create a directory for RootlessKit's tools")?;
    for name in SHIMS {
        symlink(&own, shims.join(name)).with_context(|| format!("failed to provide {name}"))?;
    }
    let mut path = OsString::from(&shims);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());

    let state = scratch.join("rootlesskit");
    let mut helper = Program::new(program)?;
    helper.env("PATH", &path);
    helper.args([
        OsString::from("--state-dir"),
        state.clone().into(),
        "--subid-source=dynamic".into(),
    ]);
    helper.args([
        "--net=slirp4netns",
        &format!("--mtu={}", wanted.mtu),
        "--disable-host-loopback",
    ]);
    helper.args([
        OsString::from("--slirp4netns-binary"),
        slirp4netns.into(),
        format!("--port-driver={port_driver}").into(),
    ]);
    helper.args(wanted.rules().map(|rule| format!("--publish={rule}")));
    let ready_file = scratch.join("rootlesskit.ready");
    helper.args([
        own.into_os_string(),
        "__report-pid".into(),
        ready_file.clone().into(),
    ]);
    let mut running = helper.start()?;
    let guest = running.wait_file(&ready_file)?;
    let guest = guest
        .trim()
        .parse()
        .with_context(|| format!("the guest's process ID is {guest:?}"))?;
    let ready = Some(running.started.elapsed());
    let processes = Processes::new(vec![running.pid()], vec![guest]);
    Ok(Attached {
        guest: Some(guest),
        address: None,
        processes,
        ready,
        _programs: vec![running],
    })
}

/// The command in RootlessKit's guest: says that it runs, which is after network and ports are up,
/// and stays.
pub fn report_pid(file: &Path) -> Result<()> {
    // Renaming makes the content appear at once.
    let unfinished = file.with_extension("tmp");
    fs::write(&unfinished, std::process::id().to_string())
        .and_then(|()| fs::rename(&unfinished, file))
        .with_context(|| format!("failed to write {}", file.display()))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .context("failed to wait for the stage")?;
    Ok(())
}

const SHIMS: [&str; 3] = ["newuidmap", "newgidmap", "getsubids"];

/// Stands in for the tools of the shadow suite when we are called by one of their names.
///
/// `getsubids` promises a range, as RootlessKit demands one; `newuidmap PID INNER OUTER 1 …` maps
/// the first ID and ignores that range.
pub fn shim(name: &str, args: &[String]) -> Option<Result<()>> {
    if !SHIMS.contains(&name) {
        return None;
    }
    Some(match (name, args) {
        ("getsubids", _) => {
            println!("0: user 100000 65536");
            Ok(())
        }
        (_, [pid, inner, outer, count, ..]) => map(name, pid, &format!("{inner} {outer} {count}")),
        _ => Err(anyhow::anyhow!("{name} was called without an ID to map")),
    })
}

fn map(name: &str, pid: &str, line: &str) -> Result<()> {
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).with_context(|| format!("failed to write {path}"))
    };
    match name {
        "newuidmap" => write("uid_map", line),
        "newgidmap" => write("gid_map", line),
        _ => bail!("{name} maps nothing"),
    }
}
