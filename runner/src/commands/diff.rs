//! `coracle diff`: what containers and images have changed.

use serde::Serialize;

use super::{latest, open_engine, print_line};
use crate::cli::DiffArgs;
use crate::engine::{Change, ChangeKind, Engine, ErrorKind, Layers};
use crate::failure::Failure;
use crate::printable::{escape, escape_json};

/// Of containers and images; of images alone with `only_images`.
pub fn diff(args: &DiffArgs, only_images: bool) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = match args.latest {
        true => [vec![latest(&engine)?], args.names.clone()].concat(),
        false => args.names.clone(),
    };
    let layers = |name| layers(&engine, name, only_images);
    let changes = match &names[..] {
        [one] => {
            let [whole, below] = layers(one)?;
            engine.compare(&whole, &below)?
        }
        [one, other] => {
            let ([one, _], [other, _]) = (layers(one)?, layers(other)?);
            engine.compare(&one, &other)?
        }
        _ => {
            return Err(Failure::runner(
                "name a container or an image, or two of them",
            ));
        }
    };
    if args.format.is_some() {
        let lists = serde_json::to_string_pretty(&Lists::of(&changes)).expect("only text");
        return print_line(&escape_json(&lists)).map(|()| 0);
    }
    let lines = changes.iter().map(|Change { kind, path }| {
        let letter = match kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        format!("{letter} {}", escape(&path.to_string_lossy()))
    });
    let lines: Vec<_> = lines.collect();
    match lines.is_empty() {
        true => Ok(0),
        false => print_line(&lines.join("\n")).map(|()| 0),
    }
}

/// Of a container, or else of an image: with its own changes and without.
fn layers(engine: &Engine, name: &str, only_images: bool) -> Result<[Layers; 2], Failure> {
    if !only_images {
        match engine.find(name) {
            Err(error) if error.kind() == ErrorKind::NoSuchContainer => {}
            found => return Ok(engine.container_layers(&found?)?),
        }
    }
    let (image, _) = engine.images()?.find(name)?;
    Ok(engine.image_layers(&image)?)
}

/// With the names of Podman's.
#[derive(Debug, Serialize)]
struct Lists {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    added: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deleted: Vec<String>,
}

impl Lists {
    fn of(changes: &[Change]) -> Self {
        let of = |kind| {
            let changes = changes.iter().filter(|change| change.kind == kind);
            let paths = changes.map(|change| change.path.to_string_lossy().into_owned());
            paths.collect()
        };
        Self {
            changed: of(ChangeKind::Changed),
            added: of(ChangeKind::Added),
            deleted: of(ChangeKind::Deleted),
        }
    }
}
