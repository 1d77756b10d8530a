//! The container runner: everything behind the `coracle` command.
//!
//! `commands` carry out what `cli` parsed, and say what came of it; what can be done to containers
//! is `engine`'s, which knows neither flags nor output. A container is three processes: main
//! (`commands::run`, `foreground`), the `monitor`, and `init`, which builds the `rootfs` and
//! becomes the container's command; they talk through `channel` in the words of `messages`. Beside
//! them runs the `network` helper. `roles` knows what else the program may be started as. `state`
//! remembers containers, `logs` what they wrote. What is said to the user goes through `printable`.

mod cgroup;
mod channel;
pub mod cli;
pub mod commands;
mod copier;
pub mod engine;
mod exec;
pub mod failure;
mod files;
mod foreground;
pub mod idmap;
mod image;
pub mod inherited;
mod init;
pub mod logs;
mod messages;
mod monitor;
mod namespaces;
mod network;
mod path_text;
mod ports;
pub mod printable;
mod process;
mod ready;
mod reaper;
pub mod roles;
mod rootfs;
mod seccomp;
mod security;
mod selfexec;
pub mod signal;
mod spec;
pub mod state;
mod sys;
pub mod terminal;
mod user;
mod volume;
