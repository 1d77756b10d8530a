//! A device as the core's [`Link`]: frames are written at once; what the device does not take now
//! is kept, and goes first, in order, when it is tried again.

use std::collections::VecDeque;
use std::io;

use crate::core::link::Link;
use crate::device::Device;

/// Frames kept while the device takes none. Large transfers stop at the first; only small answers
/// go on to come.
const MAX_KEPT: usize = 1024;

/// A device and what it still has to take.
pub struct DeviceLink<D> {
    device: D,
    kept: VecDeque<Vec<u8>>,
    /// Frames that were lost: the interface was down, or too many were kept.
    pub frames_lost: u64,
}

impl<D: Device> DeviceLink<D> {
    pub fn new(device: D) -> Self {
        Self {
            device,
            kept: VecDeque::new(),
            frames_lost: 0,
        }
    }

    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Tries again what was kept.
    pub fn retry(&mut self) {
        while let Some(frame) = self.kept.front() {
            match self.device.transmit(frame, &[]) {
                Err(error) if is_passing(&error) => return,
                Err(_) => self.frames_lost += 1,
                Ok(()) => {}
            }
            self.kept.pop_front();
        }
    }
}

impl<D: Device> Link for DeviceLink<D> {
    fn has_room(&self) -> bool {
        self.kept.is_empty()
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        let error = if self.kept.is_empty() {
            match self.device.transmit(head, payload) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FaultInjector, Faults, MemoryDevice, MemoryGuest};

    const BLOCKED: Faults = faults(100);
    const OPEN: Faults = faults(0);

    const fn faults(blocked: usize) -> Faults {
        Faults {
            lost: 0,
            repeated: 0,
            delayed: 0,
            blocked,
        }
    }

    fn link(faults: Faults) -> (DeviceLink<FaultInjector<MemoryDevice>>, MemoryGuest) {
        let (device, guest) = MemoryDevice::pair();
        (
            DeviceLink::new(FaultInjector::new(device, faults, 1)),
            guest,
        )
    }

    /// Sends a frame that can be told from all others.
    fn send(link: &mut impl Link, number: u32) {
        link.transmit(&number.to_ne_bytes(), b" and a payload");
    }

    fn arrived(guest: &MemoryGuest) -> Vec<u32> {
        let number = |frame: Vec<u8>| {
            let (number, payload) = frame.split_first_chunk().expect("four bytes");
            assert_eq!(payload, b" and a payload");
            u32::from_ne_bytes(*number)
        };
        std::iter::from_fn(|| guest.receive()).map(number).collect()
    }

    #[test]
    fn a_frame_is_written_at_once() {
        let (mut link, guest) = link(OPEN);
        send(&mut link, 7);
        assert!(link.has_room());
        assert_eq!(arrived(&guest), [7]);
    }

    #[test]
    fn what_is_not_taken_goes_first_later() {
        let (mut link, guest) = link(BLOCKED);
        send(&mut link, 0);
        assert!(!link.has_room());
        // The device would take the second one, but the first comes before.
        link.device().faults = OPEN;
        send(&mut link, 1);
        assert!(arrived(&guest).is_empty());
        link.retry();
        assert!(link.has_room());
        send(&mut link, 2);
        assert_eq!(arrived(&guest), [0, 1, 2]);
        assert_eq!(link.frames_lost, 0);
    }

    #[test]
    fn a_retry_that_is_blocked_loses_nothing() {
        let (mut link, guest) = link(BLOCKED);
        (0..10).for_each(|number| send(&mut link, number));
        link.retry();
        assert!(!link.has_room());
        link.device().faults = OPEN;
        link.retry();
        assert_eq!(arrived(&guest), Vec::from_iter(0..10));
    }

    #[test]
    fn every_frame_arrives_once_and_in_order_however_often_the_device_blocks() {
        let (mut link, guest) = link(faults(60));
        let mut all = Vec::new();
        for number in 0..1000 {
            send(&mut link, number);
            if number % 3 == 0 {
                link.retry();
            }
            all.extend(arrived(&guest));
        }
        while !link.has_room() {
            link.retry();
            all.extend(arrived(&guest));
        }
        assert_eq!(all, Vec::from_iter(0..1000));
        assert_eq!(link.frames_lost, 0);
    }

    #[test]
    fn a_device_that_is_really_full_loses_nothing() {
        let (device, guest) = MemoryDevice::pair();
        let mut link = DeviceLink::new(device);
        let mut sent = 0;
        while link.has_room() {
            send(&mut link, sent);
            sent += 1;
        }
        let mut all = Vec::new();
        while !link.has_room() {
            all.extend(arrived(&guest));
            link.retry();
        }
        all.extend(arrived(&guest));
        assert_eq!(all, Vec::from_iter(0..sent));
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_lost_is_counted() {
        let (mut link, guest) = link(BLOCKED);
        let most = MAX_KEPT as u32;
        (0..most + 5).for_each(|number| send(&mut link, number));
        assert_eq!(link.frames_lost, 5);
        link.device().faults = OPEN;
        while !link.has_room() {
            link.retry();
            // Those that were kept are the oldest.
            let first = arrived(&guest);
            assert!(first.is_sorted() && first.iter().all(|number| *number < most));
        }
        assert_eq!(link.frames_lost, 5);
    }

    #[test]
    fn a_device_that_is_gone_keeps_nothing() {
        let (device, guest) = MemoryDevice::pair();
        let mut link = DeviceLink::new(device);
        while link.has_room() {
            send(&mut link, 0);
        }
        (1..3).for_each(|number| send(&mut link, number));
        drop(guest);
        link.retry();
        assert!(link.has_room());
        assert_eq!(link.frames_lost, 3);
    }
}
