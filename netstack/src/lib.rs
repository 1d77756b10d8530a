pub mod host;
pub mod driver;
pub mod cli;
pub mod sandbox;
pub mod config;
pub mod control;
pub mod core;
pub mod device;
pub mod guest;
pub mod sys;
#[cfg(test)]
mod testing;
