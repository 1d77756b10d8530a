//! The tap as the core's [`Link`]: frames are written at once; what the tap does not take now is
//! kept in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::core::link::Link;
use crate::device::Tap;

/// Frames kept while the tap takes none. Large transfers stop at the first; only small answers go
/// on to come.
const MAX_KEPT: usize = 1024;

/// A tap and what it still has to take.
pub struct TapLink {
    tap: Tap,
    kept: VecDeque<Vec<u8>>,
    /// Frames that were lost: the interface was down, or too many were kept.
    pub frames_lost: u64,
}

impl TapLink {
    pub fn new(tap: Tap) -> TapLink {
        TapLink {
            tap,
            kept: VecDeque::new(),
            frames_lost: 0,
        }
    }

    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Tries again what was kept.
    pub fn retry(&mut self) {
        while let Some(frame) = self.kept.front() {
            match self.tap.transmit(frame) {
                Err(error) if is_passing(&error) => return,
                Err(_) => self.frames_lost += 1,
                Ok(()) => {}
            }
            self.kept.pop_front();
        }
    }
}

impl Link for TapLink {
    fn has_room(&self) -> bool {
        self.kept.is_empty()
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        let error = if self.kept.is_empty() {
            match self
                .tap
                .transmit_vectored(&[IoSlice::new(head), IoSlice::new(payload)])
            {
                Ok(()) => return,
                Err(error) => error,
            }
        } else {
            io::ErrorKind::WouldBlock.into()
        };
        if is_passing(&error) && self.kept.len() < MAX_KEPT {
            self.kept.push_back([head, payload].concat());
        } else {
            self.frames_lost += 1;
        }
    }
}

/// A full buffer or short memory, as against an interface that is down or gone.
fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}
