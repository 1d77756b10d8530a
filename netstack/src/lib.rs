pub mod core;
pub mod device;
pub mod guest;
pub mod sys;
#[cfg(test)]
mod testing;
