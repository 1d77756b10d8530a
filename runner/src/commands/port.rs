//! `coracle port`: where a container's published ports are on the host.

use super::{open_engine, print_line};
use crate::cli::PortArgs;
use crate::engine::published_ports;
use crate::failure::Failure;

pub fn port(args: PortArgs) -> Result<u8, Failure> {
    let container = open_engine()?.find(&args.container)?;
    let mut lines = Vec::new();
    for port in published_ports(&container) {
        match args.port {
            None => lines.push(format!("{}/{} -> {}", port.guest, port.protocol, port.host)),
            Some(wanted) if wanted == (port.guest, port.protocol) => {
                lines.push(port.host.to_string());
            }
            Some(_) => {}
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
