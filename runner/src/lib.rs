//! The container runner: images, state, namespaces, monitor.

pub mod state;
pub mod terminal;
