//! `coracle top`: the processes of a container, in the columns of Podman's `top`.

use std::time::Duration;

use jiff::Timestamp;

use super::human::{go_duration, moment};
use super::table::columns;
use super::{latest, open_engine, output_result};
use crate::cli::TopArgs;
use crate::engine::{Capabilities, ProcessEntry, Top};
use crate::failure::Failure;
use crate::printable::escape;

pub fn top(args: &TopArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let (name, wanted) = match (args.latest, &args.words[..]) {
        (true, wanted) => (latest(&engine)?, wanted),
        (false, [name, wanted @ ..]) => (name.clone(), wanted),
        (false, []) => unreachable!("checked when the command line was read"),
    };
    let shown = chosen(wanted)?;
    let top = engine.top(&name)?;
    let head = shown.iter().map(|column| column.head.to_owned()).collect();
    let row = |process| {
        let cells = shown
            .iter()
            .map(|column| escape(&(column.cell)(process, &top)));
        cells.collect::<Vec<_>>()
    };
    let lines: Vec<_> = [head]
        .into_iter()
        .chain(top.processes.iter().map(row))
        .collect();
    use std::io::Write;
    output_result(std::io::stdout().write_all(columns(&lines, WIDTH_MIN).as_bytes()))?;
    Ok(0)
}

/// As wide as Podman's columns are at least.
const WIDTH_MIN: usize = 10;

const DEFAULT: &str = "user,pid,ppid,pcpu,etime,tty,time,args";

/// The columns that words name, with commas between names.
fn chosen(words: &[String]) -> Result<Vec<&'static Column>, Failure> {
    let names: Vec<&str> = match words {
        [] => DEFAULT.split(',').collect(),
        words => words.iter().flat_map(|word| word.split(',')).collect(),
    };
    let find = |name: &str| {
        let is_meant = |column: &&Column| column.name == name || column.code == Some(name);
        COLUMNS.iter().find(is_meant).ok_or_else(|| {
            let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
            Failure::runner(format!(
                "top has no column {name:?}; there are {}",
                names.join(", ")
            ))
        })
    };
    names.into_iter().map(find).collect()
}

struct Column {
    name: &'static str,
    /// As ps(1) has it.
    code: Option<&'static str>,
    head: &'static str,
    cell: fn(&ProcessEntry, &Top) -> String,
}

const fn column(
    name: &'static str,
    code: Option<&'static str>,
    head: &'static str,
    cell: fn(&ProcessEntry, &Top) -> String,
) -> Column {
    Column {
        name,
        code,
        head,
        cell,
    }
}

const COLUMNS: &[Column] = &[
    column("args", Some("%a"), "COMMAND", |p, _| match p.args[..] {
        [] => format!("[{}]", p.comm),
        _ => p.args.join(" "),
    }),
    column("capamb", None, "AMBIENT CAPS", |p, _| caps(p.ambient)),
    column("capbnd", None, "BOUNDING CAPS", |p, _| caps(p.bounding)),
    column("capeff", None, "EFFECTIVE CAPS", |p, _| caps(p.effective)),
    column("capinh", None, "INHERITED CAPS", |p, _| caps(p.inheritable)),
    column("capprm", None, "PERMITTED CAPS", |p, _| caps(p.permitted)),
    column("comm", Some("%c"), "COMMAND", |p, _| p.comm.clone()),
    column("etime", Some("%t"), "ELAPSED", |p, _| {
        go_duration(p.elapsed)
    }),
    column("group", Some("%G"), "GROUP", |p, top| {
        top.group(p.host_gids[1])
    }),
    column("groups", None, "GROUPS", |p, top| {
        let groups = p.host_groups.iter().map(|gid| top.group(*gid));
        groups.collect::<Vec<_>>().join(",")
    }),
    column("hgroup", None, "HGROUP", |p, _| p.host_gids[1].to_string()),
    column("hgroups", None, "HGROUPS", |p, _| {
        let groups = p.host_groups.iter().map(u32::to_string);
        groups.collect::<Vec<_>>().join(",")
    }),
    column("hpid", None, "HPID", |p, _| p.host_pid.to_string()),
    column("huser", None, "HUSER", |p, _| p.host_uids[1].to_string()),
    column("label", None, "LABEL", |p, _| or_none(&p.label)),
    column("nice", Some("%n"), "NI", |p, _| p.nice.to_string()),
    column("pcpu", Some("%C"), "%CPU", |p, _| {
        let elapsed = p.elapsed.as_secs_f64().max(f64::EPSILON);
        format!("{:.3}", 100.0 * p.cpu_time.as_secs_f64() / elapsed)
    }),
    column("pgid", Some("%r"), "PGID", |p, _| p.pgid.to_string()),
    column("pid", Some("%p"), "PID", |p, _| p.pid.to_string()),
    column("ppid", Some("%P"), "PPID", |p, _| p.ppid.to_string()),
    column("rgroup", Some("%g"), "RGROUP", |p, top| {
        top.group(p.host_gids[0])
    }),
    column("rss", None, "RSS", |p, _| {
        (p.resident_size / 1024).to_string()
    }),
    column("ruser", Some("%u"), "RUSER", |p, top| {
        top.user(p.host_uids[0])
    }),
    column("seccomp", None, "SECCOMP", |p, _| {
        let modes = ["disabled", "strict", "filter"];
        let mode = modes.get(p.seccomp as usize).copied();
        mode.unwrap_or("?").to_owned()
    }),
    column("state", None, "STATE", |p, _| p.state.to_string()),
    column("stime", None, "STIME", |p, _| started(p.elapsed)),
    column("time", Some("%x"), "TIME", |p, _| go_duration(p.cpu_time)),
    column("tty", Some("%y"), "TTY", |p, _| terminal(p.terminal)),
    column("user", Some("%U"), "USER", |p, top| {
        top.user(p.host_uids[1])
    }),
    column("vsz", Some("%z"), "VSZ", |p, _| {
        (p.virtual_size / 1024).to_string()
    }),
];

fn caps(set: Capabilities) -> String {
    let names = set.names();
    let short = |name: &String| name.trim_start_matches("CAP_").to_owned();
    match names.len() {
        0 => "none".to_owned(),
        count if count >= Capabilities::ALL.names().len() => "full".to_owned(),
        _ => names.iter().map(short).collect::<Vec<_>>().join(","),
    }
}

fn or_none(text: &str) -> String {
    match text {
        "" => "?".to_owned(),
        text => text.to_owned(),
    }
}

fn started(elapsed: Duration) -> String {
    let elapsed = i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX);
    moment(Timestamp::now().as_second().saturating_sub(elapsed))
}

/// The name of a terminal by its device number, `proc_pid_stat(5)`.
fn terminal(device: u32) -> String {
    /// Of the first 256 of UNIX98's terminals, as all of a container's are.
    const PTS_MAJOR: u32 = 136;
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    );
    match (device, major) {
        (0, _) => "?".to_owned(),
        (_, PTS_MAJOR) => format!("pts/{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_names_and_codes() {
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let chosen = chosen(&words).map_err(|failure| failure.message)?;
            Ok::<_, String>(
                chosen
                    .iter()
                    .map(|column| column.name)
                    .collect::<Vec<_>>()
                    .join(","),
            )
        };
        assert_eq!(names(&[]).as_deref(), Ok(DEFAULT));
        assert_eq!(names(&["pid,%C", "hpid"]).as_deref(), Ok("pid,pcpu,hpid"));
        for wrong in ["nosuch", "-eo", "", "pid,"] {
            names(&[wrong]).expect_err(wrong);
        }
        let mut sorted: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), COLUMNS.len());
    }

    #[test]
    fn terminals_are_known_by_their_numbers() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(136 << 8 | 3), "pts/3");
        assert_eq!(terminal(4 << 8 | 1), "4:1");
        assert_eq!(caps(Capabilities::from(0)), "none");
        assert_eq!(caps(Capabilities::from(u64::MAX)), "full");
        assert_eq!(caps(Capabilities::from(0b10_0001)), "CHOWN,KILL");
    }
}
