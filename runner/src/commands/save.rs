//! `coracle save`: images into files.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use super::open_engine;
use crate::cli::{SaveArgs, SaveFormat};
use crate::engine::{ArchiveForm, Engine, Image, ImageName, ImageStore};
use crate::failure::Failure;

pub fn save(args: SaveArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let _shared = store.share_content()?;
    let images = images(&args, &store)?;
    let form = match (args.format, &args.output) {
        (SaveFormat::OciDir, Some(dir)) => {
            store.save_directory(&images, dir)?;
            note(&engine, &images);
            return Ok(0);
        }
        (SaveFormat::OciArchive, _) => ArchiveForm::Oci,
        (SaveFormat::DockerArchive | SaveFormat::OciDir, _) => ArchiveForm::Docker,
    };
    match &args.output {
        Some(path) => save_file(path, |out| store.save(&images, form, out)),
        None if io::stdout().is_terminal() => Err(Failure::runner(
            "will not write an archive to the terminal: name a file with --output, or use a pipe",
        )),
        None => {
            let mut stdout = BufWriter::new(io::stdout().lock());
            store.save(&images, form, &mut stdout)?;
            super::output_result(stdout.flush())
        }
    }?;
    note(&engine, &images);
    Ok(0)
}

fn note(engine: &Engine, images: &[Image]) {
    for image in images {
        engine.note_image("save", image, image.id.hex());
    }
}

/// What is there under the name stays until the archive is complete.
pub fn save_file<E: Into<Failure>>(
    path: &Path,
    save: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), Failure> {
    let failed = || Failure::context(format!("cannot write {}", path.display()));
    // A pipe, or a device, is written as it is.
    if path.exists() && !path.is_file() {
        let file = File::options().write(true).open(path).map_err(failed())?;
        return save(&mut BufWriter::new(file)).map_err(Into::into);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let (file, kept) = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir.unwrap_or(Path::new(".")))
        .map_err(failed())?
        .into_parts();
    let mut writer = BufWriter::new(file);
    save(&mut writer).map_err(Into::into)?;
    writer
        .into_inner()
        .map_err(|error| failed()(error.into_error()))?;
    kept.persist(path).map_err(|error| failed()(error.error))?;
    Ok(())
}

/// Those that are meant, with the names that they are to have in the archive.
fn images(args: &SaveArgs, store: &ImageStore) -> Result<Vec<Image>, Failure> {
    let find = |wanted: &String| -> Result<Image, Failure> {
        let (image, name) = store.find(wanted)?;
        Ok(Image {
            names: name.into_iter().collect(),
            ..image
        })
    };
    if args.multi_image_archive {
        let mut images: Vec<Image> = Vec::new();
        for wanted in &args.images {
            let image = find(wanted)?;
            match images.iter_mut().find(|other| other.id == image.id) {
                Some(other) => other.names.extend(image.names),
                None => images.push(image),
            }
        }
        return Ok(images);
    }
    let mut image = find(&args.images[0])?;
    for name in &args.images[1..] {
        image.names.push(name.parse::<ImageName>()?.to_tag()?);
    }
    Ok(vec![image])
}
