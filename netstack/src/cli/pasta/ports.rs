//! The options of pasta that are about ports.

use std::path::PathBuf;

use portfwd::forward::{PortOption, SpecError};

use super::path;
use crate::forwards::Forwards;

/// As they were typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Ports")]
pub struct PortArgs {
    /// TCP ports of the host that lead to the namespace (repeatable) [default: auto]
    ///
    /// SPEC is `none`, `auto` for those that somebody listens at there, or
    /// [ADDR][%INTERFACE]/PORTS, where PORTS is a list such as 22,80-90,~85,8080:80 of ports and
    /// ranges, to other ports behind a colon, and without what a tilde excludes. Services see the
    /// client's own address.
    #[arg(short = 't', long = "tcp-ports", value_name = "SPEC")]
    tcp_ports: Vec<String>,

    /// UDP ports of the host that lead to the namespace (repeatable) [default: auto]
    #[arg(short = 'u', long = "udp-ports", value_name = "SPEC")]
    udp_ports: Vec<String>,

    /// TCP ports of the namespace's loopback that lead to the host's (repeatable) [default: auto]
    #[arg(short = 'T', long = "tcp-ns", value_name = "SPEC")]
    tcp_ns: Vec<String>,

    /// UDP ports of the namespace's loopback that lead to the host's (repeatable) [default: auto]
    #[arg(short = 'U', long = "udp-ns", value_name = "SPEC")]
    udp_ns: Vec<String>,

    /// Who comes to -t and -u from the host's loopback gets to the namespace's loopback
    #[arg(long)]
    host_lo_to_ns_lo: bool,

    /// Let `pesto` show and change forwarded ports at this socket
    #[arg(short, long, value_name = "PATH", value_parser = path())]
    conf_path: Option<PathBuf>,
}

impl PortArgs {
    pub fn forwards(&self) -> Result<Forwards, SpecError> {
        let mut forwards = Forwards::default();
        forwards.control_socket.clone_from(&self.conf_path);
        forwards.from_loopback_to_loopback = self.host_lo_to_ns_lo;
        for option in PortOption::ALL {
            let given = match option {
                PortOption::TcpInbound => &self.tcp_ports,
                PortOption::UdpInbound => &self.udp_ports,
                PortOption::TcpOutbound => &self.tcp_ns,
                PortOption::UdpOutbound => &self.udp_ns,
            };
            if given.is_empty() {
                forwards.add(option, "auto")?;
            }
            for spec in given {
                forwards.add(option, spec)?;
            }
        }
        Ok(forwards)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        ports: PortArgs,
    }

    fn forwards(line: &str) -> Result<Forwards, String> {
        let words = std::iter::once("pasta").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.ports.forwards().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_is_automatic() {
        let all = forwards("").unwrap();
        let tables = all.tables();
        assert!(tables.inbound.has_auto() && tables.outbound.has_auto());
        let none = forwards("-t none -u none --tcp-ns none --udp-ns=none").unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn options_add_up() {
        let given = forwards("-t 80 --tcp-ports=90:91 -u none -T none -U none -c /s").unwrap();
        assert_eq!(given.tables().inbound.rules().len(), 2);
        assert_eq!(given.control_socket, Some("/s".into()));
        let error = forwards("-t 80 -t none").unwrap_err();
        assert_eq!(error, "-t none conflicts with previous options");
    }
}
