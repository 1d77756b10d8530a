//! A device that does to the frames of another one what bad links do, at random but always the
//! same: it loses, repeats and delays them, and does not take them for a while.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use testbed::entropy::Entropy;

use crate::device::{Capabilities, Device, MAX_FRAME_LEN};

/// How bad the link is, in frames of 100, either way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lost: usize,
    pub repeated: usize,
    /// Held back until the next frame of the same direction has overtaken it.
    pub delayed: usize,
    /// Refused with would-block, so that the caller has to come again.
    pub blocked: usize,
}

/// See the module's description. Frames that are held back do not make the descriptor readable:
/// they come with the next ones.
pub struct FaultInjector<D> {
    device: D,
    pub faults: Faults,
    entropy: Entropy<'static>,
    from_guest: Line,
    to_guest: Line,
}

/// One direction: what has come through, and what the next frame overtakes.
#[derive(Debug, Default)]
struct Line {
    through: VecDeque<Vec<u8>>,
    delayed: Option<Vec<u8>>,
}

impl<D> FaultInjector<D> {
    pub fn new(device: D, faults: Faults, seed: u64) -> Self {
        Self {
            device,
            faults,
            entropy: Entropy::seeded(seed),
            from_guest: Line::default(),
            to_guest: Line::default(),
        }
    }
}

impl Line {
    fn take(&mut self, frame: Vec<u8>, faults: Faults, entropy: &mut Entropy) {
        if entropy.chance(faults.lost) {
            return;
        }
        if self.delayed.is_none() && entropy.chance(faults.delayed) {
            self.delayed = Some(frame);
            return;
        }
        if entropy.chance(faults.repeated) {
            self.through.push_back(frame.clone());
        }
        self.through.push_back(frame);
        self.through.extend(self.delayed.take());
    }
}

impl<D: Device> FaultInjector<D> {
    fn flush(&mut self) -> io::Result<()> {
        while let Some(frame) = self.to_guest.through.front() {
            self.device.transmit(frame, &[])?;
            self.to_guest.through.pop_front();
        }
        Ok(())
    }
}

impl<D: Device> Device for FaultInjector<D> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.from_guest.through.pop_front() {
                buffer[..frame.len()].copy_from_slice(&frame);
                return Ok(frame.len());
            }
            let mut frame = vec![0; MAX_FRAME_LEN];
            let len = self.device.receive(&mut frame)?;
            frame.truncate(len);
            self.from_guest.take(frame, self.faults, &mut self.entropy);
        }
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        self.flush()?;
        if self.entropy.chance(self.faults.blocked) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let frame = [head, payload].concat();
        self.to_guest.take(frame, self.faults, &mut self.entropy);
        // What the device does not take now goes before the next frame.
        let _ = self.flush();
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }
}

impl<D: AsFd> AsFd for FaultInjector<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryDevice;

    /// What comes out of each end when four frames go in.
    fn passed(faults: Faults) -> [Vec<u8>; 2] {
        let (device, guest) = MemoryDevice::pair();
        let mut device = FaultInjector::new(device, faults, 1);
        let mut buffer = vec![0; MAX_FRAME_LEN];
        for number in 0..4 {
            guest.send(&[number]);
            device.transmit(&[number], &[]).unwrap();
        }
        let from_guest = std::iter::from_fn(|| device.receive(&mut buffer).ok().map(|_| buffer[0]));
        [
            from_guest.collect(),
            std::iter::from_fn(|| guest.receive())
                .map(|frame| frame[0])
                .collect(),
        ]
    }

    #[test]
    fn each_fault_is_what_it_is_called() {
        let always = |change: fn(&mut Faults)| {
            let mut faults = Faults::default();
            change(&mut faults);
            passed(faults)
        };
        assert_eq!(always(|_| ()), [[0, 1, 2, 3], [0, 1, 2, 3]]);
        assert!(always(|faults| faults.lost = 100).iter().all(Vec::is_empty));
        let twice = [0, 0, 1, 1, 2, 2, 3, 3];
        assert_eq!(always(|faults| faults.repeated = 100), [twice, twice]);
        let swapped = [1, 0, 3, 2];
        assert_eq!(always(|faults| faults.delayed = 100), [swapped, swapped]);
    }
}
