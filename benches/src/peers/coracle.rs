//! coracle-net, as `coracle run` or any engine starts it.

use std::path::Path;

use anyhow::Result;

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
    if let Some(port) = wanted.publish {
        helper.args([format!("--publish=0.0.0.0:{port}:{port}/tcp")]);
    }
    helper.args([wanted.guest.to_string(), "tap0".into()]);
    let mut running = helper.start()?;
    running.wait_ready()?;
    Ok(Attached {
        guest: None,
        processes: Processes::new(vec![running.pid()], Vec::new()),
        ready: Some(running.started.elapsed()),
        _programs: vec![running],
    })
}
