//! pasta, with the addresses that RootlessKit gives it. It goes to the background when it is ready
//! and leaves its process ID in a file. A client on host loopback is spliced by it, any other goes
//! through the tap.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Attached, PORT, Protocol, Wanted};
use crate::cell::Family;
use crate::links::{GATEWAY, GATEWAY6, GUEST, GUEST6};
use crate::namespaces::SCRATCH;
use crate::procfs::Processes;
use crate::worker::Program;

pub fn attach(program: &Path, wanted: Wanted) -> Result<Attached> {
    let pid_file = Path::new(SCRATCH).join("pasta.pid");
    let mut helper = Program::new(program)?;
    helper.args(["--config-net", "--quiet", "--no-map-gw"]);
    helper.args(["--ns-ifname", "tap0", "--mtu", &wanted.mtu.to_string()]);
    let (only, address, gateway) = match wanted.family {
        Family::Ipv4 => ("--ipv4-only", GUEST.to_string(), GATEWAY.to_string()),
        Family::Ipv6 => ("--ipv6-only", GUEST6.to_string(), GATEWAY6.to_string()),
    };
    helper.args([only, "--address", &address, "--gateway", &gateway]);
    if wanted.family == Family::Ipv4 {
        helper.args(["--netmask", "24"]);
    }
    let published = |protocol| match wanted.publish.contains(&protocol) {
        true => PORT.to_string(),
        false => "none".into(),
    };
    helper.args(["--tcp-ports", &published(Protocol::Tcp)]);
    helper.args(["--udp-ports", &published(Protocol::Udp)]);
    helper.args(["--tcp-ns", "none", "--udp-ns", "none"]);
    helper.args([Path::new("--pid"), &pid_file]);
    helper.args([wanted.guest.to_string()]);
    let mut running = helper.start()?;
    running.wait_exit()?;
    let ready = Some(running.started.elapsed());
    let pid =
        running_pid(&std::fs::read_to_string(&pid_file).context("pasta left no process ID")?)?;
    Ok(Attached {
        guest: None,
        address: None,
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
