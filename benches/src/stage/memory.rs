//! Memory and descriptors of the helper: under open connections, after they closed, and after very
//! many.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Order, Stage};
use crate::metric::{Metric, Outcome};
use crate::procfs::Footprint;
use crate::traffic::{Job, connect};
use crate::worker::Generator;

/// How long a helper may take to let go of closed connections: longer than any TIME-WAIT of 10 s it
/// may implement.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long opening connections may take: 10,000 at 500 a second.
const OPENING: Duration = Duration::from_secs(20);

impl Stage {
    pub(super) fn memory(&self, connections: u32) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        // A helper that goes to the background leaves its first process to end, and frees what only
        // the set-up needed.
        thread::sleep(Duration::from_millis(200));
        let start = self.footprint()?;
        let _service = self.service()?;
        let hold = Job::Hold {
            connect: self.client.address,
            connections,
        };
        let mut client = Generator::start("client", &self.client.task(hold))?;
        client.wait_begin(OPENING)?;
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
        let grown = loaded.rss_bytes.saturating_sub(start.rss_bytes) as f64 / 1e3;
        let each = grown / f64::from(connections);
        outcome.values.insert(Metric::RssPerConnectionKb, each);
        Ok(outcome)
    }

    /// Connection after connection. What a helper keeps for reuse it has after the first few
    /// thousand; from then on its memory may not grow.
    pub(super) fn soak(&self, order: &Order, connections: u32) -> Result<Outcome> {
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

    /// The footprint once the descriptors of closed connections are gone. Closing takes the helper
    /// a moment, TIME-WAIT longer; what is still held after the patience runs out counts.
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
}
