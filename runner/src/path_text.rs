//! For serde's `with`: a path in JSON. As text where it is text, which nearly all are; else as its
//! bytes, which serde's own form of a path refuses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(OsString),
}

pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => text.serialize(serializer),
        None => path.as_os_str().serialize(serializer),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(match Form::deserialize(deserializer)? {
        Form::Text(text) => text.into(),
        Form::Bytes(bytes) => bytes.into(),
    })
}

/// A path, or none.
pub mod option {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Path(#[serde(with = "super")] PathBuf);

    pub fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        path.clone().map(Path).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let path = Option::<Path>::deserialize(deserializer)?;
        Ok(path.map(|Path(path)| path))
    }
}

/// Several paths.
pub mod list {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Path(#[serde(with = "super")] PathBuf);

    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().cloned().map(Path))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        let paths = Vec::<Path>::deserialize(deserializer)?;
        Ok(paths.into_iter().map(|Path(path)| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] PathBuf);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Several(#[serde(with = "super::list")] Vec<PathBuf>);

    #[test]
    fn every_path_comes_back() {
        let paths = [&b"/a/b"[..], b"", b"/\xff/b", "/ä\u{9b}".as_bytes()];
        let paths = paths.map(|bytes| PathBuf::from(OsString::from_vec(bytes.to_vec())));
        let several = Several(paths.to_vec());
        let json = serde_json::to_string(&several).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Several>(&json).expect("JSON"),
            several
        );
        for path in paths {
            let holder = Holder(path);
            let json = serde_json::to_string(&holder).expect("JSON");
            assert_eq!(serde_json::from_str::<Holder>(&json).expect("JSON"), holder);
        }
        assert_eq!(
            serde_json::to_string(&Holder("/a".into())).expect("JSON"),
            "\"/a\""
        );
    }
}
