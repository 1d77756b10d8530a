//! The core in memory, with a guest, a host and a clock that the test plays.
//!
//! Each test says one thing in one state and looks at what comes back. The other end of a TCP connection is scripted
//! (`peer`), the remote behind the host's sockets too (`host`); `world` calls the core as a driver does. Each frame of the
//! core passes `kernel`, which does with it what a guest's kernel would.

mod host;
mod kernel;
mod packet;
mod peer;
mod world;

mod closing;
mod datagrams;
mod dialling;
mod flow_control;
mod link_layer;
mod offloads;
mod published;
mod reach;
