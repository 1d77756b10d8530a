//! `coracle info` and `coracle version`: what this host allows, what coracle keeps on it, and which
//! coracle it is. The names of fields are Podman's, as far as there is such a thing.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value, json};

use super::rows::{print_filled, print_json};
use super::{open_engine, print_line};
use crate::cli::FormatArgs;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::host::{Cgroups, Finding, Host};
use crate::isolation::idmap::{Extent, IdMaps, is_host_root};
use crate::printable::escape;
use crate::state::Status;
use crate::template::{Format, Template};

pub fn info(args: &FormatArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let host = Host::default();
    let (maps, single) =
        IdMaps::discover(false).map_err(Failure::context("cannot see which IDs containers get"))?;
    let findings = host.findings(&maps, single.as_ref());
    let told = json!({
        "host": of_host(&host, &maps),
        "store": of_store(&engine)?,
        "version": own_version(),
        "findings": findings,
    });
    print(args, &told, || {
        let mut shown = told.clone();
        if let Some(shown) = shown.as_object_mut() {
            shown.remove("findings");
        }
        lines(&shown, 0) + &allowances(&findings)
    })
}

pub fn version(args: &FormatArgs) -> Result<u8, Failure> {
    let told = json!({ "Client": own_version() });
    print(args, &told, || {
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "Client:       coracle\nVersion:      {version}\nOS/Arch:      {}\n",
            os_arch()
        )
    })
}

fn print(args: &FormatArgs, told: &Value, text: impl FnOnce() -> String) -> Result<u8, Failure> {
    match &args.format {
        Some(Format::Json) => print_json(told)?,
        Some(Format::Template(template) | Format::Table(Some(template))) => {
            print_filled(&Template::parse(template)?.fill(&capitalized(told))?)?;
        }
        Some(Format::Table(None)) | None => text().lines().try_for_each(print_line)?,
    }
    Ok(0)
}

fn own_version() -> Value {
    json!({ "Version": env!("CARGO_PKG_VERSION"), "Os": "linux", "OsArch": os_arch() })
}

fn os_arch() -> String {
    format!("linux/{}", arch())
}

/// As Go calls it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn of_host(host: &Host, maps: &IdMaps) -> Value {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    let memory = memory();
    let of_memory = |name: &str| memory.get(name).copied().unwrap_or_default();
    let mapping = |extents: &[Extent]| -> Value {
        let one = |extent: &Extent| json!({ "container_id": extent.inside, "host_id": extent.outside, "size": extent.count });
        extents.iter().map(one).collect()
    };
    json!({
        "arch": arch(),
        "cgroupVersion": match host.cgroups() {
            Cgroups::V2 => "v2",
            Cgroups::V1 | Cgroups::Hybrid => "v1",
            Cgroups::None => "",
        },
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "distribution": distribution(),
        "hostname": text(names.nodename()),
        "idMappings": { "gidmap": mapping(maps.gids()), "uidmap": mapping(maps.uids()) },
        "kernel": text(names.release()),
        "memFree": of_memory("MemFree"),
        "memTotal": of_memory("MemTotal"),
        "os": "linux",
        "security": {
            "apparmorEnabled": host.has_module("apparmor"),
            "rootless": !is_host_root(),
            "seccompEnabled": true,
            "selinuxEnabled": host.has_module("selinux"),
        },
        "swapFree": of_memory("SwapFree"),
        "swapTotal": of_memory("SwapTotal"),
    })
}

/// Name and version of the distribution (os-release(5)).
fn distribution() -> Value {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or("unknown")
            .trim_matches(['"', '\''])
            .to_owned()
    };
    json!({ "distribution": field("ID"), "version": field("VERSION_ID") })
}

/// What /proc/meminfo says, in bytes.
fn memory() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name.to_owned(), kib.saturating_mul(1024)))
    };
    text.lines().filter_map(line).collect()
}

fn of_store(engine: &Engine) -> Result<Value, Failure> {
    let containers = engine.list()?.containers;
    let count = |is: fn(&Status) -> bool| containers.iter().filter(|one| is(&one.status)).count();
    let (running, paused) = (
        count(|status| matches!(status, Status::Running)),
        count(|status| matches!(status, Status::Paused)),
    );
    let dirs = engine.store().dirs();
    Ok(json!({
        "containerStore": {
            "number": containers.len(),
            "paused": paused,
            "running": running,
            "stopped": containers.len() - running - paused,
        },
        "graphDriverName": "overlay",
        "graphRoot": dirs.data,
        "imageStore": { "number": engine.images()?.list()?.len() },
        "runRoot": dirs.run,
        "volumePath": dirs.volumes(),
    }))
}

/// A line for each value, in YAML's form, of which scripts may read nothing else than that.
fn lines(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let line = |(name, value): (&String, &Value)| match value {
        Value::Object(_) => format!("{indent}{name}:\n{}", lines(value, depth + 1)),
        Value::Array(items) => {
            let items: String = items
                .iter()
                .map(|item| format!("{indent}- {item}\n"))
                .collect();
            format!("{indent}{name}:\n{items}")
        }
        Value::String(text) => format!("{indent}{name}: {}\n", escape(text)),
        other => format!("{indent}{name}: {other}\n"),
    };
    value.as_object().into_iter().flatten().map(line).collect()
}

/// What the host allows, and what somebody could do to have more of it.
fn allowances(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let remedy = finding.remedy.as_ref();
        let remedy = remedy.map_or_else(String::new, |remedy| format!("    for more: {remedy}\n"));
        format!(
            "  {}: {}\n{}",
            finding.about,
            escape(&finding.says),
            escape_lines(&remedy)
        )
    };
    let lines: String = findings.iter().map(line).collect();
    format!("what this host allows:\n{lines}")
}

fn escape_lines(text: &str) -> String {
    text.lines().map(|line| escape(line) + "\n").collect()
}

/// The same with the names of Go's fields, which templates of Podman's users have.
fn capitalized(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (field(name), capitalized(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(capitalized).collect(),
        other => other.clone(),
    }
}

fn field(name: &str) -> String {
    let odd = [
        ("apparmorEnabled", "AppArmorEnabled"),
        ("cgroupVersion", "CgroupsVersion"),
        ("container_id", "ContainerID"),
        ("cpus", "CPUs"),
        ("gidmap", "GIDMap"),
        ("host_id", "HostID"),
        ("idMappings", "IDMappings"),
        ("os", "OS"),
        ("seccompEnabled", "SECCOMPEnabled"),
        ("selinuxEnabled", "SELinuxEnabled"),
        ("uidmap", "UIDMap"),
        ("is_well", "IsWell"),
    ];
    if let Some((_, field)) = odd.iter().find(|(plain, _)| *plain == name) {
        return (*field).to_owned();
    }
    let mut letters = name.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_of_gos() {
        let told = json!({ "host": { "cpus": 2, "idMappings": { "uidmap": [{ "host_id": 1 }] }, "kernel": "6" } });
        let expected = json!({ "Host": { "CPUs": 2, "IDMappings": { "UIDMap": [{ "HostID": 1 }] }, "Kernel": "6" } });
        assert_eq!(capitalized(&told), expected);
    }

    #[test]
    fn values_are_lines_and_act_on_no_terminal() {
        let told = json!({ "host": { "cpus": 2, "name": "a\u{1b}b", "list": [{ "a": 1 }] } });
        let expected = "host:\n  cpus: 2\n  list:\n  - {\"a\":1}\n  name: a\\u001bb\n";
        assert_eq!(lines(&told, 0), expected);
    }
}
