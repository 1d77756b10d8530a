//! The status document: what a running helper tells about its flows and counters. Who asks gets it
//! from a `status_socket`; what it is shown as is the matter of whoever reads it.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::device::DeviceKind;

/// The document, which docs/STATUS.md describes. Addresses are those that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This program's version.
    pub version: Cow<'static, str>,
    /// The guest's own addresses, IPv4 first.
    pub guest: Vec<IpAddr>,
    /// Networks behind it, as in 10.89.0.0/24.
    #[serde(default)]
    pub guest_networks: Vec<String>,
    /// What the forwarder answers itself, as in db=10.89.0.5@10.89.0.0/24.
    #[serde(default)]
    pub names: Vec<String>,
    /// Queries, ever, that were answered so.
    #[serde(default)]
    pub names_answered: u64,
    pub device: DeviceStatus,
    /// TCP connections ever made, both ways.
    pub connections_total: u64,
    /// Payload bytes of all flows, ever.
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    /// Frames of the guest, ever, that were malformed, of a kind that this network does not carry,
    /// or from an address that nobody on it may have.
    pub frames_dropped: u64,
    /// Frames to the guest, ever, that its interface did not take.
    pub frames_lost: u64,
    /// Packets of the guest, ever, to addresses that it may not reach.
    pub prohibited: u64,
    /// How often, ever, a limit kept a flow out, or ended one to make room for another: the sum of
    /// what `limits` has of it.
    pub limit_reached: u64,
    pub limits: LimitsStatus,
    pub promotion: PromotionStatus,
    pub memory: MemoryStatus,
    pub flows: Vec<FlowStatus>,
}

/// What frames come and go by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub kind: DeviceKind,
    /// Why it is no tap, unless that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
impl DeviceStatus {
    pub const TAP: Self = Self {
        kind: DeviceKind::Tap,
        reason: None,
    };
}

/// How many flows of each kind there are now, and may be: shares of the descriptors that this
/// process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Descriptors of open TCP connections: one each, two when the kernel carries it.
    pub connections: LimitStatus,
    /// SYNs of the guest that wait for their turn.
    pub waiting: LimitStatus,
    /// TCP connections to the outside that are being made.
    pub dials: LimitStatus,
    /// TCP connections whose handshake the guest has not finished.
    pub half_open: LimitStatus,
    pub udp: LimitStatus,
    /// Clients of published UDP ports.
    pub published_udp: LimitStatus,
    pub icmp: LimitStatus,
    /// How often, ever, the system had no descriptor left for a socket.
    pub out_of_descriptors: u64,
    /// How often, ever, a client of a published port was turned away because too many others have
    /// its address and port as the guest sees them.
    pub out_of_ports: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    pub used: usize,
    pub limit: usize,
    /// How often, ever, the limit kept a flow out, or ended one to make room for another.
    pub reached: u64,
}

/// What became of handing flows over to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionStatus {
    /// Why it is not done at all, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// Flows handed over, ever.
    pub promoted: u64,
    /// Attempts that left a flow in the engine, ever.
    pub failed: u64,
}

/// What connections in user space buffer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Most that it may be together.
    pub limit: usize,
    /// The windows that the guest was promised.
    pub receive: usize,
    /// Send buffers, as far as they were written to.
    pub send: usize,
    /// What promoted flows brought along and the host has not taken yet.
    pub owed: usize,
    /// How often a connection had to do with little, or to wait, because nothing was left.
    pub exhausted: u64,
}

/// One flow that is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    pub protocol: FlowProtocol,
    pub initiator: FlowInitiator,
    pub guest: SocketAddr,
    /// `None` for a UDP mapping, which talks to any number of remotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// RFC 9293 3.3.2 for TCP, as in `ESTABLISHED`.
    pub state: String,
    pub path: FlowPath,
    /// Why it is on that path; `None` unless it is TCP.
    #[serde(flatten)]
    pub reason: Option<Reason>,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    pub age_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    Tcp,
    Udp,
    Icmp,
}

/// Who opened the flow: a program in the guest, or a client of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowInitiator {
    Guest,
    Host,
}

/// Which path carries the flow's bytes: frames on the tap, or kernel sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowPath {
    Engine,
    Kernel,
}

/// Why a TCP flow is on its path. The first ones leave it in the engine, the last two brought it to
/// the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "lowercase")]
pub enum Reason {
    /// The host has not answered yet.
    Opening,
    /// It has moved little, or slowly.
    Talks,
    /// Nothing is handed over: see [`PromotionStatus::unavailable`].
    Off,
    /// It is about to be handed over.
    Leaving,
    /// Its guest did not come to rest in time. There will be another attempt.
    Restless,
    /// The kernel refused to take it, for the reason in `detail`. There will be another attempt.
    Refused { detail: String },
    /// It was made of two sockets from the start, as `-T` has it.
    Spliced,
    /// It moves much, and fast.
    Hauls(FlowPromotion),
    /// `--promote always`.
    Asked(FlowPromotion),
}

impl Reason {
    /// As the document has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Talks => "talks",
            Self::Off => "off",
            Self::Leaving => "leaving",
            Self::Restless => "restless",
            Self::Refused { .. } => "refused",
            Self::Spliced => "spliced",
            Self::Hauls(_) => "hauls",
            Self::Asked(_) => "asked",
        }
    }
}

impl Display for FlowProtocol {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl Display for FlowInitiator {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Host => "host",
        })
    }
}

impl Display for FlowPath {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Kernel => "kernel",
        })
    }
}

/// When a flow was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPromotion {
    pub promoted_ms_ago: u64,
    /// Payload bytes, both ways, that the engine had carried.
    pub promoted_after_bytes: u64,
    /// How long the remote's bytes had to wait meanwhile, in microseconds.
    pub promoted_pause_us: u64,
}

#[cfg(test)]
impl Status {
    /// With so many flows.
    pub fn of_the_tests(flows: usize) -> Self {
        let flow = FlowStatus {
            protocol: FlowProtocol::Tcp,
            initiator: FlowInitiator::Guest,
            guest: "10.0.2.100:43210".parse().unwrap(),
            remote: Some("198.51.100.7:443".parse().unwrap()),
            state: "ESTABLISHED".to_owned(),
            path: FlowPath::Kernel,
            reason: Some(Reason::Hauls(FlowPromotion {
                promoted_ms_ago: 7,
                promoted_after_bytes: 262_144,
                promoted_pause_us: 90,
            })),
            bytes_to_guest: 1,
            bytes_from_guest: 2,
            age_ms: 3,
        };
        let limit = |used| LimitStatus {
            used,
            limit: 100,
            reached: 2,
        };
        Self {
            version: "0.1.0".into(),
            guest: vec!["10.0.2.100".parse().unwrap(), "fd00::100".parse().unwrap()],
            guest_networks: vec!["10.89.0.0/24".to_owned()],
            names: vec!["db=10.89.0.5".to_owned()],
            names_answered: 23,
            device: DeviceStatus::TAP,
            connections_total: 4,
            bytes_to_guest: 5,
            bytes_from_guest: 6,
            frames_dropped: 10,
            frames_lost: 11,
            prohibited: 12,
            limit_reached: 13,
            limits: LimitsStatus {
                connections: limit(14),
                waiting: limit(20),
                dials: limit(15),
                half_open: limit(16),
                udp: limit(17),
                published_udp: limit(18),
                icmp: limit(19),
                out_of_descriptors: 21,
                out_of_ports: 22,
            },
            promotion: PromotionStatus {
                unavailable: None,
                promoted: 8,
                failed: 9,
            },
            memory: MemoryStatus {
                limit: 10,
                receive: 11,
                send: 12,
                owed: 13,
                exhausted: 14,
            },
            flows: vec![flow; flows],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_documented_form() {
        let expected = r#"{"version":"0.1.0","guest":["10.0.2.100","fd00::100"],"guest_networks":["10.89.0.0/24"],"names":["db=10.89.0.5"],"names_answered":23,"device":{"kind":"tap"},"connections_total":4,"bytes_to_guest":5,"bytes_from_guest":6,"frames_dropped":10,"frames_lost":11,"prohibited":12,"limit_reached":13,"limits":{"connections":{"used":14,"limit":100,"reached":2},"waiting":{"used":20,"limit":100,"reached":2},"dials":{"used":15,"limit":100,"reached":2},"half_open":{"used":16,"limit":100,"reached":2},"udp":{"used":17,"limit":100,"reached":2},"published_udp":{"used":18,"limit":100,"reached":2},"icmp":{"used":19,"limit":100,"reached":2},"out_of_descriptors":21,"out_of_ports":22},"promotion":{"promoted":8,"failed":9},"memory":{"limit":10,"receive":11,"send":12,"owed":13,"exhausted":14},"flows":[{"protocol":"tcp","initiator":"guest","guest":"10.0.2.100:43210","remote":"198.51.100.7:443","state":"ESTABLISHED","path":"kernel","reason":"hauls","promoted_ms_ago":7,"promoted_after_bytes":262144,"promoted_pause_us":90,"bytes_to_guest":1,"bytes_from_guest":2,"age_ms":3}]}"#;
        let status = Status::of_the_tests(1);
        assert_eq!(serde_json::to_string(&status).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Status>(expected).unwrap(), status);
    }

    /// Each field, and each value that a program may have to tell from others.
    #[test]
    fn the_document_is_described() {
        const TEXT: &str = include_str!("../../../docs/STATUS.md");
        fn names(value: &serde_json::Value, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(fields) => {
                    found.extend(fields.keys().cloned());
                    fields.values().for_each(|value| names(value, found));
                }
                serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        let mut document = Status::of_the_tests(1);
        document.promotion.unavailable = Some("--promote off".to_owned());
        names(&serde_json::to_value(document).unwrap(), &mut found);
        let promoted = FlowPromotion {
            promoted_ms_ago: 0,
            promoted_after_bytes: 0,
            promoted_pause_us: 0,
        };
        let detail = "EPERM".to_owned();
        for reason in [
            Reason::Opening,
            Reason::Talks,
            Reason::Off,
            Reason::Leaving,
            Reason::Restless,
            Reason::Refused { detail },
            Reason::Hauls(promoted),
            Reason::Asked(promoted),
        ] {
            let name = reason.name();
            let reason = serde_json::to_value(reason).unwrap();
            assert_eq!(reason["reason"], name);
            found.push(name.to_owned());
            names(&reason, &mut found);
        }
        for name in found {
            assert!(TEXT.contains(&format!("`{name}`")), "{name} is missing");
        }
    }
}
