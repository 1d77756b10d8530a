//! `coracle volume`: volumes by their names.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::ops::Deref;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::filter::{admits, check, has_label, moment, pattern, truth};
use super::prune::confirm;
use super::rows::{inspect_template, print_filled, print_json, print_list};
use super::table::table;
use super::{exists, for_each, human, images, open_engine, print_line};
use crate::cli::{
    Filter, VolumeCommand, VolumeCreateArgs, VolumeInspectArgs, VolumeLsArgs, VolumePruneArgs,
    VolumeRmArgs,
};
use crate::engine::{Engine, EngineError, ErrorKind, Volume, VolumeUsers};
use crate::failure::Failure;
use crate::isolation::idmap::IdMaps;
use crate::printable::escape;

pub fn volume(command: VolumeCommand) -> Result<u8, Failure> {
    let engine = open_engine()?;
    match command {
        VolumeCommand::Create(args) => create(args, &engine),
        VolumeCommand::Exists(args) => exists(find(&engine, &args.name), ErrorKind::NoSuchVolume),
        VolumeCommand::Inspect(args) => inspect(&args, &engine),
        VolumeCommand::Ls(args) => ls(&args, &engine),
        VolumeCommand::Prune(args) => prune(&args, &engine),
        VolumeCommand::Rm(args) => rm(&args, &engine),
    }
}

fn find(engine: &Engine, name: &str) -> Result<Volume, EngineError> {
    Ok(engine.volumes().find(name)?)
}

fn create(args: VolumeCreateArgs, engine: &Engine) -> Result<u8, Failure> {
    let (maps, _) = IdMaps::discover(false)?;
    let labels = args.labels.into_iter().collect();
    let volume = engine
        .volumes()
        .create(args.name.as_deref(), labels, &maps)?;
    print_line(&volume.name)?;
    Ok(0)
}

fn rm(args: &VolumeRmArgs, engine: &Engine) -> Result<u8, Failure> {
    let names = match args.all {
        false => args.names.clone(),
        true => {
            let all = engine.volumes().list()?;
            all.into_iter().map(|volume| volume.name).collect()
        }
    };
    for_each(&names, |name| {
        engine.remove_volume(name, args.force)?;
        print_line(name)
    })
}

fn prune(args: &VolumePruneArgs, engine: &Engine) -> Result<u8, Failure> {
    check(&args.filters, "volume prune", &["label", "name", "until"])?;
    let unused = unused(engine, &args.filters)?;
    if unused.is_empty() {
        return Ok(0);
    }
    let warning = format!(
        "This will remove all volumes not used by at least one container. The following volumes will be removed:\n{}",
        unused.join("\n")
    );
    if args.force || confirm(&warning)? {
        for name in unused {
            if remove_unused(engine, &name)? {
                print_line(&name)?;
            }
        }
    }
    Ok(0)
}

/// The names of the volumes that no container uses, as far as the filters admit them.
pub fn unused(engine: &Engine, filters: &[Filter]) -> Result<Vec<String>, Failure> {
    let users = LazyCell::new(|| engine.volume_users());
    let mut unused = Vec::new();
    for volume in engine.volumes().list()? {
        let is_meant = admits(filters, |filter| has(&volume, filter, &users))?;
        if is_meant && !users.contains_key(&volume.name) {
            unused.push(volume.name);
        }
    }
    Ok(unused)
}

/// Returns whether it has removed the volume: somebody may have begun to use it, or was faster.
pub fn remove_unused(engine: &Engine, name: &str) -> Result<bool, Failure> {
    match engine.remove_volume(name, false) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::VolumeInUse | ErrorKind::NoSuchVolume
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a volume has the value of a filter.
fn has(
    volume: &Volume,
    filter: &Filter,
    users: &impl Deref<Target = VolumeUsers>,
) -> Result<bool, Failure> {
    Ok(match &*filter.key {
        "dangling" => users.contains_key(&volume.name) != truth(filter)?,
        "label" => has_label(volume.kept.labels.iter(), &filter.value),
        "name" => pattern(filter)?.is_match(&volume.name),
        "until" => created(volume) < moment(filter)?,
        other => unreachable!("{other} is not among those that were checked"),
    })
}

fn ls(args: &VolumeLsArgs, engine: &Engine) -> Result<u8, Failure> {
    check(
        &args.filters,
        "volume ls",
        &["dangling", "label", "name", "until"],
    )?;
    // Only some filters need them.
    let users = LazyCell::new(|| engine.volume_users());
    let mut volumes = Vec::new();
    for volume in engine.volumes().list()? {
        if admits(&args.filters, |filter| has(&volume, filter, &users))? {
            volumes.push(volume);
        }
    }
    if args.quiet {
        volumes
            .iter()
            .try_for_each(|volume| print_line(&volume.name))?;
        return Ok(0);
    }
    let heads = !args.noheading;
    print_list(
        args.format.as_ref(),
        heads,
        &HEADERS,
        || Ok(seen(&volumes)),
        || Ok(fields(&volumes)),
        || {
            let row = |volume: &Volume| ["local".to_owned(), escape(&volume.name)];
            let rows: Vec<_> = volumes.iter().map(row).collect();
            let header = heads.then_some(["DRIVER", "VOLUME NAME"]);
            table(header, &rows, images::WIDTH_MIN)
        },
    )?;
    Ok(0)
}

fn inspect(args: &VolumeInspectArgs, engine: &Engine) -> Result<u8, Failure> {
    let mut found = match args.all {
        true => engine.volumes().list()?,
        false => Vec::new(),
    };
    let names = if args.all { &[][..] } else { &args.names };
    // What is there is shown, whatever is not.
    let outcome = for_each(names, |name| {
        found.push(find(engine, name)?);
        Ok(())
    });
    match inspect_template(args.format.as_ref(), "{{.Name}}")? {
        None => print_json(&seen(&found))?,
        Some(template) => {
            for volume in &found {
                print_filled(&template.fill(&Seen::from(volume))?)?;
            }
        }
    }
    outcome
}

fn seen(volumes: &[Volume]) -> Vec<Seen<'_>> {
    volumes.iter().map(Seen::from).collect()
}

/// With the names of Podman's fields.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Seen<'a> {
    name: &'a str,
    driver: &'static str,
    mountpoint: String,
    created_at: String,
    labels: &'a BTreeMap<String, String>,
    scope: &'static str,
    options: BTreeMap<String, String>,
    anonymous: bool,
}

impl<'a> From<&'a Volume> for Seen<'a> {
    fn from(volume: &'a Volume) -> Self {
        let created = Timestamp::from_second(created(volume)).unwrap_or_default();
        Self {
            name: &volume.name,
            driver: "local",
            mountpoint: volume.data.display().to_string(),
            created_at: created.to_string(),
            labels: &volume.kept.labels,
            scope: "local",
            options: BTreeMap::new(),
            anonymous: volume.kept.anonymous,
        }
    }
}

fn created(volume: &Volume) -> i64 {
    human::signed(volume.kept.created)
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 8] = [
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Mountpoint", "MOUNTPOINT"),
    ("CreatedAt", "CREATED AT"),
    ("Labels", "LABELS"),
    ("Scope", "SCOPE"),
    ("Options", "OPTIONS"),
    ("Anonymous", "ANONYMOUS"),
];

fn fields(volumes: &[Volume]) -> Vec<Value> {
    let fields = |volume: &Volume| {
        let seen = Seen::from(volume);
        json!({
            "Name": seen.name, "Driver": seen.driver, "Mountpoint": seen.mountpoint,
            "CreatedAt": human::moment(created(volume)), "Labels": seen.labels,
            "Scope": seen.scope, "Options": seen.options, "Anonymous": seen.anonymous,
        })
    };
    volumes.iter().map(fields).collect()
}
