//! The flags of `run` and `create` about how long a container lives.

use clap::Args;

use super::values::{self, text};
use crate::engine::{Lifetime, RestartPolicy};

/// How long a container lives, and what follows its end: flags of `run` and `create`.
#[derive(Debug, Args)]
pub struct LifetimeArgs {
    /// Start the container again when it ends: no, always, `on-failure[:N]` (after a code other
    /// than 0, N times at most) or unless-stopped
    ///
    /// `coracle stop`, and `kill` with a signal that ends, are its end for good. It is started
    /// again after 100 ms, and after twice as long each time until it has run for 10 s; its ports
    /// stay bound. `coracle start --all --filter restart-policy=always` starts those that a boot
    /// has ended.
    #[arg(long, value_parser = text(str::parse::<RestartPolicy>), default_value = "no", value_name = "POLICY")]
    pub restart: RestartPolicy,

    /// Seconds that the command has for its end once it is asked for that, before it is killed
    /// [default: 10]
    #[arg(long, value_parser = text(values::parse_seconds), value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,

    /// Kill the container after so many seconds; 0 for never. Its exit code is 255 then
    #[arg(long, value_parser = text(values::parse_seconds), default_value = "0", hide_default_value = true, value_name = "SECONDS")]
    pub timeout: u32,
}

impl LifetimeArgs {
    pub fn lifetime(&self) -> Lifetime {
        Lifetime {
            restart: self.restart,
            stop_timeout: self.stop_timeout,
            time_limit: Some(self.timeout).filter(|seconds| *seconds > 0),
        }
    }
}
