//! Content named by its SHA-256, as OCI has it: `sha256:` and 64 hexadecimal digits.
//!
//! A [`Digest`] that exists is well-formed, so that it may become part of a path. Other algorithms
//! are refused: nobody's images use them.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    hex: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: expected sha256: and 64 hexadecimal digits")]
pub struct InvalidDigest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut hashing = Hashing::new(io::sink());
        hashing.update(bytes);
        hashing.digest()
    }

    /// The 64 digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// As listings show it.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(is_digit) => Ok(Self {
                hex: hex.to_owned(),
            }),
            _ => Err(InvalidDigest(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes and counts what is read or written through it.
pub struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    len: u64,
}

impl<T> Hashing<T> {
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            len: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// How many bytes there were so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Of the bytes so far.
    pub fn digest(&self) -> Digest {
        let bytes = self.hasher.clone().finalize();
        Digest {
            hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn content_has_its_digest() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        let mut hashing = Hashing::new(&b"abc"[..]);
        io::copy(&mut hashing, &mut io::sink()).expect("memory");
        assert_eq!((hashing.digest(), hashing.len()), (Digest::of(b"abc"), 3));
        let mut hashing = Hashing::new(Vec::new());
        hashing.write_all(b"abc").expect("memory");
        assert_eq!(hashing.digest(), Digest::of(b"abc"));
        assert_eq!(hashing.into_inner(), b"abc");
    }

    #[test]
    fn what_could_be_a_path_is_no_digest() {
        assert_eq!(
            EMPTY.parse::<Digest>().expect("a digest").short(),
            "e3b0c44298fc"
        );
        let upper = EMPTY.to_uppercase();
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let climbing = format!("sha256:../{}", "0".repeat(61));
        for text in [
            "",
            "sha256:",
            &EMPTY[..70],
            &EMPTY[7..],
            &upper,
            &sha512,
            &climbing,
        ] {
            text.parse::<Digest>().expect_err(text);
            let json = serde_json::to_string(text).expect("JSON");
            serde_json::from_str::<Digest>(&json).expect_err(text);
        }
    }
}
