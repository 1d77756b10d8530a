//! Forwarding rules as pasta has them: which ports of one namespace lead to which of another.
//!
//! A [`Forward`] is one rule, a [`Table`] the rules of one [`Direction`], free of contradictions.
//! `grammar` reads what a user writes after `-t`, `-u`, `-T` and `-U`; [`wire`] is how `pesto` and
//! its server tell each other tables. All of it is pure: binding is [`crate::publish`]'s, and who
//! follows the ports of an [`auto`](Forward::auto) rule is the caller.

mod grammar;
pub mod wire;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::interface_name::{InterfaceName, InvalidInterfaceName};
use crate::spec::{PortRange, Protocol};

pub use grammar::{PortOption, SpecError};

/// Which way connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the host into the namespace.
    Inbound,
    /// From the namespace's loopback to the host's.
    Outbound,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Inbound, Self::Outbound];
}

/// One rule: ports that are listened at, and where they lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    pub protocol: Protocol,
    /// The address that is listened at; `None` is every address of both families.
    pub listen: Option<IpAddr>,
    /// Only what comes in by this interface.
    pub interface: Option<InterfaceName>,
    pub ports: PortRange,
    /// The address that they lead to, of the family of `listen`; `None` is the default one.
    pub target: Option<IpAddr>,
    /// The port that the first of `ports` leads to. Others follow in a row.
    pub first_target: u16,
    /// A port that cannot be bound is left out.
    pub best_effort: bool,
    /// Only ports that somebody listens at on the other side, as long as that is so.
    pub auto: bool,
}

impl Forward {
    /// The rule's ports and those that they lead to, in ascending order.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let first_target = self.first_target;
        // A rule's targets do not go beyond 65535.
        self.ports
            .ports()
            .zip(0u16..)
            .map(move |(port, nth)| (port, first_target + nth))
    }

    /// Where to listen for `port` of the rule: an endpoint for each family.
    pub fn endpoints(&self, port: u16) -> impl Iterator<Item = Endpoint> + use<> {
        let Self {
            protocol,
            interface,
            ..
        } = *self;
        let endpoint = move |ip| Endpoint {
            protocol,
            addr: SocketAddr::new(ip, port),
            interface,
        };
        let wildcards = ["0.0.0.0", "::"].map(|ip| ip.parse().expect("an address"));
        let ips: Vec<IpAddr> = match self.listen {
            Some(ip) => vec![ip],
            None => wildcards.to_vec(),
        };
        ips.into_iter().map(endpoint)
    }

    /// Whether one socket could not serve a port of each.
    fn conflicts(&self, other: &Self) -> bool {
        let overlap =
            self.ports.first() <= other.ports.last() && other.ports.first() <= self.ports.last();
        let interfaces_meet = match (self.interface, other.interface) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        let addresses_meet = match (self.listen, other.listen) {
            (Some(one), Some(two)) => {
                let alike = one.is_ipv4() == two.is_ipv4();
                alike && (one == two || one.is_unspecified() || two.is_unspecified())
            }
            _ => true,
        };
        self.protocol == other.protocol && overlap && interfaces_meet && addresses_meet
    }

    fn check(&self) -> Result<(), RuleError> {
        let last_target = usize::from(self.first_target) + self.ports.len() - 1;
        if self.ports.first() == 0 || self.first_target == 0 || last_target > 65535 {
            return Err(RuleError::Port0);
        }
        let Some(target) = self.target else {
            return Ok(());
        };
        match self.listen {
            _ if target.is_multicast() => Err(RuleError::Multicast(target)),
            Some(listen) if listen.is_ipv4() == target.is_ipv4() => Ok(()),
            listen => Err(RuleError::Families(listen, target)),
        }
    }
}

/// As `pesto --show` has them.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{protocol} [")?;
        match self.listen {
            Some(ip) => write!(f, "{ip}]")?,
            None => f.write_str("*]")?,
        }
        if let Some(interface) = self.interface {
            write!(f, "%{interface}")?;
        }
        write!(f, ":{}  =>  ", self.ports)?;
        if let Some(target) = self.target {
            write!(f, "{target}:")?;
        }
        write!(f, "{}", self.first_target)?;
        if self.ports.len() > 1 {
            write!(
                f,
                "-{}",
                usize::from(self.first_target) + self.ports.len() - 1
            )?;
        }
        if self.best_effort {
            f.write_str(" (best effort)")?;
        }
        if self.auto {
            f.write_str(" (auto-scan)")?;
        }
        Ok(())
    }
}

/// The rules of one direction, in the order they were given. No two of them conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(Vec<Forward>);

/// Most rules of a direction, as in pasta.
pub const MAX_RULES: usize = 255;

impl Table {
    pub fn rules(&self) -> &[Forward] {
        &self.0
    }

    /// Whether a rule follows what listens on the other side.
    pub fn has_auto(&self) -> bool {
        self.0.iter().any(|rule| rule.auto)
    }

    /// Adds `rule` at the end.
    ///
    /// # Errors
    /// When it contradicts itself or another rule, or is one too many.
    pub fn add(&mut self, rule: Forward) -> Result<(), RuleError> {
        rule.check()?;
        if let Some(other) = self.0.iter().find(|other| rule.conflicts(other)) {
            return Err(RuleError::Conflict(Box::new((rule, *other))));
        }
        if self.0.len() == MAX_RULES {
            return Err(RuleError::TooMany);
        }
        self.0.push(rule);
        Ok(())
    }

    /// Takes out the rule that is the same as `rule`.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&mut self, rule: &Forward) -> Result<(), RuleError> {
        if let Some(at) = self.0.iter().position(|own| own == rule) {
            self.0.remove(at);
            return Ok(());
        }
        Err(match self.0.iter().find(|own| rule.conflicts(own)) {
            Some(own) => RuleError::OtherRule(Box::new((*rule, *own))),
            None => RuleError::NoSuchRule(Box::new(*rule)),
        })
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Why a rule cannot be in a table, or taken out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    #[error("a forwarding rule maps from or to port 0, or beyond 65535")]
    Port0,
    #[error("multicast address {0} cannot be the target of a forwarding rule")]
    Multicast(IpAddr),
    #[error("{}", families(.0, .1))]
    Families(Option<IpAddr>, IpAddr),
    #[error(transparent)]
    Interface(#[from] InvalidInterfaceName),
    #[error("Forwarding configuration conflict: {} versus {}", .0.0, .0.1)]
    Conflict(Box<(Forward, Forward)>),
    #[error("Too many rules (maximum {MAX_RULES})")]
    TooMany,
    #[error("Specifier {} conflicts with rule {}, but doesn't match it, can't delete", .0.0, .0.1)]
    OtherRule(Box<(Forward, Forward)>),
    #[error("Couldn't find forwarding rule to delete: {0}")]
    NoSuchRule(Box<Forward>),
}

fn families(listen: &Option<IpAddr>, target: &IpAddr) -> String {
    let wildcard = if target.is_ipv4() { "0.0.0.0" } else { "[::]" };
    match listen {
        None => format!(
            "every address cannot lead to {target}, which is of one family; did you mean \
             {wildcard}/...?"
        ),
        Some(listen) => format!("{listen} cannot lead to {target}, which is of the other family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Forward {
        let ephemeral = PortRange::new(32768, 60999).unwrap();
        let rules = PortOption::TcpInbound.read(text, ephemeral).unwrap();
        rules[0]
    }

    #[test]
    fn rules_that_would_bind_the_same_do_not_go_together() {
        for (one, two, conflicts) in [
            ("80", "80:81", true),
            ("80", "81", false),
            ("70-90", "80", true),
            ("0.0.0.0/80", "127.0.0.1/80", true),
            ("0.0.0.0/80", "[::]/80", false),
            ("80", "[::1]/80", true),
            ("10.0.0.1/80", "10.0.0.2/80", false),
            ("%eth0/80", "%eth1/80", false),
            ("%eth0/80", "80", true),
        ] {
            let mut table = Table::default();
            table.add(rule(one)).unwrap();
            let added = table.add(rule(two));
            assert_eq!(added.is_err(), conflicts, "{one} {two}");
        }
        let mut table = Table::default();
        table.add(rule("80")).unwrap();
        let udp = Forward {
            protocol: Protocol::Udp,
            ..rule("80")
        };
        table.add(udp).unwrap();
    }

    #[test]
    fn only_the_same_rule_is_deleted() {
        let mut table = Table::default();
        table.add(rule("80-90")).unwrap();
        for (text, part) in [("80", "doesn't match"), ("91", "Couldn't find")] {
            let error = table.delete(&rule(text)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        table.delete(&rule("80-90")).unwrap();
        assert_eq!(table, Table::default());
    }

    #[test]
    fn a_table_has_room_for_255_rules() {
        let mut table = Table::default();
        for port in 1..=255 {
            table.add(rule(&port.to_string())).unwrap();
        }
        assert_eq!(table.add(rule("256")), Err(RuleError::TooMany));
    }

    #[test]
    fn rules_are_shown_as_pasta_shows_them() {
        for (text, shown) in [
            ("80", "TCP [*]:80  =>  80"),
            ("80-81:90-91", "TCP [*]:80-81  =>  90-91"),
            (
                "127.0.0.1%lo/80:10.0.2.7/90,auto",
                "TCP [127.0.0.1]%lo:80  =>  10.0.2.7:90 (auto-scan)",
            ),
            ("~2-65535", "TCP [*]:1  =>  1 (best effort)"),
        ] {
            assert_eq!(rule(text).to_string(), shown);
        }
    }
}
