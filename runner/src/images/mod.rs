//! What containers are made from.
//!
//! `builtin` is the image that comes with the program. All others are in the `store` (whose `files`
//! are replaced as a whole or not at all), under names that `reference` reads and `registries`
//! completes; `layers` makes directories of them, `archive` reads them from files,
//! `containers_storage` from Podman's, `registry` gets them from elsewhere; `destination` says
//! where a push goes.

pub mod archive;
pub mod builtin;
mod containers_storage;
pub mod destination;
pub mod digest;
pub mod error;
pub mod files;
pub mod import;
pub mod layers;
pub mod platform;
pub mod reference;
pub mod registries;
pub mod registry;
pub mod store;

pub use layers::remove_as_owner;
pub use layers::role::{ROLE as STORAGE_ROLE, main as storage_main};
