//! The host's half of a TCP flow: what is known of its stream, and how bytes and FINs cross between
//! it and the guest's half. [`TcpFlow::serve`](super::TcpFlow::serve) says when.

use std::io;

use smoltcp::socket::tcp::State;

use super::engine::{Connection, Engine, Filled};

/// The host's half of a flow: a connected, non-blocking stream.
pub trait HostStream {
    /// Reads what the remote sent. `Ok(0)` is its FIN.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends what the guest sent; may take a part.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Passes the guest's FIN on. The other direction stays open.
    fn finish(&mut self);
}

/// What the driver learnt of a host stream since it last said so. Edges, as epoll reports them with
/// EPOLLET.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The remote sent FIN or RST: a short read no longer means that nothing is left.
    pub hung_up: bool,
    /// The connection is gone (RST, timeout), which matters even when the guest's window keeps us
    /// from reading.
    pub failed: bool,
}

impl Readiness {
    /// Of a stream that has just been connected.
    pub const WRITABLE: Self = Self {
        readable: false,
        writable: true,
        hung_up: false,
        failed: false,
    };
}

/// What is known of the host's half.
#[derive(Default)]
pub(super) struct HostSide {
    readable: bool,
    writable: bool,
    pub(super) hung_up: bool,
    pub(super) failed: bool,
    fin_received: bool,
    fin_sent: bool,
}

impl HostSide {
    /// Takes note of what the driver learnt.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        self.hung_up |= readiness.hung_up;
        self.failed |= readiness.failed;
    }

    /// Bytes of the guest to the stream, and the FIN behind them. `counter` counts them, also those
    /// before an error.
    pub(super) fn pass_from_guest(
        &mut self,
        connection: &mut Connection,
        host: &mut impl HostStream,
        counter: &mut u64,
    ) -> io::Result<()> {
        while self.writable && connection.socket().can_recv() {
            let sent = connection
                .socket_mut()
                .recv(|bytes| match host.send(bytes) {
                    Ok(sent) => (sent, Ok(sent)),
                    Err(error) => (0, Err(error)),
                });
            match sent {
                Ok(Ok(sent)) => *counter += sent as u64,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        if !self.fin_sent && guest_finished(connection) {
            self.fin_sent = true;
            // After the remote's FIN, closing the stream says the same with one system call less.
            if !self.fin_received {
                host.finish();
            }
        }
        Ok(())
    }

    /// Bytes of the stream to the guest, as far as the engine has room, and the FIN behind them.
    /// Returns how many it were.
    pub(super) fn pass_to_guest(
        &mut self,
        engine: &mut Engine,
        connection: &mut Connection,
        host: &mut impl HostStream,
    ) -> io::Result<u64> {
        let mut passed = 0;
        while self.readable && !self.fin_received {
            match engine.fill(connection, |space| host.receive(space)) {
                Some(Ok(Filled { count: 0, .. })) => self.fin_received = true,
                Some(Ok(Filled { count, room })) => {
                    passed += count as u64;
                    self.readable = self.hung_up || count == room;
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false
                }
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        // In LAST-ACK smoltcp 0.14 heeds no window update; the FIN waits until nothing depends on
        // one.
        let socket = connection.socket();
        if self.fin_received
            && socket.may_send()
            && (socket.state() != State::CloseWait || socket.send_queue() == 0)
        {
            connection.socket_mut().close();
        }
        Ok(passed)
    }
}

/// The guest has said FIN and there is nothing in the buffer before it.
fn guest_finished(connection: &Connection) -> bool {
    matches!(
        connection.state(),
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
    ) && !connection.socket().can_recv()
}
