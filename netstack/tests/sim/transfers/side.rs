//! One side of a flow: the program behind a socket, of the guest or of the host.

use netstack::core::{Duration, Instant};
use smoltcp::socket::tcp::{RecvError, Socket, State};

use crate::entropy::Entropy;
use crate::host::Host;

/// What one side of a flow is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub sends: u64,
    pub end: End,
    /// Most bytes that it reads or writes at a time.
    pub appetite: usize,
    /// It pauses long between two actions, now and then.
    pub dawdles: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN after its last byte.
    Finish,
    /// FIN when the other side has finished, and not before.
    Follow,
    /// RST after it has sent and received so much.
    Reset { after: u64 },
}

/// One side of a flow: the program behind the socket.
#[derive(Debug)]
pub struct Side {
    pub plan: Plan,
    /// Of what it sends, and of what it receives.
    pub keys: (u64, u64),
    pub sent: u64,
    pub received: u64,
    pub finished: bool,
    /// The other side's FIN has come, or its RST.
    pub heard_end: bool,
    pub heard_reset: bool,
    pub has_reset: bool,
    pub next_action: Instant,
}

/// A socket as a program sees it, of either side.
pub trait Half {
    fn is_connected(&self) -> bool;
    fn is_broken(&self) -> bool;
    fn write(&mut self, bytes: &[u8]) -> usize;
    fn read(&mut self, max: usize) -> Heard;
    fn finish(&mut self);
    fn reset(&mut self);
}

pub enum Heard {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

impl Half for Socket<'static> {
    fn is_connected(&self) -> bool {
        self.may_send()
    }

    fn is_broken(&self) -> bool {
        self.state() == State::Closed
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.send_slice(bytes).unwrap_or(0)
    }

    fn read(&mut self, max: usize) -> Heard {
        // smoltcp forgets what is unread after ten seconds of TIME-WAIT.
        let hurry = self.state() == State::TimeWait;
        let read = self.recv(|bytes| {
            let count = if hurry {
                bytes.len()
            } else {
                bytes.len().min(max)
            };
            (count, bytes[..count].to_vec())
        });
        match (read, self.state()) {
            (Ok(bytes), _) if !bytes.is_empty() => Heard::Bytes(bytes),
            (Err(RecvError::Finished), _) => Heard::End,
            (_, State::Closed) => Heard::Reset,
            _ => Heard::Nothing,
        }
    }

    fn finish(&mut self) {
        self.close();
    }

    fn reset(&mut self) {
        self.abort();
    }
}

impl Half for Host {
    fn is_connected(&self) -> bool {
        self.closed.is_none()
    }

    fn is_broken(&self) -> bool {
        self.closed.is_some()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.closed {
            None => Self::write(self, bytes),
            Some(_) => 0,
        }
    }

    fn read(&mut self, max: usize) -> Heard {
        let bytes = Self::read(self, max);
        match self.closed {
            _ if !bytes.is_empty() => Heard::Bytes(bytes),
            _ if self.is_at_end() => Heard::End,
            Some(_) => Heard::Reset,
            None => Heard::Nothing,
        }
    }

    fn finish(&mut self) {
        self.finish_remote();
    }

    fn reset(&mut self) {
        self.reset_remote();
    }
}

/// The byte at `offset` of the stream `key`.
pub fn byte(key: u64, offset: u64) -> u8 {
    let mixed = (offset ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl Side {
    /// Reads a little, writes a little, ends if it is time. Returns whether anything moved.
    pub fn act(&mut self, half: &mut dyn Half, now: Instant, entropy: &mut Entropy) -> bool {
        if now < self.next_action || self.is_done() {
            return false;
        }
        self.next_action = now
            + match entropy.below(100) {
                0 if self.plan.dawdles => Duration::from_secs(3),
                1..10 => Duration::from_millis(50),
                _ => Duration::from_micros(entropy.below(1_000) as u64),
            };
        if let End::Reset { after } = self.plan.end
            && self.sent + self.received >= after
        {
            half.reset();
            self.has_reset = true;
            return true;
        }
        let mut moved = false;
        match half.read(1 + entropy.below(self.plan.appetite)) {
            Heard::Bytes(bytes) => {
                for byte_heard in &bytes {
                    let expected = byte(self.keys.1, self.received);
                    assert_eq!(*byte_heard, expected, "at byte {}", self.received);
                    self.received += 1;
                }
                moved = true;
            }
            Heard::End => {
                moved = !self.heard_end;
                self.heard_end = true;
            }
            Heard::Reset => self.heard_reset = true,
            Heard::Nothing => {}
        }
        let left = self.plan.sends - self.sent;
        if left > 0 {
            let count = left.min(1 + entropy.below(self.plan.appetite) as u64);
            let chunk: Vec<u8> = (self.sent..self.sent + count)
                .map(|offset| byte(self.keys.0, offset))
                .collect();
            let count = half.write(&chunk);
            self.sent += count as u64;
            moved |= count > 0;
            self.heard_reset |= count == 0 && half.is_broken();
        } else if !self.finished && (self.plan.end != End::Follow || self.heard_end) {
            if half.is_connected() {
                half.finish();
                self.finished = true;
                moved = true;
            } else {
                self.heard_reset |= half.is_broken();
            }
        }
        moved
    }

    pub fn is_done(&self) -> bool {
        self.has_reset || self.heard_reset || (self.finished && self.heard_end)
    }
}
