//! Many idle connections: opens them, sends one request over each so that both ends know of it, and
//! holds them until the stage closes standard input.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use super::{Event, RESPONSE_BYTES, Report, Sockets, emit, request_head};

/// Reports [`Event::Begin`] when all connections are open and used, [`Event::Done`] when they are
/// closed.
pub fn run(sockets: &Sockets, address: SocketAddr, connections: u32) -> Result<()> {
    let head = request_head(address, false);
    let mut streams = Vec::new();
    // One after the other, since some helpers lose answers when many come at once; here it is about
    // memory.
    for index in 0..connections {
        let mut stream = sockets
            .connect_all(address, 1)?
            .pop()
            .context("no connection was made")?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(super::CONNECT_TIMEOUT))?;
        stream.write_all(&head)?;
        let mut response = [0_u8; RESPONSE_BYTES];
        if let Err(e) = stream.read_exact(&mut response) {
            bail!(
                "connection {} of {connections} got no answer: {e}",
                index + 1
            );
        }
        streams.push(stream);
    }
    emit(Event::Begin)?;
    io::stdin()
        .read_to_end(&mut Vec::new())
        .context("failed to wait for the stage")?;
    drop(streams);
    emit(Event::Done(Report {
        operations: u64::from(connections),
        ..Report::default()
    }))
}
