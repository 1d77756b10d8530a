//! What keeps a container apart from the host and from other users' containers.
//!
//! [`namespaces`] makes and joins them, [`idmap`] says which IDs they have, [`cgroup`] groups the
//! container's processes, [`freezer`] holds them up, [`capabilities`] and [`seccomp`] say what they
//! may do. The file system tree is `rootfs`'s.

pub mod capabilities;
pub mod cgroup;
pub mod freezer;
pub mod idmap;
pub mod namespaces;
pub mod resources;
pub mod seccomp;
pub mod sysctl;
