//! The network helper: what stands between a guest's network namespace and the host's network.
//!
//! A frame's way: [`device`] takes it from the tap, `driver` hands it to [`core`], core finds its
//! flow and says what the host has to do, driver does it with the sockets of [`host`]. [`guest`] is
//! what happens inside the guest's namespaces, [`control`] what the outside may ask of a running
//! helper. [`cli`] turns a command line into a checked [`config`], the guest's [`network`] in it,
//! with which `start` brings everything up; `process` goes to the background first, or starts a
//! command in namespaces; [`sandbox`] is what is given up then.
//!
//! Only core knows protocols, and it knows nothing else: no socket, no clock, no thread. Only
//! [`sys`] is unsafe.

mod broker;
pub mod cli;
mod companion;
pub mod config;
pub mod control;
pub mod core;
mod descriptors;
pub mod device;
mod driver;
pub mod forwards;
pub mod guest;
pub mod host;
pub mod logging;
mod netlink;
pub mod network;
mod output_file;
mod process;
pub mod publish;
pub mod sandbox;
pub mod seccomp;
mod start;
pub mod sys;
#[cfg(test)]
mod testing;
