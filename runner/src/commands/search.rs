//! `coracle search`: what registries have.

use serde::Serialize;
use serde_json::{Value, json};

use super::images;
use super::pull::{access_of, remote};
use super::rows::print_list;
use super::table::table;
use crate::cli::SearchArgs;
use crate::engine::{Access, ImageName, Registries};
use crate::failure::Failure;
use crate::images::reference::split_registry;
use crate::images::registry::search;
use crate::printable::escape;

pub fn search(args: &SearchArgs) -> Result<u8, Failure> {
    let access = access_of(&args.access);
    let found = match args.list_tags {
        true => tags(args, &access)?,
        false => repositories(args, &access)?,
    };
    let heads = !args.noheading;
    print_list(
        args.format.as_ref(),
        heads,
        &HEADERS,
        || Ok(&found),
        || Ok(fields(&found)),
        || {
            let second = |found: &Found| match args.list_tags {
                true => escape(&found.tag),
                false => escape(&found.description),
            };
            let row = |found: &Found| [escape(&found.name), second(found)];
            let rows: Vec<_> = found.iter().map(row).collect();
            let header = match args.list_tags {
                true => ["NAME", "TAG"],
                false => ["NAME", "DESCRIPTION"],
            };
            table(heads.then_some(header), &rows, images::WIDTH_MIN)
        },
    )?;
    Ok(0)
}

/// With the names of Podman's fields.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    index: String,
    name: String,
    /// Catalogues have none.
    description: String,
    tag: String,
}

impl Found {
    fn new(index: &str, name: String, tag: String) -> Self {
        Self {
            index: index.to_owned(),
            name,
            description: String::new(),
            tag,
        }
    }
}

/// In the registry that the term begins with, or in all that are to be searched.
fn repositories(args: &SearchArgs, access: &Access) -> Result<Vec<Found>, Failure> {
    let (places, term) = match split_registry(&args.term) {
        Some((registry, rest)) => (vec![registry.to_owned()], rest),
        None => {
            let registries = Registries::load()?;
            if registries.searched().is_empty() {
                return Err(Failure::runner(format!(
                    "no registry is to be searched for {:?}: name one, as REGISTRY/{}, or set unqualified-search-registries in {}",
                    args.term,
                    args.term,
                    registries.place().display()
                )));
            }
            (registries.searched().to_vec(), &*args.term)
        }
    };
    let mut found = Vec::new();
    for registry in places {
        let names = search::repositories(&registry, term, args.limit, access)?;
        let names = names.into_iter();
        found.extend(
            names.map(|name| Found::new(&registry, format!("{registry}/{name}"), String::new())),
        );
    }
    Ok(found)
}

fn tags(args: &SearchArgs, access: &Access) -> Result<Vec<Found>, Failure> {
    let image = remote(args.term.parse::<ImageName>()?)?;
    let tags = search::tags(&image, args.limit, access)?.into_iter();
    let found = tags.map(|tag| Found::new(image.registry(), image.name(), tag));
    Ok(found.collect())
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 4] = [
    ("Index", "INDEX"),
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("Tag", "TAG"),
];

fn fields(found: &[Found]) -> Vec<Value> {
    let fields = |found: &Found| {
        json!({
            "Index": found.index, "Name": found.name, "Description": found.description,
            "Tag": found.tag,
        })
    };
    found.iter().map(fields).collect()
}
