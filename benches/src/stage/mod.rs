//! One figure, inside its world: lays the links, starts the helper, finds both ends of the traffic
//! their place, and reads the instruments. What each kind of work does on this stage is in the
//! modules below.
//!
//! Runs as init of the world's PID namespace. It gets an [`Order`] and prints an [`Outcome`];
//! whatever goes wrong is an error of this figure alone, and the comparison goes on.

mod bulk;
mod datagrams;
mod memory;
mod operations;
mod search;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Family, Route, Work};
use crate::links::{self, HOST, HOST6};
use crate::matrix::Timing;
use crate::metric::{Metric, Outcome};
use crate::namespaces::{self, Held};
use crate::peers::{Attached, PORT, Peer, Protocol, Wanted};
use crate::place::Place;
use crate::procfs::{Cpu, Footprint};
use crate::traffic::Report;
use crate::worker::{Generator, Holder};

/// One figure to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub cell: Cell,
    pub peer: Peer,
    pub timing: Timing,
    /// Also ask iperf3, or wrk and nginx.
    pub cross_check: bool,
    /// When to give up.
    pub limit_ms: u64,
}

/// Starts a world for one figure and waits for its outcome, which may be what went wrong in there.
pub fn run_in_world(order: &Order) -> Result<Outcome> {
    let output = Command::new("/proc/self/exe")
        .args(["__world", &serde_json::to_string(order)?])
        .stdin(Stdio::null())
        .output()
        .context("failed to start a world")?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        anyhow!(
            "{}",
            String::from_utf8_lossy(&output.stderr)
                .trim()
                .replace('\n', " | ")
        )
    })
}

/// Sets the stage and measures.
pub fn perform(order: &Order) -> Result<Outcome> {
    namespaces::settle_init()?;
    let limit = Duration::from_millis(order.limit_ms);
    thread::spawn(move || {
        thread::sleep(limit);
        // Ending init ends the world, whatever in it is stuck.
        eprintln!("gave up after {limit:?}");
        std::process::exit(1);
    });
    Stage::set(order)?.measure(order)
}

struct Stage {
    client: Place,
    server: Place,
    helper: Attached,
    notes: Vec<String>,
    /// Keep the namespaces.
    _holders: Vec<Holder>,
}

impl Stage {
    fn set(order: &Order) -> Result<Self> {
        let cell = &order.cell;
        let elsewhere = Holder::start(Held::Elsewhere)?;
        links::connect_elsewhere(elsewhere.pid())?;
        let idle_guest = Holder::start(Held::Guest)?;
        links::skip_duplicate_address_detection(idle_guest.pid())?;
        let host = std::process::id().cast_signed();
        let mut notes = Vec::new();
        // Before any socket exists, so that the helper's own sockets follow too; none may pace but
        // where that is the question.
        for pid in [host, elsewhere.pid()] {
            if let Err(e) = namespaces::set_congestion(pid, cell.host_congestion.name()) {
                notes.push(e.to_string());
            }
        }
        let helper = order.peer.attach(Wanted {
            guest: idle_guest.pid(),
            mtu: cell.mtu,
            family: cell.family,
            publish: published(order),
        })?;
        let guest = helper.guest.unwrap_or(idle_guest.pid());
        if let Err(e) = namespaces::set_congestion(guest, cell.congestion.name()) {
            notes.push(e.to_string());
        }
        notes.dedup();

        let place = |pid: i32, address: IpAddr, congestion| Place {
            enter: (pid != host).then_some(pid),
            address: SocketAddr::new(address, PORT),
            congestion,
        };
        let in_guest = |address| place(guest, address, cell.congestion);
        let outside = |pid, address| place(pid, address, cell.host_congestion);
        let addresses = Addresses::of(cell.family);
        let (client, server) = match cell.route {
            Route::Outbound => (in_guest(addresses.uplink), outside(host, addresses.uplink)),
            Route::Published => {
                let target = helper.address.unwrap_or(addresses.loopback);
                (outside(host, target), in_guest(addresses.any))
            }
            Route::PublishedRemote => {
                let target = helper.address.unwrap_or(addresses.uplink);
                (outside(elsewhere.pid(), target), in_guest(addresses.any))
            }
        };
        Ok(Self {
            client,
            server,
            helper,
            notes,
            _holders: vec![elsewhere, idle_guest],
        })
    }

    fn measure(self, order: &Order) -> Result<Outcome> {
        let mut outcome = match order.cell.work {
            Work::Bulk { way, flows } => self.bulk(order, way, flows)?,
            Work::Datagrams {
                way,
                flows,
                segmented,
            } => self.datagrams(order, way, flows, segmented)?,
            Work::Request { connections } => self.requests(order, connections)?,
            Work::Exchange { sockets } => self.exchanges(order, sockets)?,
            Work::Connect { at_once } => self.connections(order, at_once)?,
            Work::Soak { connections } => self.soak(order, connections)?,
            Work::Memory { connections } => self.memory(connections)?,
        };
        if let Some(ready) = self.helper.ready {
            outcome
                .values
                .insert(Metric::ReadyMs, ready.as_secs_f64() * 1_000.0);
        }
        outcome.notes.extend(self.notes);
        Ok(outcome)
    }

    /// Waits for a generator's measured part and reads the CPU clocks at its two ends.
    fn watch(&self, generator: &mut Generator, measure_ms: u64) -> Result<(Report, Cpu)> {
        generator.wait_begin(Duration::from_secs(30))?;
        let before = self.helper.processes.cpu()?;
        let report =
            generator.wait_done(Duration::from_millis(measure_ms) + Duration::from_secs(30))?;
        let after = self.helper.processes.cpu()?;
        Ok((report, after - before))
    }

    fn footprint(&self) -> Result<Footprint> {
        self.helper.processes.footprint()
    }

    fn insert_cpu(
        &self,
        outcome: &mut Outcome,
        cpu: Cpu,
        units: f64,
        [helper, machine]: [Metric; 2],
    ) {
        if !self.helper.processes.is_empty() {
            outcome.values.insert(helper, cpu.helper_s / units);
        }
        outcome.values.insert(machine, cpu.machine_s / units);
    }

    fn insert_footprint(
        &self,
        outcome: &mut Outcome,
        footprint: Footprint,
        [rss, fds]: [Metric; 2],
    ) {
        if !self.helper.processes.is_empty() {
            outcome.values.insert(rss, footprint.rss_bytes as f64 / 1e6);
            outcome.values.insert(fds, footprint.fds as f64);
        }
    }
}

/// What of the guest's port is forwarded.
fn published(order: &Order) -> &'static [Protocol] {
    match order.cell.route {
        Route::Outbound => &[],
        _ if !order.cell.work.is_udp() => &[Protocol::Tcp],
        // iperf3 arranges a UDP test over TCP.
        _ if order.cross_check => &[Protocol::Tcp, Protocol::Udp],
        _ => &[Protocol::Udp],
    }
}

/// The addresses of a family that traffic goes to.
struct Addresses {
    uplink: IpAddr,
    loopback: IpAddr,
    any: IpAddr,
}

impl Addresses {
    fn of(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self {
                uplink: HOST.into(),
                loopback: Ipv4Addr::LOCALHOST.into(),
                any: Ipv4Addr::UNSPECIFIED.into(),
            },
            Family::Ipv6 => Self {
                uplink: HOST6.into(),
                loopback: Ipv6Addr::LOCALHOST.into(),
                any: Ipv6Addr::UNSPECIFIED.into(),
            },
        }
    }
}

/// A cross-check that fails is a remark on the figure, not its failure.
fn insert_checked(outcome: &mut Outcome, order: &Order, metric: Metric, checked: Result<f64>) {
    match checked {
        Ok(rate) => drop(outcome.values.insert(metric, rate)),
        Err(e) => {
            let figure = format!("{} with {}", order.cell, order.peer.name);
            outcome
                .notes
                .push(format!("no cross-check of {figure}: {e:#}"));
        }
    }
}
