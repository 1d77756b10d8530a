//! Descriptors: a pair for two of the helper's processes, and how many this one has for the guest's
//! flows. How those are shared out is [`Limits::share_out`](crate::core::Limits::share_out).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tracing::{debug, warn};

/// What is opened once the limits are known, and what needs one for a moment: the tap, namespaces
/// and netlink sockets, resolv.conf's directories, clients of the status socket.
const RESERVED: usize = 64;

/// Two ends of a conversation in whole messages, between this process and one that it forks.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Raises the limit of open files to what the user may have.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open files: {error}");
    }
}

/// How many may be opened for flows. To be called when the published ports are bound and nothing
/// else is open yet.
pub fn left_for_flows() -> usize {
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) => usize::try_from(soft).unwrap_or(usize::MAX),
        Err(error) => {
            debug!("cannot read the limit of open files: {error}");
            return usize::MAX;
        }
    };
    // Without /proc, what the parent left open is unknown; descriptors that run out all the same
    // are dealt with then.
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    left_of(limit, open)
}

fn left_of(limit: usize, open: usize) -> usize {
    limit.saturating_sub(open).saturating_sub(RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_and_what_is_to_come_is_left_out() {
        assert_eq!(left_of(1024, 10), 950);
        assert_eq!(left_of(32, 10), 0);
        assert_eq!(left_of(usize::MAX, 10), usize::MAX - 74);
    }
}
