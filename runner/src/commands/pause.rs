//! `coracle pause` and `coracle unpause`: containers freeze, and go on.

use super::{chosen, for_each, open_engine, print_line};
use crate::cli::PauseArgs;
use crate::failure::Failure;
use crate::state::Status;

pub fn pause(args: &PauseArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = chosen(&engine, &args.chosen, args.all, |c| {
        c.status == Status::Running
    })?;
    for_each(&names, |name| {
        engine.pause(name)?;
        print_line(name)
    })
}

pub fn unpause(args: &PauseArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = chosen(&engine, &args.chosen, args.all, |c| {
        c.status == Status::Paused
    })?;
    for_each(&names, |name| {
        engine.unpause(name)?;
        print_line(name)
    })
}
