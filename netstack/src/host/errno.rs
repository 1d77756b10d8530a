//! What the failure of a host socket means to the guest: the one table from errno to ICMP.

use libc::{
    EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EINVAL, ENETDOWN,
    ENETUNREACH, ENONET, EPERM,
};

use crate::core::icmp::Unreachable;

/// What the guest would be told, were it on the host's own network. `None` for what concerns only
/// this process (EMFILE, ENOBUFS), and for silence (ETIMEDOUT).
///
/// ICMP as the kernel reads it: `icmp_err_convert` in net/ipv4/icmp.c, net/ipv6/icmp.c.
pub fn unreachable_by(errno: i32) -> Option<Unreachable> {
    match errno {
        ECONNREFUSED => Some(Unreachable::Port),
        ENETUNREACH | EAFNOSUPPORT | ENONET | ENETDOWN => Some(Unreachable::Network),
        EHOSTUNREACH | EHOSTDOWN | EINVAL | EADDRNOTAVAIL => Some(Unreachable::Host),
        EACCES | EPERM => Some(Unreachable::Prohibited),
        _ => None,
    }
}
