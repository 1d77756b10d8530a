//! The container runner: everything behind the `coracle` command.
//!
//! `commands` carry out what `cli` parsed. A container is three processes: main (`commands::run`,
//! `foreground`), the `monitor`, and `init`, which builds the `rootfs` and becomes the container's
//! command; they talk through `channel` in the words of `messages`. Beside them runs the `network`
//! helper. `state` remembers containers, `logs` what they wrote. What is said to the user goes
//! through `printable`.

pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod commands;
pub mod copier;
pub mod exec;
pub mod failure;
pub mod files;
pub mod foreground;
pub mod idmap;
pub mod image;
pub mod inherited;
pub mod init;
pub mod logs;
pub mod messages;
pub mod monitor;
pub mod namespaces;
pub mod network;
pub mod path_text;
pub mod ports;
pub mod printable;
pub mod process;
pub mod ready;
pub mod reaper;
pub mod rootfs;
mod seccomp;
pub mod security;
pub mod selfexec;
pub mod signal;
pub mod spec;
pub mod state;
pub mod sys;
pub mod terminal;
pub mod user;
pub mod volume;
