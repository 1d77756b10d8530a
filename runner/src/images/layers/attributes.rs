//! Extended attributes: those of layers that files keep, and coracle's own.

use std::ffi::{OsStr, OsString};

/// Where the owner of a file is kept where there is but one ID: `UID:GID:MODE`, as fuse-overlayfs
/// does.
pub const OVERRIDE_STAT: &str = "user.containers.override_stat";

/// The same for links and FIFOs, which have no attributes of the user's: an attribute of the
/// directory that they are in, as `UID:GID:MODE:MODIFIED`. What has been made anew under the name
/// has another time. `None` for a name that is too long for that.
pub fn override_stat_of(name: &OsStr) -> Option<OsString> {
    /// XATTR_NAME_MAX of `linux/limits.h`.
    const LEN_MAX: usize = 255;
    let mut attribute = OsString::from(OVERRIDE_STAT);
    attribute.push(".");
    attribute.push(name);
    (attribute.len() <= LEN_MAX).then_some(attribute)
}

/// Attributes that an image may give its files: not those by which overlayfs, or coracle, knows
/// what they are, nor those of the host's security modules.
pub fn is_kept(name: &[u8]) -> bool {
    match name.strip_prefix(b"user.") {
        Some(rest) => !rest.starts_with(b"overlay.") && !rest.starts_with(b"containers."),
        None => {
            name == b"security.capability"
                || name == b"system.posix_acl_access"
                || name == b"system.posix_acl_default"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_overlayfs_stay_out() {
        for name in ["user.a", "security.capability", "system.posix_acl_access"] {
            assert!(is_kept(name.as_bytes()), "{name}");
        }
        for name in [
            "user.overlay.opaque",
            "user.overlay.redirect",
            "trusted.overlay.opaque",
            "user.containers.override_stat",
            "security.selinux",
            "user",
        ] {
            assert!(!is_kept(name.as_bytes()), "{name}");
        }
    }
}
