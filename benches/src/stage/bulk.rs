//! Bulk figures: a TCP transfer at full speed, timed by its receiver.

use anyhow::Result;

use super::{Order, Stage, insert_checked};
use crate::cell::{Route, Way};
use crate::crosscheck;
use crate::metric::{Metric, Outcome};
use crate::traffic::Job;
use crate::traffic::bulk::{Bulk, End};
use crate::worker::Generator;

impl Stage {
    pub(super) fn bulk(&self, order: &Order, way: Way, flows: u32) -> Result<Outcome> {
        let timing = order.timing;
        let client_sends = Self::client_sends(order, way);
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
            let metrics = [Metric::HelperCpuSPerGb, Metric::MachineCpuSPerGb];
            self.insert_cpu(&mut outcome, cpu, gigabytes, metrics);
        }
        if order.cross_check {
            drop((server, client));
            let checked = crosscheck::Iperf3 {
                client_sends,
                flows,
                seconds: timing.measure_ms.div_ceil(1_000),
                datagram_bytes: None,
            }
            .run(&self.client, &self.server);
            insert_checked(&mut outcome, order, Metric::Iperf3GbitPerS, checked);
        }
        Ok(outcome)
    }

    /// Whether bytes that go this way are sent by the client.
    pub(super) fn client_sends(order: &Order, way: Way) -> bool {
        let guest_is_client = order.cell.route == Route::Outbound;
        guest_is_client == (way == Way::FromGuest)
    }
}
