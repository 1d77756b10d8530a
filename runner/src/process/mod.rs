//! The processes of a container, a file for each, and what they say to each other.
//!
//! - The caller's side: `engine::launch` and `engine::exec`, with [`foreground`] at the terminal.
//! - [`monitor`] answers for the container as long as it lives.
//! - [`init`] is its first process; [`exec`] brings another command into it. Both end in
//!   [`program`], which becomes what [`user`] is to run, with the [`rights`] that it is to have.
//!   [`reaper`] is PID 1 for `--init`.
//!
//! - [`holder`] keeps the namespaces that a user's commands share, and [`owner`] is for work on
//!   files of sub-IDs.
//!
//! They talk through [`channel`] in the words of [`messages`], and hand over longer things as a
//! [`task`]. [`selfexec`] starts this program again in one of its roles. [`inherited`] puts in
//! order what the caller handed down.

pub mod channel;
pub mod exec;
pub mod foreground;
pub mod holder;
pub mod inherited;
pub mod init;
pub mod messages;
pub mod monitor;
pub mod owner;
pub mod program;
pub mod reaper;
pub mod rights;
pub mod selfexec;
pub mod task;
pub mod ulimit;
pub mod user;
