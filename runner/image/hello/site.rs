//! The resources of the server: the page, the same facts as JSON, and a download to try the speed
//! with.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::http::{Answer, Refusal, Request};
use super::json::quote;
use super::network::{Carrier, Helper, canonical};
use super::page;
use super::visit::{MapLine, Visit};

/// Largest download, in bytes.
const MAX_DOWNLOAD: u64 = 10 * 1024 * 1024 * 1024;

/// What a download holds when the client does not say.
const DEFAULT_DOWNLOAD: u64 = 1024 * 1024 * 1024;

/// What is the same for every visitor, and what is counted over all of them.
pub struct Site {
    helper: Helper,
    hostname: String,
    uid_map: Vec<MapLine>,
    gid_map: Vec<MapLine>,
    /// Where default routes lead: to the network helper, which lends this address to clients on the
    /// host's own loopback.
    gateways: Vec<IpAddr>,
    started: Instant,
    connections: AtomicU64,
    requests: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Site {
    pub fn new(status_socket: PathBuf) -> Self {
        Self {
            helper: Helper::new(status_socket),
            hostname: read("/proc/sys/kernel/hostname").trim_end().to_owned(),
            uid_map: parse_map(&read("/proc/self/uid_map")),
            gid_map: parse_map(&read("/proc/self/gid_map")),
            gateways: [
                gateways_v4(&read("/proc/net/route")),
                gateways_v6(&read("/proc/net/ipv6_route")),
            ]
            .concat(),
            started: Instant::now(),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
        }
    }

    pub fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Answers a client whose connection was there by `since`.
    pub fn answer(&self, request: &Request, client: SocketAddr, since: Instant) -> Answer {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match request.path.as_str() {
            "/" => Answer::text(
                "text/html; charset=utf-8",
                page::render(&self.visit(client, since)),
            ),
            "/status.json" => Answer::text("application/json", to_json(&self.visit(client, since))),
            "/download" => match request
                .parameter("bytes")
                .map_or(Ok(DEFAULT_DOWNLOAD), str::parse)
            {
                Ok(len) if len <= MAX_DOWNLOAD => Answer::zeros(len),
                _ => Answer::refusal(
                    Refusal::BadRequest,
                    "bytes is a number up to 10737418240, which is 10 GiB\n",
                ),
            },
            _ => refuse(Refusal::NotFound),
        }
    }

    fn visit(&self, client: SocketAddr, since: Instant) -> Visit<'_> {
        let client = canonical(client);
        let network = self.helper.status(since);
        Visit {
            client,
            is_gateway: self.gateways.contains(&client.ip()),
            hostname: &self.hostname,
            uid_map: &self.uid_map,
            gid_map: &self.gid_map,
            uptime_seconds: self.started.elapsed().as_secs(),
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            carrier: network
                .as_ref()
                .and_then(|status| status.carrier_of(client)),
            network,
        }
    }
}

pub fn refuse(refusal: Refusal) -> Answer {
    Answer::refusal(refusal, "")
}

fn to_json(visit: &Visit<'_>) -> String {
    let map = |lines: &[MapLine]| {
        let line = |line: &MapLine| {
            format!(
                r#"{{"inside":{},"outside":{},"count":{}}}"#,
                line.inside, line.outside, line.count
            )
        };
        lines.iter().map(line).collect::<Vec<_>>().join(",")
    };
    let network = match &visit.network {
        None => "null".to_owned(),
        Some(status) => format!(
            r#"{{"path":{},"connections_total":{},"bytes_to_guest":{},"bytes_from_guest":{},"in_engine":{},"in_kernel":{}}}"#,
            match visit.carrier {
                Some(Carrier::Engine) => "\"engine\"",
                Some(Carrier::Kernel) => "\"kernel\"",
                None => "null",
            },
            status.connections_total,
            status.bytes_to_guest,
            status.bytes_from_guest,
            status.in_engine,
            status.in_kernel,
        ),
    };
    format!(
        concat!(
            r#"{{"client":{{"address":"{}","port":{},"is_gateway":{}}},"hostname":{},"uid_map":[{}],"gid_map":[{}],"#,
            r#""server":{{"uptime_seconds":{},"connections":{},"requests":{},"bytes_sent":{}}},"network":{}}}"#,
            "\n"
        ),
        visit.client.ip(),
        visit.client.port(),
        visit.is_gateway,
        quote(visit.hostname),
        map(visit.uid_map),
        map(visit.gid_map),
        visit.uptime_seconds,
        visit.connections,
        visit.requests,
        visit.bytes_sent,
        network,
    )
}

/// What the file says, or nothing: the page is worth showing without it.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn parse_map(text: &str) -> Vec<MapLine> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(|field| field.parse().ok());
        let mut field = || fields.next().flatten();
        Some(MapLine {
            inside: field()?,
            outside: field()?,
            count: field()?,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Gateways of default routes in /proc/net/route: columns interface, destination, gateway and more,
/// with addresses as hexadecimal numbers in host byte order.
fn gateways_v4(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (destination, gateway) = (columns.next()?, columns.next()?);
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        (destination == "00000000" && !gateway.is_unspecified()).then_some(IpAddr::V4(gateway))
    };
    table.lines().filter_map(gateway).collect()
}

/// Gateways of default routes in /proc/net/ipv6_route: columns destination, its length, source, its
/// length, gateway and more, with addresses as 32 hexadecimal digits.
fn gateways_v6(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut columns = line.split_whitespace();
        let destination_len = columns.nth(1)?;
        let gateway = Ipv6Addr::from(u128::from_str_radix(columns.nth(2)?, 16).ok()?);
        (destination_len == "00" && !gateway.is_unspecified()).then_some(IpAddr::V6(gateway))
    };
    table.lines().filter_map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::super::json::Value;
    use super::super::network::Status;
    use super::*;

    const MAP: [MapLine; 2] = [
        MapLine {
            inside: 0,
            outside: 1001,
            count: 1,
        },
        MapLine {
            inside: 1,
            outside: 100_000,
            count: 65_536,
        },
    ];

    #[test]
    fn reads_the_tables_of_proc() {
        assert_eq!(
            parse_map("         0       1001          1\n         1     100000      65536\n"),
            MAP
        );
        assert!(parse_map("not a map\n1 2\n").is_empty());

        let v4 = "Iface\tDestination\tGateway \tFlags\ntap0\t00000000\t0202000A\t0003\ntap0\t0002000A\t00000000\t0001\n";
        assert_eq!(gateways_v4(v4), ["10.0.2.2".parse::<IpAddr>().unwrap()]);
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000002 00000400\n";
        assert_eq!(gateways_v6(v6), ["fd00::2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn its_json_is_json() {
        let visit = |network, carrier| Visit {
            client: "[fd00::2]:41234".parse().unwrap(),
            is_gateway: true,
            hostname: "a \"quoted\" name",
            uid_map: &MAP,
            gid_map: &[],
            uptime_seconds: 1,
            connections: 2,
            requests: 3,
            bytes_sent: 4,
            network,
            carrier,
        };
        let alone = Value::parse(&to_json(&visit(None, None))).unwrap();
        assert_eq!(alone.get("client").unwrap().str("address"), Some("fd00::2"));
        assert_eq!(alone.str("hostname"), Some("a \"quoted\" name"));
        assert_eq!(alone.elements("uid_map")[1].u64("outside"), Some(100_000));
        assert_eq!(alone.get("network"), Some(&Value::Null));

        let status = Status::parse(r#"{"connections_total":7}"#).unwrap();
        let with_helper =
            Value::parse(&to_json(&visit(Some(status.into()), Some(Carrier::Kernel)))).unwrap();
        assert_eq!(
            with_helper.get("network").unwrap().str("path"),
            Some("kernel")
        );
        assert_eq!(
            with_helper.get("network").unwrap().u64("connections_total"),
            Some(7)
        );
    }
}
