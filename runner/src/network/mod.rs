//! A container's network: the [`helper`] process that is its way out, its published [`ports`], its
//! [`options`], and the [`etc_files`] that name hosts and resolvers.

pub mod etc_files;
pub mod helper;
pub mod options;
pub mod ports;
