//! How marked segments find their repair socket: a rule sends packets with the gate's mark to a table whose only route
//! says that every address is local, on `lo`. Together with the settings that let the guest's own addresses come in by the
//! tap, where segments are written back that were in flight at a promotion.
//!
//! All of it is idle until the gate marks a packet, so it stays when the helper ends, and making it again is no error.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError};
use super::nft::MARK;

/// Why marked segments cannot be routed; without this there is no promotion.
#[derive(Debug, thiserror::Error)]
pub enum DiversionError {
    #[error("cannot open a route socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error("cannot set net.ipv4.conf.{interface}.{key}: {source}")]
    Setting {
        interface: String,
        key: &'static str,
        source: io::Error,
    },
    #[error("cannot find interface lo: {0}")]
    Loopback(#[source] io::Error),
    #[error("cannot add the {family} rule for marked segments: {source}")]
    Rule {
        family: &'static str,
        source: NetlinkError,
    },
    #[error("cannot add the {family} route for marked segments: {source}")]
    Route {
        family: &'static str,
        source: NetlinkError,
    },
}

/// Sets up the diversion of marked segments that concern the tap `tap`, in the calling thread's network namespace.
pub fn divert_marked(tap: &str, ipv6: bool) -> Result<(), DiversionError> {
    // Segments that are written back have the guest's own source address and come in by the tap.
    set(tap, "accept_local", "1")?;
    open_reverse_path(&[tap, "lo"])?;
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(DiversionError::Open)?;
    let lo = nix::net::if_::if_nametoindex("lo")
        .map_err(|error| DiversionError::Loopback(error.into()))?;
    divert(
        &mut netlink,
        AddressFamily::Inet,
        Ipv4Addr::UNSPECIFIED.into(),
        "IPv4",
        lo,
    )?;
    if ipv6 {
        divert(
            &mut netlink,
            AddressFamily::Inet6,
            Ipv6Addr::UNSPECIFIED.into(),
            "IPv6",
            lo,
        )?;
    }
    Ok(())
}

fn divert(
    netlink: &mut Netlink,
    family: AddressFamily,
    any: IpAddr,
    name: &'static str,
    lo: u32,
) -> Result<(), DiversionError> {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::FwMark(MARK),
        RuleAttribute::Table(MARK),
        RuleAttribute::Priority(RULE_PRIORITY),
    ];
    match netlink.request(
        RouteNetlinkMessage::NewRule(rule),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {}
        result => result.map_err(|source| DiversionError::Rule {
            family: name,
            source,
        })?,
    }
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(any, 0)
        .expect("zero bits of any address are a prefix")
        .output_interface(lo)
        .table_id(MARK)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    netlink
        .request(
            RouteNetlinkMessage::NewRoute(route),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map_err(|source| DiversionError::Route {
            family: name,
            source,
        })
}

/// Switches the reverse path filter (RFC 3704) off for `open`: a promoted remote's segments come from `lo`. The kernel
/// takes the maximum of an interface's setting and that of `all`, so the latter moves to the other interfaces.
fn open_reverse_path(open: &[&str]) -> Result<(), DiversionError> {
    let strictness = |interface: &str| -> u8 {
        fs::read_to_string(path(interface, RP_FILTER))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let of_all = strictness("all");
    if of_all > 0 {
        let interfaces = fs::read_dir(CONF).into_iter().flatten().flatten();
        for interface in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
            let own = strictness(&interface);
            if interface != "all" && !open.contains(&interface.as_str()) && own < of_all {
                set(&interface, RP_FILTER, &of_all.to_string())?;
            }
        }
        set("all", RP_FILTER, "0")?;
    }
    for interface in open {
        set(interface, RP_FILTER, "0")?;
    }
    Ok(())
}

fn set(interface: &str, key: &'static str, value: &str) -> Result<(), DiversionError> {
    fs::write(path(interface, key), value).map_err(|source| DiversionError::Setting {
        interface: interface.to_owned(),
        key,
        source,
    })
}

fn path(interface: &str, key: &str) -> String {
    format!("{CONF}/{interface}/{key}")
}

const CONF: &str = "/proc/sys/net/ipv4/conf";
const RP_FILTER: &str = "rp_filter";
/// Right behind the table of local addresses (0), before anything that the guest may have.
const RULE_PRIORITY: u32 = 1;
