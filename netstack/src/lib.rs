pub mod host;
pub mod driver;
pub mod config;
pub mod control;
pub mod core;
pub mod device;
pub mod guest;
pub mod sys;
#[cfg(test)]
mod testing;
