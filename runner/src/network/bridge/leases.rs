//! Which addresses a container gets on a network.

use std::net::IpAddr;

use super::messages::Join;
use super::{Address, Lease, Mac};
use crate::failure::Failure;

/// Who has an address already.
#[derive(Debug, Clone)]
pub struct Taken {
    pub ip: IpAddr,
    /// The name of a container.
    pub by: String,
    /// Whether that one runs. If not, it has asked for the address and may come back to it.
    pub runs: bool,
}

/// What the container gets that `join` is about: the addresses that it has asked for, those that it
/// has had, or else the lowest that are free. Resolvers are told later.
pub fn grant(join: &Join, taken: &[Taken]) -> Result<Lease, Failure> {
    let network = &join.network;
    let holder = |ip: IpAddr| taken.iter().find(|taken| taken.ip == ip && taken.runs);
    let had = join.attachment.lease.as_ref();
    let had = had.filter(|lease| lease.network_id == network.id);
    let mut addresses = Vec::new();
    for own in &network.subnets {
        let asked = join.attachment.ips.iter().find(|ip| own.has(**ip));
        let had = had
            .into_iter()
            .flat_map(|lease| &lease.addresses)
            .map(|address| address.ip)
            .find(|ip| own.is_for_containers(*ip) && holder(*ip).is_none());
        let ip = match (asked, had) {
            (Some(ip), _) => {
                if let Some(holder) = holder(*ip) {
                    return Err(Failure::runner(format!(
                        "address {ip} of the network {} is in use by the container {}",
                        network.name, holder.by
                    )));
                }
                *ip
            }
            (None, Some(ip)) => ip,
            (None, None) => own
                .lowest_free(|ip| taken.iter().any(|taken| taken.ip == ip))
                .ok_or_else(|| {
                    Failure::runner(format!(
                        "no free address is left in {} of the network {}",
                        own.subnet, network.name
                    ))
                })?,
        };
        addresses.push(Address {
            ip,
            len: own.subnet.len,
        });
    }
    if let Some(ip) = join
        .attachment
        .ips
        .iter()
        .find(|ip| !network.is_for_containers(**ip))
    {
        return Err(Failure::runner(format!(
            "{ip} is no address for a container of the network {}: {}",
            network.name,
            subnets(join)
        )));
    }
    let first = addresses.first().map(|address| address.ip);
    let first = first.ok_or_else(|| Failure::runner("the network has no subnet"))?;
    Ok(Lease {
        network_id: network.id.clone(),
        interface: join.interface.clone(),
        mac: join.attachment.mac.unwrap_or_else(|| Mac::of(first)),
        addresses,
        gateways: match network.internal {
            true => Vec::new(),
            false => network
                .subnets
                .iter()
                .filter_map(|own| own.gateway)
                .collect(),
        },
        resolvers: Vec::new(),
    })
}

fn subnets(join: &Join) -> String {
    let subnets = join.network.subnets.iter();
    let subnets: Vec<_> = subnets.map(|own| own.subnet.to_string()).collect();
    format!("its subnets are {}", subnets.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::bridge::Attachment;
    use crate::state::ContainerId;

    fn join(attachment: Attachment) -> Join {
        let network = serde_json::json!({
            "version": 1, "name": "web", "id": "0123456789ab".repeat(6)[..64], "created": [0, 0],
            "subnets": [{"subnet": "10.89.0.0/29", "gateway": "10.89.0.1"},
                        {"subnet": "fd89::/64", "gateway": "fd89::1"}],
            "internal": false, "dns": true, "mtu": null, "labels": {},
        });
        Join {
            network: serde_json::from_value(network).expect("a network"),
            container: ContainerId::random().expect("an id"),
            names: vec!["web".to_owned()],
            attachment,
            interface: "eth0".to_owned(),
            leads_out: true,
        }
    }

    fn ips(lease: &Lease) -> Vec<String> {
        let ips = lease.addresses.iter();
        ips.map(|address| address.ip.to_string()).collect()
    }

    fn taken(ip: &str, runs: bool) -> Taken {
        Taken {
            ip: ip.parse().expect(ip),
            by: "other".to_owned(),
            runs,
        }
    }

    #[test]
    fn the_lowest_that_nobody_has_or_waits_for() {
        let join = join(Attachment::to("web"));
        let lease = grant(&join, &[]).expect("free");
        assert_eq!(ips(&lease), ["10.89.0.2", "fd89::2"]);
        assert_eq!(lease.mac.to_string(), "02:c0:0a:59:00:02");
        let others = [taken("10.89.0.2", true), taken("10.89.0.3", false)];
        let lease = grant(&join, &others).expect("free");
        assert_eq!(ips(&lease), ["10.89.0.4", "fd89::2"]);
        let all: Vec<_> = (2..7)
            .map(|n| taken(&format!("10.89.0.{n}"), true))
            .collect();
        let error = grant(&join, &all).expect_err("full").to_string();
        assert!(error.contains("no free address"), "{error}");
    }

    #[test]
    fn what_was_asked_for_or_nothing() {
        let asked = |ip: &str| {
            join(Attachment {
                ips: vec![ip.parse().expect(ip)],
                ..Attachment::to("web")
            })
        };
        let lease = grant(&asked("10.89.0.5"), &[taken("10.89.0.5", false)]);
        assert_eq!(ips(&lease.expect("its own")), ["10.89.0.5", "fd89::2"]);
        for (ip, others, why) in [
            (
                "10.89.0.5",
                &[taken("10.89.0.5", true)][..],
                "by the container other",
            ),
            ("10.90.0.5", &[], "no address for a container"),
            ("10.89.0.1", &[], "no address for a container"),
            ("10.89.0.7", &[], "no address for a container"),
        ] {
            let error = grant(&asked(ip), others).expect_err(ip).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_it_had_from_an_earlier_holder() {
        let first = grant(&join(Attachment::to("web")), &[taken("10.89.0.2", true)]).expect("free");
        assert_eq!(ips(&first)[0], "10.89.0.3");
        let again = Attachment {
            lease: Some(first.clone()),
            ..Attachment::to("web")
        };
        let lease = grant(&join(again.clone()), &[]).expect("free");
        assert_eq!(lease, first);
        let lease = grant(&join(again), &[taken("10.89.0.3", true)]).expect("free");
        assert_eq!(ips(&lease)[0], "10.89.0.2");
    }
}
