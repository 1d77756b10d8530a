//! `coracle push`: an image to a registry, or into files.

use std::fs;

use super::open_engine;
use super::progress::progress;
use super::pull::{access_of, remote};
use super::save::save_file;
use crate::cli::PushArgs;
use crate::engine::{ArchiveForm, Destination, ManifestForm};
use crate::failure::Failure;
use crate::images::digest::Digest;

pub fn push(args: PushArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let _shared = store.share_content()?;
    let (image, name) = store.find(&args.image)?;
    let destination = match args.destination {
        Some(destination) => destination,
        None => Destination::of(name.as_ref(), &args.image)?,
    };
    check_form(&destination, args.format)?;
    let progress = progress(args.quiet);
    let mut written = |blob: &Digest| match *blob == image.id {
        true => progress.config(blob),
        false => progress.layer(blob, 0).done(),
    };
    let mut digest = image.manifest_digest.clone();
    match destination {
        Destination::Registry(to) => {
            let access = access_of(&args.access);
            digest = store.push(&image, &remote(to)?, args.format, &access, &*progress)?;
        }
        Destination::OciDirectory(dir, name) => {
            progress.found();
            store.push_directory(&image, name, &dir, &mut written)?;
            progress.manifest();
        }
        Destination::OciArchive(path, name) => {
            progress.found();
            let names = name.into_iter().collect();
            save_file(&path, |out| {
                store.push_archive(&image, names, ArchiveForm::Oci, out, &mut written)
            })?;
            progress.manifest();
        }
        Destination::DockerArchive(path, name) => {
            if path.is_file() {
                return Err(Failure::runner(format!(
                    "{} is there already, and Docker's archives are not added to",
                    path.display()
                )));
            }
            progress.found();
            let names = name.iter().chain(&image.names);
            let names = names.map(ToString::to_string).collect();
            save_file(&path, |out| {
                store.push_archive(&image, names, ArchiveForm::Docker, out, &mut written)
            })?;
            progress.manifest();
        }
    }
    engine.note_image("push", &image, &args.image);
    if let Some(path) = &args.digestfile {
        let written = fs::write(path, digest.to_string());
        written.map_err(Failure::context(format!("cannot write {}", path.display())))?;
    }
    Ok(0)
}

/// Files have a form of their own.
fn check_form(destination: &Destination, form: Option<ManifestForm>) -> Result<(), Failure> {
    let (transport, only) = match destination {
        Destination::Registry(_) => return Ok(()),
        Destination::OciDirectory(..) => ("oci:", ManifestForm::Oci),
        Destination::OciArchive(..) => ("oci-archive:", ManifestForm::Oci),
        Destination::DockerArchive(..) => ("docker-archive:", ManifestForm::V2s2),
    };
    match form.is_none_or(|form| form == only) {
        true => Ok(()),
        false => Err(Failure::runner(format!(
            "{transport} has a form of its own: --format is for registries"
        ))),
    }
}
