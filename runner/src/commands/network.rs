//! `coracle network`: networks of containers by their names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::filter::{admits, check, has_label, moment, pattern, truth};
use super::prune::confirm;
use super::rows::{inspect_template, print_filled, print_json, print_list};
use super::table::table;
use super::{exists, for_each, human, images, open_engine, print_line};
use crate::cli::{
    Filter, NetworkCommand, NetworkConnectArgs, NetworkCreateArgs, NetworkInspectArgs,
    NetworkLsArgs, NetworkOption, NetworkPruneArgs, NetworkRmArgs,
};
use crate::engine::{
    Attachment, BridgeNetwork, Engine, EngineError, ErrorKind, NetworkRequest, NetworksError,
};
use crate::failure::Failure;
use crate::printable::escape;
use crate::state::Container;

pub fn network(command: NetworkCommand) -> Result<u8, Failure> {
    let engine = open_engine()?;
    match command {
        NetworkCommand::Connect(args) => connect(args, &engine),
        NetworkCommand::Create(args) => create(args, &engine),
        NetworkCommand::Disconnect(args) => {
            engine.disconnect(&args.container, &args.network)?;
            Ok(0)
        }
        NetworkCommand::Exists(args) => exists(find(&engine, &args.name), ErrorKind::NoSuchNetwork),
        NetworkCommand::Inspect(args) => inspect(&args, &engine),
        NetworkCommand::Ls(args) => ls(&args, &engine),
        NetworkCommand::Prune(args) => prune(&args, &engine),
        NetworkCommand::Rm(args) => rm(&args, &engine),
    }
}

fn find(engine: &Engine, name: &str) -> Result<BridgeNetwork, EngineError> {
    Ok(engine.networks().find(name)?)
}

fn create(args: NetworkCreateArgs, engine: &Engine) -> Result<u8, Failure> {
    let mtu = args.options.iter().rev().find_map(|option| match option {
        NetworkOption::Mtu(mtu) => Some(*mtu),
        NetworkOption::Isolate => None,
    });
    let made = engine.networks().create(NetworkRequest {
        name: args.name.clone(),
        subnets: args.subnets,
        gateways: args.gateways,
        ipv6: args.ipv6,
        internal: args.internal,
        no_dns: args.disable_dns,
        mtu,
        labels: args.labels.into_iter().collect(),
    });
    let name = match made {
        Err(NetworksError::Exists { name }) if args.ignore => name,
        made => made.map_err(EngineError::from)?.name,
    };
    print_line(&name)?;
    Ok(0)
}

fn connect(args: NetworkConnectArgs, engine: &Engine) -> Result<u8, Failure> {
    let attachment = Attachment {
        aliases: args.aliases,
        ips: args.addresses.ips(),
        mac: args.addresses.mac_address,
        ..Attachment::to(args.network)
    };
    engine.connect(&args.container, attachment)?;
    Ok(0)
}

fn rm(args: &NetworkRmArgs, engine: &Engine) -> Result<u8, Failure> {
    for_each(&args.names, |name| {
        match engine.remove_network(name, args.force) {
            Err(error) if args.force && error.kind() == ErrorKind::NoSuchNetwork => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => print_line(name),
        }
    })
}

fn prune(args: &NetworkPruneArgs, engine: &Engine) -> Result<u8, Failure> {
    check(&args.filters, "network prune", &["label", "until"])?;
    const WARNING: &str = "This will remove all networks not used by at least one container.";
    if args.force || confirm(WARNING)? {
        for name in prune_unused(engine, &args.filters)? {
            print_line(&name)?;
        }
    }
    Ok(0)
}

/// Removes the networks that no container is in, as far as the filters admit them. Returns their
/// names.
pub fn prune_unused(engine: &Engine, filters: &[Filter]) -> Result<Vec<String>, Failure> {
    let mut candidates = Vec::new();
    for network in engine.networks().list().map_err(EngineError::from)? {
        if admits(filters, |filter| has(&network, filter, engine))? {
            candidates.push(network);
        }
    }
    Ok(engine.prune_networks(&candidates)?)
}

/// Whether a network has the value of a filter.
fn has(network: &BridgeNetwork, filter: &Filter, engine: &Engine) -> Result<bool, Failure> {
    Ok(match &*filter.key {
        "label" => has_label(network.labels.iter(), &filter.value),
        "name" => pattern(filter)?.is_match(&network.name),
        "id" => network.id.starts_with(&filter.value),
        "driver" => filter.value == DRIVER,
        "dangling" => engine.network_users(&network.name)?.is_empty() == truth(filter)?,
        // `check` has admitted no other.
        _ => human::signed(network.created.0) < moment(filter)?,
    })
}

const DRIVER: &str = "bridge";

fn ls(args: &NetworkLsArgs, engine: &Engine) -> Result<u8, Failure> {
    check(
        &args.filters,
        "network ls",
        &["dangling", "driver", "id", "label", "name", "until"],
    )?;
    let mut networks = Vec::new();
    for network in engine.networks().list().map_err(EngineError::from)? {
        if admits(&args.filters, |filter| has(&network, filter, engine))? {
            networks.push(network);
        }
    }
    if args.quiet {
        networks
            .iter()
            .try_for_each(|network| print_line(&network.name))?;
        return Ok(0);
    }
    let heads = !args.noheading;
    let id = |network: &BridgeNetwork| match args.no_trunc {
        true => network.id.clone(),
        false => network.short_id().to_owned(),
    };
    print_list(
        args.format.as_ref(),
        heads,
        &HEADERS,
        || Ok(networks.iter().map(Seen::from).collect::<Vec<_>>()),
        || Ok(networks.iter().map(|own| fields(own, id(own))).collect()),
        || {
            let row = |own: &BridgeNetwork| [id(own), escape(&own.name), DRIVER.to_owned()];
            let rows: Vec<_> = networks.iter().map(row).collect();
            let header = heads.then_some(["NETWORK ID", "NAME", "DRIVER"]);
            table(header, &rows, images::WIDTH_MIN)
        },
    )?;
    Ok(0)
}

fn inspect(args: &NetworkInspectArgs, engine: &Engine) -> Result<u8, Failure> {
    let mut found = Vec::new();
    // What is there is shown, whatever is not.
    let outcome = for_each(&args.names, |name| {
        found.push(find(engine, name)?);
        Ok(())
    });
    let mut seen = Vec::new();
    for network in &found {
        let users = engine.network_users(&network.name)?;
        seen.push(Seen {
            containers: Some(containers(&users, &network.name)),
            ..Seen::from(network)
        });
    }
    match inspect_template(args.format.as_ref(), "{{.Name}}")? {
        None => print_json(&seen)?,
        Some(template) => {
            for (network, seen) in found.iter().zip(&seen) {
                let mut fields = fields(network, network.id.clone());
                fields["Containers"] = json!(seen.containers);
                print_filled(&template.fill(&fields)?)?;
            }
        }
    }
    outcome
}

/// With the names of Podman's fields.
#[derive(Serialize)]
struct Seen<'a> {
    name: &'a str,
    id: &'a str,
    driver: &'static str,
    created: String,
    subnets: &'a [crate::network::subnet::Subnet],
    ipv6_enabled: bool,
    internal: bool,
    dns_enabled: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<&'static str, String>,
    ipam_options: BTreeMap<&'static str, &'static str>,
    /// Those that run, by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<Value>,
}

impl<'a> From<&'a BridgeNetwork> for Seen<'a> {
    fn from(network: &'a BridgeNetwork) -> Self {
        Self {
            name: &network.name,
            id: &network.id,
            driver: DRIVER,
            created: created(network),
            subnets: &network.subnets,
            ipv6_enabled: network.has_ipv6(),
            internal: network.internal,
            dns_enabled: network.dns,
            labels: &network.labels,
            options: options(network),
            ipam_options: BTreeMap::from([("driver", "host-local")]),
            containers: None,
        }
    }
}

fn created(network: &BridgeNetwork) -> String {
    let (seconds, nanos) = network.created;
    let nanos = i32::try_from(nanos).unwrap_or(0);
    let created = Timestamp::new(human::signed(seconds), nanos);
    created.unwrap_or_default().to_string()
}

fn options(network: &BridgeNetwork) -> BTreeMap<&'static str, String> {
    let mtu = network.mtu.map(|mtu| ("mtu", mtu.to_string()));
    mtu.into_iter().collect()
}

/// What the containers that run have in a network.
fn containers(users: &[Container], network: &str) -> Value {
    let mut all = serde_json::Map::new();
    for container in users.iter().filter(|own| own.status.can_kill()) {
        let attachment = container.networks.iter().find(|own| own.network == network);
        let Some(lease) = attachment.and_then(|own| own.lease.as_ref()) else {
            continue;
        };
        let subnets = lease.addresses.iter().map(|address| {
            let like = |ip: &&IpAddr| ip.is_ipv4() == address.ip.is_ipv4();
            let gateway = lease.gateways.iter().find(like);
            json!({"ipnet": format!("{}/{}", address.ip, address.len), "gateway": gateway})
        });
        let interface = json!({
            "subnets": subnets.collect::<Vec<_>>(), "mac_address": lease.mac.to_string(),
        });
        all.insert(
            container.id.to_string(),
            json!({"name": container.name, "interfaces": { &*lease.interface: interface }}),
        );
    }
    all.into()
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 11] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Created", "CREATED"),
    ("Subnets", "SUBNETS"),
    ("IPv6Enabled", "IPV6ENABLED"),
    ("Internal", "INTERNAL"),
    ("DNSEnabled", "DNSENABLED"),
    ("Labels", "LABELS"),
    ("Options", "OPTIONS"),
    ("IPAMOptions", "IPAMOPTIONS"),
];

fn fields(network: &BridgeNetwork, id: String) -> Value {
    let subnets = network.subnets.iter().map(|own| {
        let gateway = own.gateway.map(|ip| ip.to_string());
        json!({"Subnet": own.subnet.to_string(), "Gateway": gateway.unwrap_or_default()})
    });
    json!({
        "ID": id, "Name": network.name, "Driver": DRIVER, "Created": created(network),
        "Subnets": subnets.collect::<Vec<_>>(), "IPv6Enabled": network.has_ipv6(),
        "Internal": network.internal, "DNSEnabled": network.dns, "Labels": network.labels,
        "Options": options(network), "IPAMOptions": {"driver": "host-local"},
    })
}
