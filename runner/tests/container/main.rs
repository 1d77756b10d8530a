//! Containers as a user meets them: the built program run against a busybox tree, as root and as a normal user.

mod harness;
mod hostile;
mod isolation;
mod lifecycle;
mod network;
mod streams;
