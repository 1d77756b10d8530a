//! Which device there is: a tap, or what takes its place where there is none.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Capabilities, Device, Tap, TapError, Veth, VethError};
use crate::core::MacAddr;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A tap, or a pair of virtual Ethernet interfaces where /dev/net/tun is out of reach.
    #[default]
    Auto,
    Tap,
    Veth,
}

/// What a [`GuestDevice`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Tap,
    Veth,
}

/// The way to the guest, of either kind.
#[derive(Debug)]
pub enum GuestDevice {
    Tap(Tap),
    /// With the reason why it is no tap, unless that was asked for.
    Veth(Veth, Option<TapError>),
}

/// Why there is neither.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Veth(#[from] VethError),
    #[error("{tap}. Without it: {veth}")]
    Neither { tap: TapError, veth: VethError },
}

impl GuestDevice {
    /// Opens the interface `name` in the calling thread's network namespace. `mac` is what its end
    /// of the guest is to have, if it is made here.
    pub fn open(
        name: &str,
        mac: Option<MacAddr>,
        choice: DeviceChoice,
    ) -> Result<Self, DeviceError> {
        let tap = match choice {
            DeviceChoice::Veth => return Ok(Self::Veth(Veth::create(name, mac)?, None)),
            DeviceChoice::Tap | DeviceChoice::Auto => Tap::open(name),
        };
        match tap {
            Ok(tap) => Ok(Self::Tap(tap)),
            Err(tap @ (TapError::Missing(_) | TapError::Forbidden(_)))
                if choice == DeviceChoice::Auto =>
            {
                match Veth::create(name, mac) {
                    Ok(veth) => {
                        info!("{name} is a virtual Ethernet interface and no tap: {tap}");
                        Ok(Self::Veth(veth, Some(tap)))
                    }
                    Err(veth) => Err(DeviceError::Neither { tap, veth }),
                }
            }
            Err(tap) => Err(tap.into()),
        }
    }

    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Tap(_) => DeviceKind::Tap,
            Self::Veth(..) => DeviceKind::Veth,
        }
    }

    /// The interface's name in the guest.
    pub fn name(&self) -> &str {
        match self {
            Self::Tap(tap) => tap.name(),
            Self::Veth(veth, _) => veth.name(),
        }
    }

    /// Why it is no tap.
    pub fn reason(&self) -> Option<&TapError> {
        match self {
            Self::Tap(_) => None,
            Self::Veth(_, reason) => reason.as_ref(),
        }
    }
}

impl Display for DeviceKind {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::Veth => "veth",
        })
    }
}

impl Device for GuestDevice {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tap(tap) => tap.receive(buffer),
            Self::Veth(veth, _) => veth.receive(buffer),
        }
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.transmit(head, payload),
            Self::Veth(veth, _) => veth.transmit(head, payload),
        }
    }

    fn capabilities(&self) -> Capabilities {
        match self {
            Self::Tap(tap) => tap.capabilities(),
            Self::Veth(veth, _) => veth.capabilities(),
        }
    }
}

impl AsFd for GuestDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Veth(veth, _) => veth.as_fd(),
        }
    }
}
