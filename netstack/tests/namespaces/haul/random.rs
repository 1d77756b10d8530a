//! Random flows, many at a time, through helpers that promote at once or when a flow hauls: the
//! property that promotion cannot be told from staying in the engine, whatever the ends do and
//! whatever TCP the guest has.
//!
//! `CORACLE_FLOWS=n` makes n flows over all scenes, `CORACLE_SEED=n` makes other ones. A flow is
//! made from the seed, its scene and its number alone; only the kernel's timing differs from run to
//! run.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use testbed::entropy::Entropy;
use tokio::net::{TcpSocket, TcpStream};

use super::program::{self, Buffers, Outcome, Plan, judge, plans};
use super::{Ends, Watched, connection};
use crate::harness::traffic::Pattern;
use crate::harness::{Family, Netns, World, eventually, full, number};
use crate::load::use_congestion_control;

/// One of the worlds that flows are made in.
pub struct Scene {
    published: bool,
    mtu: u32,
    congestion_control: &'static str,
}

impl Scene {
    pub fn outbound(mtu: u32, congestion_control: &'static str) -> Self {
        Self {
            published: false,
            mtu,
            congestion_control,
        }
    }

    pub fn published(mtu: u32, congestion_control: &'static str) -> Self {
        Self {
            published: true,
            ..Self::outbound(mtu, congestion_control)
        }
    }

    pub fn play(&self, world: &mut World) {
        use_congestion_control(world, self.congestion_control);
        let total = number("CORACLE_FLOWS").unwrap_or(if full() { 40_000 } else { 800 });
        let flows = total.div_ceil(SCENES);
        let seed = number("CORACLE_SEED").unwrap_or(0);
        println!("CORACLE_SEED={seed}");
        // Beside the numbers of the flows, which it would only shuffle.
        let seed = seed << 24 ^ self.fingerprint();
        let cycles = (flows / FLOWS_PER_CYCLE).max(1);
        let pattern = Pattern::new(17);
        let mut promoted = 0;
        for cycle in 0..cycles {
            let [begin, end] = [cycle, cycle + 1].map(|cycle| flows * cycle / cycles);
            // One that hauls takes as long as some eight that need not.
            let middle = end - (end - begin) / 9;
            for (promote, numbers) in [("always", begin..middle), ("auto", middle..end)] {
                let mut entropy = Entropy::seeded(seed ^ numbers.start << 40);
                let weather = Weather::new(promote, &mut entropy);
                let round = Round {
                    scene: self,
                    world,
                    seed,
                    pattern: &pattern,
                    hauls: promote == "auto",
                };
                promoted += round.play(&weather, numbers);
            }
        }
        println!("{flows} flows, {promoted} promoted");
        // The others end, or begin to end, before they can be; of a scene's flows about one in
        // three are, one in six on a machine that is very busy.
        assert!(
            promoted >= flows / 10,
            "only {promoted} of {flows} flows were promoted"
        );
    }

    /// Makes the flows of two scenes different.
    fn fingerprint(&self) -> u64 {
        let bbr = self.congestion_control == "bbr";
        u64::from(self.published) << 63 | u64::from(bbr) << 62 | u64::from(self.mtu) << 42
    }
}

/// What the flows of a round have in common.
#[derive(Debug)]
struct Weather {
    promote: &'static str,
    sack: bool,
    timestamps: bool,
    window_scaling: bool,
}

impl Weather {
    fn new(promote: &'static str, entropy: &mut Entropy) -> Self {
        Self {
            promote,
            sack: entropy.chance(60),
            timestamps: entropy.chance(60),
            window_scaling: entropy.chance(60),
        }
    }

    fn apply(&self, guest: &Netns) {
        for (name, is_on) in [
            ("ipv4/tcp_sack", self.sack),
            ("ipv4/tcp_timestamps", self.timestamps),
            ("ipv4/tcp_window_scaling", self.window_scaling),
        ] {
            guest.sysctl(name, if is_on { "1" } else { "0" });
        }
    }
}

/// Some flows through one helper.
struct Round<'a> {
    scene: &'a Scene,
    world: &'a World,
    seed: u64,
    pattern: &'a Pattern,
    /// Most flows haul; by default only those are promoted.
    hauls: bool,
}

impl Round<'_> {
    /// Makes the flows with these numbers, and returns how many of them were promoted.
    fn play(&self, weather: &Weather, numbers: Range<u64>) -> u64 {
        weather.apply(&self.world.guest.net);
        let last = FIRST_PORT + AT_ONCE;
        let setup = self.world.helper().mtu(self.scene.mtu);
        let setup = setup.publish(&format!("{FIRST_PORT}-{last}:{FIRST_PORT}-{last}"));
        let setup = setup.option(format!("--promote={}", weather.promote));
        let helper = Watched::start(setup, &self.world.dir);
        self.pilot(&helper);

        let total = numbers.end - numbers.start;
        let pilots = helper.promotions();
        let failures = self.fly(numbers, &helper);
        let promoted = helper.promotions() - pilots;
        println!("{weather:?}: {total} flows, {promoted} promoted");
        assert!(
            failures.is_empty(),
            "{} of {total} flows went wrong: {failures:#?}",
            failures.len()
        );
        eventually("no promoted flow is left", PATIENCE, || {
            helper.promoted().next().is_none()
        });
        promoted
    }

    /// Flows that are promoted for certain.
    fn pilot(&self, helper: &Watched) {
        let port = self.scene.published.then_some(FIRST_PORT + AT_ONCE);
        for family in Family::BOTH {
            let (guest, remote) = connection(self.world, family, port);
            helper.haul(&guest, &remote);
        }
    }

    /// Makes all flows, many at a time, and returns those that went wrong.
    fn fly(&self, numbers: Range<u64>, helper: &Watched) -> Vec<Failure> {
        let slots = if self.hauls { AT_ONCE / 2 } else { AT_ONCE };
        let next = AtomicU64::new(numbers.start);
        let fly_in = &|slot: u16| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            let mine = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            mine.take_while(|number| numbers.contains(number))
                .filter_map(|number| runtime.block_on(self.flow(slot, number, helper)))
                .collect::<Vec<Failure>>()
        };
        std::thread::scope(|scope| {
            let slots = (0..slots).map(|slot| scope.spawn(move || fly_in(slot)));
            let slots: Vec<_> = slots.collect();
            let failures = slots.into_iter().map(|slot| slot.join().expect("a slot"));
            failures.flatten().collect()
        })
    }

    /// Makes flow `number`; returns what went wrong, if something did.
    async fn flow(&self, slot: u16, number: u64, helper: &Watched) -> Option<Failure> {
        let seed = self.seed ^ number;
        let mut entropy = Entropy::seeded(seed);
        let plans = plans(&mut entropy, self.hauls);
        let family = entropy.choose(&Family::BOTH);
        let connected = tokio::time::timeout(PATIENCE, self.connect(slot, family, &plans));
        let (guest, remote) = match connected.await {
            Ok(Ok(ends)) => ends,
            failed => panic!("flow {number} does not connect: {failed:?}"),
        };
        let ends = (guest.local_addr().unwrap(), guest.peer_addr().unwrap());
        let progress = [Cell::new(0), Cell::new(0)];
        let [in_guest, elsewhere] = &plans;
        let flying = async {
            tokio::join!(
                program::play(guest, in_guest, elsewhere, self.pattern, seed, &progress[0]),
                program::play(
                    remote,
                    elsewhere,
                    in_guest,
                    self.pattern,
                    seed + 1,
                    &progress[1]
                ),
            )
        };
        let describe = async {
            tokio::time::sleep(program::FLOW_LIMIT - PATIENCE).await;
            println!("flow {number} is late: {:?}", helper.flow(ends));
            std::future::pending::<()>().await;
        };
        let outcomes = tokio::select! {
            (guest, remote) = flying => [guest, remote],
            () = describe => unreachable!("it waits for ever"),
        };
        let wrong = judge(&plans, &outcomes).err()?;
        Some(Failure {
            number,
            wrong,
            ends,
            plans,
            outcomes,
        })
    }

    /// The two ends of a new connection, in the guest and elsewhere.
    async fn connect(
        &self,
        slot: u16,
        family: Family,
        plans: &[Plan; 2],
    ) -> io::Result<(TcpStream, TcpStream)> {
        let [guest, remote] = [&plans[0].buffers, &plans[1].buffers];
        let World {
            guest: in_guest,
            elsewhere,
            ..
        } = self.world;
        if self.scene.published {
            let port = FIRST_PORT + slot;
            let service = socket(&in_guest.net, family, guest)?;
            service.set_reuseaddr(true)?;
            service.bind((family.guest(), port).into())?;
            let service = service.listen(1)?;
            let client = socket(elsewhere, family, remote)?;
            let address = (family.host(), port).into();
            let (remote, accepted) = tokio::try_join!(client.connect(address), service.accept())?;
            Ok((accepted.0, remote))
        } else {
            let service = socket(elsewhere, family, remote)?;
            service.bind((family.elsewhere(), 0).into())?;
            let service = service.listen(1)?;
            let client = socket(&in_guest.net, family, guest)?;
            let address = service.local_addr()?;
            let (guest, accepted) = tokio::try_join!(client.connect(address), service.accept())?;
            Ok((guest, accepted.0))
        }
    }
}

/// A flow that went wrong, and how.
#[derive(Debug)]
#[allow(dead_code, reason = "for their Debug output")]
struct Failure {
    number: u64,
    wrong: &'static str,
    ends: Ends,
    plans: [Plan; 2],
    outcomes: [Outcome; 2],
}

/// A socket whose buffers have their sizes before it connects or listens, as window scales depend
/// on them.
fn socket(netns: &Netns, family: Family, buffers: &Buffers) -> io::Result<TcpSocket> {
    let socket = netns.run(|| match family {
        Family::V4 => TcpSocket::new_v4(),
        Family::V6 => TcpSocket::new_v6(),
    })?;
    if let Some(size) = buffers.receive {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = buffers.send {
        socket.set_send_buffer_size(size)?;
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// How many scenes share `CORACLE_FLOWS`.
const SCENES: u64 = 8;
/// A round of flows that need not haul, and one of flows that do.
const FLOWS_PER_CYCLE: u64 = 1125;
/// Flows at a time; half as many when they haul, or none would be fast enough for that.
const AT_ONCE: u16 = 64;
/// The published ports begin here, one for each flow at a time and one for the pilot.
const FIRST_PORT: u16 = 8000;
const PATIENCE: Duration = Duration::from_secs(20);
