//! When descriptors run out all the same: the shares of the core's limits are worked out at the
//! start, but whoever may lowers the limit of a running process, and the system has one for all.
//! What can wait waits a little; for the rest a flow goes that will hardly be missed.

use std::io;

use super::shard::Shard;
use crate::core::flow::FlowId;
use crate::device::Device;

impl<D: Device> Shard<D> {
    /// Opens a socket, for flow `id` if it is one's. Without a descriptor for it, another flow
    /// makes way.
    pub(super) fn open_for<T>(
        &mut self,
        id: Option<FlowId>,
        open: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        match open() {
            Err(error) if is_out_of_descriptors(&error) && self.core.yield_descriptor(id) => {
                self.close_ended();
                open()
            }
            result => result,
        }
    }
}

/// Whether the process, or the system, has no more descriptors.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
