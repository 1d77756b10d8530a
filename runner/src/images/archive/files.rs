//! The files of an archive, or of a directory that has the form of one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::TempDir;

use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::layers::decompress::decompress;
use crate::images::layers::tar::{Kind, Members};
use crate::images::store::{Adding, JSON_LEN_MAX};
use crate::rootfs::lookup::open_beneath;

/// Files of an archive; an image of 500 layers has some 1,500 in Docker's old form.
const FILES_MAX: usize = 100_000;

pub struct Files {
    origin: String,
    content: Content,
}

enum Content {
    /// What a tar held, each under a name of its own in a directory of the store.
    Unpacked {
        dir: TempDir,
        files: HashMap<String, Unpacked>,
        links: HashMap<String, String>,
    },
    Directory(OwnedFd),
}

struct Unpacked {
    name: String,
    digest: Digest,
    len: u64,
}

impl Files {
    pub fn directory(dir: File, origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            content: Content::Directory(dir.into()),
        }
    }

    /// Reads a tar to its end.
    pub fn unpack(stream: impl Read, origin: &str, adding: &Adding) -> Result<Self, StorageError> {
        let unusable = |defect: String| StorageError::Unusable {
            origin: origin.to_owned(),
            defect,
        };
        let dir = adding.dir()?;
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let tar = decompress(stream).map_err(|error| unusable(error.to_string()))?;
        let mut members = Members::new(tar);
        while let Some(member) = members
            .next()
            .map_err(|error| unusable(error.to_string()))?
        {
            if files.len() + links.len() >= FILES_MAX {
                return Err(unusable(format!("it has more than {FILES_MAX} files")));
            }
            let path = normal(&String::from_utf8_lossy(&member.path));
            match member.kind {
                Kind::File => {
                    let name = files.len().to_string();
                    let place = dir.path().join(&name);
                    let file = File::create_new(&place).map_err(io_error("write", &place))?;
                    let mut file = Hashing::new(file);
                    // A failure may be the archive's or the disk's: its own text tells.
                    io::copy(&mut members, &mut file)
                        .map_err(|error| unusable(error.to_string()))?;
                    let unpacked = Unpacked {
                        name,
                        digest: file.digest(),
                        len: file.len(),
                    };
                    files.insert(path, unpacked);
                }
                Kind::Symlink | Kind::HardLink => {
                    let target = String::from_utf8_lossy(&member.target).into_owned();
                    let target = match (member.kind, path.rsplit_once('/')) {
                        (Kind::Symlink, Some((parent, _))) => format!("{parent}/{target}"),
                        _ => target,
                    };
                    links.insert(path, normal(&target));
                }
                Kind::Directory | Kind::Fifo | Kind::Device => {}
            }
        }
        Ok(Self {
            origin: origin.to_owned(),
            content: Content::Unpacked { dir, files, links },
        })
    }

    pub fn has(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    /// The whole of a small file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, StorageError> {
        let failed = |error: io::Error| self.unusable(format!("{path}: {error}"));
        let file = self.open(path).map_err(failed)?;
        let mut text = Vec::new();
        file.take(JSON_LEN_MAX + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        match text.len() as u64 > JSON_LEN_MAX {
            true => Err(self.unusable(format!("{path} is longer than {JSON_LEN_MAX} bytes"))),
            false => Ok(text),
        }
    }

    /// A small file of JSON.
    pub fn parse<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, StorageError> {
        serde_json::from_slice(&self.read(path)?)
            .map_err(|error| self.unusable(format!("{path}: {error}")))
    }

    /// The first bytes of a file.
    pub fn peek(&self, path: &str) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::new();
        let read = self
            .open(path)
            .and_then(|file| file.take(6).read_to_end(&mut bytes));
        read.map_err(|error| self.unusable(format!("{path}: {error}")))?;
        Ok(bytes)
    }

    /// Makes a blob of a file. Returns what it is named by, and its length.
    pub fn keep(
        &self,
        path: &str,
        expected: Option<&Digest>,
        adding: &Adding,
    ) -> Result<(Digest, u64), StorageError> {
        let mismatch = |found: &Digest| match expected.filter(|expected| *expected != found) {
            None => Ok(()),
            Some(expected) => Err(StorageError::Mismatch {
                what: format!("{path} in {}", self.origin),
                found: found.clone(),
                expected: expected.clone(),
            }),
        };
        match &self.content {
            Content::Unpacked { dir, files, links } => {
                let file = files.get(resolve(path, links));
                let file = file.ok_or_else(|| self.unusable(format!("{path} is missing")))?;
                mismatch(&file.digest)?;
                adding.adopt(&dir.path().join(&file.name), &file.digest)?;
                Ok((file.digest.clone(), file.len))
            }
            Content::Directory(_) => {
                let mut file = self
                    .open(path)
                    .map_err(|error| self.unusable(format!("{path}: {error}")))?;
                let mut blob = adding.blob()?;
                let len =
                    io::copy(&mut file, &mut blob).map_err(io_error("copy", Path::new(path)))?;
                let digest = adding.finish(blob, expected)?;
                Ok((digest, len))
            }
        }
    }

    pub fn unusable(&self, defect: String) -> StorageError {
        StorageError::Unusable {
            origin: self.origin.clone(),
            defect,
        }
    }

    fn open(&self, path: &str) -> io::Result<File> {
        let file = match &self.content {
            Content::Unpacked { dir, files, links } => {
                let file = files.get(resolve(path, links));
                let file = file.ok_or(io::ErrorKind::NotFound)?;
                File::open(dir.path().join(&file.name))?
            }
            Content::Directory(dir) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                File::from(open_beneath(dir, Path::new(path), flags)?)
            }
        };
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Where links lead to, as far as that is anywhere.
fn resolve<'a>(path: &'a str, links: &'a HashMap<String, String>) -> &'a str {
    const LINKS_MAX: u32 = 8;
    let mut path = path;
    for _ in 0..LINKS_MAX {
        match links.get(path) {
            Some(target) => path = target,
            None => break,
        }
    }
    path
}

/// Without `.`, `..` and what is empty.
fn normal(path: &str) -> String {
    let mut normal = PathBuf::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal.to_string_lossy().into_owned()
}
