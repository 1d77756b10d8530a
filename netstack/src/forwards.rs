//! Ports in pasta's words: what `-t`, `-u`, `-T` and `-U` ask for, and the sockets of it that are
//! opened before the helper gives up its rights. Those that come and go later are `driver`'s.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portfwd::forward::wire::Tables;
use portfwd::forward::{PortOption, SpecError, Table};
use portfwd::publish::ephemeral_ports;
use portfwd::{BindError, Direction, Endpoint, Forward, Listener};
use tracing::{debug, warn};

use crate::core::Service;

/// What is asked for, without contradictions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    tables: Tables,
    /// As they were typed.
    specs: Vec<(PortOption, String)>,
    /// Where `pesto` is served.
    pub control_socket: Option<PathBuf>,
    /// Who comes to a port from the host's loopback gets to the guest's loopback.
    pub from_loopback_to_loopback: bool,
}

/// A port that could not be opened, in pasta's words.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("Failed to bind port {port} ({why}) for option '{option} {spec}', exiting")]
    Bind {
        port: u16,
        why: String,
        option: PortOption,
        spec: String,
    },
    #[error("Failed to bind any port for '{option} {spec}', exiting")]
    BindAny { option: PortOption, spec: String },
}

/// An open socket, and where what comes to it goes.
#[derive(Debug)]
pub struct OpenPort {
    pub endpoint: Endpoint,
    pub to: Service,
    pub socket: OwnedFd,
}

/// What listens at the guest's own address.
impl From<Listener> for OpenPort {
    fn from(listener: Listener) -> Self {
        Self::leading_to(listener, None)
    }
}

impl OpenPort {
    /// For what listens at the address `guest`, or at the guest's own.
    pub fn leading_to(listener: Listener, guest: Option<IpAddr>) -> Self {
        Self {
            endpoint: Endpoint {
                protocol: listener.protocol,
                addr: listener.host,
                interface: None,
            },
            to: Service {
                address: guest,
                port: listener.guest_port,
            },
            socket: listener.socket,
        }
    }
}

impl Forwards {
    /// Adds what `option` with `spec` asks for.
    pub fn add(&mut self, option: PortOption, spec: &str) -> Result<(), SpecError> {
        let table = self.tables.of_mut(option.direction());
        option.add(spec, ephemeral_ports(), table)?;
        self.specs.push((option, spec.to_owned()));
        Ok(())
    }

    /// Whether `option` was given at all.
    pub fn has(&self, option: PortOption) -> bool {
        self.specs.iter().any(|(given, _)| *given == option)
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Whether nothing is forwarded, now or later.
    pub fn is_empty(&self) -> bool {
        let tables = Direction::BOTH.map(|direction| self.tables.of(direction));
        tables.iter().all(|table| table.rules().is_empty()) && !self.may_change()
    }

    /// Whether ports may come and go that the command line does not have.
    pub fn may_change(&self) -> bool {
        self.control_socket.is_some()
    }

    /// Whether ports of `direction` may be opened later.
    pub fn may_open(&self, direction: Direction) -> bool {
        self.may_change() || self.tables.of(direction).has_auto()
    }

    /// How many sockets [`Forwards::open`] opens at most.
    pub fn count(&self, direction: Direction) -> usize {
        wanted(self.tables.of(direction), |_| Vec::new()).len()
    }

    /// Opens the ports of `direction` that are known beforehand, in the calling thread's network
    /// namespace.
    pub fn open(&self, direction: Direction) -> Result<Vec<OpenPort>, PortError> {
        let mut open = Vec::new();
        let give_up = Instant::now() + GIVEN_BACK_WITHIN;
        for (endpoint, Wanted { to, need }) in wanted(self.tables.of(direction), |_| Vec::new()) {
            let opened = match need {
                Need::WherePossible => endpoint.listen(),
                Need::Required | Need::WhereIpv6 => listen_by(&endpoint, give_up),
            };
            match (opened, need) {
                (Ok(socket), _) => open.push(OpenPort {
                    endpoint,
                    to,
                    socket,
                }),
                (Err(BindError::TooManyFiles(_)), Need::WherePossible) => {
                    warn!("not every port can be forwarded: too many open files");
                    break;
                }
                (Err(error), Need::WherePossible) => debug!(%error, "a port is left out"),
                (Err(BindError::NoIpv6(_) | BindError::NotLocal(_)), Need::WhereIpv6) => {}
                (Err(error), _) => {
                    let port = endpoint.addr.port();
                    let (option, spec) = self.origin(direction, &endpoint);
                    let why = error.system_text();
                    return Err(PortError::Bind {
                        port,
                        why,
                        option,
                        spec,
                    });
                }
            }
        }
        self.check_best_efforts(direction, &open)?;
        Ok(open)
    }

    /// A specification of which nothing at all could be bound is an error, too.
    fn check_best_efforts(&self, direction: Direction, open: &[OpenPort]) -> Result<(), PortError> {
        for (option, spec) in self
            .specs
            .iter()
            .filter(|(option, _)| option.direction() == direction)
        {
            let rules = option.read(spec, ephemeral_ports()).unwrap_or_default();
            let tried: Vec<&Forward> = rules
                .iter()
                .filter(|rule| rule.best_effort && !rule.auto)
                .collect();
            let is_open = |rule: &&Forward| open.iter().any(|port| covers(rule, &port.endpoint));
            if !tried.is_empty() && !tried.iter().any(is_open) {
                return Err(PortError::BindAny {
                    option: *option,
                    spec: spec.clone(),
                });
            }
        }
        Ok(())
    }

    /// The option that `endpoint` is of, and its value.
    fn origin(&self, direction: Direction, endpoint: &Endpoint) -> (PortOption, String) {
        let found = self.specs.iter().find(|(option, spec)| {
            let rules = option.read(spec, ephemeral_ports()).unwrap_or_default();
            option.direction() == direction && rules.iter().any(|rule| covers(rule, endpoint))
        });
        let found = found.or(self.specs.first());
        found.cloned().expect("rules come from options")
    }
}

/// Listens at `endpoint`. As long as it is in use, this is tried again until `give_up`.
fn listen_by(endpoint: &Endpoint, give_up: Instant) -> Result<OwnedFd, BindError> {
    loop {
        match endpoint.listen() {
            Err(BindError::InUse(_)) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

/// How long ports in use are waited for, all together. An engine that restarts a container (`podman
/// restart`) takes the namespace away and at once starts the next helper: by then, the one before
/// it may not have noticed.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(1);

/// Whether `endpoint` is one of `rule`.
fn covers(rule: &Forward, endpoint: &Endpoint) -> bool {
    let port = endpoint.addr.port();
    rule.ports.ports().contains(&port) && rule.endpoints(port).any(|own| own == *endpoint)
}

/// What there should be at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub to: Service,
    pub need: Need,
}

/// Whether one can do without an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Required,
    /// The second half of a wildcard: not where IPv6 is switched off.
    WhereIpv6,
    /// By its rule.
    WherePossible,
}

/// The endpoints of `table`. `listening` says which target ports of an automatic rule are listened
/// at now.
pub fn wanted(
    table: &Table,
    listening: impl Fn(&Forward) -> Vec<u16>,
) -> BTreeMap<Endpoint, Wanted> {
    let mut wanted = BTreeMap::new();
    for rule in table.rules() {
        let pairs: Vec<(u16, u16)> = match rule.auto {
            false => rule.pairs().collect(),
            true => listening(rule)
                .into_iter()
                .filter_map(|target| source_of(rule, target).map(|port| (port, target)))
                .collect(),
        };
        for (port, target) in pairs {
            let to = Service {
                address: rule.target,
                port: target,
            };
            for endpoint in rule.endpoints(port) {
                let need = match (rule.listen, endpoint.addr.is_ipv6()) {
                    _ if rule.best_effort || rule.auto => Need::WherePossible,
                    (None, true) => Need::WhereIpv6,
                    _ => Need::Required,
                };
                wanted.insert(endpoint, Wanted { to, need });
            }
        }
    }
    wanted
}

/// The port of `rule` that leads to `target`.
fn source_of(rule: &Forward, target: u16) -> Option<u16> {
    let nth = target.checked_sub(rule.first_target)?;
    let port = rule.ports.first().checked_add(nth)?;
    rule.ports.ports().contains(&port).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn forwards(options: &[(PortOption, &str)]) -> Forwards {
        let mut forwards = Forwards::default();
        for (option, spec) in options {
            forwards.add(*option, spec).unwrap();
        }
        forwards
    }

    #[test]
    fn known_ports_are_opened_and_a_clash_names_its_option() {
        let tcp = PortOption::TcpInbound;
        let free = forwards(&[(tcp, "127.94.0.1/7000-7003:80-83"), (tcp, "auto,1-2")]);
        let open = free.open(Direction::Inbound).unwrap();
        let ports: Vec<_> = open
            .iter()
            .map(|port| (port.endpoint.addr.port(), port.to.port))
            .collect();
        assert_eq!(ports, [(7000, 80), (7001, 81), (7002, 82), (7003, 83)]);
        assert_eq!(free.count(Direction::Inbound), 4);
        assert_eq!(free.open(Direction::Outbound).unwrap().len(), 0);

        let spec = "127.94.0.1/6999-7000";
        let error = forwards(&[(tcp, "none"), (tcp, spec)])
            .open(Direction::Inbound)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Failed to bind port 7000 (Address already in use) for option '-t 127.94.0.1/6999-7000', exiting"
        );
    }

    #[test]
    fn what_cannot_be_bound_is_left_out_of_a_best_effort_unless_it_is_all() {
        let _taken = TcpListener::bind("127.94.0.2:7102").unwrap();
        let tcp = PortOption::TcpInbound;
        let around = forwards(&[(tcp, "127.94.0.2/~1-7099,~7106-65535")]);
        let open = around.open(Direction::Inbound).unwrap();
        let ports: Vec<_> = open.iter().map(|open| open.to.port).collect();
        assert_eq!(ports, [7100, 7101, 7103, 7104, 7105]);

        let only = forwards(&[(tcp, "127.94.0.2/~1-7101,~7103-65535")]);
        let error = only.open(Direction::Inbound).unwrap_err().to_string();
        assert!(
            error.starts_with("Failed to bind any port for '-t 127.94"),
            "{error}"
        );
    }

    #[test]
    fn automatic_ports_are_those_that_are_listened_at() {
        let table = forwards(&[(PortOption::TcpInbound, "8000-8010:80-90,auto")]);
        let table = &table.tables().inbound;
        let wanted = wanted(table, |_| vec![22, 79, 80, 85, 91]);
        let ports: Vec<_> = wanted
            .iter()
            .filter(|(endpoint, _)| endpoint.addr.is_ipv4())
            .map(|(endpoint, wanted)| (endpoint.addr.port(), wanted.to.port))
            .collect();
        assert_eq!(ports, [(8000, 80), (8005, 85)]);
        assert!(
            wanted
                .values()
                .all(|wanted| wanted.need == Need::WherePossible)
        );
    }
}
