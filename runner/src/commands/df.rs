//! `coracle system df` and `coracle system prune`: what takes room, and taking away what nobody
//! needs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::filter::{admits, check, has_label, moment};
use super::prune::{confirm, prune_images};
use super::rows::print_list;
use super::table::table;
use super::{human, images, network, open_engine, print_line, volume};
use crate::cli::{DfArgs, SystemPruneArgs};
use crate::engine::{Engine, ErrorKind, Image, ImageRef, Part, is_of};
use crate::failure::Failure;
use crate::printable::escape;
use crate::state::Container;

pub fn df(args: &DfArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let usage = Usage::look(&engine)?;
    if args.verbose {
        usage.print_verbose()?;
        return Ok(0);
    }
    let kinds = usage.kinds();
    print_list(
        args.format.as_ref(),
        true,
        &HEADERS,
        || Ok(&kinds),
        || Ok(fields(&kinds)),
        || {
            let header = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
            let rows = kinds.each_ref().map(Kind::row);
            table(Some(header), &rows, images::WIDTH_MIN)
        },
    )?;
    Ok(0)
}

pub fn prune(args: &SystemPruneArgs) -> Result<u8, Failure> {
    check(&args.filters, "system prune", &["label", "until"])?;
    let engine = open_engine()?;
    let mut warning = "This command removes:\n\t- all stopped containers\n\t- all networks not used by at least one container\n".to_owned();
    if args.volumes {
        warning += "\t- all volumes not used by at least one container\n";
    }
    warning += match args.all {
        true => "\t- all images without at least one container associated with them\n",
        false => "\t- all dangling images\n",
    };
    if !args.force && !confirm(&warning)? {
        return Ok(0);
    }
    let before = Usage::look(&engine)?.total();
    let mut containers = Vec::new();
    for container in engine.list()?.containers {
        let is_meant = admits(&args.filters, |filter| {
            Ok(match &*filter.key {
                "label" => has_label(container.labels.iter(), &filter.value),
                _ => human::signed(container.created) < moment(filter)?,
            })
        })?;
        if !is_meant || !container.status.can_remove() {
            continue;
        }
        // Its volumes stay, unless they are asked for.
        match engine.remove(container.id.as_str(), false) {
            Ok(_) => containers.push(container.id.to_string()),
            Err(error) if error.kind() == ErrorKind::StillRunning => {}
            Err(error) => return Err(error.into()),
        }
    }
    print_deleted("Containers", &containers)?;
    if args.volumes {
        let mut volumes = Vec::new();
        for name in volume::unused(&engine, &args.filters)? {
            if volume::remove_unused(&engine, &name)? {
                volumes.push(name);
            }
        }
        print_deleted("Volumes", &volumes)?;
    }
    print_deleted("Networks", &network::prune_unused(&engine, &args.filters)?)?;
    let gone = prune_images(&engine, args.all, &args.filters)?;
    let gone: Vec<_> = gone.iter().map(|image| image.id.hex().to_owned()).collect();
    print_deleted("Images", &gone)?;
    engine.images()?.sweep()?;
    let after = Usage::look(&engine)?.total();
    let reclaimed = human::size(before.saturating_sub(after));
    print_line(&format!("Total reclaimed space: {reclaimed}"))?;
    Ok(0)
}

fn print_deleted(what: &str, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    print_line(&format!("Deleted {what}"))?;
    names.iter().try_for_each(|name| print_line(name))
}

/// What takes room.
struct Usage {
    images: Vec<(Image, usize)>,
    /// The bytes of each, and whether a container needs it.
    parts: BTreeMap<Part, (u64, bool)>,
    containers: Vec<(Container, u64)>,
    /// With the number of containers that use it.
    volumes: Vec<(String, usize, u64)>,
}

impl Usage {
    fn look(engine: &Engine) -> Result<Self, Failure> {
        let store = engine.images()?;
        let mut parts: BTreeMap<Part, (u64, bool)> = BTreeMap::new();
        let mut images = Vec::new();
        let all = engine.list()?.containers;
        for image in store.list()? {
            let users = all.iter().filter(|one| is_of(one, &image.id)).count();
            for (name, size) in store.parts(&image) {
                let part = parts.entry(name).or_insert((size, false));
                part.1 |= users > 0;
            }
            images.push((image, users));
        }
        let mut containers = Vec::new();
        for container in all {
            let size = engine.size(&container)?;
            containers.push((container, size));
        }
        let mut volumes = Vec::new();
        let users = engine.volume_users();
        for volume in engine.volumes().list()? {
            let count = users.get(&volume.name).map_or(0, Vec::len);
            volumes.push((volume.name.clone(), count, engine.volume_size(&volume)?));
        }
        Ok(Self {
            images,
            parts,
            containers,
            volumes,
        })
    }

    fn kinds(&self) -> [Kind; 3] {
        let unneeded = self.parts.values().filter(|(_, is_needed)| !is_needed);
        let is_running = |container: &Container| container.status.can_kill();
        let stopped = self.containers.iter();
        let stopped = stopped.filter(|(container, _)| !is_running(container));
        let unused = self.volumes.iter().filter(|(_, users, _)| *users == 0);
        [
            Kind {
                r#type: "Images",
                total: self.images.len(),
                active: self.images.iter().filter(|(_, users)| *users > 0).count(),
                size: self.parts.values().map(|(size, _)| size).sum(),
                reclaimable: unneeded.map(|(size, _)| size).sum(),
            },
            Kind {
                r#type: "Containers",
                total: self.containers.len(),
                active: self
                    .containers
                    .iter()
                    .filter(|(c, _)| is_running(c))
                    .count(),
                size: self.containers.iter().map(|(_, size)| size).sum(),
                reclaimable: stopped.map(|(_, size)| size).sum(),
            },
            Kind {
                r#type: "Local Volumes",
                total: self.volumes.len(),
                active: self
                    .volumes
                    .iter()
                    .filter(|(_, users, _)| *users > 0)
                    .count(),
                size: self.volumes.iter().map(|(_, _, size)| size).sum(),
                reclaimable: unused.map(|(_, _, size)| size).sum(),
            },
        ]
    }

    fn total(&self) -> u64 {
        self.kinds().iter().map(|kind| kind.size).sum()
    }

    fn print_verbose(&self) -> Result<(), Failure> {
        let print = |text: String| text.lines().try_for_each(print_line);
        print_line("Images space usage:\n")?;
        let rows: Vec<_> = self
            .images
            .iter()
            .map(|(image, users)| self.row(image, *users))
            .collect();
        let header = [
            "REPOSITORY",
            "TAG",
            "IMAGE ID",
            "CREATED",
            "SIZE",
            "SHARED SIZE",
            "UNIQUE SIZE",
            "CONTAINERS",
        ];
        print(table(Some(header), &rows, images::WIDTH_MIN))?;
        print_line("\nContainers space usage:\n")?;
        let row = |(container, size): &(Container, u64)| {
            [
                container.id.short().to_owned(),
                escape(&container.image),
                human::size(*size),
                human::ago(human::signed(container.created)),
                container.status.to_string(),
                escape(&container.name),
            ]
        };
        let rows: Vec<_> = self.containers.iter().map(row).collect();
        let header = [
            "CONTAINER ID",
            "IMAGE",
            "SIZE",
            "CREATED",
            "STATUS",
            "NAMES",
        ];
        print(table(Some(header), &rows, images::WIDTH_MIN))?;
        print_line("\nLocal Volumes space usage:\n")?;
        let row = |(name, users, size): &(String, usize, u64)| {
            [escape(name), users.to_string(), human::size(*size)]
        };
        let rows: Vec<_> = self.volumes.iter().map(row).collect();
        print(table(
            Some(["VOLUME NAME", "LINKS", "SIZE"]),
            &rows,
            images::WIDTH_MIN,
        ))
    }

    /// Of `system df -v`.
    fn row(&self, image: &Image, users: usize) -> [String; 8] {
        const NONE: &str = "<none>";
        let own: Vec<_> = image
            .layers()
            .into_iter()
            .map(|layer| layer.chain)
            .collect();
        let others = self.images.iter().filter(|(other, _)| other.id != image.id);
        let others: Vec<_> = others
            .flat_map(|(other, _)| other.layers())
            .map(|layer| layer.chain)
            .collect();
        let (mut shared, mut unique) = (0, 0);
        for chain in own {
            let part = self.parts.get(&Part::Layer(chain.clone()));
            let size = part.map_or(0, |(size, _)| *size);
            match others.contains(&chain) {
                true => shared += size,
                false => unique += size,
            }
        }
        let name = image.names.first();
        [
            name.map_or_else(|| NONE.to_owned(), ImageRef::name),
            name.and_then(ImageRef::tag).unwrap_or(NONE).to_owned(),
            image.id.short().to_owned(),
            human::ago(image.created()),
            human::size(shared + unique),
            human::size(shared),
            human::size(unique),
            users.to_string(),
        ]
    }
}

/// A line of `system df`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kind {
    r#type: &'static str,
    total: usize,
    active: usize,
    /// Bytes.
    size: u64,
    /// Bytes that go when what is not active goes.
    reclaimable: u64,
}

impl Kind {
    fn row(&self) -> [String; 5] {
        [
            self.r#type.to_owned(),
            self.total.to_string(),
            self.active.to_string(),
            human::size(self.size),
            self.reclaimable(),
        ]
    }

    fn reclaimable(&self) -> String {
        let percent = match self.size {
            0 => 0,
            size => self.reclaimable * 100 / size,
        };
        format!("{} ({percent}%)", human::size(self.reclaimable))
    }
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("Total", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

fn fields(kinds: &[Kind]) -> Vec<Value> {
    let fields = |kind: &Kind| {
        json!({
            "Type": kind.r#type, "Total": kind.total, "Active": kind.active,
            "Size": human::size(kind.size), "Reclaimable": kind.reclaimable(),
        })
    };
    kinds.iter().map(fields).collect()
}
