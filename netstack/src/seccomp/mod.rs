//! System call filters (`seccomp(2)`): the kernel's form of them, and the allow-lists that the
//! helper and its companion run under. Which calls are on a list is said where they are made, and
//! collected by `start`.

mod action;
mod program;

use std::collections::BTreeMap;

use libc::c_long;

pub use action::Action;
pub use program::{Architecture, Comparison, Condition, Program, Rule, TooLong, compile};

/// A system call on an allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `SYS_…` of this architecture.
    pub number: c_long,
    /// On its arguments; none for a call that is allowed whatever they are.
    pub conditions: Vec<Condition>,
}

impl Call {
    pub fn any(number: c_long) -> Self {
        Self {
            number,
            conditions: Vec::new(),
        }
    }

    /// With bits of an argument as given: those of `mask` are those of `value`.
    pub fn with(number: c_long, argument: u8, mask: u64, value: u64) -> Self {
        Self {
            number,
            conditions: vec![Condition {
                argument,
                comparison: Comparison::MaskedEqual { mask },
                value,
            }],
        }
    }
}

/// A filter under which `allowed` is all that works. What is in `deadly` ends the process; every
/// other call fails with EPERM, so that a library's attempt at something new harms nobody.
pub fn allow_list(
    allowed: impl IntoIterator<Item = Call>,
    deadly: &[c_long],
) -> Result<Program, TooLong> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut add = |number: c_long, rule| {
        let number = u32::try_from(number).expect("system calls have small numbers");
        calls.entry(number).or_default().push(rule);
    };
    for call in allowed {
        let rule = Rule {
            conditions: call.conditions,
            action: Action::Allow,
        };
        add(call.number, rule);
    }
    for number in deadly {
        let rule = Rule {
            conditions: Vec::new(),
            action: Action::KillProcess,
        };
        add(*number, rule);
    }
    let native = Architecture {
        audit: NATIVE,
        calls,
    };
    compile(&[native], Action::Errno(libc::EPERM as u16))
}

/// `AUDIT_ARCH_…` of `linux/audit.h` for this program.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

#[cfg(test)]
mod tests;
