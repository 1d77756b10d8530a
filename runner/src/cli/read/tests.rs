//! What command lines come to, and what is said of those that cannot be read.

use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::cli::{AttachStream, ContainerArgs, RunArgs};
use crate::logging::LogLevel;
use crate::signal::Signal;

fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    match read(&words) {
        Ok(cli) => Ok(cli.command),
        Err(Unread::Wrong(failure)) => Err(failure.message),
        Err(Unread::Answer(answer)) => Err(format!("{:?}", answer.kind())),
    }
}

fn run(line: &str) -> ContainerArgs {
    run_args(line).container
}

fn run_args(line: &str) -> RunArgs {
    match parse(&format!("coracle run {line}")) {
        Ok(Command::Run(run)) => *run,
        other => panic!("{line}: {other:?}"),
    }
}

/// One line that names the thing, and no neighbour that it is not.
#[track_caller]
fn refused(line: &str, named: &str) -> String {
    let message = parse(line).expect_err(line);
    assert!(
        message.contains(named) && !message.contains('\n'),
        "{message}"
    );
    assert!(
        !message.contains("error:") && !message.contains("tip:"),
        "{message}"
    );
    message
}

#[test]
fn the_parsed_command_line_is_consistent() {
    definition().debug_assert();
}

#[test]
fn a_short_h_is_the_host_name_in_run_and_help_elsewhere() {
    assert_eq!(run("-h web x").hostname.as_deref(), Some("web"));
    assert_eq!(run("-hweb x").hostname.as_deref(), Some("web"));
    assert_eq!(run("-ith web x").hostname.as_deref(), Some("web"));
    assert_eq!(run("--hostname=web x").hostname.as_deref(), Some("web"));
    refused("coracle run -h", "--hostname needs a value");
    for command in [
        "run --help",
        "exec -h",
        "ps -h",
        "logs -h",
        "unshare -h",
        "-h",
        "help run",
    ] {
        assert_eq!(
            parse(&format!("coracle {command}")).expect_err("help"),
            "DisplayHelp"
        );
    }
}

#[test]
fn the_log_level_goes_before_the_command_or_among_its_options() {
    let level = |line: &str| {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        read(&words).expect(line).log_level
    };
    for line in [
        "coracle --log-level debug ps",
        "coracle --log-level=DEBUG ps",
        "coracle ps --log-level debug",
        "coracle run --log-level debug --rm hello",
        "coracle --log-level warn run --log-level debug hello",
    ] {
        assert_eq!(level(line), Some(LogLevel::Debug), "{line}");
    }
    // Podman's other names.
    for (name, meant) in [
        ("warning", LogLevel::Warn),
        ("fatal", LogLevel::Error),
        ("panic", LogLevel::Error),
    ] {
        assert_eq!(
            level(&format!("coracle --log-level {name} ps")),
            Some(meant)
        );
    }
    assert_eq!(level("coracle ps"), None);
    assert_eq!(level("coracle run hello --log-level debug"), None);
    let said = refused("coracle --log-level loud ps", "\"loud\"");
    assert!(
        said.contains("error or warn or info or debug or trace"),
        "{said}"
    );
}

/// As many words as a command takes behind its flags, two at most. `None` for a group of commands.
fn words_of(command: &str) -> Option<&'static [&'static str]> {
    let candidates: [&[&str]; 3] = [&["web", "x"], &["web"], &[]];
    candidates.into_iter().find(|words| {
        let typed = [&["coracle", command], *words].concat();
        definition().try_get_matches_from(typed).is_ok()
    })
}

/// From the definition, so that a new switch is covered.
#[test]
fn every_switch_has_values_and_eats_no_word() {
    let cli = Cli::command();
    let mut seen = 0;
    for command in cli.get_subcommands() {
        let Some(words) = words_of(command.get_name()) else {
            continue;
        };
        let words: String = words.iter().map(|word| format!(" {word}")).collect();
        for arg in command.get_arguments() {
            let (Some(long), ArgAction::SetTrue) = (arg.get_long(), arg.get_action()) else {
                continue;
            };
            seen += 1;
            let words = if long == "all" { "" } else { &*words };
            let line = |flag: &str| format!("coracle {} {flag}{words}", command.get_name());
            let value = |flag: &str| {
                let words: Vec<OsString> = line(flag).split(' ').map(OsString::from).collect();
                let matches = definition().try_get_matches_from(words).expect(flag);
                let (_, matches) = matches.subcommand().expect("typed");
                matches.get_one::<bool>(arg.get_id().as_str()).copied()
            };
            assert_eq!(value(&format!("--{long}")), Some(true));
            assert_eq!(value(&format!("--{long}=true")), Some(true));
            assert_eq!(value(&format!("--{long}=false")), Some(false));
            assert_eq!(value(&format!("--{long} --{long}=0")), Some(false));
            if let Some(short) = arg.get_short() {
                assert_eq!(value(&format!("-{short}")), Some(true));
                assert_eq!(value(&format!("-{short}=false")), Some(false));
            }
            refused(&line(&format!("--{long}=no")), &format!("--{long}"));
        }
    }
    assert!(seen > 8, "{seen}");
    assert!(!run_args("-itd=false x").detach);
    let run = run("-itd=false --rm true false");
    assert!(run.process.interactive && run.process.tty && run.rm);
    assert_eq!(run.words, ["true", "false"]);
    let proxy = |flag: &str| self::run(&format!("{flag} x")).http_proxy;
    assert!(proxy("--rm") && proxy("--http-proxy") && !proxy("--http-proxy=false"));
}

#[test]
fn what_podman_takes_is_taken() {
    assert_eq!(run("--net none x").network, run("--network=none x").network);
    assert_eq!(
        run("--cap-add CHOWN,net_raw --cap-add KILL x")
            .cap_add
            .len(),
        3
    );
    assert_eq!(run("--cap-drop=ALL,KILL x").cap_drop.len(), 2);
    assert_eq!(run("-e A=1 -e B=2,3 x").process.env.len(), 2);
    assert_eq!(run("--name a --name b x").name.as_deref(), Some("b"));
    let attach = run_args("-a STDIN -a stdout --attach=Stderr x").attach;
    use AttachStream::{Stderr, Stdin, Stdout};
    assert_eq!(attach, [Stdin, Stdout, Stderr]);
    refused("coracle run -a tty x", "stdin, stdout and stderr");
    refused("coracle run -d -a stdin x", "--attach");
    let Ok(Command::Logs(logs)) = parse("coracle logs -t --tail -1 web") else {
        panic!("logs was typed")
    };
    assert!(logs.timestamps && logs.tail.0.is_none());
    let Ok(Command::Kill(kill)) = parse("coracle kill -s RTMIN+3 web") else {
        panic!("kill was typed")
    };
    assert_eq!(Some(kill.signal), Signal::from_raw(37));
}

#[test]
fn all_stands_for_names() {
    for command in ["stop", "kill", "rm"] {
        parse(&format!("coracle {command} --all")).expect("all");
        parse(&format!("coracle {command} -a")).expect("all");
        parse(&format!("coracle {command} --all=false web")).expect("one");
        refused(&format!("coracle {command} -a web"), "--all");
        refused(&format!("coracle {command}"), "--all");
        refused(&format!("coracle {command} --all=false"), "--all");
    }
}

#[test]
fn what_others_have_is_told_from_a_slip() {
    for name in ["swarm", "compose", "kube"] {
        let said = refused(
            &format!("coracle {name} web"),
            &format!("does not have `{name}` yet"),
        );
        assert!(!said.contains("did you mean"), "{said}");
    }
    for (line, named) in [
        ("run --pod a x", "coracle run does not have --pod yet"),
        ("run --pod=a x", "coracle run does not have --pod yet"),
        ("exec -d web x", "coracle exec does not have -d yet"),
        ("exec -itd web x", "coracle exec does not have -d yet"),
        ("run --gpus all x", "coracle run does not have --gpus yet"),
        (
            "exec --detach web x",
            "coracle exec does not have --detach yet",
        ),
        ("ps --size x", "coracle ps does not have --size yet"),
        ("--root /srv ps", "coracle does not have --root yet"),
        (
            "--log-level debug ps --size x",
            "coracle ps does not have --size yet",
        ),
    ] {
        let said = refused(&format!("coracle {line}"), named);
        assert!(!said.contains("did you mean"), "{said}");
    }
    for (line, named) in [
        ("rnu x", "did you mean `run`"),
        ("run --detech x", "did you mean --detach"),
        ("run --hostnme web x", "did you mean --hostname"),
        ("run -name web x", "did you mean --name"),
        ("logs --follwo web", "did you mean --follow"),
    ] {
        refused(&format!("coracle {line}"), named);
    }
    for (line, named) in [
        (
            "run --no-such-flag x",
            "coracle run has no option --no-such-flag",
        ),
        ("-D ps", "coracle does not have -D yet"),
        ("port -a", "coracle port does not have -a yet"),
        (
            "run --userns keep-id x",
            "does not have the user namespace \"keep-id\" yet",
        ),
        (
            "run --network container:a x",
            "does not have the network \"container:a\" yet",
        ),
        ("frobnicate", "no command `frobnicate`"),
        ("run -X x", "no option -X"),
        ("ps web", "\"web\""),
        ("logs a b", "\"b\""),
        ("logs", "coracle logs needs"),
        ("exec web", "exec needs a container and a command"),
        ("run --name", "--name needs a value"),
        ("kill -s NOPE web", "there is no signal \"NOPE\""),
        ("ps --format yaml", "\"yaml\""),
        ("ps -q --format json", "--format"),
        (
            "run --network slirp4netns x",
            "does not have the network \"slirp4netns\" yet",
        ),
    ] {
        let said = refused(&format!("coracle {line}"), named);
        assert!(!said.contains("did you mean"), "{said}");
    }
}

/// Every option of every command: bytes that are no text are taken, or the option is named.
#[test]
fn bytes_that_are_no_text_are_taken_or_named() {
    let garbage = |prefix: &str| {
        let mut bytes = prefix.as_bytes().to_vec();
        bytes.push(0xff);
        OsString::from_vec(bytes)
    };
    let mut taken = Vec::new();
    for command in Cli::command().get_subcommands() {
        let Some(rest) = words_of(command.get_name()) else {
            continue;
        };
        for arg in command.get_arguments() {
            let needs_value = arg
                .get_num_args()
                .is_none_or(|number| number.min_values() > 0);
            let (Some(long), true) = (
                arg.get_long(),
                arg.get_action().takes_values() && needs_value,
            ) else {
                continue;
            };
            for prefix in ["", "/a", "/a:/b", "A="] {
                let mut words: Vec<OsString> =
                    ["coracle", command.get_name()].map(Into::into).into();
                words.extend([format!("--{long}").into(), garbage(prefix)]);
                words.extend(rest.iter().map(Into::into));
                match read(&words) {
                    Ok(_) => taken.push(long.to_owned()),
                    Err(Unread::Wrong(failure)) => {
                        assert!(failure.message.contains(&format!("--{long}")), "{failure}");
                    }
                    Err(answer) => panic!("{words:?}: {answer:?}"),
                }
            }
        }
    }
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(
        taken,
        [
            "authfile",
            "cert-dir",
            "cidfile",
            "device",
            "digestfile",
            "entrypoint",
            "env",
            "env-file",
            "file",
            "ignorefile",
            "iidfile",
            "input",
            "label-file",
            "output",
            "rootfs",
            "volume",
            "workdir"
        ]
    );
    for command in ["stop", "kill", "rm", "logs", "run", "exec", "unshare", "ps"] {
        let words = ["coracle".into(), command.into(), garbage("web")];
        match read(&words) {
            Ok(cli) => assert!(matches!(cli.command, Command::Run(_) | Command::Unshare(_))),
            Err(Unread::Wrong(failure)) => {
                assert!(!failure.message.contains('\n'), "{failure}")
            }
            Err(answer) => panic!("{answer:?}"),
        }
    }
}
