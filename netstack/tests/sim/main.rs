//! The core in memory, with a guest, a host and a clock that the test plays. `world` calls the core
//! as a driver does; each frame of the core passes `kernel`, which does with it what a guest's
//! kernel would.
//!
//! Conversations: a scripted guest (`peer`) says one thing in one state, and the test looks at what
//! comes back. Transfers: another TCP stack (`guest`) and random programs on both sides talk
//! through a link that delays, loses, repeats and reorders frames (`wire`), and every byte is
//! compared.

mod guest;
mod host;
mod peer;
mod wire;
mod world;

mod addressing;
mod autoconf;
mod closing;
mod datagrams;
mod dialling;
mod egress;
mod flow_control;
mod hops;
mod limits;
mod link_layer;
mod memory;
mod names;
mod networks;
mod offloads;
mod promoted;
mod published;
mod reach;
mod transfers;

use testbed::{entropy, kernel, packet};
