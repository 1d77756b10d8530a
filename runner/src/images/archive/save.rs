//! Writing images.
//!
//! An OCI layout has the blobs as they are in the store, and so the image's digests. In Docker's
//! form layers are plain tars, named by their content.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;

use super::{docker, oci};
use crate::images::digest::Digest;
use crate::images::error::{StorageError, io_error};
use crate::images::files::to_json;
use crate::images::layers::decompress::decompress;
use crate::images::store::{Image, ImageStore, NAME_ANNOTATION, index};

/// The form of a tar of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveForm {
    Docker,
    Oci,
}

impl ImageStore {
    /// Writes images, each under the names that it has here. [`ImageStore::share_content`] comes
    /// before they are looked up.
    pub fn save(
        &self,
        images: &[Image],
        form: ArchiveForm,
        out: &mut impl Write,
    ) -> Result<(), StorageError> {
        let mut tar = Tar {
            builder: tar::Builder::new(out),
            written: HashSet::new(),
        };
        match form {
            ArchiveForm::Docker => self.write_docker(images, &mut tar)?,
            ArchiveForm::Oci => self.write_oci(images, &mut tar)?,
        }
        let out = tar.builder.into_inner().map_err(unwritten)?;
        out.flush().map_err(unwritten)
    }

    /// Makes the directory of an OCI layout.
    ///
    /// # Errors
    /// Where there is something at `dir` that is not an empty directory.
    pub fn save_directory(&self, images: &[Image], dir: &Path) -> Result<(), StorageError> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(dir).map_err(io_error("list", dir))?;
                if entries.next().is_some() {
                    return Err(io_error("write in", dir)(
                        io::ErrorKind::DirectoryNotEmpty.into(),
                    ));
                }
            }
            made => made.map_err(io_error("create", dir))?,
        }
        self.write_oci(images, &mut Directory(dir))
    }

    fn write_oci(&self, images: &[Image], out: &mut impl Target) -> Result<(), StorageError> {
        let mut descriptors = Vec::new();
        for image in images {
            for blob in image.blobs() {
                let file = self.open_blob(&blob)?;
                let len = len_of(&file)?;
                out.write(&oci::blob_path(&blob), len, &mut { file })?;
            }
            let names = image.names.iter().map(|name| Some(name.to_string()));
            let names: Vec<_> = match image.names.is_empty() {
                true => vec![None],
                false => names.collect(),
            };
            for name in names {
                descriptors.push(self.descriptor(image, name)?);
            }
        }
        out.write_text("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        out.write_text(oci::INDEX, &to_json(&index(descriptors)))
    }

    fn descriptor(&self, image: &Image, name: Option<String>) -> Result<Descriptor, StorageError> {
        let manifest = &image.manifest_digest;
        let len = len_of(&self.open_blob(manifest)?)?;
        let media_type = image.manifest.media_type().clone();
        let media_type = media_type.unwrap_or(MediaType::ImageManifest);
        let mut descriptor = docker::descriptor(media_type, manifest, len);
        let annotations = name.map(|name| [(NAME_ANNOTATION.to_owned(), name)].into());
        descriptor.set_annotations(annotations);
        Ok(descriptor)
    }

    fn write_docker(&self, images: &[Image], out: &mut impl Target) -> Result<(), StorageError> {
        let mut items = Vec::new();
        for image in images {
            let mut paths = Vec::new();
            for layer in image.layers() {
                let path = format!("{}.tar", layer.diff.hex());
                if !out.has(&path) {
                    // Its length comes before it.
                    let len = io::copy(&mut self.open_tar(&layer.blob)?, &mut io::sink());
                    let len = len.map_err(unread(&layer.blob))?;
                    out.write(&path, len, &mut self.open_tar(&layer.blob)?)?;
                }
                paths.push(path);
            }
            let config = format!("{}.json", image.id.hex());
            let file = self.open_blob(&image.id)?;
            out.write(&config, len_of(&file)?, &mut { file })?;
            let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
            items.push(json!({"Config": config, "RepoTags": names, "Layers": paths}));
        }
        out.write_text(docker::MANIFEST, &to_json(&items))
    }

    /// A layer without its compression.
    fn open_tar(&self, blob: &Digest) -> Result<Box<dyn Read>, StorageError> {
        decompress(self.open_blob(blob)?).map_err(unread(blob))
    }
}

/// Where files go.
trait Target {
    fn has(&self, path: &str) -> bool;

    /// Writes a file that is not there yet.
    fn write(&mut self, path: &str, len: u64, content: &mut dyn Read) -> Result<(), StorageError>;

    fn write_text(&mut self, path: &str, text: &[u8]) -> Result<(), StorageError> {
        self.write(path, text.len() as u64, &mut { text })
    }
}

struct Tar<W: Write> {
    builder: tar::Builder<W>,
    written: HashSet<String>,
}

impl<W: Write> Target for Tar<W> {
    fn has(&self, path: &str) -> bool {
        self.written.contains(path)
    }

    fn write(&mut self, path: &str, len: u64, content: &mut dyn Read) -> Result<(), StorageError> {
        if !self.written.insert(path.to_owned()) {
            return Ok(());
        }
        let above: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter_map(Path::to_str) {
            // Some readers would make it root's otherwise, or try to.
            if !dir.is_empty() && self.written.insert(dir.to_owned()) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                self.builder
                    .append_data(&mut header, format!("{dir}/"), io::empty())
                    .map_err(unwritten)?;
            }
        }
        let mut header = header(tar::EntryType::Regular, 0o644, len);
        self.builder
            .append_data(&mut header, path, content.take(len))
            .map_err(unwritten)
    }
}

/// The same images make the same archive.
fn header(kind: tar::EntryType, mode: u32, len: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Directory<'a>(&'a Path);

impl Target for Directory<'_> {
    fn has(&self, path: &str) -> bool {
        self.0.join(path).exists()
    }

    fn write(&mut self, path: &str, _: u64, content: &mut dyn Read) -> Result<(), StorageError> {
        if self.has(path) {
            return Ok(());
        }
        let path = self.0.join(path);
        let mut write = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            io::copy(content, &mut File::create(&path)?)?;
            Ok(())
        };
        write().map_err(io_error("write", &path))
    }
}

fn len_of(file: &File) -> Result<u64, StorageError> {
    let found = file.metadata().map_err(unwritten)?;
    Ok(found.len())
}

fn unread(blob: &Digest) -> impl FnOnce(io::Error) -> StorageError {
    io_error("read", Path::new(blob.hex()))
}

fn unwritten(source: io::Error) -> StorageError {
    StorageError::Archive { source }
}
