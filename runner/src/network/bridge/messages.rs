//! What monitors, the holder and the anchors of networks tell each other.
//!
//! ```text
//! monitor -> holder   Join               Publish*           Leave
//! holder  -> monitor       Joined | Failed       Done | Failed    Done
//!
//! holder  -> anchor            Names*
//! anchor  -> holder   Ready | Failed
//! ```
//! Either end hanging up is a death, or the end of what the other was there for.

use serde::{Deserialize, Serialize};

use super::{Attachment, Lease};
use crate::failure::Failure;
use crate::network::store::BridgeNetwork;
use crate::state::ContainerId;

/// From a monitor to the holder, about one container in one network.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHolder {
    /// Put the container into the network. Attached are its user and its network namespace.
    Join(Box<Join>),
    /// Publish these ports at the container, by the rules of a single port each. Attached are their
    /// sockets.
    Publish(Vec<String>),
    /// Take the container out again. Without `runs_on` it has ended, and its interfaces with it.
    Leave { runs_on: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// Without its labels.
    pub network: BridgeNetwork,
    pub container: ContainerId,
    /// What the container is called there.
    pub names: Vec<String>,
    /// A lease in it is the one that the container has had from an earlier holder, and wants again.
    pub attachment: Attachment,
    /// The interface in the container.
    pub interface: String,
    /// Whether the way out leads through this network.
    pub leads_out: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromHolder {
    Joined(Lease),
    Done,
    Failed(Failure),
}

/// From the holder to a network's anchor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToAnchor {
    /// Names, in the form of coracle-net's `--host-name`. The first of several messages takes the
    /// place of all before.
    Names { first: bool, names: Vec<String> },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromAnchor {
    /// The bridge is there, and has this index. A route socket of its namespace is attached.
    Ready {
        bridge: u32,
    },
    Failed(String),
}
