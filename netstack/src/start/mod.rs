//! The order in which a helper comes up, from a checked [`Config`] to the running loop.
//!
//! The order is what makes it safe: inherited descriptors are claimed before any is opened, host
//! ports are bound with the caller's own privileges, the user namespace is joined while there is
//! one thread, the privileges go when nothing is left to open, and "ready" is said last. What each
//! step does belongs to the module that it is of. The time from start to "ready" is part of each
//! container's start: the two threads work side by side, and each waits for the other once.

mod inside;
mod outside;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use libc::c_long;
use portfwd::publish::AdoptError;
use portfwd::{BindError, Direction, Listener};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{debug, info, warn};

use crate::config::{Attachment, Config, ETHERNET_MTU, MTU_RANGE};
use crate::control::{DeviceStatus, ExitWatch, PrivateSocketError, ReadySignal, SlirpApiError};
use crate::core::addresses::Addresses;
use crate::core::flow::HashKey;
use crate::core::tcp::Promote;
use crate::core::{Core, CoreConfig, Limits};
use crate::device::{Capabilities, Capture, CaptureError, CaptureFile, DeviceError, GuestDevice};
use crate::driver::{Clock, Driver, DriverError, ForwardParts, Parts, PromotionUnavailable};
use crate::forwards::{Forwards, OpenPort, PortError};
use crate::guest::promotion::Promoter;
use crate::guest::{GuestThread, GuestThreadEnded, InterfaceError, NamespaceError};
use crate::host::{self, RESOLV_CONF};
use crate::network::Network;
use crate::publish::PublishTo;
use crate::sandbox::{self, Confined, Kept, RootDirectory, SandboxError, Threads};
use crate::{companion, control, descriptors, device, driver, guest, process, sys};
use inside::{Entered, Link, Ports, SetUp, begin_set_up, enter_guest};
use outside::Outside;

/// What kept the helper from coming up, or from going on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("descriptor {fd} was not passed on: {source}")]
    Inherited { fd: RawFd, source: io::Error },
    #[error("descriptor {fd} cannot be published: {source}")]
    Adopt { fd: RawFd, source: AdoptError },
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Socket(#[from] PrivateSocketError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("cannot see who listens: {0}")]
    Listening(#[source] io::Error),
    #[error(transparent)]
    SlirpApi(#[from] SlirpApiError),
    #[error("cannot start the process that opens ports: {0}")]
    Broker(#[source] io::Error),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("cannot tell that the network is up: {0}")]
    Announce(#[source] io::Error),
    #[error("cannot watch for the end: {0}")]
    Exit(#[source] io::Error),
    #[error(
        "cannot wait for a hang-up of descriptor {fd}: {source}; it must be a pipe or a socket"
    )]
    ExitFd { fd: RawFd, source: io::Error },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("cannot keep the guest's network namespace: {0}")]
    KeepNamespace(#[source] io::Error),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("cannot promote connections (--promote always): {0}")]
    Promotion(PromotionUnavailable),
    #[error(transparent)]
    Thread(#[from] GuestThreadEnded),
    #[error("cannot start the process that follows {RESOLV_CONF}: {0}")]
    Companion(#[source] io::Error),
    #[error("cannot follow {RESOLV_CONF}: {0}")]
    Resolvers(#[source] io::Error),
    #[error("the kernel gives no random numbers: {0}")]
    Random(#[source] Errno),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Brings a helper up and runs it until it is told to end. `announce` is called when it is up, in
/// its sandbox, just before whoever holds the other end of the ready descriptor is told.
pub fn run(config: Config, announce: impl FnOnce() -> io::Result<()>) -> Result<(), StartError> {
    let ready = config.ready_fd.map(adopt).transpose()?;
    let clock = Clock::start();
    let Up {
        parts,
        guest: _guest,
    } = bring_up(config, clock)?;
    let mut driver = Driver::new(parts, clock)?;
    announce().map_err(StartError::Announce)?;
    if let Some(ready) = ready {
        ReadySignal::new(ready).send();
    }
    Ok(driver.run()?)
}

/// A helper that is ready to run.
struct Up {
    parts: Parts<Capture<GuestDevice>>,
    /// Held until the end: it keeps the namespace, and makes sockets in it.
    guest: Option<Arc<GuestThread>>,
}

/// Everything that the loop runs on, in the order that the head of this file explains.
fn bring_up(config: Config, clock: Clock) -> Result<Up, StartError> {
    let exit_fd = config
        .exit_fd
        .map(|fd| Ok::<_, StartError>((fd, adopt(fd)?)))
        .transpose()?;
    let passed = match config.attachment {
        Attachment::Tap(fd) => Some(adopt(fd)?),
        Attachment::Namespace { .. } => None,
    };
    let mut published = adopt_published(&config)?;
    prepare_process();

    for PublishTo { rule, guest } in &config.publish {
        let bound = portfwd::publish::bind(rule)?;
        published.extend(
            bound
                .into_iter()
                .map(|port| OpenPort::leading_to(port, *guest)),
        );
    }
    let capture = config
        .pcap
        .as_deref()
        .map(|path| CaptureFile::create(path, config.pcap_limit))
        .transpose()?;
    let inbound = config.forwards.open(Direction::Inbound)?;
    let mut descriptors = descriptors::left_for_flows();
    let for_ports = descriptors_for_ports(&config.forwards, descriptors);
    descriptors -= for_ports;
    let limits = Limits::share_out(descriptors);
    debug!(?limits, "descriptors are shared out");
    let mut outside = Outside::open(&config)?;
    let mut exit = ExitWatch::new(config.heeded_signals).map_err(StartError::Exit)?;
    if let Some((fd, watched)) = exit_fd {
        exit.watch_hang_up(watched)
            .map_err(|source| StartError::ExitFd { fd, source })?;
    }

    let entered = enter_guest(&config, passed, &mut exit)?;
    let kept = Kept::here(config.keep_host_net_admin);
    let (guest, link, promoter, forwards, is_root) = match entered {
        Entered::Inside(guest, source) => {
            let set_up = begin_set_up(&guest, source, kept, &config)?;
            let Confined { is_root, root } = confine_main(kept, &config)?;
            let SetUp {
                link,
                promotion,
                ports,
            } = set_up.finish(root)?;
            let sockets = limits.repair_sockets;
            let promoter = promotion.map(|access| Promoter::new(guest.clone(), access, sockets));
            let forwards = (!config.forwards.is_empty()).then(|| {
                forward_parts(
                    &guest,
                    &config.forwards,
                    inbound,
                    ports,
                    &mut outside,
                    for_ports,
                )
            });
            (Some(guest), link, promoter, forwards, is_root)
        }
        Entered::Outside(why, tap) => {
            let Confined { is_root, .. } = confine_main(kept, &config)?;
            let link = Link::new(GuestDevice::Tap(tap), config.network.clone());
            // Who passes a tap asks for no port of the guest's own.
            (None, link, Err(why.into()), None, is_root)
        }
    };
    let Link {
        device,
        capabilities,
        network,
    } = link;
    if let Err(why) = &promoter {
        info!("connections stay in user space: {why}");
    }
    let promoter = match promoter {
        promoter if config.promote != Promote::Always => promoter,
        // Otherwise the guest is prepared after the start.
        Ok(mut promoter) => match promoter.prepare() {
            Ok(()) => Ok(promoter),
            Err(why) => return Err(StartError::Promotion(why.into())),
        },
        Err(why) => return Err(StartError::Promotion(why)),
    };
    let mut core = core_config(&config, &network, capabilities, limits)?;
    if promoter.is_err() {
        core.promote = Promote::Off;
    }

    outside.companion.wait().map_err(StartError::Resolvers)?;
    // Again: changes of IDs, on either thread, have undone it. And where there is no guest to enter
    // nothing has done it yet.
    sandbox::close_process()?;
    if is_root {
        warn!(
            "the host's root is the only user of this user namespace, so the helper runs as that"
        );
    }
    // Woken by each segment, it would interrupt the program that sends them, and find one where it
    // could find ten. Not before: until here the two threads wait for each other.
    if let Err(error) = sys::wait_for_turn_when_woken() {
        debug!(%error, "the scheduler does not take it for a batch process");
    }
    // Last: what comes after needs no path and makes no process.
    let threads = match config.forwards.may_open(Direction::Outbound) {
        // The guest's has a filter of its own: it listens.
        true => Threads::Calling,
        false => Threads::All,
    };
    sandbox::confine_helper_calls(SYSTEM_CALLS, threads)?;
    info!(interface = device.name(), device = %device.kind(), guest = ?core.addresses.guest, "the network is up");

    let mut core = Core::new(core, clock.now());
    core.set_names(config.names);
    let device_status = DeviceStatus {
        kind: device.kind(),
        reason: device.reason().map(ToString::to_string),
    };
    let parts = Parts {
        core,
        device_status,
        device: Capture::new(device, capture),
        published,
        outbound: config.outbound,
        companion: outside.companion,
        promoter,
        status: outside.status,
        slirp_api: outside.slirp_api,
        forwards,
        exit,
    };
    Ok(Up { parts, guest })
}

/// What the helper calls once it is up: the lists that modules keep beside their use.
pub const SYSTEM_CALLS: &[&[c_long]] = &[
    portfwd::relay::SYSTEM_CALLS,
    driver::SYSTEM_CALLS,
    host::SYSTEM_CALLS,
    device::SYSTEM_CALLS,
    guest::SYSTEM_CALLS,
    control::SYSTEM_CALLS,
    companion::SYSTEM_CALLS,
    process::SYSTEM_CALLS,
];

/// Takes files and rights from the main thread, once the guest is entered and there is nothing more
/// to open here.
fn confine_main(kept: Kept, config: &Config) -> Result<Confined, StartError> {
    let root = match config.must_have_empty_root {
        true => RootDirectory::Empty,
        false => RootDirectory::EmptyIfPossible,
    };
    Ok(sandbox::confine_thread(kept, config.instead_of_root, root)?)
}

fn adopt(fd: RawFd) -> Result<OwnedFd, StartError> {
    sys::adopt_inherited_fd(fd).map_err(|source| StartError::Inherited { fd, source })
}

fn adopt_published(config: &Config) -> Result<Vec<OpenPort>, StartError> {
    let adopt = |(fd, PublishTo { rule, guest }): &(RawFd, _)| {
        let adopted = Listener::adopt(rule, adopt(*fd)?);
        let port = adopted.map_err(|source| StartError::Adopt { fd: *fd, source })?;
        Ok(OpenPort::leading_to(port, *guest))
    };
    config.publish_fds.iter().map(adopt).collect()
}

/// Limits and memory, for ten thousands of connections.
fn prepare_process() {
    sys::map_large_allocations();
    // A ring buffer of 1 MiB of which one page is used must not become a huge page.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        debug!("cannot do without transparent huge pages: {error}");
    }
    descriptors::raise_limit();
}

/// How many of `left` descriptors are for ports that are still to be opened.
fn descriptors_for_ports(forwards: &Forwards, left: usize) -> usize {
    let known = forwards.count(Direction::Outbound);
    let may_open = Direction::BOTH.map(|direction| forwards.may_open(direction));
    let later = match may_open.contains(&true) {
        true => (left / PORTS_PART).min(MAX_LATER_PORTS),
        false => 0,
    };
    (known + later).min(left)
}

/// Ports that come and go have this part of the descriptors, so that flows keep the others.
const PORTS_PART: usize = 4;
/// Each port of both protocols and both families.
const MAX_LATER_PORTS: usize = 4 * 65_535;

/// What the loop needs for forwarded ports: those of the host are `inbound`, and `more` may come.
fn forward_parts(
    guest: &Arc<GuestThread>,
    forwards: &Forwards,
    inbound: Vec<OpenPort>,
    ports: Ports,
    outside: &mut Outside,
    more: usize,
) -> ForwardParts {
    let limit = inbound.len() + more;
    let inbound = inbound.into_iter().map(|port| (Direction::Inbound, port));
    let outbound = ports.outbound.into_iter();
    let outbound = outbound.map(|port| (Direction::Outbound, port));
    ForwardParts {
        tables: forwards.tables().clone(),
        open: inbound.chain(outbound).collect(),
        broker: outside.broker.take(),
        guest: guest.clone(),
        from_loopback_to_loopback: forwards.from_loopback_to_loopback,
        listening: [ports.listening, outside.listening.take()],
        control: outside.port_control.take(),
        limit,
    }
}

fn core_config(
    config: &Config,
    network: &Network,
    device: Capabilities,
    limits: Limits,
) -> Result<CoreConfig, StartError> {
    let mut random = [0; 24];
    getrandom(&mut random[..], GetRandomFlags::empty()).map_err(StartError::Random)?;
    let [seed, key0, key1] = [0, 8, 16].map(|at| {
        let word = random[at..at + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(word)
    });
    Ok(CoreConfig {
        addresses: Addresses {
            beyond: config.beyond.clone(),
            behind: config.behind.clone(),
            ..network.addresses()
        },
        autoconf: config.autoconf.clone(),
        policy: config.policy.clone(),
        mtu: config.mtu.unwrap_or(ETHERNET_MTU).min(*MTU_RANGE.end()),
        mac: config.our_mac.unwrap_or_else(|| network.our_mac()),
        guest_mac: device.guest_mac,
        udp_segmentation: device.udp_segmentation,
        promote: config.promote,
        limits,
        random_seed: seed,
        hash_key: HashKey(key0, key1),
    })
}
