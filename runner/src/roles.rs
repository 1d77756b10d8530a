//! Which of its roles a program plays: told by the name that it was started under.
//!
//! Processes beside and inside containers are this very program, executed once more. So whatever
//! program uses the engine has to ask here first thing in its `main`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::engine;
use crate::engine::{FILES_ROLE, HEALTH_ROLE, OWNER_ROLE};
use crate::images::{STORAGE_ROLE, storage_main};
use crate::network::bridge;
use crate::process::selfexec::{
    EXEC_ROLE, HOLDER_ROLE, INIT_ROLE, LAUNCHER_ROLE, MONITOR_ROLE, NETWORKS_ROLE,
};
use crate::process::{exec, holder, init, monitor};

/// Plays the role that `args`, those of the process, name. `None` when they name none, and the
/// program is what its user has started.
pub fn play(args: &[OsString]) -> Option<ExitCode> {
    let name = Path::new(args.first()?).file_name()?.to_str()?;
    match name {
        "coracle-net" => Some(netstack::cli::main()),
        INIT_ROLE => Some(init::main(args)),
        EXEC_ROLE => Some(exec::main(args)),
        MONITOR_ROLE => Some(monitor::main(args)),
        LAUNCHER_ROLE => Some(exec::launcher_main(args)),
        HOLDER_ROLE => Some(holder::main()),
        NETWORKS_ROLE => Some(bridge::main()),
        HEALTH_ROLE => Some(engine::health_main()),
        OWNER_ROLE => Some(engine::owner_main()),
        FILES_ROLE => Some(engine::files_main()),
        STORAGE_ROLE => Some(storage_main()),
        _ => None,
    }
}
