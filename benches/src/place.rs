//! Where one end of a figure's traffic runs.

use std::net::SocketAddr;

use crate::cell::Congestion;
use crate::traffic::{Job, Task};

/// One end of the traffic.
pub struct Place {
    /// A process in its namespaces; ours when absent.
    pub enter: Option<i32>,
    /// What the server listens on or the client connects to.
    pub address: SocketAddr,
    pub congestion: Congestion,
}

impl Place {
    /// The order for a generator that does `job` here.
    pub fn task(&self, job: Job) -> Task {
        Task {
            enter: self.enter,
            congestion: self.congestion.name().into(),
            job,
        }
    }
}
