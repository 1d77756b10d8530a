//! `coracle secret`: what containers may read, and nothing else keeps.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::filter::{admits, check, pattern};
use super::rows::{inspect_template, print_filled, print_json, print_list};
use super::table::table;
use super::{exists, for_each, human, open_engine, print_line};
use crate::cli::{
    Filter, SecretCommand, SecretCreateArgs, SecretInspectArgs, SecretLsArgs, SecretRmArgs,
};
use crate::engine::{Content, Engine, EngineError, ErrorKind, Secret};
use crate::failure::Failure;
use crate::printable::escape;

pub fn secret(command: SecretCommand) -> Result<u8, Failure> {
    let engine = open_engine()?;
    match command {
        SecretCommand::Create(args) => create(args, &engine),
        SecretCommand::Exists(args) => exists(find(&engine, &args.name), ErrorKind::NoSuchSecret),
        SecretCommand::Inspect(args) => inspect(&args, &engine),
        SecretCommand::Ls(args) => ls(&args, &engine),
        SecretCommand::Rm(args) => rm(&args, &engine),
    }
}

fn find(engine: &Engine, name: &str) -> Result<Secret, EngineError> {
    Ok(engine.secrets().find(name)?)
}

fn create(args: SecretCreateArgs, engine: &Engine) -> Result<u8, Failure> {
    let content = Content::new(read(&args.source, args.env)?)?;
    let labels = args.labels.into_iter().collect();
    let secrets = engine.secrets();
    let secret = secrets.create(&args.name, content, labels, args.replace)?;
    print_line(&secret.id)?;
    Ok(0)
}

fn read(source: &OsStr, is_variable: bool) -> Result<Vec<u8>, Failure> {
    let shown = source.display();
    if is_variable {
        let value = std::env::var_os(source);
        let value = value.ok_or_else(|| {
            Failure::runner(format!("the environment variable {shown} is not set"))
        })?;
        return Ok(value.into_vec());
    }
    let input: Box<dyn Read> = match source == "-" {
        true => Box::new(io::stdin().lock()),
        false => {
            let file = File::open(Path::new(source));
            Box::new(file.map_err(Failure::context(format!("cannot open {shown}")))?)
        }
    };
    let mut bytes = Vec::new();
    // One more than there may be is enough to be refused.
    let read = input.take(Content::LEN_MAX as u64).read_to_end(&mut bytes);
    read.map_err(Failure::context(format!("cannot read {shown}")))?;
    Ok(bytes)
}

fn rm(args: &SecretRmArgs, engine: &Engine) -> Result<u8, Failure> {
    let secrets = engine.secrets();
    let names = match args.all {
        false => args.names.clone(),
        true => secrets
            .list()?
            .into_iter()
            .map(|secret| secret.name)
            .collect(),
    };
    for_each(&names, |name| {
        let secret = secrets.find(name)?;
        secrets.remove(&secret)?;
        print_line(&secret.id)
    })
}

fn has(secret: &Secret, filter: &Filter) -> Result<bool, Failure> {
    Ok(match &*filter.key {
        "id" => secret.id.starts_with(&filter.value),
        "name" => pattern(filter)?.is_match(&secret.name),
        other => unreachable!("{other} is not among those that were checked"),
    })
}

fn ls(args: &SecretLsArgs, engine: &Engine) -> Result<u8, Failure> {
    check(&args.filters, "secret ls", &["id", "name"])?;
    let mut secrets = Vec::new();
    for secret in engine.secrets().list()? {
        if admits(&args.filters, |filter| has(&secret, filter))? {
            secrets.push(secret);
        }
    }
    if args.quiet {
        secrets
            .iter()
            .try_for_each(|secret| print_line(&secret.id))?;
        return Ok(0);
    }
    let heads = !args.noheading;
    print_list(
        args.format.as_ref(),
        heads,
        &HEADERS,
        || Ok(secrets.iter().map(Seen::from).collect::<Vec<_>>()),
        || Ok(secrets.iter().map(fields).collect()),
        || {
            let row = |secret: &Secret| {
                let (created, updated) = (signed(secret.created), signed(secret.updated));
                [
                    secret.id.clone(),
                    escape(&secret.name),
                    DRIVER.to_owned(),
                    human::ago(created),
                    human::ago(updated),
                ]
            };
            let rows: Vec<_> = secrets.iter().map(row).collect();
            let header = ["ID", "NAME", "DRIVER", "CREATED", "UPDATED"];
            table(heads.then_some(header), &rows, WIDTH_MIN)
        },
    )?;
    Ok(0)
}

/// As wide as Podman's columns are at least.
const WIDTH_MIN: usize = 10;

fn inspect(args: &SecretInspectArgs, engine: &Engine) -> Result<u8, Failure> {
    let mut found = Vec::new();
    // What is there is shown, whatever is not.
    let outcome = for_each(&args.names, |name| {
        found.push(find(engine, name)?);
        Ok(())
    });
    if args.pretty {
        found.iter().try_for_each(print_pretty)?;
        return outcome;
    }
    let seen: Vec<_> = found.iter().map(Seen::from).collect();
    match inspect_template(args.format.as_ref(), "{{.Spec.Name}}")? {
        None => print_json(&seen)?,
        Some(template) => {
            for secret in &seen {
                print_filled(&template.fill(secret)?)?;
            }
        }
    }
    outcome
}

fn print_pretty(secret: &Secret) -> Result<(), Failure> {
    let mut lines = vec![
        format!("ID:              {}", secret.id),
        format!("Name:            {}", secret.name),
        "Labels:".to_owned(),
    ];
    let labels = secret.labels.iter();
    lines.extend(labels.map(|(key, value)| format!(" - {}={}", escape(key), escape(value))));
    lines.push(format!("Driver:          {DRIVER}"));
    for (what, when) in [("Created", secret.created), ("Updated", secret.updated)] {
        lines.push(format!("{what} at:      {}", human::moment(signed(when))));
    }
    print_line(&lines.join("\n"))
}

/// With the names of Podman's fields.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Seen<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    created_at: String,
    updated_at: String,
    spec: Spec<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec<'a> {
    name: &'a str,
    driver: Driver,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: &'static str,
    options: BTreeMap<String, String>,
}

/// Podman's word for files of the user's own.
const DRIVER: &str = "file";

impl<'a> From<&'a Secret> for Seen<'a> {
    fn from(secret: &'a Secret) -> Self {
        let time = |seconds| {
            let time = Timestamp::from_second(signed(seconds)).unwrap_or_default();
            time.to_string()
        };
        Self {
            id: &secret.id,
            created_at: time(secret.created),
            updated_at: time(secret.updated),
            spec: Spec {
                name: &secret.name,
                driver: Driver {
                    name: DRIVER,
                    options: BTreeMap::new(),
                },
                labels: &secret.labels,
            },
        }
    }
}

fn signed(seconds: u64) -> i64 {
    human::signed(seconds)
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 6] = [
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("CreatedAt", "CREATED"),
    ("UpdatedAt", "UPDATED"),
    ("Labels", "LABELS"),
];

fn fields(secret: &Secret) -> Value {
    json!({
        "ID": secret.id, "Name": secret.name, "Driver": DRIVER,
        "CreatedAt": human::ago(signed(secret.created)),
        "UpdatedAt": human::ago(signed(secret.updated)), "Labels": secret.labels,
    })
}
