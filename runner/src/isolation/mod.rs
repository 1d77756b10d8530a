//! What keeps a container apart from the host and from other users' containers.
//!
//! [`namespaces`] makes and joins them, [`idmap`] says which IDs they have, [`cgroup`] groups the
//! container's processes, [`security`] gives up rights, [`seccomp`] says which system calls stay.
//! The file system tree is `rootfs`'s.

pub mod cgroup;
pub mod idmap;
pub mod namespaces;
pub mod seccomp;
pub mod security;
