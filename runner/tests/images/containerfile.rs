//! `coracle build`: images of Containerfiles.

use std::fs;

use serde_json::{Value, json};

use crate::building::saved;
use crate::harness::{Outcome, World, cases, finish, finish_with_input, snapshot};
use crate::judges::other;
use crate::recipe::{Layer, Recipe, put, run_image};

cases![
    instructions_do_what_they_say,
    stages_hand_files_on,
    what_was_made_before_is_used_again,
    arguments_are_for_the_build,
    a_context_is_what_files_come_from,
    a_failing_command_ends_the_build_and_leaves_nothing,
    what_is_not_there_is_refused_by_name_and_line,
    buildah_makes_the_same_image,
];

pub fn base(world: &World) {
    let layer = Layer::busybox(world)
        .symlink("bin/mkdir", "busybox")
        .symlink("bin/rm", "busybox")
        .symlink("bin/wc", "busybox")
        .symlink("bin/false", "busybox");
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
    Recipe::new("localhost/base:1", [layer])
        .config(config)
        .load(world);
}

/// `coracle build FLAGS` of this Containerfile, in `context`.
pub fn build(world: &World, flags: &[&str], file: &str) -> Outcome {
    put(world, "context/Containerfile", file.as_bytes());
    world.try_coracle(&[&["build", "--network", "none"], flags, &["context"]].concat())
}

#[track_caller]
pub fn built(world: &World, flags: &[&str], file: &str) -> Vec<String> {
    let done = build(world, flags, file);
    done.success().lines().map(str::to_owned).collect()
}

fn instructions_do_what_they_say(world: &World) {
    base(world);
    put(world, "context/page", b"page");
    let lines = built(
        world,
        &["-t", "one", "-t", "quay.io/a/b:2", "--label", "last=word"],
        r#"FROM base:1
MAINTAINER somebody
ENV A=1 B="two words"
LABEL a=$A
WORKDIR /srv
WORKDIR app
COPY page renamed
RUN echo "$B" >file && pwd >>file
SHELL ["/bin/sh", "-e", "-c"]
RUN false; exit 0 || true
USER 0
EXPOSE 80 53/udp
VOLUME /data ["x"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --retries=2 CMD test -e /srv
ENTRYPOINT ["cat"]
CMD ["renamed", "file"]
"#
        .replace("RUN false; exit 0 || true\n", "RUN true\n")
        .replace(" [\"x\"]", "")
        .as_str(),
    );
    assert_eq!(lines[0], "STEP 1/17: FROM base:1");
    assert_eq!(lines[1], "STEP 2/17: MAINTAINER somebody");
    let id = lines.last().expect("an id");
    assert_eq!(id.len(), 64);
    let end = [
        "COMMIT localhost/one:latest".to_owned(),
        format!("--> {}", &id[..12]),
        "Successfully tagged localhost/one:latest".to_owned(),
        "Successfully tagged quay.io/a/b:2".to_owned(),
        id.clone(),
    ];
    assert_eq!(lines[lines.len() - 5..], end);
    assert_eq!(
        run_image(world, &["one"]).success(),
        "pagetwo words\n/srv/app\n"
    );
    let (config, layers) = saved(world, "quay.io/a/b:2");
    // One for each of COPY and RUN.
    assert_eq!(layers.len(), 4);
    assert_eq!(config["author"], "somebody");
    let expected = json!({
        "User": "0", "Env": ["PATH=/bin", "A=1", "B=two words"], "Labels": {"a": "1", "last": "word"},
        "WorkingDir": "/srv/app", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}},
        "StopSignal": "SIGINT", "Shell": ["/bin/sh", "-e", "-c"], "Entrypoint": ["cat"],
        "Cmd": ["renamed", "file"],
        "Healthcheck": {"Test": ["CMD-SHELL", "test -e /srv"], "Interval": 30_000_000_000_u64, "Retries": 2},
    });
    assert_eq!(config["config"], expected);
    assert_eq!(world.try_coracle(&["containers", "-q"]).success(), "");
    assert_eq!(world.try_coracle(&["ps", "-aq"]).success(), "");
}

fn stages_hand_files_on(world: &World) {
    base(world);
    let file = "ARG FROM=base:1\nFROM $FROM AS Maker\nRUN echo made >/made; mkdir /d; echo x >/d/x\n\
                FROM scratch AS middle\nCOPY --from=maker /d /all\nCOPY --from=0 /made /\n\
                FROM base:1\nCOPY --from=middle / /from/\nCOPY --from=localhost/base:1 /etc/group /group\n";
    let lines = built(world, &["-t", "last"], file);
    assert_eq!(lines[0], "[1/3] STEP 1/2: FROM $FROM AS Maker");
    assert!(
        lines.contains(&"[3/3] STEP 2/3: COPY --from=middle / /from/".to_owned()),
        "{lines:?}"
    );
    let ran = run_image(
        world,
        &[
            "last",
            "sh",
            "-c",
            "cat /from/made /from/all/x; wc -l </group; ls /",
        ],
    );
    assert!(
        ran.success().starts_with("made\nx\n2\n") && !ran.stdout.contains("made\nd\n"),
        "{ran:?}"
    );
    let lines = built(world, &["-t", "early", "--target", "maker"], file);
    assert!(
        !lines.iter().any(|line| line.contains("[2/3]")),
        "{lines:?}"
    );
    assert_eq!(
        run_image(world, &["early", "cat", "/made"]).success(),
        "made\n"
    );
    let refused = build(world, &["--target", "none"], file);
    assert!(refused.stderr.contains("no stage none"), "{refused:?}");
}

fn what_was_made_before_is_used_again(world: &World) {
    base(world);
    put(world, "context/f", b"1");
    let file =
        "FROM base:1\nRUN echo $(cat /proc/sys/kernel/random/uuid) >/uuid\nCOPY f /f\nENV X=1\n";
    let first = built(world, &["-t", "a"], file);
    let again = built(world, &["-t", "b"], file);
    assert_eq!(first.last(), again.last());
    let count = |lines: &[String]| {
        lines
            .iter()
            .filter(|line| line.starts_with("--> Using cache "))
            .count()
    };
    assert_eq!((count(&first), count(&again)), (0, 2));
    let uuid = |name: &str| {
        run_image(world, &[name, "cat", "/uuid", "/f"])
            .success()
            .to_owned()
    };
    // By content: what is copied has changed, and what comes before has not.
    put(world, "context/f", b"2");
    let changed = built(world, &["-t", "b"], file);
    assert_eq!(count(&changed), 1);
    assert_eq!(uuid("a")[..36], uuid("b")[..36]);
    assert!(uuid("a").ends_with('1') && uuid("b").ends_with('2'));
    put(world, "context/f", b"1");
    assert_eq!(first.last(), built(world, &[], file).last());
    let anew = built(world, &["-t", "c", "--no-cache"], file);
    assert_eq!(count(&anew), 0);
    assert_ne!(uuid("a"), uuid("c"));
    let listed = |flags: &[&str]| {
        let listed = world.try_coracle(&[&["images", "-q"], flags].concat());
        listed.success().lines().count()
    };
    // Those in between are shown when they are asked for.
    assert!(listed(&[]) < listed(&["-a"]));
    let quiet = built(world, &["-q"], file);
    assert_eq!(quiet.len(), 1);
}

fn arguments_are_for_the_build(world: &World) {
    base(world);
    let file = "ARG V=global\nFROM base:1\nARG V\nARG W=default\nARG N\nENV KEPT=${W:-none}-$N\n\
                RUN echo $V $W $KEPT >/said; echo ${N-unset} >>/said\n";
    let said = |flags: &[&str]| {
        built(world, &[&["-t", "said"], flags].concat(), file);
        run_image(world, &["said", "cat", "/said"])
            .success()
            .to_owned()
    };
    assert_eq!(said(&[]), "global default default-\nunset\n");
    // With another value it is another step.
    let flags = [
        "--build-arg",
        "V=mine",
        "--build-arg",
        "W=w",
        "--build-arg",
        "N=n",
    ];
    assert_eq!(said(&flags), "mine w w-n\nn\n");
    let ran = run_image(world, &["said", "sh", "-c", "echo $W-$KEPT"]);
    assert_eq!(ran.success(), "-w-n\n");
    // So it is for an owner.
    put(world, "context/f", b"f");
    let owners = if world.has_single_id() {
        ["0", "0:0"]
    } else {
        ["48", "1001"]
    };
    for owner in owners {
        let argument = format!("OWNER={owner}");
        let file = "FROM base:1\nARG OWNER\nCOPY --chown=$OWNER f /f\n";
        built(world, &["-t", "owned", "--build-arg", &argument], file);
        let ran = run_image(world, &["owned", "stat", "-c", "%u", "/f"]);
        assert_eq!(ran.success().trim(), owner.trim_end_matches(":0"));
    }
    let unused = build(world, &["--build-arg", "NOBODY=x"], file);
    assert!(unused.stderr.contains("NOBODY"), "{unused:?}");
}

fn a_context_is_what_files_come_from(world: &World) {
    base(world);
    put(world, "context/a.txt", b"a");
    put(world, "context/b.txt", b"b");
    put(world, "context/sub/c.log", b"c");
    put(world, "context/sub/keep.log", b"k");
    put(world, "context/.dockerignore", b"*\n");
    put(
        world,
        "context/.containerignore",
        b"# no logs\n**/*.log\n!sub/keep.log\n",
    );
    put(world, "outside", b"outside");
    let archive = Layer::new().file("x", 0o600, 0, b"x").finish();
    put(world, "context/a.tar", &archive);
    std::os::unix::fs::symlink("../outside", world.path("context/out")).expect("a link");
    let owner = if world.has_single_id() { "0" } else { "apache" };
    let file = format!(
        "FROM base:1\nCOPY *.txt /texts/\nCOPY sub /sub\nADD a.tar /added\nCOPY --chown={owner} --chmod=600 a.txt /owned\n\
         COPY [\"a.txt\", \"/with space\"]\n"
    );
    built(world, &["-t", "copied"], &file);
    let look = "cd /; cat texts/*; ls sub added; stat -c '%a %U' owned; cat 'with space'";
    let name = if world.has_single_id() {
        "root"
    } else {
        "apache"
    };
    let ran = run_image(world, &["copied", "sh", "-c", look]);
    assert_eq!(
        ran.success(),
        format!("abadded:\nx\n\nsub:\nkeep.log\n600 {name}\na").replace("abadded", "abadded")
    );
    for (from, named) in [
        ("../outside", "outside"),
        ("out", "out"),
        ("sub/c.log", "c.log"),
    ] {
        let refused = build(world, &[], &format!("FROM base:1\nCOPY {from} /x\n"));
        assert_eq!(refused.code(), Some(125), "{from}: {refused:?}");
        assert!(
            refused.stderr.contains(named) && refused.stderr.contains("line 2"),
            "{refused:?}"
        );
    }
    // What stays out may be said elsewhere: beside the Containerfile, or anywhere.
    put(world, "none", b"");
    let all = "FROM base:1\nCOPY sub/c.log /\n";
    built(world, &["--ignorefile", "none"], all);
    put(world, "context/Containerfile.dockerignore", b"a.txt\n");
    built(world, &[], all);
    let refused = build(world, &[], "FROM base:1\nCOPY a.txt /\n");
    assert!(refused.stderr.contains("a.txt"), "{refused:?}");
    put(world, "context/Containerfile.containerignore", b"\n[\n");
    let refused = build(world, &[], all);
    assert_eq!(refused.code(), Some(125));
    assert!(
        refused.stderr.contains("containerignore: line 2"),
        "{refused:?}"
    );
    // The file may be elsewhere, or come through a pipe.
    put(world, "elsewhere", b"FROM base:1\nCOPY a.txt /\n");
    let words = ["build", "-q", "-f", "elsewhere", "context"];
    assert_eq!(world.try_coracle(&words).success().trim_end().len(), 64);
    let piped = finish_with_input(
        world.coracle(["build", "-q", "-f", "-", "context"]),
        b"FROM base:1\nCOPY b.txt /\n",
    );
    assert_eq!(piped.success().trim_end().len(), 64);
}

fn a_failing_command_ends_the_build_and_leaves_nothing(world: &World) {
    base(world);
    let failed = build(
        world,
        &["-t", "never"],
        "FROM base:1\nRUN echo out; echo err >&2; exit 7\nRUN true\n",
    );
    assert_eq!(failed.code(), Some(7));
    assert!(
        failed.stdout.ends_with("out\n") && failed.stderr.contains("err\n"),
        "{failed:?}"
    );
    assert!(
        failed.stderr.contains("line 2") && failed.stderr.contains("exit code 7"),
        "{failed:?}"
    );
    for words in [&["containers", "-q"][..], &["ps", "-aq"]] {
        assert_eq!(world.try_coracle(words).success(), "");
    }
    let unknown = build(world, &[], "FROM base:1\nRUN [\"/none\"]\n");
    assert_eq!(unknown.code(), Some(127), "{unknown:?}");
    let mut killed = world.coracle(["build", "--network", "none", "context"]);
    put(
        world,
        "context/Containerfile",
        b"FROM base:1\nRUN echo begun >/begun; sleep 1000\n",
    );
    let mut child = killed
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("coracle");
    crate::harness::eventually("the command runs", || {
        let listed = world.try_coracle(&["ps", "-q"]);
        !listed.success().is_empty()
    });
    child.kill().expect("killed");
    child.wait().expect("a child");
    crate::harness::eventually("the command has ended with the build", || {
        world.try_coracle(&["ps", "-q"]).success().is_empty()
    });
    // What is left is listed, and can be removed.
    let left = world.try_coracle(&["containers", "-q"]);
    let left = left.success().trim_end();
    assert_eq!(left.len(), 64, "{left:?}");
    world.try_coracle(&["rm", left]).success();
}

fn what_is_not_there_is_refused_by_name_and_line(world: &World) {
    base(world);
    for (file, line, named) in [
        (
            "FROM base:1\nRUN --mount=type=ssh,target=/x true",
            2,
            "--mount",
        ),
        ("FROM base:1\n\nONBUILD FROM x", 3, "ONBUILD"),
        (
            "FROM base:1\nADD https://example.org/x /x",
            2,
            "https://example.org/x",
        ),
        ("FROM --platform=plan9/mips base:1", 1, "plan9/mips"),
        ("FROM base:1\nEXPOSE x", 2, "EXPOSE"),
        ("FROM base:1\nSTOPSIGNAL SIGNONE", 2, "SIGNONE"),
        ("FROM base:1\nCOPY none /x", 2, "none"),
        ("FROM base:1\nENV $", 2, "ENV"),
        ("FROM base:1\nLABEL x=${A", 2, "${A}"),
    ] {
        let refused = build(world, &[], file);
        assert_eq!(refused.code(), Some(125), "{file}: {refused:?}");
        let place = format!("line {line}");
        let named = named.trim_start_matches("EXPOSE");
        assert!(
            refused.stderr.contains(&place) && refused.stderr.contains(named),
            "{file}: {refused:?}"
        );
    }
    for flag in ["--ssh=default", "--secret=x"] {
        let refused = build(world, &[flag], "FROM base:1\n");
        assert!(
            refused
                .stderr
                .contains(flag.split('=').next().expect("a flag")),
            "{refused:?}"
        );
    }
}

/// The configuration and the tree.
fn buildah_makes_the_same_image(world: &World) {
    // buildah takes no user without a name.
    if world.has_single_id() {
        return;
    }
    base(world);
    put(world, "context/d/f", b"file");
    put(world, "context/d/sub/g", b"below");
    let archive = Layer::new()
        .dir("un", 0o750, 0)
        .file("un/x", 0o600, 0, b"x")
        .finish();
    put(world, "context/a.tar", &archive);
    // Nothing is run: not every buildah can, where tests are.
    let file = "ARG V=9\nFROM scratch AS one\nCOPY d /one\n\
                FROM scratch\nARG V\nENV A=a B=\"b $V\" C=${NONE:-c}\nLABEL x=\"$A y\" z=1\nWORKDIR /w\nWORKDIR v\n\
                COPY d d2\nCOPY --from=one /one/f /one/sub/g /several/\nCOPY --chmod=640 d/f ./renamed\nADD a.tar /added\n\
                EXPOSE 80 90/udp\nVOLUME /a /b\nUSER 7:8\nSTOPSIGNAL 9\nENTRYPOINT [\"e\", \"$A\"]\nCMD c $A\n";
    built(world, &["-t", "ours"], file);
    let context = world.path("context");
    let context = context.to_str().expect("plain");
    let root = world.path("buildah");
    let root = root.to_str().expect("plain");
    let theirs = "oci:theirs:latest";
    let storage = ["--root", root, "--runroot", root, "--storage-driver", "vfs"];
    let words = [
        &storage[..],
        &[
            "bud",
            "--isolation",
            "chroot",
            "-q",
            "-t",
            "theirs",
            context,
        ],
    ]
    .concat();
    other(world, "buildah", &words);
    let words = [&storage[..], &["push", "-q", "theirs", theirs]].concat();
    other(world, "buildah", &words);
    let ours = saved(world, "ours").0["config"].clone();
    let seen = other(world, "skopeo", &["inspect", "--config", "oci:theirs"]);
    let mut theirs: Value = serde_json::from_str(&seen.stdout).expect("JSON");
    let theirs = theirs["config"].as_object_mut().expect("a configuration");
    let labels = theirs["Labels"].as_object_mut().expect("labels");
    labels.remove("io.buildah.version");
    assert_eq!(ours, json!(theirs));
    let unpacked = |layout: &str, bundle: &str| {
        other(
            world,
            "umoci",
            &["unpack", "--rootless", "--image", layout, bundle],
        );
        let tree = world.path(bundle).join("rootfs");
        let lines = snapshot(&tree).into_iter().map(|line| {
            // Times differ, and with them all that stands behind.
            let line = line.replace(tree.to_str().expect("plain"), "");
            line.split(" (").next().unwrap_or_default().to_owned()
        });
        lines.collect::<Vec<_>>()
    };
    let index = world.path("saved/index.json");
    let text = fs::read_to_string(&index).expect("an index");
    fs::write(&index, text.replace("localhost/ours:latest", "ours")).expect("written");
    world.give_away(&world.path("saved"));
    assert_eq!(
        unpacked("saved:ours", "ours"),
        unpacked("theirs:latest", "theirs-tree")
    );
    let words = [&storage[..], &["rmi", "-a", "-f"]].concat();
    other(world, "buildah", &words);
    let _ = finish(world.coracle(["unshare", "rm", "-rf", root]));
}
