//! slirp4netns, with the options that Podman gives it; ports are forwarded through its API socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Attached, PORT, Protocol, Wanted};
use crate::cell::Family;
use crate::namespaces::SCRATCH;
use crate::procfs::Processes;
use crate::worker::Program;

pub fn attach(program: &Path, wanted: Wanted) -> Result<Attached> {
    let socket = Path::new(SCRATCH).join("slirp4netns.sock");
    let mut helper = Program::new(program)?;
    let ready = helper.ready_fd()?;
    helper.args([
        "--configure",
        &format!("--mtu={}", wanted.mtu),
        "--disable-host-loopback",
    ]);
    helper.args([format!("--ready-fd={ready}")]);
    if wanted.family == Family::Ipv6 {
        helper.args(["--enable-ipv6"]);
    }
    helper.args([format!("--api-socket={}", socket.display())]);
    helper.args([wanted.guest.to_string(), "tap0".into()]);
    let mut running = helper.start()?;
    running.wait_ready()?;
    let ready = Some(running.started.elapsed());
    for protocol in wanted.publish {
        forward(&socket, *protocol)?;
    }
    let processes = Processes::new(vec![running.pid()], Vec::new());
    Ok(Attached {
        guest: None,
        address: None,
        processes,
        ready,
        _programs: vec![running],
    })
}

/// One request per connection; the reply comes after our half-close.
fn forward(socket: &Path, protocol: Protocol) -> Result<()> {
    let request = json!({"execute": "add_hostfwd", "arguments": {
        "proto": protocol.name(), "host_addr": "0.0.0.0", "host_port": PORT, "guest_port": PORT,
    }});
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("failed to reach {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = String::new();
    stream
        .read_to_string(&mut reply)
        .context("slirp4netns did not answer")?;
    check(&reply)
}

fn check(reply: &str) -> Result<()> {
    let reply: Value =
        serde_json::from_str(reply).with_context(|| format!("slirp4netns answered {reply:?}"))?;
    if let Some(error) = reply.get("error") {
        bail!("slirp4netns refused the port: {error}");
    }
    reply
        .pointer("/return/id")
        .with_context(|| format!("slirp4netns answered {reply}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn only_an_id_is_success() {
        assert!(check(r#"{"return":{"id":1}}"#).is_ok());
        assert!(
            check(r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#)
                .is_err()
        );
        assert!(check(r#"{"return":{}}"#).is_err());
        assert!(check("").is_err());
    }
}
