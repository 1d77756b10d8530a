//! `coracle images`: the images that are there, one line for each name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::filter::{admits, check, glob, has_label, moment, truth};
use super::rows::print_list;
use super::table::table;
use super::{human, open_engine, print_line};
use crate::cli::{Filter, ImageOrder, ImagesArgs};
use crate::engine::{Engine, Image, ImageRef, ImageStore, is_of};
use crate::failure::Failure;
use crate::printable::escape;
use crate::state::Container;

pub fn images(args: ImagesArgs) -> Result<u8, Failure> {
    check(&args.filters, "images", FILTERS)?;
    let engine = open_engine()?;
    let store = engine.images()?;
    let mut lines: Vec<Line> = Vec::new();
    let images = store.list()?;
    for image in &images {
        if !args.all && images.iter().any(|other| is_step_of(image, other)) {
            continue;
        }
        if !admits(&args.filters, |filter| has(image, filter, &store, &engine))? {
            continue;
        }
        let size = store.size(image);
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
    sort(&mut lines, args.sort);
    if args.quiet {
        let mut ids: Vec<_> = lines.iter().map(|line| line.id(args.no_trunc)).collect();
        ids.dedup();
        ids.iter().try_for_each(|id| print_line(id))?;
        return Ok(0);
    }
    print_list(
        args.format.as_ref(),
        !args.noheading,
        &HEADERS,
        || rows(&lines, &engine),
        || fields(&lines, &args, &engine),
        || to_table(&lines, &args),
    )?;
    Ok(0)
}

/// Whether a build has made an image without a name on the way to another: that has its layers and
/// its history, and more.
fn is_step_of(image: &Image, other: &Image) -> bool {
    let layers = |image: &Image| image.config.rootfs().diff_ids().clone();
    let history = |image: &Image| image.config.history().clone().unwrap_or_default();
    let (own, others) = (history(image), history(other));
    image.names.is_empty()
        && !own.is_empty()
        && others.len() > own.len()
        && others.starts_with(&own)
        && layers(other).starts_with(&layers(image))
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

pub const FILTERS: &[&str] = &[
    "after",
    "before",
    "containers",
    "dangling",
    "id",
    "label",
    "reference",
    "since",
    "until",
];

/// Whether an image has the value of a filter.
pub fn has(
    image: &Image,
    filter: &Filter,
    store: &ImageStore,
    engine: &Engine,
) -> Result<bool, Failure> {
    let value = &filter.value;
    Ok(match &*filter.key {
        "after" | "since" => image.created() > store.find(value)?.0.created(),
        "before" => image.created() < store.find(value)?.0.created(),
        "containers" => engine.containers_of(&image.id)?.is_empty() != truth(filter)?,
        "dangling" => image.names.is_empty() == truth(filter)?,
        "id" => image
            .id
            .hex()
            .starts_with(value.trim_start_matches("sha256:")),
        "label" => has_label(image.run_config().labels().iter().flatten(), value),
        "reference" => {
            let pattern = glob(filter)?;
            image.names.iter().any(|name| {
                let (whole, repository) = (name.to_string(), name.name());
                let last = |text: &str| text.rsplit('/').next().map(str::to_owned);
                let short = [last(&whole), last(&repository)].into_iter().flatten();
                let path = name.repository().to_owned();
                let tagged = name.tag().map(|tag| format!("{path}:{tag}"));
                let candidates = [whole, repository, path].into_iter().chain(tagged);
                candidates.chain(short).any(|text| pattern.is_match(&text))
            })
        }
        "until" => image.created() < moment(filter)?,
        other => unreachable!("{other} is not among those that were checked"),
    })
}

fn sort(lines: &mut [Line], order: ImageOrder) {
    let repository = |line: &Line| line.name.as_ref().map(ImageRef::name).unwrap_or_default();
    let tag = |line: &Line| {
        let tag = line.name.as_ref().and_then(ImageRef::tag);
        tag.unwrap_or_default().to_owned()
    };
    match order {
        // As the store lists them.
        ImageOrder::Created => {}
        ImageOrder::Id => lines.sort_by(|one, other| one.image.id.cmp(&other.image.id)),
        ImageOrder::Repository => lines.sort_by_key(repository),
        ImageOrder::Size => lines.sort_by_key(|line| line.size),
        ImageOrder::Tag => lines.sort_by_key(tag),
    }
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

    fn cells(&self, whole: bool) -> [String; 6] {
        const NONE: &str = "<none>";
        let name = self.name.as_ref();
        [
            name.map_or_else(|| NONE.to_owned(), ImageRef::name),
            name.and_then(ImageRef::tag).unwrap_or(NONE).to_owned(),
            self.image.manifest_digest.to_string(),
            self.id(whole),
            human::ago(self.image.created()),
            human::size(self.size),
        ]
    }

    fn json(&self, containers: &[Container]) -> JsonRow {
        let image = &self.image;
        let created = image.created();
        let labels = image.run_config().labels().clone().unwrap_or_default();
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        let is_its = |container: &&Container| is_of(container, &image.id);
        JsonRow {
            id: image.id.hex().to_owned(),
            parent_id: String::new(),
            repo_tags: names.clone(),
            repo_digests: repo_digests(image),
            size: self.size,
            shared_size: 0,
            virtual_size: self.size,
            labels: labels.into_iter().collect(),
            containers: containers.iter().filter(is_its).count(),
            names,
            digest: image.manifest_digest.to_string(),
            created,
            created_at: Timestamp::from_second(created)
                .map_or_else(|_| String::new(), |at| at.to_string()),
        }
    }
}

/// The image's names by digest.
pub fn repo_digests(image: &Image) -> Vec<String> {
    let digest = &image.manifest_digest;
    let at_digest = |name: &ImageRef| format!("{}@{digest}", name.name());
    let mut digests: Vec<_> = image.names.iter().map(at_digest).collect();
    digests.sort();
    digests.dedup();
    digests
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

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 16] = [
    ("ID", "IMAGE ID"),
    ("Id", "IMAGE ID"),
    ("ParentId", "PARENT ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("Created", "CREATED"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "VIRTUAL SIZE"),
    ("Labels", "LABELS"),
    ("Containers", "CONTAINERS"),
    ("Names", "NAMES"),
    ("RepoTags", "REPO TAGS"),
    ("RepoDigests", "REPO DIGESTS"),
];

fn rows(lines: &[Line], engine: &Engine) -> Result<Vec<JsonRow>, Failure> {
    let containers = engine.list()?.containers;
    Ok(lines.iter().map(|line| line.json(&containers)).collect())
}

fn fields(lines: &[Line], args: &ImagesArgs, engine: &Engine) -> Result<Vec<Value>, Failure> {
    let fields = |(line, row): (&Line, JsonRow)| {
        let [repository, tag, digest, id, since, size] = line.cells(args.no_trunc);
        json!({
            "ID": id, "Id": row.id, "ParentId": row.parent_id, "Repository": repository,
            "Tag": tag, "Digest": digest, "Created": since, "CreatedSince": since,
            "CreatedAt": human::moment(row.created), "Size": size, "VirtualSize": size,
            "Labels": row.labels, "Containers": row.containers, "Names": row.names,
            "RepoTags": row.repo_tags, "RepoDigests": row.repo_digests,
        })
    };
    Ok(lines.iter().zip(rows(lines, engine)?).map(fields).collect())
}

/// Podman's columns are 12 wide, with what is between them.
pub const WIDTH_MIN: usize = 10;

fn to_table(lines: &[Line], args: &ImagesArgs) -> String {
    let header = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
    let cells = |line: &Line| line.cells(args.no_trunc).map(|cell| escape(&cell));
    let rows: Vec<_> = lines.iter().map(cells).collect();
    let heads = !args.noheading;
    match args.digests {
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
    }
}
