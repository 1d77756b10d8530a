//! An image of one layer, made of a tar of a root file system.

use std::io::{self, Read, Seek};
use std::str::FromStr;

use jiff::Timestamp;
use oci_spec::image::{
    Arch, Config, HistoryBuilder, ImageConfigurationBuilder, ImageManifestBuilder, MediaType, Os,
    RootFsBuilder,
};

use super::archive::descriptor;
use super::digest::Hashing;
use super::error::StorageError;
use super::files::to_json;
use super::layers::decompress::{Compression, decompress};
use super::reference::ImageRef;
use super::store::{Image, ImageStore};

/// What the image is to say of how it is run: an instruction of a Containerfile's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
    Env(String),
    Expose(String),
    Label(String, String),
    StopSignal(String),
    User(String),
    Volume(String),
    WorkingDir(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "expected CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, and a value"
    )]
    Unknown,
    #[error("expected KEY=VALUE behind {0}")]
    NoPair(String),
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let text = text.trim();
        let end = text.find([' ', '\t', '=']).ok_or(ChangeError::Unknown)?;
        let (name, value) = (text[..end].to_ascii_uppercase(), text[end + 1..].trim());
        if value.is_empty() {
            return Err(ChangeError::Unknown);
        }
        let pair = || {
            let (key, value) = value
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| ChangeError::NoPair(name.clone()))?;
            Ok((key.to_owned(), value.trim_matches('"').to_owned()))
        };
        Ok(match &*name {
            "CMD" => Self::Cmd(command(value)),
            "ENTRYPOINT" => Self::Entrypoint(command(value)),
            "ENV" => {
                let (key, value) = pair()?;
                Self::Env(format!("{key}={value}"))
            }
            "EXPOSE" => Self::Expose(value.to_owned()),
            "LABEL" => {
                let (key, value) = pair()?;
                Self::Label(key, value)
            }
            "STOPSIGNAL" => Self::StopSignal(value.to_owned()),
            "USER" => Self::User(value.to_owned()),
            "VOLUME" => Self::Volume(value.to_owned()),
            "WORKDIR" => Self::WorkingDir(value.to_owned()),
            _ => return Err(ChangeError::Unknown),
        })
    }
}

/// A list in JSON, or a line for a shell.
fn command(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| ["/bin/sh", "-c", text].map(str::to_owned).into())
}

fn apply(changes: &[Change]) -> Config {
    let mut config = Config::default();
    let mut env = Vec::new();
    let (mut ports, mut volumes) = (Vec::new(), Vec::new());
    let mut labels = std::collections::HashMap::new();
    for change in changes {
        match change.clone() {
            Change::Cmd(command) => drop(config.set_cmd(Some(command))),
            Change::Entrypoint(command) => drop(config.set_entrypoint(Some(command))),
            Change::Env(variable) => env.push(variable),
            Change::Expose(port) => ports.push(port),
            Change::Label(key, value) => drop(labels.insert(key, value)),
            Change::StopSignal(signal) => drop(config.set_stop_signal(Some(signal))),
            Change::User(user) => drop(config.set_user(Some(user))),
            Change::Volume(volume) => volumes.push(volume),
            Change::WorkingDir(dir) => drop(config.set_working_dir(Some(dir))),
        }
    }
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    config
        .set_env(some(env))
        .set_exposed_ports(some(ports))
        .set_volumes(some(volumes))
        .set_labels((!labels.is_empty()).then_some(labels));
    config
}

impl ImageStore {
    /// Makes an image of a tar, compressed or not.
    pub fn import(
        &self,
        mut tar: impl Read,
        name: Option<ImageRef>,
        changes: &[Change],
        message: Option<String>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Image, StorageError> {
        let unusable = |error: io::Error| StorageError::Unusable {
            origin: "the tar".to_owned(),
            defect: error.to_string(),
        };
        let adding = self.add_content()?;
        let mut blob = adding.blob()?;
        let len = io::copy(&mut tar, &mut blob).map_err(unusable)?;
        let layer = adding.finish(blob, None)?;
        let mut file = self.open_blob(&layer)?;
        let mut beginning = Vec::new();
        file.by_ref()
            .take(6)
            .read_to_end(&mut beginning)
            .and_then(|_| file.rewind())
            .map_err(unusable)?;
        let media_type = match Compression::detect(&beginning).map_err(unusable)? {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        };
        let mut content = Hashing::new(decompress(file).map_err(unusable)?);
        io::copy(&mut content, &mut io::sink()).map_err(unusable)?;
        let now = Timestamp::now().to_string();
        let history = HistoryBuilder::default()
            .created(now.clone())
            .created_by("coracle import".to_owned());
        let history = match message {
            Some(message) => history.comment(message),
            None => history,
        };
        let rootfs = RootFsBuilder::default()
            .typ("layers".to_owned())
            .diff_ids(vec![content.digest().to_string()]);
        let config = ImageConfigurationBuilder::default()
            .created(now)
            .architecture(Arch::default())
            .os(Os::Linux)
            .config(apply(changes))
            .rootfs(rootfs.build().expect(COMPLETE))
            .history(vec![history.build().expect(COMPLETE)])
            .build()
            .expect(COMPLETE);
        let config = to_json(&config);
        let id = adding.write(&config)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(oci_spec::image::SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &id, config.len() as u64))
            .layers(vec![descriptor(media_type, &layer, len)])
            .build()
            .expect(COMPLETE);
        let manifest = to_json(&manifest);
        let digest = adding.write(&manifest)?;
        let names = name.into_iter().collect();
        self.admit(&id, &digest, manifest.len() as u64, names, warn)
    }
}

const COMPLETE: &str = "all that is required is given";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_in_a_containerfile() {
        let read = |text: &str| text.parse::<Change>();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(
            read(r#"CMD ["sh", "-c"]"#),
            Ok(Change::Cmd(words(&["sh", "-c"])))
        );
        assert_eq!(
            read("cmd sh -x"),
            Ok(Change::Cmd(words(&["/bin/sh", "-c", "sh -x"])))
        );
        assert_eq!(
            read("ENTRYPOINT=[\"a\"]"),
            Ok(Change::Entrypoint(words(&["a"])))
        );
        assert_eq!(read("ENV A=b c"), Ok(Change::Env("A=b c".to_owned())));
        assert_eq!(
            read("LABEL a.b=\"c\""),
            Ok(Change::Label("a.b".to_owned(), "c".to_owned()))
        );
        assert_eq!(
            read("WORKDIR /srv"),
            Ok(Change::WorkingDir("/srv".to_owned()))
        );
        for unknown in ["", "CMD", "CMD ", "RUN x", "x"] {
            assert_eq!(read(unknown), Err(ChangeError::Unknown), "{unknown}");
        }
        assert_eq!(read("ENV A"), Err(ChangeError::NoPair("ENV".to_owned())));
    }
}
