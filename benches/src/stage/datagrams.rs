//! UDP figures: what an unpaced sender gets through, and the highest rate at which at most one
//! datagram in a thousand is lost.

use std::time::Duration;

use anyhow::{Result, bail};

use super::search::{Unpaced, highest_rate};
use super::{Order, Stage, insert_checked};
use crate::cell::Way;
use crate::crosscheck;
use crate::metric::{Metric, Outcome};
use crate::procfs::Cpu;
use crate::traffic::bulk::End;
use crate::traffic::datagrams::{Command, Datagrams};
use crate::traffic::{Job, Report};
use crate::worker::Generator;

/// The share that may be lost, per million.
const LIMIT_PPM: f64 = 1_000.0;
/// A rate that lost too much gets a second chance: the generators share the machine with whatever
/// else runs.
const CHANCES: usize = 2;
/// What fits into a packet on any path, IPv6 and a tunnel included.
const SMALL_BYTES: u16 = 1_400;
/// What fits into the largest packet and is usual for nobody but iperf3.
const LARGE_BYTES: u16 = 32 << 10;
/// Datagrams of one segmented send: at most 64, and no more than 65,507 bytes.
const PER_SEND: u16 = 46;
/// How long generators may take to answer beyond the time they are told to send.
const ANSWER: Duration = Duration::from_secs(10);

/// Datagrams at one rate.
struct Probe {
    sent: Report,
    received: Report,
    cpu: Cpu,
}

impl Probe {
    fn lost_ppm(&self) -> f64 {
        let sent = self.sent.operations as f64;
        (sent - self.received.operations as f64).max(0.0) * 1e6 / sent.max(1.0)
    }

    fn offered(&self) -> f64 {
        self.sent.operations as f64 / self.sent.seconds
    }

    /// By the receiver's clock when it took longer, as with a helper that queues.
    fn delivered(&self) -> f64 {
        self.received.operations as f64 / self.received.seconds.max(self.sent.seconds)
    }
}

/// The two ends, ready for orders.
struct Ends<'a> {
    stage: &'a Stage,
    server: Generator,
    client: Generator,
    client_sends: bool,
}

impl Stage {
    pub(super) fn datagrams(
        &self,
        order: &Order,
        way: Way,
        flows: u32,
        segmented: bool,
    ) -> Result<Outcome> {
        let bytes = if order.cell.mtu == 1500 {
            SMALL_BYTES
        } else {
            LARGE_BYTES
        };
        let per_send = if segmented { PER_SEND } else { 1 };
        let client_sends = Self::client_sends(order, way);
        let gbit = |per_s: f64| per_s * f64::from(bytes) * 8.0 / 1e9;
        let timing = order.timing;

        let mut ends = self.ends(client_sends, |end| Datagrams {
            end,
            flows,
            bytes,
            per_send,
        })?;
        ends.probe(None, timing.warm_ms)?;
        let unpaced = ends.probe(None, timing.unpaced_ms())?;
        if unpaced.received.operations == 0 {
            bail!("none of {} datagrams arrived", unpaced.sent.operations);
        }
        let mut outcome = Outcome::default();
        let values = &mut outcome.values;
        values.insert(Metric::GbitPerS, gbit(unpaced.delivered()));
        values.insert(Metric::LostPpm, unpaced.lost_ppm());

        let (mut cpu, mut gigabytes) = (Cpu::default(), 0.0);
        let mut account = |probe: &Probe| {
            cpu += probe.cpu;
            gigabytes += probe.received.bytes as f64 / 1e9;
        };
        let highest = if unpaced.lost_ppm() <= LIMIT_PPM {
            account(&unpaced);
            unpaced.offered()
        } else {
            let met = Unpaced {
                offered: unpaced.offered(),
                delivered: unpaced.delivered(),
            };
            highest_rate(met, |rate| {
                for _ in 0..CHANCES {
                    let probe = ends.probe(Some(rate), timing.probe_ms)?;
                    if probe.lost_ppm() <= LIMIT_PPM {
                        account(&probe);
                        return Ok(Some(probe.offered()));
                    }
                }
                Ok(None)
            })?
        };
        values.insert(Metric::LosslessGbitPerS, gbit(highest));
        if gigabytes > 0.0 {
            let metrics = [Metric::HelperCpuSPerGb, Metric::MachineCpuSPerGb];
            self.insert_cpu(&mut outcome, cpu, gigabytes, metrics);
        }
        // iperf3 sends one datagram per system call only.
        if order.cross_check && !segmented {
            drop(ends);
            let checked = crosscheck::Iperf3 {
                client_sends,
                flows,
                seconds: timing.measure_ms.div_ceil(1_000),
                datagram_bytes: Some(bytes),
            }
            .run(&self.client, &self.server);
            insert_checked(&mut outcome, order, Metric::Iperf3GbitPerS, checked);
        }
        Ok(outcome)
    }

    fn ends(&self, client_sends: bool, datagrams: impl Fn(End) -> Datagrams) -> Result<Ends<'_>> {
        let end = |sends| datagrams(if sends { End::Send } else { End::Receive });
        let serve = Job::DatagramsServe {
            listen: self.server.address,
            datagrams: end(!client_sends),
        };
        let mut server = Generator::start("server", &self.server.task(serve))?;
        server.wait_ready()?;
        let connect = Job::DatagramsConnect {
            connect: self.client.address,
            datagrams: end(client_sends),
        };
        let mut client = Generator::start("client", &self.client.task(connect))?;
        client.wait_begin(Duration::from_secs(30))?;
        server.wait_begin(Duration::from_secs(30))?;
        Ok(Ends {
            stage: self,
            server,
            client,
            client_sends,
        })
    }
}

impl Ends<'_> {
    fn probe(&mut self, rate: Option<f64>, millis: u64) -> Result<Probe> {
        let (sender, receiver) = if self.client_sends {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        };
        let before = self.stage.helper.processes.cpu()?;
        let limit = Duration::from_millis(millis) + ANSWER;
        let sent = sender.command(&Command::Send { rate, millis }, limit)?;
        let received = receiver.command(&Command::Count, ANSWER)?;
        let cpu = self.stage.helper.processes.cpu()? - before;
        Ok(Probe {
            sent,
            received,
            cpu,
        })
    }
}
