//! The helper's way into the guest: the namespaces that it joins, what its thread in there sets up,
//! and how that thread is confined.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use portfwd::Direction;

use super::{SYSTEM_CALLS, StartError};
use crate::config::{Attachment, Config};
use crate::control::ExitWatch;
use crate::core::tcp::Promote;
use crate::device::{Capabilities, Device, DeviceError, GuestDevice, Tap};
use crate::driver::PromotionUnavailable;
use crate::forwards::{Forwards, OpenPort};
use crate::guest::promotion::Access;
use crate::guest::{
    self, GuestThread, InterfaceSettings, NamespaceError, Pending, Target, configure, prepare,
};
use crate::netlink::ListeningSockets;
use crate::network::Network;
use crate::sandbox::{self, Kept, RootDirectory, Threads};

/// How far the helper gets into the guest.
pub enum Entered {
    Inside(Arc<GuestThread>, Source),
    /// Not at all. The tap that was passed on is used as it is.
    Outside(NamespaceError, Tap),
}

/// Enters the guest's network namespace, which a tap that was `passed` on may be in. Where that
/// cannot be done the tap is enough, unless there is something to configure.
pub fn enter_guest(
    config: &Config,
    passed: Option<OwnedFd>,
    exit: &mut ExitWatch,
) -> Result<Entered, StartError> {
    let tap = match &config.attachment {
        Attachment::Namespace { target, tap } => {
            let target = Target::open(target, &config.user_namespace)?;
            let guest = enter(target, config, exit)?;
            return Ok(Entered::Inside(guest, Source::Name(tap.clone())));
        }
        Attachment::Tap(_) => {
            Tap::passed(passed.expect("adopted before")).map_err(DeviceError::from)?
        }
    };
    let target = Target::of_tap(tap.as_fd(), &config.user_namespace);
    let entered = target.map_err(StartError::Namespace);
    match entered.and_then(|target| enter(target, config, exit)) {
        Ok(guest) => Ok(Entered::Inside(guest, Source::Passed(tap))),
        Err(StartError::Namespace(why)) if !config.configure => Ok(Entered::Outside(why, tap)),
        Err(error) => Err(error),
    }
}

/// Joins the guest's user namespace, starts the thread in its network namespace, and watches what
/// that stands and falls with.
fn enter(
    target: Target,
    config: &Config,
    exit: &mut ExitWatch,
) -> Result<Arc<GuestThread>, StartError> {
    // Before the guest has power over this process.
    sandbox::close_process()?;
    target.join_user(config.instead_of_root)?;
    let network_namespace = target
        .network()
        .try_clone_to_owned()
        .map_err(StartError::KeepNamespace)?;
    let holders = target.into_holders();
    if let Some(process) = holders.process {
        exit.watch_process(process).map_err(StartError::Exit)?;
    }
    if let Some(mount) = holders.mount.filter(|_| !config.outlives_path) {
        exit.watch_mount(mount).map_err(StartError::Exit)?;
    }
    Ok(Arc::new(GuestThread::spawn(network_namespace)?))
}

/// Where the guest's thread has the device from.
pub enum Source {
    Name(String),
    Passed(Tap),
}

/// The link to the guest, as it turned out.
pub struct Link {
    pub device: GuestDevice,
    /// Asked for in time: a confined thread may not.
    pub capabilities: Capabilities,
    /// The guest may be without IPv6.
    pub network: Network,
}

impl Link {
    pub fn new(device: GuestDevice, network: Network) -> Self {
        Self {
            capabilities: device.capabilities(),
            device,
            network,
        }
    }
}

/// What comes of setting up the guest.
pub struct SetUp {
    pub link: Link,
    /// Without it connections stay with us, which is slower and nothing else.
    pub promotion: Result<Access, PromotionUnavailable>,
    pub ports: Ports,
}

/// What forwarded ports have in the guest.
pub struct Ports {
    pub outbound: Vec<OpenPort>,
    /// Who listens there, where ports of the host follow that.
    pub listening: Option<ListeningSockets>,
}

impl Ports {
    /// In the calling thread's network namespace.
    fn open(forwards: &Forwards) -> Result<Self, StartError> {
        let follows = forwards.may_open(Direction::Inbound);
        let listening = follows.then(ListeningSockets::open).transpose();
        Ok(Self {
            outbound: forwards.open(Direction::Outbound)?,
            listening: listening.map_err(StartError::Listening)?,
        })
    }
}

/// The guest's thread at work.
pub struct SettingUp {
    outcome: Pending<Result<SetUp, StartError>>,
    root: Sender<RootDirectory>,
}

impl SettingUp {
    /// Waits for the thread to be done, and confined: `root` is the root directory that it is to
    /// have.
    pub fn finish(self, root: RootDirectory) -> Result<SetUp, StartError> {
        // If it has failed it does not wait for this any more.
        let _ = self.root.send(root);
        self.outcome.wait()?
    }
}

/// Has the thread in the guest's network namespace open the device, configure the links, open
/// what promotion and ports take, and give up its rights, in this order. All of it is one job: each
/// further one would wait for the thread to be woken, 50 to 100 microseconds on an idle machine.
pub fn begin_set_up(
    guest: &GuestThread,
    source: Source,
    kept: Kept,
    config: &Config,
) -> Result<SettingUp, StartError> {
    let config = config.clone();
    let (root, given_root) = channel();
    let set_up = move || {
        let link = set_up_link(source, &config)?;
        let promotion = open_promotion(&link, kept, config.promote);
        let ports = Ports::open(&config.forwards)?;
        // Without one, the main thread has failed, which is the error that counts.
        let root = given_root.recv().unwrap_or(RootDirectory::Present);
        sandbox::confine_thread(kept, config.instead_of_root, root)?;
        if config.forwards.may_open(Direction::Outbound) {
            let calls = [SYSTEM_CALLS, &[guest::LISTENING_CALLS]].concat();
            sandbox::confine_helper_calls(&calls, Threads::Calling)?;
        }
        Ok(SetUp {
            link,
            promotion,
            ports,
        })
    };
    let outcome = guest.begin(set_up)?;
    Ok(SettingUp { outcome, root })
}

fn set_up_link(source: Source, config: &Config) -> Result<Link, StartError> {
    let device = match source {
        Source::Name(name) => GuestDevice::open(&name, config.guest_mac, config.device)?,
        Source::Passed(tap) => GuestDevice::Tap(tap),
    };
    let name = device.name().to_owned();
    let mut network = config.network.clone();
    if !config.configure {
        prepare(&name, config.loopback_up, config.guest_mac)?;
        return Ok(Link::new(device, network));
    }
    let has_ipv6 = configure(&InterfaceSettings {
        name,
        mtu: config.mtu.map(u32::from),
        mac: config.guest_mac,
        network: network.clone(),
    })?;
    if !config.behind.is_empty() {
        guest::forward(has_ipv6);
    }
    if !has_ipv6 {
        network.v6 = None;
    }
    Ok(Link::new(device, network))
}

fn open_promotion(
    link: &Link,
    kept: Kept,
    promote: Promote,
) -> Result<Access, PromotionUnavailable> {
    match (promote, kept) {
        (Promote::Off, _) => Err(PromotionUnavailable::Off),
        (_, Kept::LowPorts | Kept::Nothing) => Err(PromotionUnavailable::NeedsHost),
        (_, Kept::Network) => {
            let ipv6 = link.network.v6.is_some();
            Ok(Access::open(link.device.name(), ipv6)?)
        }
    }
}
