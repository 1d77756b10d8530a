//! Putting a tar together again, from the files of an unpacked layer and the list of what stood
//! between them, as tar-split writes it: JSON values one after the other, compressed by gzip.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::MultiGzDecoder;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::path_text;
use crate::rootfs::lookup::open_beneath;

/// A tar to be put together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rebuild {
    /// The list.
    #[serde(with = "path_text")]
    pub recipe: PathBuf,
    /// The layer's directory.
    #[serde(with = "path_text")]
    pub files: PathBuf,
    #[serde(with = "path_text")]
    pub tar: PathBuf,
}

#[derive(Deserialize)]
struct Entry {
    /// 1 for a file, 2 for bytes of the tar's own.
    r#type: u8,
    #[serde(default)]
    name: Option<String>,
    /// For names that are no text.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    /// Bytes in base64; of a file a checksum.
    #[serde(default)]
    payload: Option<String>,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// Writes the tar. What comes of it is to be compared with the layer's digest: the files may have
/// changed.
pub fn rebuild(job: &Rebuild) -> io::Result<()> {
    let recipe = BufReader::new(MultiGzDecoder::new(File::open(&job.recipe)?));
    let files = File::open(&job.files)?;
    let mut out = BufWriter::new(File::create(&job.tar)?);
    let entries = serde_json::Deserializer::from_reader(recipe).into_iter::<Entry>();
    for entry in entries {
        let entry = entry?;
        match entry.r#type {
            SEGMENT => {
                let payload = entry.payload.unwrap_or_default();
                let bytes = BASE64_STANDARD.decode(payload).map_err(io::Error::other)?;
                out.write_all(&bytes)?;
            }
            FILE if entry.size > 0 => copy(&files, &entry, &mut out)?,
            FILE => {}
            other => {
                let text = format!("there is an entry of the unknown type {other}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    out.flush()
}

fn copy(files: &File, entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let name = match (&entry.name, &entry.name_raw) {
        (Some(name), _) => name.clone().into_bytes(),
        (None, Some(raw)) => BASE64_STANDARD.decode(raw).map_err(io::Error::other)?,
        (None, None) => return Err(io::ErrorKind::InvalidData.into()),
    };
    let name = PathBuf::from(std::ffi::OsString::from_vec(name));
    // As a tar has it: absolute paths are below its root.
    let name = name.strip_prefix("/").unwrap_or(&name);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", name.display()));
    let file = open_beneath(files, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(named)?;
    let copied = io::copy(&mut io::Read::take(File::from(file), entry.size), out).map_err(named)?;
    match copied == entry.size {
        true => Ok(()),
        false => Err(named(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// For messages.
pub fn failed(job: &Rebuild, error: &io::Error) -> String {
    let dir: &Path = &job.files;
    format!(
        "cannot put the layer in {} together: {error}",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn a_tar_comes_back_bit_by_bit() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("files/a")).expect("a tree");
        fs::write(path("files/a/b"), "content").expect("a file");
        let segment = |bytes: &str| {
            format!(
                r#"{{"type":2,"payload":"{}","position":0}}"#,
                BASE64_STANDARD.encode(bytes)
            )
        };
        let file = |name: &str, size: u64| {
            format!(r#"{{"type":1,"name":"{name}","size":{size},"payload":"AA==","position":1}}"#)
        };
        let attempt = |entries: &[String]| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(entries.join("\n").as_bytes())
                .expect("memory");
            fs::write(path("recipe"), gzip.finish().expect("memory")).expect("written");
            rebuild(&Rebuild {
                recipe: path("recipe"),
                files: path("files"),
                tar: path("tar"),
            })
        };
        let entries = [
            segment("<"),
            r#"{"type":1,"name":"./a/","payload":null,"position":1}"#.to_owned(),
            file("./a/b", 7),
            segment("|"),
            format!(
                r#"{{"type":1,"name_raw":"{}","size":7}}"#,
                BASE64_STANDARD.encode("/a/b")
            ),
            segment(">"),
        ];
        attempt(&entries).expect("a tar");
        assert_eq!(
            fs::read_to_string(path("tar")).expect("it"),
            "<content|content>"
        );
        for wrong in [
            file("../files/a/b", 7),
            file("a/none", 1),
            file("a/b", 8),
            r#"{"type":3}"#.to_owned(),
        ] {
            attempt(&[wrong]).expect_err("refused");
        }
    }
}
