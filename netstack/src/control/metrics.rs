//! The status in the text form of Prometheus, for collectors of metrics: sums and counts, no flow
//! by itself.

use std::fmt::{Arguments, Display, Write};

use super::{FlowPath, FlowProtocol, FlowStatus, LimitStatus, Status};

/// Version 0.0.4 of the form.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics, each with what it means.
pub fn text(status: &Status) -> String {
    let mut metrics = Metrics(String::new());
    metrics.counter(
        "connections",
        "TCP connections made",
        status.connections_total,
    );
    metrics.counter(
        "to_guest_bytes",
        "Payload to the guest",
        status.bytes_to_guest,
    );
    metrics.counter(
        "from_guest_bytes",
        "Payload of the guest",
        status.bytes_from_guest,
    );
    metrics.counter(
        "frames_dropped",
        "Frames of the guest that made no sense",
        status.frames_dropped,
    );
    metrics.counter(
        "frames_lost",
        "Frames that the guest did not take",
        status.frames_lost,
    );
    metrics.counter(
        "names_answered",
        "Queries that were answered by names of the engine",
        status.names_answered,
    );
    metrics.counter(
        "prohibited",
        "Packets to where the guest may not send",
        status.prohibited,
    );
    metrics.counter(
        "promoted",
        "Connections handed over to the kernel",
        status.promotion.promoted,
    );
    let failed = status.promotion.failed;
    metrics.counter("promotions_failed", "Hand-overs that failed", failed);
    let limits = &status.limits;
    metrics.counter(
        "out_of_descriptors",
        "Sockets that the system had no descriptor for",
        limits.out_of_descriptors,
    );
    metrics.counter(
        "out_of_ports",
        "Clients turned away for want of a port",
        limits.out_of_ports,
    );
    metrics.counter(
        "memory_exhausted",
        "Times that buffers were short",
        status.memory.exhausted,
    );
    flows(&mut metrics, status);
    by_limit(&mut metrics, status);
    memory(&mut metrics, status);
    metrics.0
}

fn flows(metrics: &mut Metrics, status: &Status) {
    metrics.begin("flows", "gauge", "Flows that are alive");
    for protocol in [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Icmp] {
        for path in [FlowPath::Engine, FlowPath::Kernel] {
            let is_such = |flow: &&FlowStatus| flow.protocol == protocol && flow.path == path;
            let count = status.flows.iter().filter(is_such).count();
            let labels = format!("protocol=\"{protocol}\",path=\"{path}\"");
            metrics.value("flows", &labels, count);
        }
    }
}

fn by_limit(metrics: &mut Metrics, status: &Status) {
    type Read = fn(&LimitStatus) -> u64;
    let limits = &status.limits;
    let kinds = [
        ("connections", &limits.connections),
        ("waiting", &limits.waiting),
        ("dials", &limits.dials),
        ("half_open", &limits.half_open),
        ("udp", &limits.udp),
        ("published_udp", &limits.published_udp),
        ("icmp", &limits.icmp),
    ];
    let columns: [(&str, &str, &str, Read); 3] = [
        (
            "limit_used",
            "gauge",
            "Flows of a kind that has a limit",
            |limit| limit.used as u64,
        ),
        (
            "limit",
            "gauge",
            "Flows that there may be of a kind",
            |limit| limit.limit as u64,
        ),
        (
            "limit_reached_total",
            "counter",
            "Times that a limit kept a flow out or ended one",
            |limit| limit.reached,
        ),
    ];
    for (name, kind, help, read) in columns {
        metrics.begin(name, kind, help);
        for (flows, limit) in kinds {
            metrics.value(name, &format!("kind=\"{flows}\""), read(limit));
        }
    }
}

fn memory(metrics: &mut Metrics, status: &Status) {
    let memory = &status.memory;
    metrics.begin(
        "memory_bytes",
        "gauge",
        "Buffers of connections in user space",
    );
    for (kind, bytes) in [
        ("receive", memory.receive),
        ("send", memory.send),
        ("owed", memory.owed),
    ] {
        metrics.value("memory_bytes", &format!("kind=\"{kind}\""), bytes);
    }
    metrics.begin(
        "memory_limit_bytes",
        "gauge",
        "Most that buffers may be together",
    );
    metrics.value("memory_limit_bytes", "", memory.limit);
}

/// The text, as far as it is written. Names and labels are plain words, so nothing is escaped.
struct Metrics(String);

impl Metrics {
    /// One that has no labels and only grows.
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("{name}_total");
        self.begin(&name, "counter", help);
        self.value(&name, "", value);
    }

    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {PREFIX}{name} {help}."));
        self.line(format_args!("# TYPE {PREFIX}{name} {kind}"));
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        match labels {
            "" => self.line(format_args!("{PREFIX}{name} {value}")),
            _ => self.line(format_args!("{PREFIX}{name}{{{labels}}} {value}")),
        }
    }

    fn line(&mut self, line: Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes all");
    }
}

const PREFIX: &str = "coracle_net_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_comment_or_a_value_of_what_was_introduced() {
        let text = text(&Status::of_the_tests(2));
        let mut introduced = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["#", "HELP", _, ..] => {}
                ["#", "TYPE", name, "counter" | "gauge"] => introduced.push(name),
                [name, value] => {
                    let name = name.split('{').next().unwrap();
                    assert_eq!(introduced.last(), Some(&name), "{line}");
                    value.parse::<u64>().unwrap();
                }
                _ => panic!("{line}"),
            }
        }
        for line in [
            "coracle_net_connections_total 4",
            "coracle_net_flows{protocol=\"tcp\",path=\"kernel\"} 2",
            "coracle_net_flows{protocol=\"udp\",path=\"engine\"} 0",
            "coracle_net_limit{kind=\"dials\"} 100",
            "coracle_net_limit_reached_total{kind=\"icmp\"} 2",
            "coracle_net_memory_bytes{kind=\"send\"} 12",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
