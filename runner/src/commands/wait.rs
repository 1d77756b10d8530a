//! `coracle wait`: until containers have come to a state; their exit codes on stdout, a line each.

use super::{latest, open_engine, print_line};
use crate::cli::WaitArgs;
use crate::failure::Failure;

pub fn wait(args: WaitArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = match args.latest {
        true => vec![latest(&engine)?],
        false => args.containers,
    };
    // Before a long wait for another one.
    let ids: Vec<_> = names
        .iter()
        .map(|name| Ok(engine.find(name)?.id))
        .collect::<Result<_, Failure>>()?;
    for id in ids {
        let code = engine.wait_for(id.as_str(), &args.condition, args.interval)?;
        print_line(&code.unwrap_or(NO_CODE).to_string())?;
    }
    Ok(0)
}

/// As Podman has it for a container that has no exit code.
const NO_CODE: i32 = -1;
