//! One figure, inside its world: lays the links, starts the helper and the generators, and reads the instruments.
//!
//! Runs as init of the world's PID namespace. It gets an [`Order`] and prints an [`Outcome`]; whatever goes wrong is an error of this figure
//! alone, and the comparison goes on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::crosscheck;
use crate::links::{self, HOST};
use crate::matrix::{Cell, Congestion, Route, Timing, Way, Work};
use crate::metric::{Metric, Outcome};
use crate::namespaces::{self, Held};
use crate::peers::{Attached, PORT, Peer, Wanted};
use crate::procfs::{Cpu, Footprint};
use crate::traffic::bulk::{Bulk, End};
use crate::traffic::{Job, Report, Task, connect};
use crate::worker::{Generator, Holder};

/// One figure to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub cell: Cell,
    pub peer: Peer,
    pub timing: Timing,
    /// Also ask iperf3 or wrk.
    pub cross_check: bool,
    /// When to give up.
    pub limit_ms: u64,
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

/// Where one end of the traffic runs.
pub struct Place {
    /// A process in its namespaces; ours when absent.
    pub enter: Option<i32>,
    /// What the server listens on or the client connects to.
    pub address: SocketAddr,
    pub congestion: Congestion,
}

impl Stage {
    fn set(order: &Order) -> Result<Stage> {
        let cell = &order.cell;
        let elsewhere = Holder::start(Held::Elsewhere)?;
        links::connect_elsewhere(elsewhere.pid())?;
        let idle_guest = Holder::start(Held::Guest)?;
        let host = std::process::id().cast_signed();
        let mut notes = Vec::new();
        // Before any socket exists, so that the helper's own sockets follow too; none may pace by accident.
        for pid in [host, elsewhere.pid()] {
            if let Err(e) = namespaces::set_congestion(pid, Congestion::Cubic.name()) {
                notes.push(e.to_string());
            }
        }
        let publish = (cell.route != Route::Outbound).then_some(PORT);
        let helper = order.peer.attach(Wanted {
            guest: idle_guest.pid(),
            mtu: cell.mtu,
            publish,
        })?;
        let guest = helper.guest.unwrap_or(idle_guest.pid());
        if let Err(e) = namespaces::set_congestion(guest, cell.congestion.name()) {
            notes.push(e.to_string());
        }
        notes.dedup();

        let enter = |pid: i32| (pid != host).then_some(pid);
        let at = |address: Ipv4Addr| SocketAddr::new(IpAddr::V4(address), PORT);
        let guest = |address| Place {
            enter: enter(guest),
            address,
            congestion: cell.congestion,
        };
        let elsewhere_pid = elsewhere.pid();
        let outside = |pid: i32, address| Place {
            enter: enter(pid),
            address,
            congestion: Congestion::Cubic,
        };
        let (client, server) = match cell.route {
            Route::Outbound => (guest(at(HOST)), outside(host, at(HOST))),
            Route::Published => (
                outside(host, at(Ipv4Addr::LOCALHOST)),
                guest(at(Ipv4Addr::UNSPECIFIED)),
            ),
            Route::PublishedRemote => (
                outside(elsewhere_pid, at(HOST)),
                guest(at(Ipv4Addr::UNSPECIFIED)),
            ),
        };
        Ok(Stage {
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
            Work::Request { connections } => self.requests(order, connections)?,
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

    fn bulk(&self, order: &Order, way: Way, flows: u32) -> Result<Outcome> {
        let timing = order.timing;
        let guest_is_client = order.cell.route == Route::Outbound;
        let client_sends = guest_is_client == (way == Way::FromGuest);
        let bulk = |sends| Bulk {
            end: if sends { End::Send } else { End::Receive },
            flows,
            warm_ms: timing.warm_ms,
            measure_ms: timing.measure_ms,
        };
        let listen = Job::BulkListen {
            listen: self.server.address,
            bulk: bulk(!client_sends),
        };
        let mut server = Generator::start("server", &self.server.task(listen))?;
        server.wait_ready()?;
        let connect = Job::BulkConnect {
            connect: self.client.address,
            bulk: bulk(client_sends),
        };
        let mut client = Generator::start("client", &self.client.task(connect))?;
        let receiver = if client_sends {
            &mut server
        } else {
            &mut client
        };
        let (report, cpu) = self.watch(receiver, timing.measure_ms)?;

        let mut outcome = Outcome::default();
        let gigabytes = report.bytes as f64 / 1e9;
        outcome
            .values
            .insert(Metric::GbitPerS, gigabytes * 8.0 / report.seconds);
        outcome.values.insert(
            Metric::SlowestGbitPerS,
            report.slowest_100ms_bytes as f64 * 8.0 / 1e8,
        );
        if gigabytes > 0.0 {
            self.insert_cpu(
                &mut outcome,
                cpu,
                gigabytes,
                Metric::HelperCpuSPerGb,
                Metric::MachineCpuSPerGb,
            );
        }
        if order.cross_check {
            drop((server, client));
            let seconds = timing.measure_ms.div_ceil(1_000);
            let checked =
                crosscheck::iperf3(&self.client, &self.server, client_sends, flows, seconds);
            insert_checked(&mut outcome, order, Metric::Iperf3GbitPerS, checked);
        }
        Ok(outcome)
    }

    fn requests(&self, order: &Order, connections: u32) -> Result<Outcome> {
        let Timing {
            warm_ms,
            measure_ms,
            ..
        } = order.timing;
        let connect = self.client.address;
        let job = Job::Request {
            connect,
            connections,
            warm_ms,
            measure_ms,
        };
        self.operations(order, job, measure_ms, |seconds| {
            crosscheck::wrk(&self.client, connections, false, seconds)
        })
    }

    fn connections(&self, order: &Order, at_once: u32) -> Result<Outcome> {
        let (connect, limit_ms) = (self.client.address, order.timing.connect_ms);
        let job = Job::Connect {
            connect,
            at_once,
            end: connect::End::AfterMs(limit_ms),
        };
        self.operations(order, job, limit_ms, |seconds| {
            crosscheck::wrk(&self.client, at_once, true, seconds)
        })
    }

    /// A load of requests or connections against the HTTP service, and then `check`, for as many seconds, while it still runs.
    fn operations(
        &self,
        order: &Order,
        job: Job,
        measure_ms: u64,
        check: impl FnOnce(u64) -> Result<f64>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let before = self.footprint()?;
        let _service = self.service()?;
        let mut client = Generator::start("client", &self.client.task(job))?;
        let (report, cpu) = self.watch(&mut client, measure_ms)?;
        self.insert_footprint(&mut outcome, before, [Metric::RssStartMb, Metric::FdsStart]);
        self.insert_footprint(
            &mut outcome,
            self.footprint()?,
            [Metric::RssLoadedMb, Metric::FdsLoaded],
        );

        let values = &mut outcome.values;
        values.insert(Metric::PerS, report.operations as f64 / report.seconds);
        values.insert(Metric::P50Us, report.latency.p50_us);
        values.insert(Metric::P99Us, report.latency.p99_us);
        values.insert(Metric::P999Us, report.latency.p999_us);
        values.insert(Metric::MaxUs, report.latency.max_us);
        let failed: u64 = report.errors.values().sum();
        values.insert(
            Metric::FailedPpm,
            failed as f64 * 1e6 / (report.operations + failed).max(1) as f64,
        );
        if report.operations > 0 {
            let millions = report.operations as f64 / 1e6;
            self.insert_cpu(
                &mut outcome,
                cpu,
                millions,
                Metric::HelperCpuUsPerOp,
                Metric::MachineCpuUsPerOp,
            );
        }
        outcome.errors = report.errors;
        outcome.curve = report.latency.curve;
        if order.cross_check {
            drop(client);
            insert_checked(
                &mut outcome,
                order,
                Metric::WrkPerS,
                check(measure_ms.div_ceil(1_000)),
            );
        }
        Ok(outcome)
    }

    /// The HTTP service, listening.
    fn service(&self) -> Result<Generator> {
        let listen = self.server.address;
        let mut service = Generator::start("server", &self.server.task(Job::Serve { listen }))?;
        service.wait_ready()?;
        Ok(service)
    }

    fn memory(&self, connections: u32) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        // A helper that goes to the background leaves its first process to end, and frees what only the set-up needed.
        thread::sleep(Duration::from_millis(200));
        let start = self.footprint()?;
        let _service = self.service()?;
        let hold = Job::Hold {
            connect: self.client.address,
            connections,
        };
        let mut client = Generator::start("client", &self.client.task(hold))?;
        client.wait_begin(Duration::from_secs(60))?;
        let loaded = self.footprint()?;
        client.release();
        client.wait_done(Duration::from_secs(10))?;
        let after = self.settled(start)?;
        self.insert_footprint(&mut outcome, start, [Metric::RssStartMb, Metric::FdsStart]);
        self.insert_footprint(
            &mut outcome,
            loaded,
            [Metric::RssLoadedMb, Metric::FdsLoaded],
        );
        self.insert_footprint(&mut outcome, after, [Metric::RssAfterMb, Metric::FdsAfter]);
        Ok(outcome)
    }

    /// Connection after connection. What a helper keeps for reuse it has after the first few thousand; from then on its memory may not grow.
    fn soak(&self, order: &Order, connections: u32) -> Result<Outcome> {
        const FIRST: u32 = 20_000;
        let idle = self.footprint()?;
        let _service = self.service()?;
        let run = |connections: u32| {
            let end = connect::End::AfterConnections(connections.into());
            let connect = self.client.address;
            let job = Job::Connect {
                connect,
                at_once: 64,
                end,
            };
            let mut client = Generator::start("client", &self.client.task(job))?;
            self.watch(&mut client, order.limit_ms)
        };
        run(FIRST)?;
        let start = self.settled(idle)?;
        let (report, _) = run(connections.saturating_sub(FIRST))?;
        let after = self.settled(start)?;
        let mut outcome = Outcome::default();
        self.insert_footprint(&mut outcome, start, [Metric::RssStartMb, Metric::FdsStart]);
        self.insert_footprint(&mut outcome, after, [Metric::RssAfterMb, Metric::FdsAfter]);
        outcome
            .values
            .insert(Metric::PerS, report.operations as f64 / report.seconds);
        outcome.errors = report.errors;
        Ok(outcome)
    }

    /// The footprint once the descriptors of closed connections are gone. Closing takes the helper a moment, TIME-WAIT
    /// longer; what is still held after the patience runs out counts.
    fn settled(&self, before: Footprint) -> Result<Footprint> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.footprint()?;
            if now.fds <= before.fds || Instant::now() >= deadline {
                return Ok(now);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for a generator's measured part and reads the CPU clocks at its two ends.
    fn watch(&self, generator: &mut Generator, measure_ms: u64) -> Result<(Report, Cpu)> {
        generator.wait_begin(Duration::from_secs(30))?;
        let before = self.helper.processes.cpu()?;
        let report =
            generator.wait_done(Duration::from_millis(measure_ms) + Duration::from_secs(30))?;
        let after = self.helper.processes.cpu()?;
        let helper_s = after.helper_s - before.helper_s;
        Ok((
            report,
            Cpu {
                helper_s,
                machine_s: after.machine_s - before.machine_s,
            },
        ))
    }

    fn footprint(&self) -> Result<Footprint> {
        self.helper.processes.footprint()
    }

    fn insert_cpu(
        &self,
        outcome: &mut Outcome,
        cpu: Cpu,
        units: f64,
        helper: Metric,
        machine: Metric,
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

/// How long a helper may take to let go of closed connections: longer than any TIME-WAIT of 10 s it may implement.
const PATIENCE: Duration = Duration::from_secs(15);

impl Place {
    fn task(&self, job: Job) -> Task {
        Task {
            enter: self.enter,
            congestion: self.congestion.name().into(),
            job,
        }
    }
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
