//! Relays between real TCP connections on loopback.

mod conversations;
mod harness;
mod random;
mod transfers;
