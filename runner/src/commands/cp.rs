//! `coracle cp`: files into containers and out of them.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use super::open_engine;
use crate::cli::{CopyPlace, CpArgs};
use crate::engine::{CopyEnd, CopyRequest};
use crate::failure::Failure;

pub fn cp(args: CpArgs) -> Result<u8, Failure> {
    if args.to == CopyPlace::Stream && io::stdout().is_terminal() {
        return Err(Failure::runner(
            "will not write a tar to the terminal: redirect it, or use a pipe",
        ));
    }
    let request = CopyRequest {
        from: end(args.from, io::stdin())?,
        to: end(args.to, io::stdout())?,
        keeps_owners: !args.archive,
        replaces: args.overwrite,
    };
    open_engine()?.copy(request)?;
    Ok(0)
}

fn end(place: CopyPlace, stream: impl AsFd) -> Result<CopyEnd, Failure> {
    Ok(match place {
        CopyPlace::Host(path) => CopyEnd::Host(path),
        CopyPlace::Container { name, path } => CopyEnd::Container { name, path },
        CopyPlace::Stream => CopyEnd::Tar(descriptor(stream)?),
    })
}

/// One of the standard streams, for another process.
pub fn descriptor(stream: impl AsFd) -> Result<OwnedFd, Failure> {
    let descriptor = stream.as_fd().try_clone_to_owned();
    descriptor.map_err(Failure::context("cannot duplicate a standard stream"))
}
