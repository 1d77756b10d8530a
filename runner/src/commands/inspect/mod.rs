//! `coracle inspect`: all that is known of containers and images, with the names of Podman's
//! fields.
//!
//! What Podman tells and coracle does not have is left out: a template that asks for it is refused,
//! and a script does not mistake it for something.

mod container;
mod host_config;
mod image;
mod mounts;
mod network;
mod ports;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::rows::{inspect_template, print_filled};
use super::{latest, open_engine, print_line};
use crate::cli::{InspectArgs, InspectKind};
use crate::engine::{Engine, EngineError, ErrorKind};
use crate::failure::Failure;
use crate::images::error::StorageError;
use crate::printable::{complain, escape_json};
use crate::template::Format;

pub fn inspect(args: InspectArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let mut names = args.names;
    let mut kind = args.kind;
    if args.latest {
        names.push(latest(&engine)?);
        kind = InspectKind::Container;
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in &names {
        match look(name, kind, args.size, &engine) {
            Ok(seen) => found.push(seen),
            Err(failure) => failures.push(failure),
        }
    }
    show(&found, args.format.as_ref())?;
    let last = failures.pop();
    failures.into_iter().for_each(complain);
    last.map_or(Ok(0), Err)
}

/// What a name stands for.
enum Seen {
    Container(Box<container::Seen>),
    Image(Box<image::Seen>),
}

fn look(name: &str, kind: InspectKind, size: bool, engine: &Engine) -> Result<Seen, Failure> {
    let container = || match engine.find(name) {
        Ok(container) => {
            let seen = container::Seen::look(&container, size, engine)?;
            Ok(Some(Seen::Container(Box::new(seen))))
        }
        Err(error) if kind == InspectKind::All && error.kind() == ErrorKind::NoSuchContainer => {
            Ok(None)
        }
        Err(error) => Err(Failure::from(error)),
    };
    let image = || -> Result<Seen, Failure> {
        let store = engine.images()?;
        match store.find(name) {
            Ok((image, _)) => Ok(Seen::Image(Box::new(image::Seen::look(&image, &store)?))),
            Err(StorageError::NotFound { .. }) if kind == InspectKind::All => Err(Failure::runner(
                format!("no such object: {name:?}; it is no container and no image"),
            )),
            Err(error) => Err(EngineError::from(error).into()),
        }
    };
    match kind {
        InspectKind::Image => image(),
        _ => match container()? {
            Some(seen) => Ok(seen),
            None => image(),
        },
    }
}

fn show(found: &[Seen], format: Option<&Format>) -> Result<(), Failure> {
    let Some(template) = inspect_template(format, "{{.Id}}")? else {
        let values: Vec<_> = found.iter().map(Seen::serialize).collect();
        return print_line(&escape_json(&pretty(&values)));
    };
    for seen in found {
        let mut fields = seen.serialize();
        // Podman's users know it by both names.
        if let Some(fields) = fields.as_object_mut()
            && let Some(id) = fields.get("Id").cloned()
        {
            fields.insert("ID".to_owned(), id);
        }
        print_filled(&template.fill(&fields)?)?;
    }
    Ok(())
}

impl Seen {
    fn serialize(&self) -> Value {
        match self {
            Self::Container(seen) => serde_json::to_value(seen),
            Self::Image(seen) => serde_json::to_value(seen),
        }
        .expect("it has only strings, numbers and lists")
    }
}

/// Indented as Podman does it.
fn pretty(values: &impl Serialize) -> String {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"     ");
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    values
        .serialize(&mut serializer)
        .expect("it has only strings, numbers and lists");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// What container and image have of their file system.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    name: &'static str,
    data: GraphData,
}

/// Directories, the uppermost first.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GraphData {
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    work_dir: Option<String>,
}

/// As overlayfs's `lowerdir`; `None` for none.
fn joined(dirs: &[PathBuf]) -> Option<String> {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    (!dirs.is_empty()).then(|| dirs.join(":"))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
