//! Secrets: kept for their owner alone, and read in containers as asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{World, cases, finish_with_input, unique};

cases![
    secrets_are_made_listed_and_removed,
    a_command_reads_its_secrets,
    nothing_else_keeps_a_secret,
    what_is_no_secret_is_refused,
];

const HUSH: &str = "correct horse battery staple";

fn create(world: &World, name: &str, text: &str) -> String {
    let words = ["secret", "create", name, "-"];
    let made = finish_with_input(world.coracle(words), text.as_bytes());
    made.success().trim_end().to_owned()
}

fn secrets_are_made_listed_and_removed(world: &World) {
    fs::write(world.path("file"), HUSH).expect("a file");
    let words = ["secret", "create", "--label", "a=b", "one", "file"];
    let id = world.try_coracle(&words).success().trim_end().to_owned();
    assert_eq!(id.len(), 25, "{id}");
    let mut command = world.coracle(["secret", "create", "--env", "two", "HUSH"]);
    command.env("HUSH", "2");
    finish_with_input(command, b"").success();
    let again = world.try_coracle(&words);
    assert!(
        again.code() == Some(125) && again.stderr.contains("--replace"),
        "{again:?}"
    );
    let words = ["secret", "create", "--replace", "one", "file"];
    let new = world.try_coracle(&words).success().trim_end().to_owned();
    assert_ne!(new, id);

    let quiet = world.try_coracle(&["secret", "ls", "-q", "--filter", "name=on"]);
    assert_eq!(quiet.success().trim_end(), new);
    let table = world.try_coracle(&["secret", "ls"]);
    let lines: Vec<_> = table.success().lines().collect();
    let words: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(words, ["ID", "NAME", "DRIVER", "CREATED", "UPDATED"]);
    assert!(lines.len() == 3 && lines[1].contains("one"), "{lines:?}");
    let told = world.try_coracle(&["secret", "inspect", "two", &new]);
    let told: Value = serde_json::from_str(told.success()).expect("JSON");
    assert_eq!(told[0]["Spec"]["Name"], "two");
    assert_eq!(
        (&told[1]["ID"], &told[1]["Spec"]["Driver"]["Name"]),
        (&new.into(), &"file".into())
    );
    assert!(!told.to_string().contains(HUSH));

    let exists = |name: &str| world.try_coracle(&["secret", "exists", name]).code();
    assert_eq!((exists("one"), exists("none")), (Some(0), Some(1)));
    let gone = world.try_coracle(&["secret", "rm", "one", "none"]);
    assert_eq!(gone.code(), Some(125), "{gone:?}");
    assert_eq!(exists("one"), Some(1));
    world.try_coracle(&["secret", "rm", "-a"]).success();
    assert_eq!(
        world
            .try_coracle(&["secret", "ls", "--noheading"])
            .success(),
        ""
    );
}

fn a_command_reads_its_secrets(world: &World) {
    create(world, "one", HUSH);
    create(world, "two", "value");
    let other = if world.has_single_id() { "0" } else { "33" };
    let owned = format!("one,target=deep/x,uid={other},gid={other},mode=0400");
    let flags = [
        "--secret",
        "one",
        "--secret",
        "two,type=env",
        "--secret",
        "two,type=env,target=NAMED",
        "--secret",
        &owned,
        "--secret",
        "one,target=/etc/key",
    ];
    let script = "cat /run/secrets/one /etc/key; echo; echo $two $NAMED; \
                  stat -c '%a %u' /run/secrets/one /run/secrets/deep/x /etc/key; \
                  echo x >/run/secrets/one || echo read-only; grep /run/secrets /proc/mounts";
    let out = world.sh(&flags, script);
    let lines: Vec<_> = out.lines().collect();
    let expected = [
        &*format!("{HUSH}{HUSH}"),
        "value value",
        "444 0",
        &format!("400 {other}"),
        "444 0",
        "read-only",
    ];
    assert_eq!(lines[..6], expected, "{out}");
    assert!(
        lines[6].starts_with("tmpfs /run/secrets tmpfs ro,"),
        "{out}"
    );
    if !world.has_single_id() {
        let script = "cat /run/secrets/deep/x || echo closed";
        let out = world.sh(&[&flags[..], &["--user", "34"]].concat(), script);
        assert_eq!(out, "closed\n");
    }
    world.try_coracle(&["secret", "rm", "-a"]).success();
}

/// Neither its files, nor what is told of it, nor the image that is made of it.
fn nothing_else_keeps_a_secret(world: &World) {
    create(world, "one", HUSH);
    let name = unique("secrets");
    let flags = [
        "--network",
        "none",
        "--secret",
        "one",
        "--secret",
        "one,type=env,target=V",
    ];
    let script =
        "echo started; cat /run/secrets/one >/tmp/copy; test \"$V\" && rm /tmp/copy; sleep 60";
    world.detach(&name, &flags, &["sh", "-c", script]);
    // The container keeps what it has.
    world.try_coracle(&["secret", "rm", "one"]).success();
    world.try_coracle(&["restart", "-t", "0", &name]).success();
    let read = world.try_coracle(&["exec", &name, "cat", "/run/secrets/one"]);
    assert_eq!(read.success(), HUSH);
    let told = world.try_coracle(&["inspect", &name]);
    assert!(told.success().contains("\"Secrets\"") && !told.stdout.contains(HUSH));
    world
        .try_coracle(&["export", "-o", "all.tar", &name])
        .success();
    let tar = fs::read(world.path("all.tar")).expect("a tar");
    let has = |bytes: &[u8]| {
        bytes
            .windows(HUSH.len())
            .any(|part| part == HUSH.as_bytes())
    };
    assert!(!has(&tar));
    let id = world.inspect(&name).expect("it")["id"]
        .as_str()
        .expect("text")
        .to_owned();
    let dir = world.containers().join(id);
    let kept = dir.join("secrets");
    for entry in walk(&dir).into_iter().chain(walk(&world.path("run"))) {
        if entry.starts_with(&kept) {
            let mode = fs::metadata(&entry).expect("a file").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{entry:?}");
        } else if let Ok(bytes) = fs::read(&entry) {
            assert!(!has(&bytes), "{entry:?}");
        }
    }
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// All files of a directory that this test may see.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

fn what_is_no_secret_is_refused(world: &World) {
    create(world, "one", HUSH);
    create(world, "nul", "a\0b");
    fs::write(world.path("empty"), "").expect("a file");
    fs::write(world.path("long"), vec![b'x'; 512_000]).expect("a file");
    for (name, source) in [
        ("a", "empty"),
        ("a", "long"),
        ("a", "none"),
        ("a/b", "long"),
        ("-", "long"),
    ] {
        let outcome = world.try_coracle(&["secret", "create", "--", name, source]);
        assert_eq!(outcome.code(), Some(125), "{name} {source}: {outcome:?}");
    }
    for (secret, told) in [
        ("none", "no secret"),
        ("one,type=x", "mount and env"),
        ("one,type=env,uid=3", "uid"),
        ("one,foo=bar", "foo"),
        ("one,mode=999", "octal"),
        ("one,target=/proc/x", "/proc"),
        ("one,target=/etc", "a directory"),
        ("nul,type=env", "NUL"),
    ] {
        let outcome = world.run(&["--secret", secret], &["true"]);
        assert_eq!(outcome.code(), Some(125), "{secret}: {outcome:?}");
        assert!(outcome.stderr.contains(told), "{secret}: {outcome:?}");
    }
    let twice = world.run(
        &["--secret", "one", "--secret", "nul,target=one"],
        &["true"],
    );
    assert!(
        twice.code() == Some(125) && twice.stderr.contains("are both for"),
        "{twice:?}"
    );
    if world.has_single_id() {
        let outcome = world.run(&["--secret", "one,uid=33"], &["true"]);
        assert!(
            outcome.stderr.contains("has no place in the container"),
            "{outcome:?}"
        );
    }
    world.try_coracle(&["secret", "rm", "-a"]).success();
}
