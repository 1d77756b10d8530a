//! `coracle port`: where a container's published ports are on the host.

use portfwd::spec::{PortRange, Protocol, Publish};

use super::{open_store, print_line};
use crate::cli::PortArgs;
use crate::failure::Failure;

pub fn port(args: PortArgs) -> Result<u8, Failure> {
    let container = open_store()?.find(&args.container)?;
    let rules: Vec<Publish> = container
        .publish
        .iter()
        .filter_map(|rule| rule.parse().ok())
        .collect();
    let mut lines = Vec::new();
    for rule in &rules {
        for (host, guest) in rule.pairs() {
            for addr in rule.host_addrs() {
                let host = std::net::SocketAddr::new(addr, host);
                match args.port {
                    None => lines.push(format!("{guest}/{} -> {host}", rule.protocol)),
                    Some(wanted) if wanted == (guest, rule.protocol) => {
                        lines.push(host.to_string());
                    }
                    Some(_) => {}
                }
            }
        }
    }
    if let (Some((port, protocol)), true) = (args.port, lines.is_empty()) {
        return Err(Failure::runner(format!(
            "container {} publishes no port {port}/{protocol}",
            container.name
        )));
    }
    lines.iter().try_for_each(|line| print_line(line))?;
    Ok(0)
}

/// `PORT` or `PORT/PROTOCOL` of the container; TCP when not said.
pub fn parse_port(text: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port
        .parse()
        .ok()
        .and_then(|port| PortRange::new(port, port).ok())
        .ok_or("expected PORT or PORT/tcp or PORT/udp")?;
    let protocol = protocol.parse().map_err(|error| format!("{error}"))?;
    Ok((port.first(), protocol))
}
