//! Podman, rootless. Debian 12's (4.3) runs slirp4netns, that of Debian 13 (5.4) pasta too; what
//! both helpers have to do for it is in `common`.

mod bridge;
mod client;
mod common;
mod pasta;
mod slirp4netns;

use crate::harness::Case;

pub use client::{GUEST, Podman, published};

pub fn cases() -> Vec<Case> {
    [slirp4netns::CASES, pasta::CASES, bridge::CASES].concat()
}
