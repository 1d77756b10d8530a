//! Kernel sockets that take over a TCP connection in mid-flow (TCP_REPAIR, Linux 3.5).
//!
//! User space has served the connection so far and knows its whole state, the [`Snapshot`]. The socket made from it lives
//! in the guest's network namespace, is bound to the *remote's* address and port, and speaks to the guest's own socket.
//! Sequence numbers and windows are named as in RFC 9293 3.3.1: SND is towards the guest, RCV is from it.

use std::net::SocketAddr;

/// The state of a connection at rest: everything sent has been acknowledged, everything received has been passed on (or
/// is kept by whoever relays from here on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Whom the guest believes it talks to: the socket's own address.
    pub remote: SocketAddr,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The next byte to the guest; SND.UNA equals it.
    pub snd_nxt: u32,
    /// The next byte expected from the guest.
    pub rcv_nxt: u32,
    /// The MSS that the guest announced in its SYN (536, or 1220 with IPv6, when it announced none; RFC 9293 3.7.1).
    pub smss: u16,
    /// The guest's window scale (RFC 7323 2.2); `None` if it offered none, and then nobody scales.
    pub guest_window_scale: Option<u8>,
    /// Ours; without meaning when the guest offered none.
    pub our_window_scale: u8,
    /// Whether both sides permitted SACK (RFC 2018).
    pub sack: bool,
    /// SND.WND: the guest's last window, in bytes.
    pub snd_wnd: u32,
    /// The largest window the guest ever offered, in bytes.
    pub max_window: u32,
    /// RCV.WND: how many bytes from `rcv_nxt` on we have told the guest that it may send.
    pub rcv_wnd: u32,
}
