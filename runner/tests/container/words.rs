//! What is typed: whose a word is, which words are taken, and what is said about the others.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use nix::unistd::geteuid;

use crate::harness::{World, cases, coracle, eventually, finish, finish_with_input, unique};

cases![
    a_commands_flags_are_no_rights_of_ours,
    a_command_that_is_added_keeps_its_flags,
    what_podman_takes_is_taken,
    labels_are_kept_and_shown,
    only_the_streams_that_are_named_are_attached,
    all_containers_can_be_meant,
    every_signal_arrives,
    an_error_is_one_line_with_one_prefix,
    nothing_in_a_listing_acts_on_the_terminal,
    arguments_may_hold_any_bytes,
    the_callers_proxies_are_handed_on,
    volume_options_are_carried_out,
    a_volume_is_given_to_the_containers_user,
    later_mounts_of_the_host_are_seen_by_a_slave,
    a_home_that_cannot_be_used_names_the_way_out,
    unshare_tells_other_tools_whose_namespace_it_is,
];

fn a_commands_flags_are_no_rights_of_ours(world: &World) {
    let plain = world.sh(&[], "grep CapEff /proc/self/status");
    let script = r#"echo "$@"; grep CapEff /proc/self/status"#;
    for flag in [
        "--cap-add=ALL",
        "-d",
        "--rm",
        "--volume=/etc:/mnt",
        "-p8080:80",
        "-uroot",
    ] {
        let said = world.run(&[], &["sh", "-c", script, "sh", flag, "-e", "--", "-h"]);
        assert_eq!(said.success(), format!("{flag} -e -- -h\n{plain}"));
    }
    assert_eq!(world.run(&[], &["ls", "-d", "/etc"]).success(), "/etc\n");
    assert_eq!(
        world.run(&[], &["env", "-i", "A=1", "env"]).success(),
        "A=1\n"
    );
    // Ours stand before; two dashes may stand between.
    assert_eq!(world.run(&["-e", "A=1", "--"], &[]).code(), Some(125));
    let dashes = [&["--rm", "--"][..], &["sh", "-c", "echo $0", "--rm"]].concat();
    let mut args = vec!["run", "--network=none", "--rootfs=rootfs"];
    args.extend(dashes);
    assert_eq!(world.try_coracle(&args).success(), "--rm\n");
}

fn a_command_that_is_added_keeps_its_flags(world: &World) {
    let name = unique("words");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    for flag in ["-t", "-e", "-u", "--workdir=/no/such", "--help", "--"] {
        let said = world.try_coracle(&["exec", &name, "sh", "-c", r#"echo "x$*""#, "sh", flag]);
        assert_eq!(said.success(), format!("x{flag}\n"));
    }
    // Behind the container's name it is the command, whatever it looks like.
    assert_eq!(
        world.try_coracle(&["exec", &name, "-t", "true"]).code(),
        Some(127)
    );
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn what_podman_takes_is_taken(world: &World) {
    let sh = |flags: &[&str], script: &str| world.sh(flags, script);
    assert_eq!(sh(&["-h", "web"], "hostname"), "web\n");
    assert_eq!(
        sh(&["--net", "none", "--tty=false"], "tty || true"),
        "not a tty\n"
    );
    let capabilities = |flags: &[&str]| sh(flags, "grep CapEff /proc/self/status");
    assert_eq!(
        capabilities(&["--cap-add", "SYS_ADMIN,NET_RAW"]),
        capabilities(&["--cap-add=net_raw", "--cap-add=sys_admin"])
    );
    assert_eq!(
        capabilities(&["--cap-drop", "KILL,ALL"]),
        "CapEff:\t0000000000000000\n"
    );
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("plain");
    let overlay = format!("{rootfs}:O");
    let written = [
        "run",
        "--rm",
        "--net=none",
        "--rootfs",
        &overlay,
        "touch",
        "/written",
    ];
    world.try_coracle(&written).success();
    assert!(!world.rootfs().join("written").exists());

    // -d=false is the foreground; --rm=false keeps.
    let name = unique("kept");
    let kept = [
        "run",
        "-d=false",
        "--rm=false",
        "--net=none",
        "--name",
        &name,
    ];
    let said = world.try_coracle(&[&kept[..], &["--rootfs", rootfs, "echo", "a"]].concat());
    assert_eq!(said.success(), "a\n");
    let timed = world.try_coracle(&["logs", "-t", "--tail", "all", &name]);
    let (time, line) = timed.success().split_once(' ').expect("a time");
    assert!(
        time.ends_with('Z') && time.contains('T') && line == "a\n",
        "{timed:?}"
    );
    world.try_coracle(&["rm", &name]).success();
}

fn labels_are_kept_and_shown(world: &World) {
    let name = unique("labels");
    let flags = [
        "-l",
        "b=1",
        "--label",
        "org.example.a",
        "--label=b=2=\u{1b}",
        "--net=none",
    ];
    world.detach(&name, &flags, &["true"]);
    let shown = world.inspect(&name).expect("kept");
    let expected = serde_json::json!({"b": "2=\u{1b}", "org.example.a": ""});
    assert_eq!(shown["labels"], expected);
    world.try_coracle(&["rm", "-f", &name]).success();
    let refused = world.run(&["--label", "=x"], &["true"]);
    assert_eq!(refused.code(), Some(125));
    for part in ["--label", "\"=x\"", "a label has a key"] {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
}

fn only_the_streams_that_are_named_are_attached(world: &World) {
    let script = "read line; echo out $line; echo err >&2";
    let try_with = |flags: &[&str]| {
        let command = world.coracle(world.run_args(flags, &["sh", "-c", script]));
        let said = finish_with_input(command, b"in\n");
        (said.code(), said.stdout, said.stderr)
    };
    let said = |out: &str, err: &str| (Some(0), out.to_owned(), err.to_owned());
    // The warning of the single ID is ours.
    let quiet = |(code, out, err): (Option<i32>, String, String)| {
        let lines = err
            .lines()
            .filter(|line| !line.starts_with("coracle: warning: "));
        (
            code,
            out,
            lines.map(|line| format!("{line}\n")).collect::<String>(),
        )
    };
    let try_with = |flags: &[&str]| quiet(try_with(flags));
    assert_eq!(try_with(&["-a", "stdout"]), said("out\n", ""));
    assert_eq!(try_with(&["-a", "STDERR"]), said("", "err\n"));
    assert_eq!(try_with(&["-i", "-a", "stdout"]), said("out in\n", ""));
    assert_eq!(
        try_with(&["-a", "stdin", "-a", "stdout", "-a", "stderr"]),
        said("out in\n", "err\n")
    );
    assert_eq!(try_with(&["-i"]), said("out in\n", "err\n"));
}

fn all_containers_can_be_meant(world: &World) {
    let listed = |flags: &[&str]| {
        let said = world.try_coracle(&[&["ps", "-q"], flags].concat());
        said.success().lines().count()
    };
    for name in ["one", "two"] {
        world.detach(name, &["--network", "none"], &["sleep", "1000"]);
    }
    assert_eq!(world.try_coracle(&["rm", "-a"]).success(), "");
    assert_eq!(
        world.try_coracle(&["kill", "-a"]).success().lines().count(),
        2
    );
    assert_eq!((listed(&[]), listed(&["-a"])), (0, 2));
    world.detach("three", &["--network", "none"], &["sleep", "1000"]);
    assert_eq!(
        world
            .try_coracle(&["rm", "--all"])
            .success()
            .lines()
            .count(),
        2
    );
    assert_eq!(
        world.try_coracle(&["stop", "-t", "0", "--all"]).success(),
        "three\n"
    );
    world.detach("four", &["--network", "none"], &["sleep", "1000"]);
    assert_eq!(
        world.try_coracle(&["rm", "-af"]).success().lines().count(),
        2
    );
    assert_eq!(listed(&["-a"]), 0);
}

fn every_signal_arrives(world: &World) {
    let name = unique("signals");
    // A process that is not the first dies of any signal, and the shell tells of which.
    for (signal, code) in [
        ("RTMIN+3", 128 + 37),
        ("SIGRTMAX-1", 128 + 63),
        ("64", 128 + 64),
        ("34", 128 + 34),
    ] {
        let number = code - 128;
        let script =
            format!("trap 'exit {code}' {number}; echo ready; while :; do sleep 1 & wait; done");
        world.detach(&name, &["--network", "none"], &["sh", "-c", &script]);
        eventually("the handler is set", || {
            world.try_coracle(&["logs", &name]).success() == "ready\n"
        });
        assert_eq!(
            world.try_coracle(&["kill", "-s", signal, &name]).success(),
            format!("{name}\n")
        );
        eventually("it ended by its handler", || {
            world.inspect(&name).expect("kept")["exit_code"] == code
        });
        world.try_coracle(&["rm", &name]).success();
    }
    for wrong in ["0", "65", "RTMIN+31", "NOPE"] {
        let said = world.try_coracle(&["kill", "-s", wrong, &name]);
        assert_eq!(said.code(), Some(125));
        assert!(
            said.stderr
                .contains(&format!("there is no signal {wrong:?}")),
            "{said:?}"
        );
    }
}

fn an_error_is_one_line_with_one_prefix(world: &World) {
    for (args, named) in [
        (
            &["run", "--pod", "a", "x"][..],
            "coracle run does not have --pod yet",
        ),
        (&["pod"], "coracle does not have `pod` yet"),
        (&["compose"], "coracle does not have `compose` yet"),
        (&["run", "--detech", "x"], "--detach"),
        (&["run", "-v", "a/b:/v", "x"], "./a/b"),
        (&["run", "-v", "/proc", "x"], "/proc"),
        (
            &["run", "-v", "/tmp:/a", "-v", "/etc:/b/../a/", "x"],
            "both for /a",
        ),
        (&["run", "-v", "/tmp:/a:cached", "x"], "\"cached\""),
        (&["stop", "no-such"], "no-such"),
        (&["stop", "\u{1b}[2J\u{9b}\u{202e}"], "no container"),
        (&["exec", "web"], "COMMAND"),
        (&["ps", "--format", "yaml"], "json, table"),
    ] {
        let said = world.try_coracle(args);
        assert_eq!(said.code(), Some(125), "{said:?}");
        assert!(
            said.stderr.starts_with("coracle: ") && said.stderr.contains(named),
            "{said:?}"
        );
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(!said.stderr.contains("error:"), "{said:?}");
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.stderr.contains(acts), "{said:?}");
    }
}

fn nothing_in_a_listing_acts_on_the_terminal(world: &World) {
    let name = unique("listing");
    let hostile = "\u{9b}2J\u{7f}\u{1b}[0m\u{202e}日本";
    world.detach(
        &name,
        &["--network", "none"],
        &["sh", "-c", "exec sleep 1000", hostile],
    );
    for format in ["json", "table"] {
        let said = world.try_coracle(&["ps", "-a", "--format", format]);
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.success().contains(acts), "{said:?}");
    }
    assert_eq!(world.inspect(&name).expect("listed")["command"][3], hostile);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn arguments_may_hold_any_bytes(world: &World) {
    let bytes = |text: &[u8]| OsStr::from_bytes(text).to_owned();
    let dir = world.path("").join(bytes(b"dir\xff"));
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::write(dir.join("file"), "seen\n").expect("a file");
    world.give_away(&dir);
    let mut volume = dir.clone().into_os_string();
    volume.push(bytes(b":/v\xfe"));
    let script = bytes(b"env | grep -a '^B=' | wc -c; cat /v\xfe/file; pwd; echo \"$0\"");
    let mut args: Vec<OsString> = ["run", "--rm", "--net=none", "--rootfs=rootfs", "-e"]
        .map(Into::into)
        .into();
    args.extend([
        bytes(b"B=\xff\xfe"),
        "-v".into(),
        volume,
        "-w".into(),
        bytes(b"/v\xfe"),
    ]);
    args.extend(["sh".into(), "-c".into(), script, bytes(b"\xfd")]);
    let output = world.coracle(args).output().expect("run");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"5\nseen\n/v\xfe\n\xfd\n", "{output:?}");

    for option in ["--name", "-p", "-u", "-h", "--net", "--cap-add"] {
        let mut args: Vec<OsString> = ["run", option].map(Into::into).into();
        args.extend([bytes(b"\xff"), "x".into()]);
        let said = finish(world.coracle(args));
        let long = ["--publish", "--user", "--hostname", "--network", option];
        assert_eq!(said.code(), Some(125));
        assert!(
            long.iter().any(|name| said.stderr.contains(name)),
            "{said:?}"
        );
    }
}

fn the_callers_proxies_are_handed_on(world: &World) {
    let with_proxies = |flags: &[&str]| {
        let script = "env | grep -i _proxy | sort";
        let mut command = world.coracle(world.run_args(flags, &["sh", "-c", script]));
        for (name, value) in [("http_proxy", "a"), ("NO_PROXY", "b"), ("all_proxy", "c")] {
            command.env(name, value);
        }
        for name in [
            "https_proxy",
            "ftp_proxy",
            "no_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "FTP_PROXY",
        ] {
            command.env_remove(name);
        }
        finish(command).success().to_owned()
    };
    assert_eq!(with_proxies(&[]), "NO_PROXY=b\nhttp_proxy=a\n");
    assert_eq!(
        with_proxies(&["-e", "http_proxy=x"]),
        "NO_PROXY=b\nhttp_proxy=x\n"
    );
    assert_eq!(with_proxies(&["--http-proxy=false"]), "");
}

fn volume_options_are_carried_out(world: &World) {
    let dir = world.path("volume");
    std::fs::create_dir_all(dir.join("below")).expect("a directory");
    std::fs::copy(world.rootfs().join("bin/busybox"), dir.join("echo")).expect("a program");
    world.give_to_container(&dir);
    let with = |options: &str, script: &str| {
        let volume = format!("{}:/v:{options}", dir.display());
        world.run(&["-v", &volume], &["sh", "-c", script])
    };
    assert_eq!(with("ro,rbind", "touch /v/x || echo no").success(), "no\n");
    with("rw", "touch /v/x; rm /v/x").success();
    assert_eq!(with("exec", "/v/echo hi").success(), "hi\n");
    assert_eq!(with("noexec", "/v/echo hi || echo no").success(), "no\n");
    let options = with("nosuid,nodev", "grep ' /v ' /proc/self/mounts");
    assert!(options.success().contains("nosuid,nodev"), "{options:?}");
    for (option, word) in [
        ("rprivate", None),
        ("shared", Some("shared:")),
        ("rshared", Some("shared:")),
    ] {
        let line = with(option, "grep ' /v ' /proc/self/mountinfo");
        assert_eq!(
            line.success().contains("shared:"),
            word.is_some(),
            "{option}: {line:?}"
        );
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        assert_eq!(with("z,ro", "echo ok").success(), "ok\n");
        assert_eq!(with("Z", "echo ok").success(), "ok\n");
    }
    for both in ["ro,rw", "exec,noexec", "z,Z"] {
        assert_eq!(with(both, "true").code(), Some(125));
    }
    // A place is mounted before what is below it, in whatever order they are typed.
    let (inner, outer) = (
        format!("{}:/v/below", dir.display()),
        format!("{}:/v", dir.display()),
    );
    assert!(
        world
            .run(&["-v", &inner, "-v", &outer], &["ls", "/v/below"])
            .success()
            .contains("echo")
    );
}

fn a_volume_is_given_to_the_containers_user(world: &World) {
    let dir = world.path("volume");
    std::fs::create_dir_all(dir.join("a/b")).expect("a directory");
    std::fs::write(dir.join("a/b/file"), "").expect("a file");
    std::fs::write(world.path("outside"), "").expect("a file");
    std::os::unix::fs::symlink(world.path("outside"), dir.join("a/link")).expect("a link");
    world.give_away(&dir);
    let user = if world.has_single_id() { "0:0" } else { "7:8" };
    let volume = format!("{}:/v:U,ro", dir.display());
    if world.is_root() && world.container_root() != 0 {
        // Who gives files away itself.
        let refused = world.run(&["-v", &volume], &["true"]);
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        assert!(refused.stderr.contains("uid_map"), "{refused:?}");
        return;
    }
    let script = "stat -c %u:%g /v /v/a /v/a/b /v/a/b/file; stat -c %u:%g /v/a/link";
    let said = world.run(&["-u", user, "-v", &volume], &["sh", "-c", script]);
    assert_eq!(said.success(), format!("{user}\n").repeat(5), "{said:?}");
    assert_eq!(
        std::fs::metadata(world.path("outside"))
            .expect("kept")
            .uid(),
        geteuid().as_raw()
    );
    if world.has_single_id() {
        let said = world.run(&["-v", "/etc:/v:U"], &["true"]);
        assert_eq!(said.code(), Some(125), "{said:?}");
    }
    // What belongs to a sub-ID is removed as its root.
    let dir = dir.to_str().expect("plain");
    world.try_coracle(&["unshare", "rm", "-r", dir]).success();
}

/// Only the host's root can mount on the host.
fn later_mounts_of_the_host_are_seen_by_a_slave(world: &World) {
    if !world.is_root() {
        return;
    }
    let dir = world.path("volume");
    std::fs::create_dir(&dir).expect("a directory");
    let (slave, private) = (unique("slave"), unique("private"));
    let script = r#"
        set -e
        mount -t tmpfs none "$1" && mount --make-shared "$1" && mkdir "$1/below"
        for spec in "$2 rslave" "$3 rprivate"; do
            set -- "$1" "$2" "$3" $spec
            "$0" run -d --name "$4" --net none -v "$1:/v:$5" --rootfs rootfs sleep 1000 >/dev/null
        done
        mount -t tmpfs none "$1/below" && touch "$1/below/seen"
        "$0" exec "$2" ls /v/below; echo --; "$0" exec "$3" ls /v/below; "$0" rm -f "$2" "$3" >/dev/null
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command
        .args([coracle(), &dir])
        .args([&slave, &private])
        .current_dir(world.path(""));
    assert_eq!(finish(command).success(), "seen\n--\n");
}

fn a_home_that_cannot_be_used_names_the_way_out(world: &World) {
    if world.is_root() {
        // Root's directories are fixed.
        return;
    }
    let try_with = |name: &str, value: &str| {
        let mut command = world.coracle(["ps"]);
        command.env(name, value);
        finish(command)
    };
    for (name, value, named) in [
        ("HOME", "/no/such/home", "XDG_DATA_HOME"),
        ("HOME", "/proc", "XDG_DATA_HOME"),
        ("XDG_DATA_HOME", "/dev/null", "XDG_DATA_HOME"),
    ] {
        let said = try_with(name, value);
        assert_eq!(said.code(), Some(125));
        assert!(
            said.stderr.contains(named) && said.stderr.contains(value),
            "{said:?}"
        );
    }
    let mut command = world.coracle(["ps"]);
    command
        .env("HOME", "/no/such/home")
        .env("XDG_DATA_HOME", world.path("home"));
    finish(command).success();
}

fn unshare_tells_other_tools_whose_namespace_it_is(world: &World) {
    let env = |command: &mut Command| {
        command.env_remove("_CONTAINERS_USERNS_CONFIGURED");
    };
    let mut command = world.coracle(["unshare", "sh", "-c", "env | grep ^_CONTAINERS_ | sort"]);
    env(&mut command);
    let uid = if world.is_root() {
        0
    } else {
        geteuid_of(world)
    };
    let expected = format!(
        "_CONTAINERS_ROOTLESS_GID={uid}\n_CONTAINERS_ROOTLESS_UID={uid}\n_CONTAINERS_USERNS_CONFIGURED=done\n"
    );
    assert_eq!(finish(command).success(), expected);
    // Inside another, the outermost caller stays who it was.
    let inner = [
        coracle().as_os_str(),
        OsStr::new("unshare"),
        OsStr::new("sh"),
    ];
    let mut command = world.coracle([&[OsStr::new("unshare")], &inner[..]].concat());
    command.args(["-c", "env | grep ^_CONTAINERS_ | sort"]);
    env(&mut command);
    assert_eq!(finish(command).success(), expected);
}

/// Who the world's commands run as.
fn geteuid_of(world: &World) -> u32 {
    let said = finish(world.command(&[OsStr::new("id")], ["-u"]));
    said.success().trim().parse().expect("an ID")
}
