//! What containers are made from.

pub mod builtin;
