//! How long a container lives, and what follows its end.

use super::EngineError;
use crate::state::RestartPolicy;

/// What a request says of it. By default a container runs once, for as long as it likes.
#[derive(Debug, Clone, Default)]
pub struct Lifetime {
    pub restart: RestartPolicy,
    /// Seconds that it has for its end once it is asked for that; 10 when not given.
    pub stop_timeout: Option<u32>,
    /// Seconds after which it is killed.
    pub time_limit: Option<u32>,
}

impl Lifetime {
    /// Whether it can be of a container that is to be forgotten at its end, or not.
    pub(super) fn check(&self, is_forgotten: bool) -> Result<(), EngineError> {
        match is_forgotten && self.restart != RestartPolicy::No {
            true => Err(EngineError::RestartForgotten),
            false => Ok(()),
        }
    }
}
