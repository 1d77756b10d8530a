pub mod device;
pub mod sys;
#[cfg(test)]
mod testing;
