//! A container's network: the [`helper`] process that is its way out, its published [`ports`], its
//! [`options`], and the [`etc_files`] that name hosts and resolvers, by default or as [`names`]
//! says. Networks that containers share
//! are kept in a [`store`], with their [`subnet`]s; [`bridge`] is what they are while containers
//! run.

pub mod bridge;
pub mod etc_files;
pub mod helper;
pub mod names;
pub mod options;
pub mod ports;
pub mod store;
pub mod subnet;
