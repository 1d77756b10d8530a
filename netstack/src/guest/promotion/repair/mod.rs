//! Kernel sockets that take over a TCP connection in mid-flow (TCP_REPAIR, Linux 3.5).
//!
//! The engine has served the connection so far and knows its whole state, the [`Snapshot`]. The
//! socket made from it lives in the guest's network namespace, has the *remote's* address and port
//! (IP_TRANSPARENT), and speaks to the guest's own socket. [`RepairSocket::restore`] and
//! [`RepairSocket::leave`] are steps of the hand-over told in `driver::hand_over`.
//!
//! Sequence numbers and windows are named as in RFC 9293 3.3.1: SND is towards the guest, RCV is
//! from it. Needs CAP_NET_ADMIN and, for remote ports below 1024, CAP_NET_BIND_SERVICE in the user
//! namespace of the guest's network.
//!
//! System calls on the driver's thread: bind, connect, setsockopt, getsockopt.

#[cfg(test)]
mod tests;

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use portfwd::Keepalive;

use super::Reach;
use super::mark;
use super::socket_pool::FreshSocket;
use crate::core::flow::Endpoints;
use crate::core::tcp::{Snapshot, WireState};
use crate::sys;

/// For the sockets that were made here: a guest that has forgotten the connection answers with RST.
/// Its own may have been lost, or have overtaken what it had sent before: then its number is not
/// the expected one, and the kernel asks back only once in 500 ms (RFC 5961 3.2).
pub const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(15),
    interval: Duration::from_secs(5),
    probes: 12,
};

/// Why a connection cannot be taken over; it stays in the engine, which notices nothing.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// An earlier connection with these ends is in TIME-WAIT, or not closed yet.
    #[error("the guest's kernel still remembers {0}")]
    Remembered(Endpoints),
    #[error("cannot restore {endpoints}: {step}: {source}")]
    Step {
        endpoints: Endpoints,
        step: &'static str,
        source: io::Error,
    },
}

/// A socket in repair mode: connected and with the connection's state, but it does not speak, not
/// even when dropped.
#[derive(Debug)]
pub struct RepairSocket {
    socket: OwnedFd,
    endpoints: Endpoints,
}

impl RepairSocket {
    /// Gives `socket` the connection's state. `endpoints` are those inside the guest, which are
    /// others than the snapshot's if the guest translates them. If it fails the socket is gone,
    /// without a trace.
    pub fn restore(
        socket: FreshSocket,
        endpoints: Endpoints,
        reach: Reach,
        snapshot: &Snapshot,
    ) -> Result<Self, RepairError> {
        let wire = &snapshot.wire;
        let this = Self {
            socket: socket.into(),
            endpoints,
        };
        // Sequence numbers can be set only before the connect, options and windows only after it.
        for (queue, sequence) in [
            (TCP_SEND_QUEUE, wire.snd_nxt),
            (TCP_RECV_QUEUE, snapshot.rcv_nxt),
        ] {
            this.set(libc::TCP_REPAIR_QUEUE, &[queue], "choose a queue")?;
            this.set(libc::TCP_QUEUE_SEQ, &[sequence], "set a sequence number")?;
        }
        // The connect chooses the size of segments, once, before the options can be told: 536 bytes
        // if nobody asks for more. It is chosen again only when the guest offers a larger window
        // than ever.
        this.set(libc::TCP_MAXSEG, &[segment_len(wire)], "set the MSS")?;
        if reach == Reach::Forwarded {
            let mark = mark::UNTRACKED.to_ne_bytes();
            sys::set_socket_option(this.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark)
                .map_err(|source| this.error("mark", source))?;
        }
        rustix::net::bind(&this.socket, &endpoints.remote())
            .map_err(|error| this.error("bind", error.into()))?;
        rustix::net::connect(&this.socket, &endpoints.guest()).map_err(|error| match error {
            rustix::io::Errno::ADDRNOTAVAIL => RepairError::Remembered(endpoints),
            error => this.error("connect", error.into()),
        })?;

        // Without scaling it must be said too: the kernel has chosen a scale of its own for the
        // connect.
        let (guest_shift, our_shift) = match wire.guest_shift {
            Some(shift) => (shift, wire.our_shift.unwrap_or(0)),
            None => (0, 0),
        };
        let mut options = vec![
            OPTION_MSS,
            wire.smss.get().into(),
            OPTION_WINDOW_SCALE,
            u32::from(guest_shift) | u32::from(our_shift) << 16,
        ];
        if wire.sack_permitted {
            options.extend([OPTION_SACK_PERMITTED, 0]);
        }
        this.set(libc::TCP_REPAIR_OPTIONS, &options, "set the options")?;
        // struct tcp_repair_window. Without it SND.WND would be 0, and nobody would ever probe.
        let window = [
            snapshot.rcv_nxt, // SND.WL1: the guest's next segment is newer than its last window.
            cautious_window(wire),
            wire.max_snd_wnd.max(wire.snd_wnd),
            snapshot.window_from_kernel(),
            snapshot.rcv_nxt, // rcv_wup: from where rcv_wnd counts.
        ];
        this.set(libc::TCP_REPAIR_WINDOW, &window, "set the windows")?;
        Ok(this)
    }

    /// Turns it into an ordinary connected socket, non-blocking and close-on-exec. From here on it
    /// speaks, and dropping it ends the connection; if this fails it has not spoken.
    pub fn leave(self) -> Result<OwnedFd, RepairError> {
        // Without a window probe: it would carry an old sequence number, which Linux guests drop
        // unread.
        let off = TCP_REPAIR_OFF_NO_WP.cast_unsigned();
        self.set(libc::TCP_REPAIR, &[off], "leave repair mode")?;
        // Leaving has cleared it. The guest may want to serve on the port number that this socket
        // has; with this, a server that sets SO_REUSEADDR can bind. There is no way for it to fail,
        // and none back either.
        let _ = rustix::net::sockopt::set_socket_reuseaddr(&self.socket, true);
        let _ = KEEPALIVE.set(&self.socket);
        Ok(self.socket)
    }

    /// Sets a TCP option made of 32-bit words.
    fn set(&self, option: c_int, words: &[u32], step: &'static str) -> Result<(), RepairError> {
        let mut bytes = [0; MAX_OPTION_LEN];
        let value = &mut bytes[..size_of_val(words)];
        for (to, word) in value.chunks_exact_mut(size_of::<u32>()).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        sys::set_socket_option(self.socket.as_fd(), libc::IPPROTO_TCP, option, value)
            .map_err(|source| self.error(step, source))
    }

    fn error(&self, step: &'static str, source: io::Error) -> RepairError {
        RepairError::Step {
            endpoints: self.endpoints,
            step,
            source,
        }
    }
}

/// Payload of a full segment to the guest, in bytes: no more than half of what the guest ever took
/// at once, lest it waits for a window that never comes (as Linux, tcp_bound_to_half_wnd).
fn segment_len(wire: &WireState) -> u32 {
    /// What TCP_MAXSEG takes.
    const RANGE: std::ops::RangeInclusive<u32> = 88..=32767;
    let half = wire.max_snd_wnd.max(wire.snd_wnd) / 2;
    u32::from(wire.smss.get())
        .min(half)
        .clamp(*RANGE.start(), *RANGE.end())
}

/// The guest's window less one unit of its scale, in bytes.
///
/// The connect has made the kernel expect segments with a window of 0 (tcp_finish_connect sets up
/// header prediction with the window there is by then), and it does not look at what it expects: it
/// would send on into a window that closes. The first window that differs from the one it knows
/// ends that. A guest whose window has not been used up cannot have closed it before.
fn cautious_window(wire: &WireState) -> u32 {
    let unit = 1 << wire.guest_shift.unwrap_or(0);
    match wire.snd_wnd.checked_sub(unit) {
        None | Some(0) => wire.snd_wnd,
        Some(less) => less,
    }
}

/// Whether the connection of TCP socket `socket` is over: both FINs exchanged and acknowledged, or
/// reset. A socket that went to TIME-WAIT counts as closed; the kernel keeps that state elsewhere.
pub fn is_closed(socket: impl AsFd) -> io::Result<bool> {
    /// include/net/tcp_states.h.
    const TCP_CLOSE: u8 = 7;
    // The state is the first byte of struct tcp_info; the kernel cuts the rest off.
    let mut state = [0];
    sys::socket_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        &mut state,
    )?;
    Ok(state == [TCP_CLOSE])
}

/// Three options of two words are the longest.
const MAX_OPTION_LEN: usize = 6 * size_of::<u32>();
/// linux/tcp.h. Off without a window probe: Linux 4.19.
const TCP_REPAIR_OFF_NO_WP: c_int = -1;
const TCP_RECV_QUEUE: u32 = 1;
const TCP_SEND_QUEUE: u32 = 2;
/// IANA's numbers of TCP options.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 3;
const OPTION_SACK_PERMITTED: u32 = 4;
