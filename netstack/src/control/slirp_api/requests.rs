//! What clients of slirp4netns's API ask for, and the answers, byte for byte.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use portfwd::Protocol;
use serde::Serialize;
use serde_json::{Value, json};

use crate::core::addresses::Prefix;
use crate::core::dns::{HostName, HostNameError, HostNames};
use crate::core::egress::{Egress, EgressError, EgressRule};

/// A published port, as clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: SocketAddr,
    pub guest: SocketAddr,
}

/// Who carries out what clients ask for.
pub trait Publisher {
    /// Whether `forward` could be published; `id` names it from then on. `socket` is the host's
    /// side of it, if the client has bound that.
    fn publish(&mut self, id: u64, forward: &Forward, socket: Option<OwnedFd>) -> bool;

    fn withdraw(&mut self, id: u64);

    /// The rules that the guest is held to.
    fn egress(&self) -> &Egress;

    /// What the guest has open must obey the new rules, too.
    fn set_egress(&mut self, egress: Egress);

    /// The names that the forwarder answers for.
    fn names(&self) -> &HostNames;

    /// As [`HostNames::add`].
    fn add_name(&mut self, name: HostName) -> Result<u64, HostNameError>;

    /// As [`HostNames::remove`].
    fn remove_name(&mut self, id: u64) -> bool;
}

/// The published ports, and what requests do to them.
#[derive(Debug)]
pub struct Table {
    forwards: BTreeMap<u64, Forward>,
    /// Ids count up from 1 and are not used again.
    last_id: u64,
    /// The guest's addresses, IPv4 first.
    guest: Vec<IpAddr>,
}

impl Table {
    /// `guest` has the guest's addresses, the preferred ones first.
    pub fn new(guest: Vec<IpAddr>) -> Self {
        Self {
            forwards: BTreeMap::new(),
            last_id: 0,
            guest,
        }
    }

    /// Does what `request` asks for, and says so. `socket` came along with it.
    pub fn answer(
        &mut self,
        request: &Value,
        socket: Option<OwnedFd>,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let request = request.as_object().ok_or(BadRequest::NoObject)?;
        let execute = request.get("execute").and_then(Value::as_str);
        let arguments = request.get("arguments").unwrap_or(&Value::Null);
        match execute.ok_or(BadRequest::NoExecute)? {
            "add_hostfwd" => self.add(arguments, socket, publisher),
            "list_hostfwd" => Ok(self.list()),
            "remove_hostfwd" => self.remove(arguments, publisher),
            "list_egress" => Ok(list_egress(publisher.egress())),
            "set_egress" => {
                publisher.set_egress(parse_egress(arguments)?);
                Ok(b"{\"return\":{}}".to_vec())
            }
            "list_names" => Ok(list_names(publisher.names())),
            "add_name" => {
                let id = publisher.add_name(parse_name(arguments)?)?;
                Ok(format!("{{\"return\":{{\"id\":{id}}}}}").into_bytes())
            }
            "remove_name" => match arguments["id"].as_u64() {
                Some(id) if publisher.remove_name(id) => Ok(b"{\"return\":{}}".to_vec()),
                _ => Err(BadRequest::NoSuchName),
            },
            _ => Err(BadRequest::UnknownExecute),
        }
    }

    fn add(
        &mut self,
        arguments: &Value,
        socket: Option<OwnedFd>,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let forward = self.forward(arguments)?;
        let id = self.last_id + 1;
        if !publisher.publish(id, &forward, socket) {
            return Err(BadRequest::NotPublished);
        }
        self.last_id = id;
        self.forwards.insert(id, forward);
        Ok(format!("{{\"return\":{{\"id\":{id}}}}}").into_bytes())
    }

    fn forward(&self, arguments: &Value) -> Result<Forward, BadRequest> {
        let protocol = match arguments["proto"].as_str() {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            _ => return Err(BadRequest::Argument("proto")),
        };
        let address = |key, default| match arguments[key].as_str() {
            None | Some("") => Ok(default),
            Some(text) => text.parse().map_err(|_| BadRequest::Argument(key)),
        };
        let port = |key| {
            let number = arguments[key].as_f64();
            let number = number.filter(|number| (1.0..65536.0).contains(number));
            number
                .map(|number| number as u16)
                .ok_or(BadRequest::Argument(key))
        };
        let host = SocketAddr::new(
            address("host_addr", Ipv4Addr::UNSPECIFIED.into())?,
            port("host_port")?,
        );
        let guest = SocketAddr::new(
            self.guest_address(arguments, host.ip())?,
            port("guest_port")?,
        );
        Ok(Forward {
            protocol,
            host,
            guest,
        })
    }

    /// The one that is asked for, or the guest's own of the family of `host` if it has such.
    fn guest_address(&self, arguments: &Value, host: IpAddr) -> Result<IpAddr, BadRequest> {
        const KEY: &str = "guest_addr";
        let has_family = |like: IpAddr| {
            self.guest
                .iter()
                .find(|own| own.is_ipv4() == like.is_ipv4())
        };
        let asked = match arguments[KEY].as_str() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| BadRequest::Argument(KEY))?),
        };
        match asked.filter(|ip: &IpAddr| !ip.is_unspecified()) {
            Some(ip) if has_family(ip).is_some() => Ok(ip),
            Some(_) => Err(BadRequest::Argument(KEY)),
            None => {
                let own = has_family(host).or(self.guest.first()).copied();
                own.ok_or(BadRequest::Argument(KEY))
            }
        }
    }

    fn list(&self) -> Vec<u8> {
        let entries: Vec<Entry> = self.forwards.iter().map(Entry::of).collect();
        let list = List {
            of_the_manual: Entries { entries: &entries },
            of_the_program: Entries { entries: &entries },
        };
        serde_json::to_vec(&list).expect("only maps with odd keys cannot be written")
    }

    fn remove(
        &mut self,
        arguments: &Value,
        publisher: &mut impl Publisher,
    ) -> Result<Vec<u8>, BadRequest> {
        let id = arguments["id"].as_f64().unwrap_or_default() as u64;
        if self.forwards.remove(&id).is_none() {
            return Err(BadRequest::NoSuchId);
        }
        publisher.withdraw(id);
        Ok(b"{\"return\":{}}".to_vec())
    }
}

fn list_egress(egress: &Egress) -> Vec<u8> {
    let rules: Vec<String> = egress.rules().iter().map(EgressRule::to_string).collect();
    json!({"return": {"rules": rules}}).to_string().into_bytes()
}

fn parse_egress(arguments: &Value) -> Result<Egress, BadRequest> {
    let rules = arguments["rules"].as_array().ok_or(BadRequest::Rules)?;
    let rules = rules
        .iter()
        .map(|rule| Ok(rule.as_str().ok_or(BadRequest::Rules)?.parse()?))
        .collect::<Result<_, BadRequest>>()?;
    Ok(Egress::new(rules)?)
}

fn list_names(names: &HostNames) -> Vec<u8> {
    let entry = |(id, name): (u64, &HostName)| {
        json!({
            "id": id,
            "name": name.name.as_str(),
            "addresses": name.addresses,
            "networks": texts(&name.networks),
        })
    };
    let entries: Vec<Value> = names.iter().map(entry).collect();
    json!({"return": {"names": entries}})
        .to_string()
        .into_bytes()
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn parse_name(arguments: &Value) -> Result<HostName, BadRequest> {
    let name = arguments["name"]
        .as_str()
        .and_then(|name| name.parse().ok());
    let addresses = parse_list(&arguments["addresses"], |text| text.parse().ok());
    let networks = match &arguments["networks"] {
        Value::Null => Some(Vec::new()),
        networks => parse_list(networks, Prefix::read),
    };
    Ok(HostName::new(
        name.ok_or(BadRequest::Name("name"))?,
        addresses.ok_or(BadRequest::Name("addresses"))?,
        networks.ok_or(BadRequest::Name("networks"))?,
    )?)
}

fn parse_list<T>(list: &Value, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    list.as_array()?
        .iter()
        .map(|item| parse(item.as_str()?))
        .collect()
}

/// As a list shows it; the order of fields is the peer's.
#[derive(Serialize)]
struct Entry {
    id: u64,
    proto: String,
    host_addr: IpAddr,
    host_port: u16,
    guest_addr: IpAddr,
    guest_port: u16,
}

impl Entry {
    fn of((id, forward): (&u64, &Forward)) -> Self {
        Self {
            id: *id,
            proto: forward.protocol.to_string(),
            host_addr: forward.host.ip(),
            host_port: forward.host.port(),
            guest_addr: forward.guest.ip(),
            guest_port: forward.guest.port(),
        }
    }
}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Entry],
}

#[derive(Serialize)]
struct List<'a> {
    #[serde(rename = "return")]
    of_the_manual: Entries<'a>,
    #[serde(flatten)]
    of_the_program: Entries<'a>,
}

/// Why a request was not carried out, in words that clients compare.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("too large message")]
    TooLarge,
    #[error("cannot parse JSON")]
    Unparsable,
    #[error("json_object() failed")]
    NoObject,
    #[error("no execute found")]
    NoExecute,
    #[error("unknown execute")]
    UnknownExecute,
    #[error("add_hostfwd: bad arguments.{0}")]
    Argument(&'static str),
    #[error("add_hostfwd: slirp_add_hostfwd failed")]
    NotPublished,
    #[error("remove_hostfwd: bad arguments.id")]
    NoSuchId,
    #[error("set_egress: bad arguments.rules: it is not a list of texts")]
    Rules,
    #[error("set_egress: bad arguments.rules: {0}")]
    Rule(#[from] EgressError),
    #[error("add_name: bad arguments.{0}")]
    Name(&'static str),
    #[error("add_name: {0}")]
    NotAdded(#[from] HostNameError),
    #[error("remove_name: bad arguments.id")]
    NoSuchName,
}

impl BadRequest {
    pub fn to_json(&self) -> Vec<u8> {
        let desc = format!("bad request: {self}");
        json!({"error": {"desc": desc}}).to_string().into_bytes()
    }
}

/// The JSON value that `request` begins with; `None` if it is not whole yet. What comes behind a
/// value, or a NUL, does not count.
pub fn first_value(request: &[u8]) -> Option<Result<Value, BadRequest>> {
    let end = request.iter().position(|byte| *byte == 0);
    let is_ended = end.is_some();
    let text = String::from_utf8_lossy(&request[..end.unwrap_or(request.len())]);
    let mut values = serde_json::Deserializer::from_str(&text).into_iter();
    match values.next() {
        Some(Ok(value)) => Some(Ok(value)),
        Some(Err(error)) if !error.is_eof() || is_ended => Some(Err(BadRequest::Unparsable)),
        None if is_ended => Some(Err(BadRequest::Unparsable)),
        None | Some(Err(_)) => None,
    }
}
