//! Names of images, read as Podman reads them.
//!
//! A name with a registry, which has a dot, a port or is `localhost`, says where the image is. One
//! without is short, and may mean several images. The rule for it, whose lists are
//! [`Registries`]':
//!
//! - among the images at hand it is the alias of that name, else `localhost/NAME`, else NAME in one
//!   of the registries to be searched, else `docker.io/NAME`: the first of these that is there;
//! - from a registry it is the alias, else NAME in the one registry that is to be searched. Where
//!   none or several are, nothing is guessed: the name is refused.
//!
//! Docker Hub's names are normalised: `docker.io/NAME` is `docker.io/library/NAME`. Without tag and
//! digest the tag is `latest`.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::{ParseError, Reference};

use super::digest::{Digest, InvalidDigest};
use super::registries::Registries;
use crate::failure::Explained;

/// The whole name of an image: registry, repository, and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    reference: Reference,
    digest: Option<Digest>,
}

/// A name as somebody types it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageName {
    /// With its registry.
    Full(ImageRef),
    /// Without.
    Short(ShortName),
}

/// A well-formed name without a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortName {
    /// Without tag and digest.
    repository: String,
    /// `:tag`, `@digest`, both or nothing.
    suffix: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{name:?} cannot name an image: {source}")]
    Malformed { name: String, source: ParseError },
    #[error("{name:?} cannot name an image: {source}")]
    Digest { name: String, source: InvalidDigest },
    #[error("{name:?} cannot name an image: it has a digest, and a name that is given has a tag")]
    TaggedByDigest { name: String },
    #[error(
        "the short name {name:?} has no alias, and no registry is to be searched for it: give the whole name, \
         as docker.io/library/{name}, or set unqualified-search-registries in {conf}"
    )]
    NoRegistry { name: String, conf: String },
    #[error(
        "the short name {name:?} may mean {}: give the whole name, or an alias in {conf}",
        candidates.join(" or ")
    )]
    Ambiguous {
        name: String,
        candidates: Vec<String>,
        conf: String,
    },
}

impl Explained for NameError {}

impl ImageRef {
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// Within the registry.
    pub fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    pub fn tag(&self) -> Option<&str> {
        self.reference.tag()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As the client of registries takes it.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The same image with another beginning of its name. A prefix with `*` stands for the whole
    /// registry.
    pub fn moved(&self, prefix: &str, place: &str) -> Option<Self> {
        let whole = self.to_string();
        let rest = match prefix.starts_with('*') {
            true => whole.strip_prefix(self.registry())?,
            false => whole.strip_prefix(prefix)?,
        };
        format!("{place}{rest}").parse().ok()
    }
}

impl FromStr for ImageRef {
    type Err = NameError;

    /// Reads a whole name. A short one is one of Docker Hub's here: [`ImageName`] tells them apart.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let reference = parse(text).map_err(|source| NameError::Malformed {
            name: text.to_owned(),
            source,
        })?;
        let digest = reference.digest().map(str::parse).transpose();
        let digest = digest.map_err(|source| NameError::Digest {
            name: text.to_owned(),
            source,
        })?;
        Ok(Self { reference, digest })
    }
}

/// The registry that a name begins with, and the rest. A first part without a dot or a port is no
/// registry, except localhost.
pub fn split_registry(name: &str) -> Option<(&str, &str)> {
    let is_registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
    name.split_once('/').filter(|(first, _)| is_registry(first))
}

/// Takes a name apart, by the grammar of distribution's package `reference`. The crate's own parser
/// is a regular expression, which takes longer to compile than a container to start.
fn parse(text: &str) -> Result<Reference, ParseError> {
    const REGISTRY: &str = "docker.io";
    const LEN_MAX: usize = 255;
    if text.is_empty() {
        return Err(ParseError::NameEmpty);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (text, None),
    };
    // A colon before the last slash is a port's.
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last..].split_once(':') {
        Some((end, tag)) => (&rest[..last + end.len()], Some(tag)),
        None => (rest, None),
    };
    let (registry, repository) = split_registry(name).unwrap_or((REGISTRY, name));
    let registry = match registry {
        "index.docker.io" => REGISTRY,
        other => other,
    };
    let repository = match registry == REGISTRY && !repository.contains('/') {
        true => format!("library/{repository}"),
        false => repository.to_owned(),
    };
    if repository.len() > LEN_MAX {
        return Err(ParseError::NameTooLong);
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ParseError::NameContainsUppercase);
    }
    if !is_host(registry) || !repository.split('/').all(is_component) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(ParseError::TagInvalidFormat);
    }
    let registry = registry.to_owned();
    let tag = tag.map(str::to_owned);
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => {
            let tag = tag.unwrap_or_else(|| "latest".to_owned());
            Reference::with_tag(registry, repository, tag)
        }
    })
}

/// Labels with dots between, and a port or none.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    is_port && host.split('.').all(is_label)
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between.
fn is_component(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = text.as_bytes();
    let is_between = |part: &str| matches!(part, "" | "." | "_" | "__") || is_dashes(part);
    is_end(bytes.first())
        && is_end(bytes.last())
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(is_between)
}

fn is_dashes(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'-')
}

fn is_tag(text: &str) -> bool {
    const LEN_MAX: usize = 128;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= LEN_MAX
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(f)
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let image: ImageRef = text.parse()?;
        let first = text.split_once('/').map(|(first, _)| first);
        if first.is_some_and(|first| first.contains(['.', ':']) || first == "localhost") {
            return Ok(Self::Full(image));
        }
        let end = text.find([':', '@']).unwrap_or(text.len());
        let (repository, suffix) = text.split_at(end);
        Ok(Self::Short(ShortName {
            repository: repository.to_owned(),
            suffix: suffix.to_owned(),
        }))
    }
}

impl ImageName {
    /// What it may mean among the images at hand, the likeliest first.
    pub fn local_candidates(&self, registries: &Registries) -> Vec<ImageRef> {
        let short = match self {
            Self::Full(image) => return vec![image.clone()],
            Self::Short(short) => short,
        };
        let alias = registries.alias(&short.repository).map(str::to_owned);
        let within = |registry: &str| format!("{registry}/{}", short.repository);
        let searched = registries
            .searched()
            .iter()
            .map(|registry| within(registry));
        let names = alias
            .into_iter()
            .chain([within("localhost")])
            .chain(searched)
            .chain([within("docker.io")]);
        names
            .filter_map(|name| format!("{name}{}", short.suffix).parse().ok())
            .collect()
    }

    /// The name that an image gets: a short one is `localhost`'s.
    pub fn to_tag(&self) -> Result<ImageRef, NameError> {
        let image: ImageRef = match self {
            Self::Full(image) => image.clone(),
            Self::Short(short) => {
                format!("localhost/{}{}", short.repository, short.suffix).parse()?
            }
        };
        match image.digest {
            None => Ok(image),
            Some(_) => Err(NameError::TaggedByDigest {
                name: image.to_string(),
            }),
        }
    }

    /// Where a registry has it.
    ///
    /// # Errors
    /// [`NameError::NoRegistry`] and [`NameError::Ambiguous`] for a short name that the rule leaves
    /// open.
    pub fn remote(&self, registries: &Registries) -> Result<ImageRef, NameError> {
        let short = match self {
            Self::Full(image) => return Ok(image.clone()),
            Self::Short(short) => short,
        };
        let conf = || registries.place().display().to_string();
        let whole = |name: &str| format!("{name}{}", short.suffix);
        if let Some(alias) = registries.alias(&short.repository) {
            return whole(alias).parse();
        }
        let candidates = registries.searched().iter();
        let candidates: Vec<_> = candidates
            .map(|registry| format!("{registry}/{}", whole(&short.repository)))
            .collect();
        match &candidates[..] {
            [only] => only.parse(),
            [] => Err(NameError::NoRegistry {
                name: short.repository.clone(),
                conf: conf(),
            }),
            _ => Err(NameError::Ambiguous {
                name: short.repository.clone(),
                candidates,
                conf: conf(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn name(text: &str) -> ImageName {
        text.parse().expect(text)
    }

    fn registries(searched: &[&str]) -> Registries {
        let mut conf = format!("unqualified-search-registries = {searched:?}\n");
        conf += "[aliases]\n\"fedora\" = \"registry.fedoraproject.org/fedora\"\n";
        Registries::parse([("registries.conf", conf.as_str())]).expect("TOML")
    }

    fn shown(images: &[ImageRef]) -> Vec<String> {
        images.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn whole_names_are_normalised() {
        for (text, whole) in [
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
            ("localhost/a/b", "localhost/a/b:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("quay.io/a/b:1.2-x_y", "quay.io/a/b:1.2-x_y"),
            ("[::1]:5000/a", ""),
        ] {
            let read = text.parse::<ImageName>().and_then(|name| name.to_tag());
            assert_eq!(
                read.map(|image| image.to_string()).unwrap_or_default(),
                whole
            );
        }
        let pinned = format!("quay.io/a/b:1@sha256:{HEX}");
        let ImageName::Full(image) = name(&pinned) else {
            panic!("it has a registry");
        };
        assert_eq!(image.tag(), Some("1"));
        assert_eq!(image.digest().map(Digest::hex), Some(HEX));
        assert_eq!(image.name(), "quay.io/a/b");
        assert_eq!(image.to_string(), pinned);
    }

    #[test]
    fn what_cannot_be_a_name_is_refused_by_name() {
        for text in [
            "",
            "UPPER",
            "a b",
            "-x",
            "a//b",
            "a/../b",
            "quay.io/",
            "a:",
            "a@sha256:12",
            "a\u{1b}[2J",
        ] {
            let error = text.parse::<ImageName>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        let sha512 = format!("a@sha512:{}", "0".repeat(128));
        assert!(matches!(
            sha512.parse::<ImageName>(),
            Err(NameError::Digest { .. })
        ));
        let pinned = name(&format!("a@sha256:{HEX}"));
        assert!(matches!(
            pinned.to_tag(),
            Err(NameError::TaggedByDigest { .. })
        ));
    }

    #[test]
    fn a_short_name_at_hand_is_looked_for_in_order() {
        let registries = registries(&["quay.io", "registry.example.org"]);
        let candidates = |text: &str| shown(&name(text).local_candidates(&registries));
        assert_eq!(
            candidates("fedora:40"),
            [
                "registry.fedoraproject.org/fedora:40",
                "localhost/fedora:40",
                "quay.io/fedora:40",
                "registry.example.org/fedora:40",
                "docker.io/library/fedora:40",
            ]
        );
        assert_eq!(candidates("quay.io/a"), ["quay.io/a:latest"]);
        assert_eq!(
            candidates("a/b").last().map(String::as_str),
            Some("docker.io/a/b:latest")
        );
        assert_eq!(
            shown(&[name("a/b:1").to_tag().expect("a tag")]),
            ["localhost/a/b:1"]
        );
    }

    #[test]
    fn a_short_name_elsewhere_is_never_guessed() {
        let remote = |searched: &[&str], text: &str| {
            let remote = name(text).remote(&registries(searched));
            remote.map(|image| image.to_string())
        };
        let fedora = "registry.fedoraproject.org/fedora:latest".to_owned();
        assert_eq!(remote(&[], "fedora"), Ok(fedora.clone()));
        assert_eq!(remote(&["quay.io", "docker.io"], "fedora"), Ok(fedora));
        assert_eq!(
            remote(&["quay.io"], "a/b:1"),
            Ok("quay.io/a/b:1".to_owned())
        );
        assert_eq!(remote(&[], "quay.io/a"), Ok("quay.io/a:latest".to_owned()));
        let none = remote(&[], "debian").expect_err("no registry").to_string();
        assert!(none.contains("docker.io/library/debian") && none.contains("registries.conf"));
        let several = remote(&["quay.io", "docker.io"], "debian:12").expect_err("two");
        let several = several.to_string();
        assert!(
            several.contains("quay.io/debian:12 or docker.io/debian:12"),
            "{several}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,80}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let registries = registries(&["quay.io"]);
                prop_assert!(!name.local_candidates(&registries).is_empty());
                let _ = (name.remote(&registries), name.to_tag());
            }
        }

        /// Theirs allows letters of other alphabets in tags, and registries that are no hosts.
        #[test]
        fn names_are_taken_apart_as_by_the_crate(
            text in "(([a-z.:-]{1,6}|localhost|a\\.b:80)/)?[a-z0-9._/-]{1,12}(:[a-zA-Z0-9._-]{1,9})?"
        ) {
            let theirs = text.parse::<Reference>().ok();
            let theirs = theirs.filter(|reference| is_host(reference.registry()));
            prop_assert_eq!(parse(&text).ok(), theirs);
        }

        #[test]
        fn a_whole_name_reads_as_itself(text in "[a-z]{1,5}\\.[a-z]{2}(:[1-9][0-9]{1,3})?/[a-z0-9]{1,5}(/[a-z]{1,5})?:[a-z0-9]{1,5}") {
            let image: ImageRef = text.parse().expect("a name");
            prop_assert_eq!(image.to_string(), text);
        }
    }
}
