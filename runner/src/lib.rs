//! The container runner: everything behind the `coracle` command.
//!
//! `commands` carry out what `cli` parsed, and say what came of it; what can be done to containers
//! is `engine`'s, which knows neither flags nor output. Both rest on
//!
//! - `process`: the processes of a container and what they tell each other,
//! - `isolation`, `rootfs`, `network`, `stdio`: what they are given,
//! - `images`: what containers are made from, `build`: how images are made, `volumes`: what
//!   outlives containers,
//! - `state`, `logs`, `events`: what is remembered of them.
//!
//! `spec` says what a container is to be, once everything is checked. `host` tells what this host
//! allows them. `health` is what is known of a container's. `roles` knows what else the program may
//! be started as. `units` and `fields` read values that several grammars have. What is said to the
//! user goes through `printable`, what coracle logs about itself through `logging`; what `--format`
//! asks for is `template`'s.

mod build;
pub mod cli;
pub mod commands;
pub mod engine;
mod events;
pub mod failure;
mod fields;
mod health;
mod host;
mod images;
mod isolation;
pub mod logging;
pub mod logs;
mod network;
mod path_text;
mod poll;
pub mod printable;
mod process;
mod random;
pub mod roles;
mod rootfs;
mod secrets;
pub mod signal;
mod spec;
pub mod state;
mod stdio;
mod sys;
mod template;
mod units;
#[doc(hidden)]
pub mod untrusted;
mod volumes;

// What the program and its tests need of the inner rooms.
pub use process::inherited;
pub use stdio::terminal;
