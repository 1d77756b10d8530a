//! `coracle attach`: the caller's terminal or streams on a container that runs already.

use super::follow::Bond;
use super::{latest, open_engine};
use crate::cli::AttachArgs;
use crate::engine::Attach;
use crate::failure::Failure;
use crate::process::foreground::{Foreground, Outcome, Signals, UNREAD_EXIT_CODE};

pub fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let engine = open_engine()?;
    let name = match &args.container {
        Some(name) => name.clone(),
        None => latest(&engine)?,
    };
    let attach = Attach {
        stdin: !args.no_stdin,
        stdout: true,
        stderr: true,
    };
    let (events, streams) = engine.attach(&name, attach)?.into_parts();
    let bond = Bond::of(&args.leave, attach.stdin, args.sig_proxy);
    let foreground = Foreground::new(signals, events, streams, bond.interactive)?
        .leaving_by(bond.keys, bond.passes_signals);
    match foreground.serve()? {
        // The container's own code is `wait`'s to tell, as with Podman.
        Outcome::Exited(_) | Outcome::Restarting(_) | Outcome::Detached => Ok(0),
        Outcome::DetachedBy(signal) => Ok(128 + signal as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        Outcome::Lost => Err(Failure::runner(format!(
            "the monitor of container {name} was killed, or cannot serve this command"
        ))),
    }
}
