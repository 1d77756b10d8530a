//! pasta, with the addresses that RootlessKit gives it. It goes to the background when it is ready and leaves its process ID in a
//! file. A client on host loopback is spliced by it, any other goes through the tap.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Attached, Wanted};
use crate::namespaces::SCRATCH;
use crate::procfs::Processes;
use crate::worker::Program;

pub fn attach(program: &Path, wanted: Wanted) -> Result<Attached> {
    let pid_file = Path::new(SCRATCH).join("pasta.pid");
    let mut helper = Program::new(program)?;
    helper.args(["--config-net", "--quiet", "--ipv4-only", "--no-map-gw"]);
    helper.args(["--ns-ifname", "tap0", "--mtu", &wanted.mtu.to_string()]);
    helper.args([
        "--address",
        "10.0.2.100",
        "--netmask",
        "24",
        "--gateway",
        "10.0.2.2",
    ]);
    let published = wanted
        .publish
        .map_or_else(|| "none".into(), |port| port.to_string());
    helper.args([
        "--tcp-ports",
        &published,
        "--udp-ports",
        "none",
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
    ]);
    helper.args([Path::new("--pid"), &pid_file]);
    helper.args([wanted.guest.to_string()]);
    let mut running = helper.start()?;
    running.wait_exit()?;
    let ready = Some(running.started.elapsed());
    let pid =
        running_pid(&std::fs::read_to_string(&pid_file).context("pasta left no process ID")?)?;
    Ok(Attached {
        guest: None,
        processes: Processes::new(vec![pid], Vec::new()),
        ready,
        _programs: vec![running],
    })
}

fn running_pid(text: &str) -> Result<i32> {
    text.trim()
        .parse()
        .with_context(|| format!("pasta's process ID is {text:?}"))
}
