//! What the helper gives up once everything is set up: every capability that it no longer uses, the way to get any back,
//! and its openness to other processes of the user.
//!
//! What stays is CAP_NET_ADMIN and CAP_NET_BIND_SERVICE in the guest's user namespace, which taking over a connection in
//! the guest needs. Capabilities belong to threads, so each thread calls this for itself.
//!
//! System calls: capget, capset, prctl.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

/// A privilege that could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up {privilege}: {source}")]
pub struct SandboxError {
    privilege: &'static str,
    source: io::Error,
}

/// Needed for nothing but the guest's network: its links, its firewall's set, sockets with a remote's address and port.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// For the process as a whole: nobody may trace it, read its memory or open its descriptors, except who has
/// CAP_SYS_PTRACE over the user namespace it was started in.
pub fn close_process() -> Result<(), SandboxError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(error("being dumpable"))
}

/// For the calling thread and those it starts afterwards: no more capabilities than it still uses, and none by executing
/// a program.
pub fn confine_thread() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(error("new privileges"))?;
    clear_ambient_capability_set().map_err(error("ambient capabilities"))?;
    let capabilities_error = error("capabilities");
    let left = capabilities(None).map_err(&capabilities_error)?.permitted & KEPT;
    let sets = CapabilitySets {
        effective: left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(&capabilities_error)
}

fn error(privilege: &'static str) -> impl Fn(rustix::io::Errno) -> SandboxError {
    move |errno| SandboxError {
        privilege,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::Tap;
    use crate::testing::in_namespaces;

    /// The line of /proc/thread-self/status that begins with `key`.
    fn status(key: &str) -> String {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    #[test]
    fn only_the_network_capabilities_stay() {
        in_namespaces(module_path!(), "only_the_network_capabilities_stay", || {
            assert_ne!(status("CapEff"), "0000000000001400");
            confine_thread().unwrap();
            close_process().unwrap();
            for set in ["CapEff", "CapPrm"] {
                assert_eq!(status(set), "0000000000001400", "{set}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(status(set), "0000000000000000", "{set}");
            }
            assert_eq!(status("NoNewPrivs"), "1");
            // Enough for a tap, too little for another namespace.
            Tap::open("tap0").unwrap();
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            assert_eq!(unshared, Err(nix::errno::Errno::EPERM));
            // Repeating it is harmless.
            confine_thread().unwrap();
        });
    }
}
