//! Figures that count operations: requests over open connections, datagrams and their answers, new
//! connections.

use anyhow::Result;

use super::{Order, Stage, insert_checked};
use crate::crosscheck::{Nginx, Wrk};
use crate::matrix::Timing;
use crate::metric::{Metric, Outcome};
use crate::traffic::{Job, connect};
use crate::worker::Generator;

impl Stage {
    pub(super) fn requests(&self, order: &Order, connections: u32) -> Result<Outcome> {
        let Timing {
            warm_ms,
            measure_ms,
            ..
        } = order.timing;
        let service = self.service()?;
        let mut outcome = self.operations(
            Job::Request {
                connect: self.client.address,
                connections,
                warm_ms,
                measure_ms,
            },
            measure_ms,
        )?;
        let load = Wrk {
            connections,
            new_each: false,
            seconds: measure_ms.div_ceil(1_000),
        };
        self.cross_check(&mut outcome, order, &load, service);
        Ok(outcome)
    }

    pub(super) fn exchanges(&self, order: &Order, sockets: u32) -> Result<Outcome> {
        let Timing {
            warm_ms,
            measure_ms,
            ..
        } = order.timing;
        let listen = self.server.address;
        let _service = self.serve(Job::ExchangeServe { listen })?;
        let job = Job::Exchange {
            connect: self.client.address,
            sockets,
            warm_ms,
            measure_ms,
        };
        self.operations(job, measure_ms)
    }

    pub(super) fn connections(&self, order: &Order, at_once: u32) -> Result<Outcome> {
        let limit_ms = order.timing.connect_ms;
        let service = self.service()?;
        let job = Job::Connect {
            connect: self.client.address,
            at_once,
            end: connect::End::AfterMs(limit_ms),
        };
        let mut outcome = self.operations(job, limit_ms)?;
        let load = Wrk {
            connections: at_once,
            new_each: true,
            seconds: limit_ms.div_ceil(1_000),
        };
        self.cross_check(&mut outcome, order, &load, service);
        Ok(outcome)
    }

    /// The HTTP service, listening.
    pub(super) fn service(&self) -> Result<Generator> {
        let listen = self.server.address;
        self.serve(Job::Serve { listen })
    }

    fn serve(&self, job: Job) -> Result<Generator> {
        let mut service = Generator::start("server", &self.server.task(job))?;
        service.wait_ready()?;
        Ok(service)
    }

    /// A load of operations against the service that runs.
    fn operations(&self, load: Job, measure_ms: u64) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let before = self.footprint()?;
        let mut client = Generator::start("client", &self.client.task(load))?;
        let (report, cpu) = self.watch(&mut client, measure_ms)?;
        let after = self.footprint()?;
        self.insert_footprint(&mut outcome, before, [Metric::RssStartMb, Metric::FdsStart]);
        self.insert_footprint(
            &mut outcome,
            after,
            [Metric::RssLoadedMb, Metric::FdsLoaded],
        );

        let values = &mut outcome.values;
        values.insert(Metric::PerS, report.operations as f64 / report.seconds);
        values.insert(Metric::P50Us, report.latency.p50_us);
        values.insert(Metric::P99Us, report.latency.p99_us);
        values.insert(Metric::P999Us, report.latency.p999_us);
        values.insert(Metric::MaxUs, report.latency.max_us);
        let failed: u64 = report.errors.values().sum();
        let all = (report.operations + failed).max(1);
        values.insert(Metric::FailedPpm, failed as f64 * 1e6 / all as f64);
        if report.operations > 0 {
            let millions = report.operations as f64 / 1e6;
            let metrics = [Metric::HelperCpuUsPerOp, Metric::MachineCpuUsPerOp];
            self.insert_cpu(&mut outcome, cpu, millions, metrics);
        }
        outcome.errors = report.errors;
        outcome.curve = report.latency.curve;
        Ok(outcome)
    }

    /// The same load by wrk, against the service that runs and then against nginx in its place, if
    /// that was ordered.
    fn cross_check(&self, outcome: &mut Outcome, order: &Order, load: &Wrk, service: Generator) {
        if !order.cross_check {
            return;
        }
        insert_checked(outcome, order, Metric::WrkPerS, load.run(&self.client));
        drop(service);
        let checked = Nginx::start(&self.server).and_then(|_nginx| load.run(&self.client));
        insert_checked(outcome, order, Metric::NginxPerS, checked);
    }
}
