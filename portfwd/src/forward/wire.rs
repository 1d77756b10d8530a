//! How `pesto` and its server speak, version 2 of the protocol.
//!
//! The server greets with its tables, then the client sends the tables that are to be instead, or
//! nothing. Numbers are big-endian.
//!
//! ```text
//! greeting := "basil:s\0" version:u32 128:u32 16:u32 { table } 0:u8
//! table    := id:u8 name:[u8; 128] capabilities:u32 count:u32 { rule }
//! update   := { id:u8 count:u32 { rule } } 0:u8
//! rule     := listen:[u8; 16] target:[u8; 16] interface:[u8; 16]
//!             first:u16 last:u16 target_port:u16 protocol:u8 flags:u8
//! ```
//!
//! IPv4 addresses are mapped to IPv6. A table that an update leaves out is empty. Behind the update
//! pasta closes the connection without a word; our server says why an update failed before it does.

use std::net::{IpAddr, Ipv6Addr};

use thiserror::Error;

use super::{Direction, Forward, MAX_RULES, RuleError, Table};
use crate::interface_name::InterfaceName;
use crate::spec::{PortRange, Protocol};

/// The tables of both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub inbound: Table,
    pub outbound: Table,
}

impl Tables {
    pub fn of(&self, direction: Direction) -> &Table {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    pub fn of_mut(&mut self, direction: Direction) -> &mut Table {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }
}

impl Direction {
    /// As `pesto` shows it and takes it after `--clear`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "HOST",
            Self::Outbound => "SPLICE",
        }
    }

    fn id(self) -> u8 {
        match self {
            Self::Inbound => 1,
            Self::Outbound => 3,
        }
    }
}

/// What is no message of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("the greeting is not one of pasta's")]
    Magic,
    #[error("the server speaks version {0} of the protocol, not {VERSION}")]
    Version(u32),
    #[error("names have {0} bytes, not {1}")]
    NameLength(u32, usize),
    #[error("there is no forwarding table {0}")]
    NoSuchTable(u8),
    #[error("forwarding table {0} comes twice")]
    TableTwice(u8),
    #[error("{0} rules in a table (maximum {MAX_RULES})")]
    TooMany(u32),
    #[error("a rule has flags 0x{0:x}")]
    Flags(u8),
    #[error("protocol {0} cannot be forwarded")]
    Protocol(u8),
    #[error("port range {0}-{1} is none")]
    Ports(u16, u16),
    #[error("a rule for both families listens at {0}")]
    DualStack(Ipv6Addr),
    #[error("an interface's name is not a text that ends with a zero")]
    Interface,
    #[error(transparent)]
    Rule(#[from] RuleError),
}

const MAGIC: &[u8; 8] = b"basil:s\0";
const VERSION: u32 = 2;
const TABLE_NAME_LEN: usize = 128;
const INTERFACE_NAME_LEN: usize = 16;
const RULE_LEN: usize = 56;
/// IPv4, IPv6, TCP, UDP, following ports, interfaces.
const CAPABILITIES: u32 = 0x3f;
const DUAL_STACK: u8 = 1;
const BEST_EFFORT: u8 = 2;
const AUTO: u8 = 4;

/// The longest update that there is.
pub const MAX_UPDATE: usize = 2 * (1 + 4 + MAX_RULES * RULE_LEN) + 1;
/// The longest greeting that a client takes: of three tables, as pasta may come to have.
pub const MAX_GREETING: usize = 20 + 3 * (1 + TABLE_NAME_LEN + 8 + MAX_RULES * RULE_LEN) + 1;

/// What the server says first.
pub fn greeting(tables: &Tables) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for number in [VERSION, TABLE_NAME_LEN as u32, INTERFACE_NAME_LEN as u32] {
        bytes.extend(number.to_be_bytes());
    }
    for direction in Direction::BOTH {
        bytes.push(direction.id());
        let mut name = [0; TABLE_NAME_LEN];
        name[..direction.name().len()].copy_from_slice(direction.name().as_bytes());
        bytes.extend(name);
        bytes.extend(CAPABILITIES.to_be_bytes());
        write_rules(tables.of(direction), &mut bytes);
    }
    bytes.push(0);
    bytes
}

/// What a client says.
pub fn update(tables: &Tables) -> Vec<u8> {
    let mut bytes = Vec::new();
    for direction in Direction::BOTH {
        bytes.push(direction.id());
        write_rules(tables.of(direction), &mut bytes);
    }
    bytes.push(0);
    bytes
}

/// Reads a greeting. `None` if it is not whole yet.
pub fn read_greeting(bytes: &[u8]) -> Result<Option<Tables>, WireError> {
    let mut input = Input(bytes);
    let Some(magic) = input.take::<8>() else {
        return Ok(None);
    };
    if magic != *MAGIC {
        return Err(WireError::Magic);
    }
    let Some([version, table_name, interface_name]) = input.u32s() else {
        return Ok(None);
    };
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    for (told, ours) in [
        (table_name, TABLE_NAME_LEN),
        (interface_name, INTERFACE_NAME_LEN),
    ] {
        if told as usize != ours {
            return Err(WireError::NameLength(told, ours));
        }
    }
    read_tables(input, |input| {
        input.take::<TABLE_NAME_LEN>()?;
        input.u32s::<1>().map(drop)
    })
}

/// Reads an update. `None` if it is not whole yet. What comes behind it does not count.
pub fn read_update(bytes: &[u8]) -> Result<Option<Tables>, WireError> {
    read_tables(Input(bytes), |_| Some(()))
}

fn read_tables(
    mut input: Input<'_>,
    pass_head: impl Fn(&mut Input<'_>) -> Option<()>,
) -> Result<Option<Tables>, WireError> {
    let mut tables = Tables::default();
    let mut seen = Vec::new();
    loop {
        let Some([id]) = input.take() else {
            return Ok(None);
        };
        if id == 0 {
            return Ok(Some(tables));
        }
        let known = Direction::BOTH.into_iter().find(|known| known.id() == id);
        let direction = known.ok_or(WireError::NoSuchTable(id))?;
        if seen.contains(&id) {
            return Err(WireError::TableTwice(id));
        }
        seen.push(id);
        if pass_head(&mut input).is_none() {
            return Ok(None);
        }
        let Some([count]) = input.u32s() else {
            return Ok(None);
        };
        if count as usize > MAX_RULES {
            return Err(WireError::TooMany(count));
        }
        for _ in 0..count {
            let Some(rule) = input.take::<RULE_LEN>() else {
                return Ok(None);
            };
            tables.of_mut(direction).add(read_rule(&rule)?)?;
        }
    }
}

fn write_rules(table: &Table, bytes: &mut Vec<u8>) {
    bytes.extend((table.rules().len() as u32).to_be_bytes());
    for rule in table.rules() {
        bytes.extend(write_rule(rule));
    }
}

fn write_rule(rule: &Forward) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RULE_LEN);
    for addr in [rule.listen, rule.target] {
        bytes.extend(mapped(addr).octets());
    }
    let interface = rule
        .interface
        .map(InterfaceName::to_padded)
        .unwrap_or_default();
    bytes.extend(interface);
    for port in [rule.ports.first(), rule.ports.last(), rule.first_target] {
        bytes.extend(port.to_be_bytes());
    }
    bytes.push(match rule.protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    });
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    bytes.push(
        flag(rule.listen.is_none(), DUAL_STACK)
            | flag(rule.best_effort, BEST_EFFORT)
            | flag(rule.auto, AUTO),
    );
    bytes
}

fn mapped(addr: Option<IpAddr>) -> Ipv6Addr {
    match addr {
        None => Ipv6Addr::UNSPECIFIED,
        Some(IpAddr::V4(ip)) => ip.to_ipv6_mapped(),
        Some(IpAddr::V6(ip)) => ip,
    }
}

fn read_rule(bytes: &[u8; RULE_LEN]) -> Result<Forward, WireError> {
    let mut input = Input(bytes);
    let mut next = || input.take::<16>().expect("56 bytes hold three of 16");
    let [listen, target] = [next(), next()].map(Ipv6Addr::from);
    let interface = next();
    let mut port = || u16::from_be_bytes(input.take().expect("56 bytes hold three ports"));
    let [first, last, first_target] = [port(), port(), port()];
    let [protocol, flags] = input.take().expect("two bytes are left");
    if flags & !(DUAL_STACK | BEST_EFFORT | AUTO) != 0 {
        return Err(WireError::Flags(flags));
    }
    let is_dual_stack = flags & DUAL_STACK != 0;
    if is_dual_stack && !listen.is_unspecified() {
        return Err(WireError::DualStack(listen));
    }
    let target = IpAddr::V6(target).to_canonical();
    Ok(Forward {
        protocol: match i32::from(protocol) {
            libc::IPPROTO_TCP => Protocol::Tcp,
            libc::IPPROTO_UDP => Protocol::Udp,
            _ => return Err(WireError::Protocol(protocol)),
        },
        listen: (!is_dual_stack).then(|| IpAddr::V6(listen).to_canonical()),
        interface: read_interface(interface)?,
        ports: PortRange::new(first, last).map_err(|_| WireError::Ports(first, last))?,
        target: (!target.is_unspecified()).then_some(target),
        first_target,
        best_effort: flags & BEST_EFFORT != 0,
        auto: flags & AUTO != 0,
    })
}

fn read_interface(bytes: [u8; INTERFACE_NAME_LEN]) -> Result<Option<InterfaceName>, WireError> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let name = &bytes[..end.ok_or(WireError::Interface)?];
    let name = std::str::from_utf8(name).map_err(|_| WireError::Interface)?;
    match name {
        "" => Ok(None),
        name => Ok(Some(name.parse().map_err(RuleError::from)?)),
    }
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// `None` if there are fewer bytes.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32s<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = u32::from_be_bytes(self.take()?);
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::PortOption;
    use super::*;

    fn tables() -> Tables {
        let mut tables = Tables::default();
        let ephemeral = PortRange::new(32768, 60999).unwrap();
        for (option, spec) in [
            (
                PortOption::TcpInbound,
                "192.0.2.1%eth0/80-81:10.0.2.7/90-91",
            ),
            (PortOption::UdpInbound, "auto"),
            (PortOption::TcpInbound, "[::1]/5000"),
            (PortOption::TcpOutbound, "8080,~25"),
        ] {
            let table = tables.of_mut(option.direction());
            option.add(spec, ephemeral, table).unwrap();
        }
        tables
    }

    #[test]
    fn tables_arrive_as_they_were_sent() {
        let tables = tables();
        assert_eq!(read_update(&update(&tables)), Ok(Some(tables.clone())));
        assert_eq!(read_greeting(&greeting(&tables)), Ok(Some(tables)));
    }

    #[test]
    fn a_greeting_has_pastas_layout() {
        let mut tables = Tables::default();
        let ephemeral = PortRange::new(32768, 60999).unwrap();
        let option = PortOption::TcpInbound;
        let spec = "192.0.2.1%eth0/80-81:10.0.2.7/90-91";
        option.add(spec, ephemeral, &mut tables.inbound).unwrap();
        let mut expected = b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10".to_vec();
        expected.extend(b"\x01HOST");
        expected.extend([0; 124]);
        expected.extend(b"\0\0\0\x3f\0\0\0\x01");
        expected.extend(b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01");
        expected.extend(b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\x02\x07");
        expected.extend(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend(b"\0\x50\0\x51\0\x5a\x06\0");
        expected.extend(b"\x03SPLICE");
        expected.extend([0; 122]);
        expected.extend(b"\0\0\0\x3f\0\0\0\0");
        expected.extend(b"\0");
        assert_eq!(greeting(&tables), expected);
    }

    #[test]
    fn messages_that_are_not_whole_are_waited_for() {
        let tables = tables();
        let (greeting, update) = (greeting(&tables), update(&tables));
        for len in 0..greeting.len() {
            assert_eq!(read_greeting(&greeting[..len]), Ok(None), "{len}");
        }
        for len in 0..update.len() {
            assert_eq!(read_update(&update[..len]), Ok(None), "{len}");
        }
        assert!(update.len() <= MAX_UPDATE && greeting.len() <= MAX_GREETING);
    }

    #[test]
    fn nonsense_is_refused() {
        // A rule's byte, and what it is changed to.
        let good = update(&tables());
        let refused = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read_update(&bytes).unwrap_err().to_string()
        };
        for (at, byte, part) in [
            (0, 2, "no forwarding table 2"),
            (1, 1, "rules in a table"),
            (5 + 55, 8, "flags 0x8"),
            (5 + 55, 1, "for both families listens at"),
            (5 + 54, 1, "protocol 1 "),
            (5 + 48, 255, "is none"),
            (5 + 53, 0, "port 0"),
            (5 + 33, b'/', "Invalid interface name"),
            (5 + 33, 0xff, "not a text"),
            (5 + 16, 0xff, "multicast"),
        ] {
            let error = refused(at, byte);
            assert!(error.contains(part), "{at} {byte}: {error}");
        }
        let mut twice = update(&Tables::default());
        twice.splice(5..6, [1]);
        assert_eq!(read_update(&twice), Err(WireError::TableTwice(1)));
        assert_eq!(read_greeting(b"GET / HTTP"), Err(WireError::Magic));
        let old = b"basil:s\0\0\0\0\x01\0\0\0\x80\0\0\0\x10\0";
        assert_eq!(read_greeting(old), Err(WireError::Version(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(tables)) = read_update(&bytes) {
                prop_assert_eq!(read_update(&update(&tables)), Ok(Some(tables)));
            }
        }

        #[test]
        fn damaged_updates_are_refused_or_read_back(at in 0usize..1000, byte in any::<u8>()) {
            let mut bytes = update(&tables());
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(Some(tables)) = read_update(&bytes) {
                prop_assert_eq!(read_update(&update(&tables)), Ok(Some(tables)));
            }
        }
    }
}
