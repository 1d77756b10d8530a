//! What a user writes after pasta's `-t`, `-u`, `-T` and `-U`:
//!
//! ```text
//! spec     := "none" | [ listen "/" ] chunk { "," chunk }
//! listen   := [ ADDR | "*" ] [ "%" INTERFACE ]            for -t and -u only
//! chunk    := "auto" | "~" ports | ports [ ":" target ]
//! target   := ADDR "/" ports | ADDR | ports
//! ports    := FIRST [ "-" LAST ]
//! ADDR     := IPv4 or IPv6, each with or without [ ]
//! ```
//!
//! `auto` and exclusions are for the whole spec, wherever they stand in it. A spec without ports of
//! its own means every port but those that the kernel gives to clients, as far as they can be
//! bound. Errors are worded as pasta's, which callers show or look into.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

use super::{Direction, Forward, RuleError, Table};
use crate::interface_name::InterfaceName;
use crate::spec::{PortRange, Protocol};

/// An option that takes a specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortOption {
    /// `-t`, `--tcp-ports`.
    TcpInbound,
    /// `-u`, `--udp-ports`.
    UdpInbound,
    /// `-T`, `--tcp-ns`.
    TcpOutbound,
    /// `-U`, `--udp-ns`.
    UdpOutbound,
}

/// What is wrong with a specification.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("Invalid port specifier '{0}'")]
    Invalid(String),
    #[error("'all' port forwarding is only allowed for passt")]
    All,
    #[error("Listening address not allowed for {0} {1}")]
    ListenAddress(PortOption, String),
    #[error("{0} none conflicts with previous options")]
    NoneAfterOthers(PortOption),
    #[error("{1} (in '{0} {2}')")]
    Rule(PortOption, RuleError, String),
}

impl PortOption {
    pub const ALL: [Self; 4] = [
        Self::TcpInbound,
        Self::UdpInbound,
        Self::TcpOutbound,
        Self::UdpOutbound,
    ];

    pub fn protocol(self) -> Protocol {
        match self {
            Self::TcpInbound | Self::TcpOutbound => Protocol::Tcp,
            Self::UdpInbound | Self::UdpOutbound => Protocol::Udp,
        }
    }

    pub fn direction(self) -> Direction {
        match self {
            Self::TcpInbound | Self::UdpInbound => Direction::Inbound,
            Self::TcpOutbound | Self::UdpOutbound => Direction::Outbound,
        }
    }

    /// Adds the rules of `spec` to the option's table.
    pub fn add(self, spec: &str, ephemeral: PortRange, table: &mut Table) -> Result<(), SpecError> {
        let rules = self.read(spec, ephemeral)?;
        let is_own = |rule: &Forward| rule.protocol == self.protocol();
        if rules.is_empty() && table.rules().iter().any(is_own) {
            return Err(SpecError::NoneAfterOthers(self));
        }
        rules
            .into_iter()
            .try_for_each(|rule| table.add(rule))
            .map_err(self.rule_error(spec))
    }

    /// Takes the rules of `spec` out of the option's table.
    pub fn delete(
        self,
        spec: &str,
        ephemeral: PortRange,
        table: &mut Table,
    ) -> Result<(), SpecError> {
        self.read(spec, ephemeral)?
            .iter()
            .try_for_each(|rule| table.delete(rule))
            .map_err(self.rule_error(spec))
    }

    fn rule_error(self, spec: &str) -> impl FnOnce(RuleError) -> SpecError {
        move |error| SpecError::Rule(self, error, spec.to_owned())
    }

    /// The rules of `spec`, in its order; none for `none`. `ephemeral` has the ports that the
    /// kernel gives to clients.
    pub fn read(self, spec: &str, ephemeral: PortRange) -> Result<Vec<Forward>, SpecError> {
        if spec == "none" {
            return Ok(Vec::new());
        }
        let invalid = || SpecError::Invalid(spec.to_owned());
        let (listen, ports) = match spec.split_once('/') {
            Some((listen, ports)) => match Listen::read(listen) {
                Some(listen) => (Some(listen), ports),
                None => (None, spec),
            },
            None => (None, spec),
        };
        let listen = match (listen, self.direction()) {
            (Some(_), Direction::Outbound) => {
                return Err(SpecError::ListenAddress(self, spec.to_owned()));
            }
            // What comes to the namespace's loopback, by any of its addresses.
            (None, Direction::Outbound) => Listen {
                addr: None,
                interface: Some("lo"),
            },
            (listen, Direction::Inbound) => listen.unwrap_or_default(),
        };
        let interface = listen
            .interface
            .map(str::parse::<InterfaceName>)
            .transpose()
            .map_err(RuleError::from)
            .map_err(self.rule_error(spec))?;

        let chunks: Vec<Chunk> = ports
            .split(',')
            .map(Chunk::read)
            .collect::<Option<_>>()
            .ok_or_else(invalid)?;
        if chunks.contains(&Chunk::All) {
            return Err(SpecError::All);
        }
        let mut excluded = Ports::default();
        for chunk in &chunks {
            if let Chunk::Exclude(range) = chunk {
                excluded.insert(*range);
            }
        }
        let rule = |ports: PortRange, to: &Included| Forward {
            protocol: self.protocol(),
            listen: listen.addr,
            interface,
            ports,
            target: to.target,
            first_target: to.first_target + (ports.first() - to.ports.first()),
            best_effort: to.best_effort,
            auto: chunks.contains(&Chunk::Auto),
        };
        let included = chunks.iter().filter_map(|chunk| match chunk {
            Chunk::Include(included) => Some(*included),
            _ => None,
        });
        let mut included: Vec<Included> = included.collect();
        if included.is_empty() {
            excluded.insert(ephemeral);
            included.push(Included::EVERY_PORT);
        }
        let rules = included
            .iter()
            .flat_map(|included| {
                let left = excluded.leave_of(included.ports);
                left.into_iter().map(|ports| rule(ports, included))
            })
            .collect::<Vec<Forward>>();
        // Excluded all that it includes: nothing is left of it, which is not `none`.
        if rules.is_empty() {
            return Err(invalid());
        }
        Ok(rules)
    }
}

/// As it is typed.
impl fmt::Display for PortOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpInbound => "-t",
            Self::UdpInbound => "-u",
            Self::TcpOutbound => "-T",
            Self::UdpOutbound => "-U",
        })
    }
}

/// Where to listen, as written.
#[derive(Clone, Copy, Default)]
struct Listen<'a> {
    addr: Option<IpAddr>,
    interface: Option<&'a str>,
}

impl<'a> Listen<'a> {
    /// `None` if `text` is nothing of the kind.
    fn read(text: &'a str) -> Option<Self> {
        let (addr, interface) = match text.split_once('%') {
            Some((addr, interface)) => (addr, Some(interface)),
            None => (text, None),
        };
        let addr = match addr {
            "" | "*" => None,
            addr => Some(read_address(addr)?),
        };
        Some(Self { addr, interface })
    }
}

/// What stands between commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    All,
    Auto,
    Exclude(PortRange),
    Include(Included),
}

/// Ports and where they lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Included {
    ports: PortRange,
    target: Option<IpAddr>,
    first_target: u16,
    best_effort: bool,
}

impl Included {
    const EVERY_PORT: Self = Self {
        ports: PortRange::EVERY,
        target: None,
        first_target: 1,
        best_effort: true,
    };
}

impl Chunk {
    fn read(text: &str) -> Option<Self> {
        if let Some(excluded) = text.strip_prefix('~') {
            return Some(Self::Exclude(read_ports(excluded)?));
        }
        if text == "all" || text.starts_with("all:") {
            return Some(Self::All);
        }
        if text == "auto" {
            return Some(Self::Auto);
        }
        let (ports, target) = match text.split_once(':') {
            Some((ports, target)) => (ports, Some(target)),
            None => (text, None),
        };
        let ports = read_ports(ports)?;
        let (target, targets) = match target {
            None => (None, ports),
            Some(target) => read_target(target, ports)?,
        };
        (targets.len() == ports.len()).then_some(Self::Include(Included {
            ports,
            target,
            first_target: targets.first(),
            best_effort: false,
        }))
    }
}

fn read_target(text: &str, ports: PortRange) -> Option<(Option<IpAddr>, PortRange)> {
    let (addr, targets) = match text.split_once('/') {
        Some((addr, targets)) => (read_address(addr)?, read_ports(targets)?),
        None => match read_address(text) {
            Some(addr) => (addr, ports),
            None => return Some((None, read_ports(text)?)),
        },
    };
    Some(((!addr.is_unspecified()).then_some(addr), targets))
}

/// An address in brackets or not. What is mapped to IPv6 means the IPv4 address.
fn read_address(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let addr: IpAddr = inner.unwrap_or(text).parse().ok()?;
    Some(addr.to_canonical())
}

fn read_ports(text: &str) -> Option<PortRange> {
    match text.split_once('-') {
        Some((first, last)) => PortRange::new(read_port(first)?, read_port(last)?).ok(),
        None => read_port(text).and_then(|port| PortRange::new(port, port).ok()),
    }
}

fn read_port(text: &str) -> Option<u16> {
    // `u16::from_str` would also take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// A set of ports, as ranges.
#[derive(Default)]
struct Ports(Vec<PortRange>);

impl Ports {
    fn insert(&mut self, range: PortRange) {
        self.0.push(range);
    }

    /// What of `range` is not in the set, in ascending order.
    fn leave_of(&self, range: PortRange) -> Vec<PortRange> {
        let mut left = vec![range];
        for hole in &self.0 {
            left = left
                .into_iter()
                .flat_map(|part| without(part, *hole))
                .collect();
        }
        left
    }
}

/// What is before and what is behind `hole` in `part`.
fn without(part: PortRange, hole: PortRange) -> impl Iterator<Item = PortRange> {
    let before_last = part.last().min(hole.first() - 1);
    let before = PortRange::new(part.first(), before_last).ok();
    let behind = hole.last().checked_add(1).and_then(|next| {
        let first = part.first().max(next);
        PortRange::new(first, part.last()).ok()
    });
    before.into_iter().chain(behind)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ephemeral() -> PortRange {
        PortRange::new(32768, 60999).unwrap()
    }

    fn read(spec: &str) -> Result<Vec<Forward>, SpecError> {
        PortOption::TcpInbound.read(spec, ephemeral())
    }

    /// As shown, without "TCP ".
    fn shown(option: PortOption, spec: &str) -> Vec<String> {
        let rules = option.read(spec, ephemeral()).unwrap();
        let text = |rule: &Forward| rule.to_string()[4..].replace("  =>  ", ">");
        rules.iter().map(text).collect()
    }

    #[test]
    fn every_form_is_understood() {
        for (spec, rules) in [
            ("none", &[][..]),
            ("22", &["[*]:22>22"]),
            ("22:23", &["[*]:22>23"]),
            ("22,25", &["[*]:22>22", "[*]:25>25"]),
            ("22-80", &["[*]:22-80>22-80"]),
            ("22-80:32-90", &["[*]:22-80>32-90"]),
            ("80-80:80-80", &["[*]:80>80"]),
            ("*/22", &["[*]:22>22"]),
            ("/22", &["[*]:22>22"]),
            ("192.0.2.1/22", &["[192.0.2.1]:22>22"]),
            ("[192.0.2.1]/22", &["[192.0.2.1]:22>22"]),
            ("::1/80-80:80-80", &["[::1]:80>80"]),
            ("[::1]/80", &["[::1]:80>80"]),
            ("::ffff:192.0.2.1/22", &["[192.0.2.1]:22>22"]),
            ("192.0.2.1%eth0/22", &["[192.0.2.1]%eth0:22>22"]),
            ("fe80::1%eth0/22", &["[fe80::1]%eth0:22>22"]),
            ("%eth0/22", &["[*]%eth0:22>22"]),
            ("*%eth0/22", &["[*]%eth0:22>22"]),
            (
                "2000-5000,~3000-3010",
                &["[*]:2000-2999>2000-2999", "[*]:3011-5000>3011-5000"],
            ),
            (
                "192.0.2.1/20-30,~25",
                &["[192.0.2.1]:20-24>20-24", "[192.0.2.1]:26-30>26-30"],
            ),
            (
                "~25,20-30:120-130",
                &["[*]:20-24>120-124", "[*]:26-30>126-130"],
            ),
            ("~20-30,20-31", &["[*]:31>31"]),
            ("0.0.0.0/80:10.0.2.7/90", &["[0.0.0.0]:80>10.0.2.7:90"]),
            ("0.0.0.0/80:10.0.2.7", &["[0.0.0.0]:80>10.0.2.7:80"]),
            ("::/80:fd00::7/90", &["[::]:80>fd00::7:90"]),
            ("[::]/80:[fd00::7]/90", &["[::]:80>fd00::7:90"]),
            ("80:0.0.0.0/90", &["[*]:80>90"]),
            (
                "auto",
                &[
                    "[*]:1-32767>1-32767 (best effort) (auto-scan)",
                    "[*]:61000-65535>61000-65535 (best effort) (auto-scan)",
                ],
            ),
            ("8000-8010,auto", &["[*]:8000-8010>8000-8010 (auto-scan)"]),
            (
                "192.0.2.2/auto,~1-65534",
                &["[192.0.2.2]:65535>65535 (best effort) (auto-scan)"],
            ),
            ("~1-19,~21-65535", &["[*]:20>20 (best effort)"]),
        ] {
            assert_eq!(shown(PortOption::TcpInbound, spec), rules, "{spec}");
        }
        assert_eq!(shown(PortOption::UdpOutbound, "53"), ["[*]%lo:53>53"]);
    }

    #[test]
    fn what_is_no_specification_is_refused() {
        for spec in [
            "",
            ",",
            "22,",
            "x",
            "0",
            "65536",
            "+22",
            "22-",
            "-22",
            "23-22",
            "22-23:24",
            "22:",
            "22:x",
            "22:0",
            "22:10.0.2.7/",
            "22:10.0.2.7/0",
            "~",
            "~0",
            "none,22",
            "autox",
            "host/22",
            "192.0.2.1/",
            "[::1/22",
            "192.0.2.1",
            "20,~20",
            "1.2.3.4/%eth0/22",
        ] {
            let refused = read(spec);
            assert_eq!(refused, Err(SpecError::Invalid(spec.to_owned())));
        }
        for (spec, part) in [
            ("all", "'all' port forwarding is only allowed for passt"),
            ("192.0.2.1/all", "only allowed for passt"),
            ("%/22", "Invalid interface name: "),
            ("*%../22", "Invalid interface name: .."),
            ("%a-name-of-16-byt/22", "Invalid interface name"),
        ] {
            let text = read(spec).unwrap_err().to_string();
            assert!(text.contains(part), "{spec}: {text}");
        }
        let outbound = PortOption::TcpOutbound.read("127.0.0.1/22", ephemeral());
        let text = outbound.unwrap_err().to_string();
        assert_eq!(text, "Listening address not allowed for -T 127.0.0.1/22");
    }

    #[test]
    fn options_add_up_but_none_stands_alone() {
        let mut table = Table::default();
        let (tcp, udp) = (PortOption::TcpInbound, PortOption::UdpInbound);
        tcp.add("none", ephemeral(), &mut table).unwrap();
        tcp.add("22", ephemeral(), &mut table).unwrap();
        tcp.add("23", ephemeral(), &mut table).unwrap();
        udp.add("none", ephemeral(), &mut table).unwrap();
        assert_eq!(table.rules().len(), 2);
        let error = tcp.add("none", ephemeral(), &mut table).unwrap_err();
        assert_eq!(error.to_string(), "-t none conflicts with previous options");
        let error = tcp.add("20-22", ephemeral(), &mut table).unwrap_err();
        assert!(error.to_string().contains("conflict"), "{error}");
        let error = tcp
            .add("80:10.0.2.7/80", ephemeral(), &mut table)
            .unwrap_err();
        assert!(
            error.to_string().contains("did you mean 0.0.0.0/"),
            "{error}"
        );
        tcp.delete("22,23", ephemeral(), &mut table).unwrap();
        assert_eq!(table.rules(), []);
    }

    proptest! {
        /// Whatever is included and not excluded is forwarded to its place, and nothing else.
        #[test]
        fn rules_are_what_is_left(
            first in 1..=u16::MAX,
            len in 0..300u16,
            target in 1..=65000u16,
            holes in prop::collection::vec((1..=u16::MAX, 0..50u16), 0..5),
        ) {
            let last = first.saturating_add(len);
            let last_target = target + (last - first);
            let mut spec = format!("{first}-{last}:{target}-{last_target}");
            let holes: Vec<_> = holes
                .iter()
                .map(|(hole, len)| {
                    // Near the range, so that they meet.
                    let hole = first.saturating_add(hole % 320);
                    hole..=hole.saturating_add(*len)
                })
                .collect();
            for hole in &holes {
                spec += &format!(",~{}-{}", hole.start(), hole.end());
            }
            let expected: Vec<_> = (first..=last)
                .filter(|port| !holes.iter().any(|hole| hole.contains(port)))
                .map(|port| (port, target + (port - first)))
                .collect();
            match read(&spec) {
                Ok(rules) => {
                    let pairs: Vec<_> = rules.iter().flat_map(Forward::pairs).collect();
                    prop_assert_eq!(pairs, expected);
                    let mut table = Table::default();
                    for rule in rules {
                        prop_assert_eq!(table.add(rule), Ok(()));
                    }
                }
                Err(_) => prop_assert!(expected.is_empty()),
            }
        }

        #[test]
        fn any_text_is_refused_or_makes_rules(text in r"[0-9a-z:/\[\].\-~,*% ]{0,40}|\PC{0,40}") {
            for option in PortOption::ALL {
                let mut table = Table::default();
                if option.add(&text, ephemeral(), &mut table).is_ok() {
                    prop_assert_eq!(table.rules().is_empty(), text == "none");
                }
            }
        }
    }
}
