//! Making images: by hand in working containers, as buildah does, and from a Containerfile.
//!
//! A working container is an image that is being made: a tree over the layers of the image that it
//! began with, and a configuration. No process belongs to it. [`store`] keeps them, [`tree`] mounts
//! them, [`copy`] brings files into one, and [`commit`] makes an image of it: what has changed
//! becomes a layer ([`pack`]), and [`config`] the image's configuration.
//!
//! [`containerfile`] reads a Containerfile, whose variables are [`expand`]ed; its steps are carried
//! out in working containers as well, by `commands::build`. [`caches`] are what its commands find
//! again in the next build.
//!
//! Everything here is done by root of a user namespace that has the image's owners, in a mount
//! namespace where it may mount: that of `coracle unshare`, or the host's for its root.

pub mod caches;
pub mod commit;
pub mod config;
pub mod containerfile;
pub mod copy;
mod error;
pub mod expand;
pub mod ignore;
pub mod pack;
mod pattern;
pub mod placeholders;
pub mod secret;
pub mod store;
pub mod tree;
pub mod words;

pub use error::BuildError;
