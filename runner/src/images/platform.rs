//! Which machines an image is for: `OS/ARCHITECTURE[/VARIANT]`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Descriptor};

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Any where none is given.
    variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub fn this() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: Arch::default().to_string(),
            variant: None,
        }
    }

    /// With another operating system, architecture and variant, as far as they are given.
    pub fn with(self, [os, architecture, variant]: [Option<String>; 3]) -> Self {
        Self {
            os: os.unwrap_or(self.os),
            architecture: architecture.unwrap_or(self.architecture),
            variant: variant.or(self.variant),
        }
    }

    /// The first descriptor of an index that is for this platform.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        manifests.iter().find(|descriptor| {
            let platform = descriptor.platform().as_ref();
            platform.is_some_and(|platform| {
                let variant = platform.variant().as_ref();
                platform.os().to_string() == self.os
                    && platform.architecture().to_string() == self.architecture
                    && (self.variant.is_none() || self.variant.as_ref() == variant)
            })
        })
    }

    /// Whether an image whose configuration says this is for it.
    pub fn is(&self, os: &str, architecture: &str) -> bool {
        self.os == os && self.architecture == architecture
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as linux/arm64";
        let mut parts = text.split('/').map(str::to_owned);
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else {
            return Err(EXPECTED);
        };
        let variant = parts.next();
        let parts_left = parts.next().is_some();
        let is_empty = os.is_empty() || architecture.is_empty() || variant.as_deref() == Some("");
        match parts_left || is_empty {
            true => Err(EXPECTED),
            false => Ok(Self {
                os,
                architecture,
                variant,
            }),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_shown() {
        for text in ["linux/arm64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), text);
        }
        for text in ["", "linux", "linux/", "/arm64", "linux/arm/", "a/b/c/d"] {
            text.parse::<Platform>().expect_err(text);
        }
        assert!(Platform::this().to_string().starts_with("linux/"));
    }

    #[test]
    fn an_index_is_searched_for_the_platform() {
        let descriptor = |platform: &str| {
            let mut parts = platform.split('/');
            let mut part = || parts.next().unwrap_or_default();
            let (os, architecture, variant) = (part(), part(), part());
            let digest = super::super::digest::Digest::of(platform.as_bytes());
            let text = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": 1,
                "platform": {"os": os, "architecture": architecture, "variant": variant},
            });
            serde_json::from_value::<Descriptor>(text).expect("a descriptor")
        };
        let index = ["windows/arm", "linux/arm/v6", "linux/arm/v7"].map(descriptor);
        let chosen = |text: &str| {
            text.parse::<Platform>()
                .expect(text)
                .choose(&index)
                .cloned()
        };
        assert_eq!(chosen("linux/arm/v7"), Some(index[2].clone()));
        assert_eq!(chosen("linux/arm"), Some(index[1].clone()));
        assert_eq!(chosen("linux/amd64"), None);
    }
}
