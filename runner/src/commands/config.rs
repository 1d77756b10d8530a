//! `coracle config`: how the image of a working container is to be run.

use std::collections::BTreeMap;

use super::workshop::Workshop;
use crate::build::config::{Empty, Healthcheck, RunConfig, json_list, port};
use crate::build::words::words;
use crate::cli::ConfigArgs;
use crate::failure::Failure;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;
use crate::signal::Signal;

pub fn config(args: ConfigArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    let container = workshop.find(&args.container)?;
    // All is read before anything is changed.
    let mut config = container.config.config.clone();
    change(&mut config, &args).map_err(Failure::runner)?;
    if args.entrypoint.is_some() && args.cmd.is_none() && !config.cmd.is_empty() {
        warn(
            "the command stays as it is, and is handed to the new entry point: --cmd '' takes it away",
        );
    }
    workshop.working.modify(&container.id, |container| {
        container.config.config = config;
        let set = |to: &mut Option<String>, from: &Option<String>| {
            if let Some(text) = from {
                *to = Some(text.clone()).filter(|text| !text.is_empty());
            }
        };
        set(&mut container.config.author, &args.author);
        set(&mut container.created_by, &args.created_by);
        set(&mut container.comment, &args.history_comment);
    })?;
    Ok(0)
}

fn change(config: &mut RunConfig, args: &ConfigArgs) -> Result<(), String> {
    if let Some(cmd) = &args.cmd {
        config.cmd = words_or_list("--cmd", cmd)?;
    }
    if let Some(entrypoint) = &args.entrypoint {
        config.entrypoint = line_or_list(entrypoint);
    }
    for entry in &args.env {
        match change_of("--env", entry)? {
            Change::ClearAll => config.env.clear(),
            Change::Remove(name) => config.remove_env(name),
            Change::Set(name, Some(value)) => config.set_env(name, value),
            // The caller's, as with `run`.
            Change::Set(name, None) => {
                if let Ok(value) = std::env::var(name) {
                    config.set_env(name, &value);
                }
            }
        }
    }
    for entry in &args.label {
        match change_of("--label", entry)? {
            Change::ClearAll => config.labels.clear(),
            Change::Remove(key) => drop(config.labels.remove(key)),
            Change::Set(key, value) => {
                let value = value.unwrap_or_default();
                config.labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    change_set(&mut config.exposed_ports, &args.port, |text| {
        port(text).map_err(|expected| format!("--port {text}: {expected}"))
    })?;
    change_set(
        &mut config.volumes,
        &args.volume,
        |text| Ok(text.to_owned()),
    )?;
    if let Some(user) = &args.user {
        config.user.clone_from(user);
    }
    if let Some(dir) = &args.workingdir {
        config.working_dir.clone_from(dir);
    }
    if let Some(signal) = &args.stop_signal {
        if !signal.is_empty() {
            let read = signal.parse::<Signal>();
            read.map_err(|error| format!("--stop-signal {signal}: {error}"))?;
        }
        config.stop_signal.clone_from(signal);
    }
    if let Some(shell) = &args.shell {
        config.shell = words_or_list("--shell", shell)?;
    }
    for instruction in &args.onbuild {
        match &**instruction {
            "-" => config.on_build.clear(),
            instruction => config.on_build.push(instruction.to_owned()),
        }
    }
    change_healthcheck(config, args);
    Ok(())
}

fn change_healthcheck(config: &mut RunConfig, args: &ConfigArgs) {
    let says_how = [
        args.healthcheck_interval,
        args.healthcheck_timeout,
        args.healthcheck_start_period,
        args.healthcheck_retries,
    ];
    if args.healthcheck.as_deref() == Some("") {
        config.healthcheck = None;
        return;
    }
    if args.healthcheck.is_none() && says_how == [None; 4] {
        return;
    }
    let check = config.healthcheck.get_or_insert_with(Healthcheck::default);
    if let Some(command) = &args.healthcheck {
        let mut test = match json_list(command) {
            Some(list) => list,
            None if command == "NONE" => vec!["NONE".to_owned()],
            None => vec!["CMD-SHELL".to_owned(), command.clone()],
        };
        let is_named = test
            .first()
            .is_some_and(|first| matches!(&**first, "NONE" | "CMD" | "CMD-SHELL"));
        if !is_named {
            test.insert(0, "CMD".to_owned());
        }
        check.test = test;
    }
    let [interval, timeout, start_period, retries] = says_how;
    check.interval = interval.unwrap_or(check.interval);
    check.timeout = timeout.unwrap_or(check.timeout);
    check.start_period = start_period.unwrap_or(check.start_period);
    check.retries = retries.unwrap_or(check.retries);
}

/// A list in JSON, or words.
fn words_or_list(option: &str, text: &str) -> Result<Vec<String>, String> {
    match json_list(text) {
        Some(list) => Ok(list),
        None => words(text).map_err(|error| format!("{option} {text:?}: {error}")),
    }
}

/// A list in JSON, or a line for a shell.
fn line_or_list(text: &str) -> Vec<String> {
    match json_list(text) {
        Some(list) => list,
        None if text.is_empty() => Vec::new(),
        None => ["/bin/sh", "-c", text].map(str::to_owned).into(),
    }
}

/// What a value does to a list of names.
enum Change<'a> {
    ClearAll,
    Remove(&'a str),
    Set(&'a str, Option<&'a str>),
}

fn change_of<'a>(option: &str, text: &'a str) -> Result<Change<'a>, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    Ok(match (name, value) {
        ("-", None) => Change::ClearAll,
        ("", _) => return Err(format!("{option} {text:?} has no name")),
        (name, None) if name.ends_with('-') => Change::Remove(&name[..name.len() - 1]),
        (name, value) => Change::Set(name, value),
    })
}

fn change_set(
    set: &mut BTreeMap<String, Empty>,
    values: &[String],
    read: impl Fn(&str) -> Result<String, String>,
) -> Result<(), String> {
    for value in values {
        match (&**value, value.strip_suffix('-')) {
            ("-", _) => set.clear(),
            (_, Some(gone)) => drop(set.remove(&read(gone)?)),
            (value, None) => drop(set.insert(read(value)?, Empty {})),
        }
    }
    Ok(())
}
