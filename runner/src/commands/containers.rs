//! `coracle containers`: the working containers, as buildah lists them.

use serde::Serialize;

use super::rows::print_json;
use super::table::table;
use super::{open_engine, print_line};
use crate::build::store::Working;
use crate::cli::ContainersArgs;
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::printable::escape;

pub fn containers(args: ContainersArgs) -> Result<u8, Failure> {
    let containers = open_engine()?.working().list()?;
    if args.quiet {
        let ids = containers.iter().map(|container| container.id.as_str());
        ids.into_iter().try_for_each(print_line)?;
        return Ok(0);
    }
    if args.json {
        let rows: Vec<_> = containers.iter().map(JsonRow::of).collect();
        print_json(&rows)?;
        return Ok(0);
    }
    let row = |container: &Working| {
        let image_id = container.image_id.as_ref().map(Digest::short);
        [
            container.id.short().to_owned(),
            "*".to_owned(),
            image_id.unwrap_or_default().to_owned(),
            escape(shown_image(container)),
            escape(&container.name),
        ]
    };
    let rows: Vec<_> = containers.iter().map(row).collect();
    let header = [
        "CONTAINER ID",
        "BUILDER",
        "IMAGE ID",
        "IMAGE NAME",
        "CONTAINER NAME",
    ];
    table(
        (!args.noheading).then_some(header),
        &rows,
        super::images::WIDTH_MIN,
    )
    .lines()
    .try_for_each(print_line)?;
    Ok(0)
}

fn shown_image(container: &Working) -> &str {
    container
        .image
        .as_deref()
        .unwrap_or(super::workshop::SCRATCH)
}

/// As buildah's.
#[derive(Serialize)]
struct JsonRow<'a> {
    id: &'a str,
    builder: bool,
    imageid: &'a str,
    imagename: &'a str,
    containername: &'a str,
}

impl<'a> JsonRow<'a> {
    fn of(container: &'a Working) -> Self {
        Self {
            id: container.id.as_str(),
            builder: true,
            imageid: container.image_id.as_ref().map_or("", Digest::hex),
            imagename: shown_image(container),
            containername: &container.name,
        }
    }
}
