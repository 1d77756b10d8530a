//! The helper's way into the guest: the namespaces that it joins, what its thread in there sets up,
//! and how that thread is confined.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use portfwd::Direction;

use super::{SYSTEM_CALLS, StartError};
use crate::config::{Attachment, Config};
use crate::control::ExitWatch;
use crate::device::{Capabilities, Device, DeviceError, GuestDevice, Tap};
use crate::guest::{
    self, GuestThread, InterfaceSettings, NamespaceError, Pending, Target, configure, prepare,
};
use crate::network::Network;
use crate::sandbox::{self, Kept, RootDirectory};

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

/// What comes of setting up the guest.
pub struct SetUp {
    pub device: GuestDevice,
    /// Asked for in time: a confined thread may not.
    pub capabilities: Capabilities,
    /// The guest may be without IPv6.
    pub network: Network,
}

impl SetUp {
    pub fn new(device: GuestDevice, network: Network) -> Self {
        Self {
            capabilities: device.capabilities(),
            device,
            network,
        }
    }
}

/// Opens the device and configures the links, on the thread that is in the guest's network
/// namespace.
pub fn begin_set_up(
    guest: &GuestThread,
    source: Source,
    config: &Config,
) -> Result<Pending<Result<SetUp, StartError>>, StartError> {
    let mut network = config.network.clone();
    let given = config.configure.then(|| network.clone());
    let mtu = config.mtu.map(u32::from);
    let (loopback_up, mac, choice) = (config.loopback_up, config.guest_mac, config.device);
    let forwards = !config.behind.is_empty();
    let set_up = move || -> Result<_, StartError> {
        let device = match source {
            Source::Name(name) => GuestDevice::open(&name, mac, choice)?,
            Source::Passed(tap) => GuestDevice::Tap(tap),
        };
        let name = device.name().to_owned();
        let has_ipv6 = match given {
            Some(network) => Some(configure(&InterfaceSettings {
                name,
                mtu,
                mac,
                network,
            })?),
            None => {
                prepare(&name, loopback_up, mac)?;
                None
            }
        };
        if let Some(has_ipv6) = has_ipv6.filter(|_| forwards) {
            guest::forward(has_ipv6);
        }
        if has_ipv6 == Some(false) {
            network.v6 = None;
        }
        Ok(SetUp::new(device, network))
    };
    Ok(guest.begin(set_up)?)
}

/// Confines the guest's thread, once everything there is set up.
pub fn confine_guest(
    guest: &GuestThread,
    root: RootDirectory,
    kept: Kept,
    config: &Config,
) -> Result<(), StartError> {
    let instead_of_root = config.instead_of_root;
    let mut calls = SYSTEM_CALLS.to_vec();
    if config.forwards.may_open(Direction::Outbound) {
        calls.push(guest::LISTENING_CALLS);
    }
    guest.run(move || {
        sandbox::confine_thread(kept, instead_of_root, root)?;
        sandbox::confine_helper_calls(&calls)
    })??;
    Ok(())
}
