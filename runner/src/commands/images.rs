//! `coracle images`: the images that are there, one line for each name.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::Serialize;

use super::table::table;
use super::{human, open_engine, print_line};
use crate::cli::{ImagesArgs, ListFormat};
use crate::engine::{Engine, Image, ImageRef};
use crate::failure::Failure;
use crate::printable::{escape, escape_json};

pub fn images(args: ImagesArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let mut lines: Vec<Line> = Vec::new();
    for image in store.list()? {
        let size = store.size(&image);
        let names = image.names.iter().cloned().map(Some);
        let names = match image.names.is_empty() {
            true => vec![None],
            false => names.collect(),
        };
        let line = |name| Line {
            image: image.clone(),
            name,
            size,
        };
        lines.extend(names.into_iter().map(line));
    }
    if let Some(wanted) = &args.image {
        lines = only(lines, wanted, &engine)?;
    }
    match args.format {
        _ if args.quiet => {
            let mut ids: Vec<_> = lines.iter().map(|line| line.id(args.no_trunc)).collect();
            ids.dedup();
            ids.iter().try_for_each(|id| print_line(id))?;
        }
        Some(ListFormat::Json) => {
            let rows = lines.iter().map(|line| line.json(&engine));
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            let text = serde_json::to_string_pretty(&rows);
            let text = text.expect("rows have only strings, numbers and lists");
            print_line(&escape_json(&text))?;
        }
        Some(ListFormat::Table) | None => print_table(&lines, &args)?,
    }
    Ok(0)
}

/// Those of the image or the repository that is meant.
fn only(mut lines: Vec<Line>, wanted: &str, engine: &Engine) -> Result<Vec<Line>, Failure> {
    let of_repository = |line: &Line| {
        let name = line.name.as_ref().map(ImageRef::name).unwrap_or_default();
        name == wanted || name.ends_with(&format!("/{wanted}"))
    };
    if lines.iter().any(of_repository) {
        lines.retain(of_repository);
        return Ok(lines);
    }
    let (image, name) = engine.images()?.find(wanted)?;
    lines.retain(|line| line.image.id == image.id && (name.is_none() || line.name == name));
    Ok(lines)
}

struct Line {
    image: Image,
    name: Option<ImageRef>,
    size: u64,
}

impl Line {
    fn id(&self, whole: bool) -> String {
        match whole {
            true => self.image.id.to_string(),
            false => self.image.id.short().to_owned(),
        }
    }

    fn json(&self, engine: &Engine) -> Result<JsonRow, Failure> {
        let image = &self.image;
        let created = image.created();
        let digest = image.manifest_digest.to_string();
        let at_digest = |name: &ImageRef| format!("{}@{digest}", name.name());
        let labels = image.run_config().labels().clone().unwrap_or_default();
        Ok(JsonRow {
            id: image.id.hex().to_owned(),
            parent_id: String::new(),
            repo_tags: image.names.iter().map(ToString::to_string).collect(),
            repo_digests: image.names.iter().map(at_digest).collect(),
            size: self.size,
            shared_size: 0,
            virtual_size: self.size,
            labels: labels.into_iter().collect(),
            containers: engine.containers_of(image)?.len(),
            names: image.names.iter().map(ToString::to_string).collect(),
            digest,
            created,
            created_at: Timestamp::from_second(created)
                .map_or_else(|_| String::new(), |at| at.to_string()),
        })
    }
}

/// As Podman's, whose scripts read it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonRow {
    id: String,
    parent_id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    size: u64,
    shared_size: u64,
    virtual_size: u64,
    labels: BTreeMap<String, String>,
    containers: usize,
    names: Vec<String>,
    digest: String,
    created: i64,
    created_at: String,
}

/// Podman's columns are 12 wide, with what is between them.
pub const WIDTH_MIN: usize = 10;

fn print_table(lines: &[Line], args: &ImagesArgs) -> Result<(), Failure> {
    const NONE: &str = "<none>";
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let cells = |line: &Line| {
        let name = line.name.as_ref();
        let repository = name.map_or_else(|| NONE.to_owned(), ImageRef::name);
        let tag = name.and_then(ImageRef::tag).unwrap_or(NONE);
        let created = u64::try_from(line.image.created()).unwrap_or(0);
        let ago = human::duration(now.saturating_sub(created));
        [
            escape(&repository),
            escape(tag),
            line.image.manifest_digest.to_string(),
            line.id(args.no_trunc),
            format!("{ago} ago"),
            human::size(line.size),
        ]
    };
    let header = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
    let rows: Vec<_> = lines.iter().map(cells).collect();
    let heads = !args.noheading;
    let text = match args.digests {
        true => table(heads.then_some(header), &rows, WIDTH_MIN),
        false => {
            let [repository, tag, _, id, created, size] = header;
            let header = [repository, tag, id, created, size];
            let without = |[repository, tag, _, id, created, size]: [String; 6]| {
                [repository, tag, id, created, size]
            };
            let rows: Vec<_> = rows.into_iter().map(without).collect();
            table(heads.then_some(header), &rows, WIDTH_MIN)
        }
    };
    text.lines().try_for_each(print_line)
}
