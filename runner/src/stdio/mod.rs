//! Standard streams of a program in a container: a terminal, or pipes whose bytes are copied.

pub mod copier;
pub mod terminal;
