//! Whether a container is started again when it ends, as `--restart` says.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What follows the end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    #[default]
    No,
    Always,
    /// As always; which of the two it is matters to whoever starts containers after a boot.
    UnlessStopped,
    /// After a code other than 0, so many times at most.
    OnFailure {
        retries: Option<u32>,
    },
}

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRestartPolicy {
    #[error("there are no, always, unless-stopped and on-failure[:N]")]
    Unknown,
    #[error("a number of retries goes with on-failure only")]
    RetriesOf,
    #[error("on-failure takes a whole number of retries, 0 for any")]
    Retries,
}

impl RestartPolicy {
    /// Whether one that has ended with `code` is started again, after it has been so `count` times.
    pub fn follows(self, code: i32, count: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { retries } => code != 0 && retries.is_none_or(|max| count < max),
        }
    }

    /// Without the number of retries.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
            Self::OnFailure { .. } => "on-failure",
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::OnFailure { retries: Some(max) } => write!(f, ":{max}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, retries) = match text.split_once(':') {
            Some((name, retries)) => (name, Some(retries)),
            None => (text, None),
        };
        let policy = match name {
            "no" | "" => Self::No,
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => {
                let max = retries.map(str::parse::<u32>).transpose();
                let max = max.map_err(|_| InvalidRestartPolicy::Retries)?;
                let retries = max.filter(|max| *max > 0);
                return Ok(Self::OnFailure { retries });
            }
            _ => return Err(InvalidRestartPolicy::Unknown),
        };
        match retries {
            None => Ok(policy),
            Some(_) => Err(InvalidRestartPolicy::RetriesOf),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = InvalidRestartPolicy;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_printed() {
        for text in [
            "no",
            "always",
            "unless-stopped",
            "on-failure",
            "on-failure:3",
        ] {
            let policy: RestartPolicy = text.parse().expect(text);
            assert_eq!(policy.to_string(), text);
        }
        assert_eq!("".parse(), Ok(RestartPolicy::No));
        assert_eq!(
            "on-failure:0".parse(),
            Ok(RestartPolicy::OnFailure { retries: None })
        );
        for (text, error) in [
            ("sometimes", InvalidRestartPolicy::Unknown),
            ("Always", InvalidRestartPolicy::Unknown),
            ("always:3", InvalidRestartPolicy::RetriesOf),
            ("on-failure:", InvalidRestartPolicy::Retries),
            ("on-failure:-1", InvalidRestartPolicy::Retries),
            ("on-failure:x", InvalidRestartPolicy::Retries),
        ] {
            assert_eq!(text.parse::<RestartPolicy>(), Err(error), "{text}");
        }
    }

    #[test]
    fn what_follows_an_end() {
        let policy = |text: &str| text.parse::<RestartPolicy>().expect(text);
        assert!(!policy("no").follows(1, 0));
        assert!(policy("always").follows(0, 1000) && policy("unless-stopped").follows(0, 1000));
        assert!(!policy("on-failure").follows(0, 0) && policy("on-failure").follows(1, 1000));
        assert!(policy("on-failure:2").follows(1, 1) && !policy("on-failure:2").follows(1, 2));
    }
}
