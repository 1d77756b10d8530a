//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The kernel would take none of this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Invalid interface name: {0} (at most 15 bytes, without space, slash or colon)")]
pub struct InvalidInterfaceName(pub String);

/// The name of a network interface, 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName {
    /// Padded with zeroes, so at least one is at the end (IFNAMSIZ).
    bytes: [u8; 16],
}

impl InterfaceName {
    /// Of a namespace's own loopback.
    pub fn loopback() -> Self {
        "lo".parse().expect("a name of two letters")
    }

    /// Padded with zeroes, as in `struct ifreq`.
    pub fn to_padded(self) -> [u8; 16] {
        self.bytes
    }

    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == 0);
        let name = &self.bytes[..end.unwrap_or(self.bytes.len())];
        std::str::from_utf8(name).expect("made of a text")
    }
}

/// By the kernel's rules (`dev_valid_name`), which leave out little.
impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(name: &str) -> Result<Self, InvalidInterfaceName> {
        let odd = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, 0 | b'/' | b':');
        let is_valid =
            (1..16).contains(&name.len()) && !matches!(name, "." | "..") && !name.bytes().any(odd);
        if !is_valid {
            return Err(InvalidInterfaceName(name.to_owned()));
        }
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { bytes })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
