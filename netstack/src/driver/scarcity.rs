//! When descriptors run out all the same: the shares of the core's limits are worked out at the
//! start, but whoever may lowers the limit of a running process, and the system has one for all.
//! What can wait waits a little; for the rest a flow goes that will hardly be missed.

use std::io;

use super::RETRY;
use super::shard::Shard;
use crate::core::Instant;
use crate::core::flow::FlowId;
use crate::device::Device;

impl<D: Device> Shard<D> {
    /// Opens a socket for flow `id`. Without a descriptor for it, another flow makes way.
    pub(super) fn open_for<T>(
        &mut self,
        id: FlowId,
        open: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        match open() {
            Err(error) if is_out_of_descriptors(&error) && self.core.yield_descriptor(Some(id)) => {
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

/// A source of work that is not looked at for a moment: it is ready, but there is no descriptor for
/// what it would bring, so that the loop would spin.
#[derive(Debug, Default)]
pub struct Pause {
    until: Option<Instant>,
}

impl Pause {
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + RETRY);
    }

    pub fn end(&mut self) {
        self.until = None;
    }

    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// When it is over, if it is on.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    pub fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}
