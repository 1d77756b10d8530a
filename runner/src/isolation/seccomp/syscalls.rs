//! System calls by name, and the architectures whose programs this machine runs.

use std::collections::BTreeMap;
use std::io;

/// This machine, as far as it decides what a profile means.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Major and minor version.
    pub kernel: (u32, u32),
}

/// One architecture: the machine's own, or the older one whose programs it runs as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// As profiles call it in `architectures`.
    pub scmp_name: &'static str,
    /// As profiles call it in `arches`.
    pub go_name: &'static str,
    /// `AUDIT_ARCH_…` of `linux/audit.h`: the ELF machine, and bits for 64-bit and little-endian.
    pub audit: u32,
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Variant; 2] = [
    Variant {
        scmp_name: "SCMP_ARCH_X86_64",
        go_name: "amd64",
        audit: 0xc000_003e,
    },
    Variant {
        scmp_name: "SCMP_ARCH_X86",
        go_name: "x86",
        audit: 0x4000_0003,
    },
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Variant; 2] = [
    Variant {
        scmp_name: "SCMP_ARCH_AARCH64",
        go_name: "arm64",
        audit: 0xc000_00b7,
    },
    Variant {
        scmp_name: "SCMP_ARCH_ARM",
        go_name: "arm",
        audit: 0x4000_0028,
    },
];

impl Machine {
    /// The machine's own architecture first.
    pub const VARIANTS: [Variant; 2] = ARCHITECTURES;
    pub const NATIVE: Variant = ARCHITECTURES[0];

    pub fn this() -> io::Result<Self> {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        // "6.1.0-18-amd64"
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self {
                kernel: (major, minor),
            }),
            _ => Err(io::Error::other(format!(
                "kernel release {release:?} does not begin with a version"
            ))),
        }
    }
}

impl Variant {
    pub fn is_native(&self) -> bool {
        *self == Machine::NATIVE
    }

    /// Call numbers by name.
    pub fn numbers(&self) -> BTreeMap<&'static str, u32> {
        #[cfg(target_arch = "aarch64")]
        use syscalls::{aarch64 as native, arm as compatible};
        #[cfg(target_arch = "x86_64")]
        use syscalls::{x86 as compatible, x86_64 as native};

        // `iter` leaves the last one out.
        if self.is_native() {
            native::Sysno::iter()
                .chain([native::Sysno::last()])
                .map(|call| (call.name(), call.id() as u32))
                .collect()
        } else {
            compatible::Sysno::iter()
                .chain([compatible::Sysno::last()])
                .map(|call| (call.name(), call.id() as u32))
                .collect()
        }
    }
}
