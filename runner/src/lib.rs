//! The container runner: images, state, namespaces, monitor.

pub mod logs;
pub mod state;
pub mod terminal;
