//! Writing images.
//!
//! An OCI layout has the blobs as they are in the store, and so the image's digests. In Docker's
//! form layers are plain tars, named by their content.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use serde_json::json;

use super::{docker, oci};
use crate::images::digest::Digest;
use crate::images::error::{StorageError, io_error};
use crate::images::files::{parse, replace, to_json};
use crate::images::layers::decompress::decompress;
use crate::images::store::{Image, ImageStore, NAME_ANNOTATION, index};

/// The form of a tar of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveForm {
    Docker,
    Oci,
}

/// An image and the names that it gets. In an OCI layout they may be any text.
struct Named<'a> {
    image: &'a Image,
    names: Vec<String>,
}

impl<'a> From<&'a Image> for Named<'a> {
    fn from(image: &'a Image) -> Self {
        Self {
            image,
            names: image.names.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Who is told of each layer and configuration that is written.
type Written<'a> = &'a mut dyn FnMut(&Digest);

impl ImageStore {
    /// Writes images, each under the names that it has here. [`ImageStore::share_content`] comes
    /// before they are looked up.
    pub fn save(
        &self,
        images: &[Image],
        form: ArchiveForm,
        out: &mut impl Write,
    ) -> Result<(), StorageError> {
        let images: Vec<_> = images.iter().map(Named::from).collect();
        self.write_tar(&images, form, out, &mut |_| {})
    }

    /// As [`ImageStore::save`], one image under a name of its own, or none. `written` is told of
    /// each layer, and of the configuration.
    pub fn push_archive(
        &self,
        image: &Image,
        names: Vec<String>,
        form: ArchiveForm,
        out: &mut impl Write,
        written: &mut dyn FnMut(&Digest),
    ) -> Result<(), StorageError> {
        self.write_tar(&[Named { image, names }], form, out, written)
    }

    fn write_tar(
        &self,
        images: &[Named],
        form: ArchiveForm,
        out: &mut impl Write,
        written: Written,
    ) -> Result<(), StorageError> {
        let mut tar = Tar {
            builder: tar::Builder::new(out),
            written: HashSet::new(),
        };
        match form {
            ArchiveForm::Docker => self.write_docker(images, &mut tar, written)?,
            ArchiveForm::Oci => {
                let descriptors = self.write_oci(images, &mut tar, written)?;
                tar.write_text(oci::INDEX, &to_json(&index(descriptors)))?;
            }
        }
        let out = tar.builder.into_inner().map_err(unwritten)?;
        out.flush().map_err(unwritten)
    }

    /// Makes the directory of an OCI layout.
    ///
    /// # Errors
    /// Where there is something at `dir` that is not an empty directory.
    pub fn save_directory(&self, images: &[Image], dir: &Path) -> Result<(), StorageError> {
        make_empty(dir)?;
        let images: Vec<_> = images.iter().map(Named::from).collect();
        let descriptors = self.write_oci(&images, &mut Directory(dir), &mut |_| {})?;
        replace(&dir.join(oci::INDEX), &to_json(&index(descriptors)))
    }

    /// Adds an image to the directory of an OCI layout, which is made where it is missing. It takes
    /// the name from the one that has it.
    pub fn push_directory(
        &self,
        image: &Image,
        name: Option<String>,
        dir: &Path,
        written: &mut dyn FnMut(&Digest),
    ) -> Result<(), StorageError> {
        let path = dir.join(oci::INDEX);
        let mut all = match fs::read(&path) {
            Ok(text) => parse::<ImageIndex>(&path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_empty(dir)?;
                index(Vec::new())
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let named = Named {
            image,
            names: name.into_iter().collect(),
        };
        let new = self.write_oci(&[named], &mut Directory(dir), written)?;
        let name = |descriptor: &Descriptor| {
            let annotations = descriptor.annotations().as_ref()?;
            annotations.get(NAME_ANNOTATION).cloned()
        };
        let is_replaced = |old: &Descriptor| {
            new.iter().any(|new| match name(old) {
                Some(old) => name(new) == Some(old),
                None => new.digest() == old.digest(),
            })
        };
        let mut descriptors = all.manifests().clone();
        descriptors.retain(|descriptor| !is_replaced(descriptor));
        descriptors.extend(new);
        all.set_manifests(descriptors);
        replace(&path, &to_json(&all))
    }

    /// Writes all but the index, whose descriptors are returned.
    fn write_oci(
        &self,
        images: &[Named],
        out: &mut impl Target,
        written: Written,
    ) -> Result<Vec<Descriptor>, StorageError> {
        let mut descriptors = Vec::new();
        for Named { image, names } in images {
            let layers = image.layers().into_iter().map(|layer| layer.blob);
            for blob in layers.chain([image.id.clone(), image.manifest_digest.clone()]) {
                let file = self.open_blob(&blob)?;
                let len = len_of(&file)?;
                out.write(&oci::blob_path(&blob), len, &mut { file })?;
                if blob != image.manifest_digest {
                    written(&blob);
                }
            }
            if names.is_empty() {
                descriptors.push(self.descriptor(image, None)?);
            }
            for name in names {
                descriptors.push(self.descriptor(image, Some(name))?);
            }
        }
        out.write_text("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(descriptors)
    }

    fn descriptor(&self, image: &Image, name: Option<&String>) -> Result<Descriptor, StorageError> {
        let manifest = &image.manifest_digest;
        let len = len_of(&self.open_blob(manifest)?)?;
        let media_type = image.manifest.media_type().clone();
        let media_type = media_type.unwrap_or(MediaType::ImageManifest);
        let mut descriptor = docker::descriptor(media_type, manifest, len);
        let annotations = name.map(|name| [(NAME_ANNOTATION.to_owned(), name.clone())].into());
        descriptor.set_annotations(annotations);
        Ok(descriptor)
    }

    fn write_docker(
        &self,
        images: &[Named],
        out: &mut impl Target,
        written: Written,
    ) -> Result<(), StorageError> {
        let mut items = Vec::new();
        for Named { image, names } in images {
            let mut paths = Vec::new();
            for layer in image.layers() {
                let path = format!("{}.tar", layer.diff.hex());
                if !out.has(&path) {
                    // Its length comes before it.
                    let len = io::copy(&mut self.open_tar(&layer.blob)?, &mut io::sink());
                    let len = len.map_err(unread(&layer.blob))?;
                    out.write(&path, len, &mut self.open_tar(&layer.blob)?)?;
                    written(&layer.blob);
                }
                paths.push(path);
            }
            let config = format!("{}.json", image.id.hex());
            let file = self.open_blob(&image.id)?;
            out.write(&config, len_of(&file)?, &mut { file })?;
            written(&image.id);
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
            let dir = path.parent().unwrap_or(self.0);
            fs::create_dir_all(dir)?;
            // Other images may rely on it, so that half of it will not do.
            let mut file = tempfile::Builder::new()
                .permissions(PermissionsExt::from_mode(0o644))
                .tempfile_in(dir)?;
            io::copy(content, &mut file)?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(io_error("write", &path))
    }
}

/// A new directory, or one that holds nothing.
fn make_empty(dir: &Path) -> Result<(), StorageError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = fs::read_dir(dir).map_err(io_error("list", dir))?;
            match entries.next() {
                None => Ok(()),
                Some(_) => Err(io_error("write in", dir)(
                    io::ErrorKind::DirectoryNotEmpty.into(),
                )),
            }
        }
        made => made.map_err(io_error("create", dir)),
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
