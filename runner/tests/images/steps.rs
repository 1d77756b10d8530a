//! What a step of a Containerfile may have besides its words: here-documents, mounts, secrets, and
//! instructions for images that are made of this one; and how many layers come of it.

use std::fs;

use serde_json::json;

use crate::building::saved;
use crate::containerfile::{base, build, built};
use crate::harness::{World, cases};
use crate::recipe::{Layer, put, run_image};

cases![
    documents_are_scripts_and_files,
    an_image_has_instructions_for_later,
    a_bind_shows_the_context_and_other_images,
    a_cache_is_there_for_the_next_build,
    a_secret_stays_out_of_the_image,
    memory_is_gone_after_its_command,
    what_a_mount_asks_for_is_there_or_refused,
    steps_become_one_layer,
    what_the_last_stage_does_not_need_is_left_out,
];

fn said(world: &World, image: &str, words: &[&str]) -> String {
    run_image(world, &[&[image], words].concat())
        .success()
        .to_owned()
}

fn documents_are_scripts_and_files(world: &World) {
    base(world);
    let file = "FROM base:1\nENV NAME=value\nSHELL [\"/bin/sh\", \"-e\", \"-c\"]\n\
                RUN <<EOF\necho one >/said\n  # the shell's own\necho $NAME >>/said\nEOF\n\
                RUN cat <<A >>/said && cat <<-'B' >>/said\n$NAME\nA\n\t\\$NAME\n\tB\n\
                RUN <<PROGRAM\n#!/bin/cat\nread by cat\nPROGRAM\n\
                COPY --chmod=750 <<one <<'two' /files/\n\"$NAME\" \\$NAME\none\n$NAME\ntwo\n\
                COPY <<EOF /alone\nx\nEOF\n";
    let lines = built(world, &["-t", "documents"], file);
    assert!(
        lines.contains(&"read by cat".to_owned()),
        "the interpreter that the script names: {lines:?}"
    );
    assert_eq!(
        said(world, "documents", &["cat", "/said"]),
        "one\nvalue\nvalue\n\\$NAME\n"
    );
    let look = "cat /files/one /files/two /alone; stat -c '%a %u' /files/one /alone; ls /dev/pipes";
    let ran = run_image(world, &["documents", "sh", "-c", look]);
    assert_eq!(
        ran.stdout, "\"value\" $NAME\n$NAME\nx\n750 0\n644 0\n",
        "{ran:?}"
    );
    let again = built(world, &[], file);
    assert_eq!(again.last(), lines.last(), "all of it is found again");
    let other = built(world, &[], &file.replace("read by cat", "read by  cat"));
    assert!(other.contains(&"read by  cat".to_owned()), "{other:?}");
    let open = build(world, &[], "FROM base:1\n\nRUN <<EOF\ntrue\n");
    assert!(
        open.stderr.contains("line 3") && open.stderr.contains("EOF"),
        "{open:?}"
    );
    let outside = build(world, &[], "FROM base:1\nCOPY <<../x /x\na\n../x\n");
    assert_eq!(outside.code(), Some(125), "{outside:?}");
}

fn an_image_has_instructions_for_later(world: &World) {
    base(world);
    put(world, "context/f", b"of the second");
    let first =
        "FROM base:1\nONBUILD COPY f /later\nONBUILD RUN <<E\necho $A >/arg\nE\nONBUILD ENV B=b\n";
    built(world, &["-t", "first"], first);
    let config = saved(world, "first").0;
    let expected = ["COPY f /later", "RUN <<E\necho $A >/arg\nE", "ENV B=b"];
    assert_eq!(config["config"]["OnBuild"], json!(expected));
    let second = "FROM first AS x\nRUN cat /later >/then\nFROM x\nRUN echo $B >>/then\n";
    let lines = built(world, &["-t", "second"], second);
    assert_eq!(lines[0], "[1/2] STEP 1/2: FROM first AS x");
    assert_eq!(lines[1], "[1/2] STEP 2/5: COPY f /later");
    assert!(
        lines.contains(&"[1/2] STEP 5/5: RUN cat /later >/then".to_owned()),
        "{lines:?}"
    );
    assert_eq!(said(world, "second", &["cat", "/then"]), "of the secondb\n");
    // It is the children's, not the grandchildren's.
    assert_eq!(saved(world, "second").0["config"].get("OnBuild"), None);
    // An image may ask for what nobody has.
    let working = world.try_coracle(&["from", "base:1"]);
    let working = working.success().trim_end();
    let words = ["config", "--onbuild", "FETCH x", working];
    world.try_coracle(&words).success();
    world
        .try_coracle(&["commit", "--rm", working, "odd"])
        .success();
    let refused = build(world, &[], "FROM odd\n");
    assert!(
        refused.stderr.contains("line 1") && refused.stderr.contains("ONBUILD FETCH x"),
        "{refused:?}"
    );
}

fn a_bind_shows_the_context_and_other_images(world: &World) {
    base(world);
    put(world, "outside", b"outside");
    put(world, "context/d/f", b"file");
    // Whose owner has no place in the user namespace cannot be changed, even in a copy.
    world.give_away(&world.path("context/d"));
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, world.path("context").join(name)).expect("a link");
    };
    link("../outside", "out");
    link("d", "inside");
    let file = "FROM base:1 AS one\nRUN echo stage >/made; mkdir /deep; ln -s /../../../etc/passwd /deep/link 2>/dev/null || true\n\
                FROM base:1\nRUN --mount=target=/mnt/c --mount=from=one,src=/made,dst=made \
                cat /mnt/c/d/f /made >/said; (echo x >/mnt/c/new) 2>/dev/null || echo fixed >>/said\n\
                RUN --mount=target=/mnt/c,source=inside,rw echo changed >/mnt/c/f && cat /mnt/c/f >>/said\n\
                RUN --mount=from=one,target=/one,rw echo changed >/one/made && cat /one/made >>/said\n\
                RUN --mount=from=one,target=/one cat /one/made >>/said; ls / >/names\n";
    let lines = built(world, &["-t", "bound"], file);
    assert_eq!(
        said(world, "bound", &["cat", "/said"]),
        "filestage\nfixed\nchanged\nchanged\nstage\n"
    );
    let names = said(world, "bound", &["ls", "/"]);
    assert!(
        !names.contains("mnt") && !names.contains("made") && !names.contains("one"),
        "what is mounted upon does not stay: {names}"
    );
    assert_eq!(
        fs::read(world.path("context/d/f")).expect("a file"),
        b"file"
    );
    assert_eq!(built(world, &[], file).last(), lines.last());
    // A change of what is mounted is a change of the step.
    put(world, "context/d/f", b"other");
    built(world, &["-t", "bound"], file);
    assert!(said(world, "bound", &["cat", "/said"]).starts_with("otherstage"));
    // CVE-2024-1753: no link leads out of what the source is of.
    let refused = build(
        world,
        &[],
        "FROM base:1\nRUN --mount=source=out,target=/x cat /x\n",
    );
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(!refused.stdout.contains("outside"), "{refused:?}");
    let layer = Layer::busybox(world).symlink("out", "/etc");
    crate::recipe::Recipe::new("localhost/evil:1", [layer]).load(world);
    let ran = built(
        world,
        &[],
        "FROM base:1\nRUN --mount=from=evil:1,source=/out,target=/x ls /x\n",
    );
    assert!(
        ran.contains(&"passwd".to_owned()) && !ran.contains(&"hostname".to_owned()),
        "the image's /etc, not the host's: {ran:?}"
    );
}

fn a_cache_is_there_for_the_next_build(world: &World) {
    base(world);
    put(world, "context/first", b"1");
    let step = |flags: &str, step: &str| {
        format!(
            "FROM base:1\nRUN --mount=type=cache,target=/cache{flags} echo {step} >>/cache/steps; cat /cache/steps >/said\n"
        )
    };
    built(world, &["-t", "a"], &step("", "one"));
    built(world, &["-t", "b"], &step("", "two"));
    assert_eq!(said(world, "b", &["cat", "/said"]), "one\ntwo\n");
    assert!(!said(world, "b", &["ls", "/"]).contains("cache"));
    // By the id, which is the target when none is given.
    built(world, &["-t", "b"], &step(",id=other", "three"));
    assert_eq!(said(world, "b", &["cat", "/said"]), "three\n");
    built(
        world,
        &["-t", "b"],
        &step(",id=/cache,sharing=locked", "four"),
    );
    assert_eq!(said(world, "b", &["cat", "/said"]), "one\ntwo\nfour\n");
    let fixed = build(world, &[], &step(",ro", "five"));
    assert!(fixed.stderr.contains("Read-only"), "{fixed:?}");
    let owner = if world.has_single_id() { 0 } else { 48 };
    let file = format!(
        "FROM base:1 AS with\nRUN mkdir /begin; echo begun >/begin/steps\nFROM base:1\n\
         RUN --mount=type=cache,id=new,from=with,source=/begin,target=/c,uid={owner},mode=0710 \
         cat /c/steps >/said; stat -c '%a %u' /c >>/said\n"
    );
    built(world, &["-t", "b"], &file);
    assert_eq!(
        said(world, "b", &["cat", "/said"]),
        format!("begun\n710 {owner}\n")
    );
    // They go when they are told to, and not before.
    world.try_coracle(&["image", "prune", "-f"]).success();
    built(world, &["-t", "b"], &step("", "six"));
    assert!(said(world, "b", &["cat", "/said"]).starts_with("one\n"));
    world
        .try_coracle(&["image", "prune", "-f", "--build-cache"])
        .success();
    built(world, &["-t", "b"], &step("", "seven"));
    assert_eq!(said(world, "b", &["cat", "/said"]), "seven\n");
}

fn a_secret_stays_out_of_the_image(world: &World) {
    base(world);
    put(world, "key", b"hidden-word");
    let file = "FROM base:1\nRUN --mount=type=secret,id=key cat /run/secrets/key | wc -c >/mode && \
                stat -c %a /run/secrets/key >>/mode\n\
                RUN --mount=type=secret,id=key,target=/here/k,mode=444,env=KEY test ${#KEY} = 11 && cat /here/k | wc -c >>/mode\n\
                RUN --mount=type=secret,id=none ls /run/secrets/none 2>/dev/null || echo none >>/mode\n";
    built(world, &["-t", "kept", "--secret", "id=key,src=key"], file);
    assert_eq!(
        said(world, "kept", &["cat", "/mode"]),
        "11\n400\n11\nnone\n"
    );
    assert!(!said(world, "kept", &["ls", "/"]).contains("here"));
    let (config, layers) = saved(world, "kept");
    let holds = |bytes: &[u8]| bytes.windows(11).any(|window| window == b"hidden-word");
    assert!(!layers.iter().any(|layer| holds(layer)) && !holds(config.to_string().as_bytes()));
    let variable = "FROM base:1\nRUN --mount=type=secret,id=v cat /run/secrets/v >/v\n";
    let mut command = world.coracle([
        "build",
        "-t",
        "v",
        "--network",
        "none",
        "--secret",
        "id=v,env=SECRET_OF_MINE",
        "context",
    ]);
    put(world, "context/Containerfile", variable.as_bytes());
    command.env("SECRET_OF_MINE", "of the environment");
    crate::harness::finish(command).success();
    assert_eq!(said(world, "v", &["cat", "/v"]), "of the environment");
    let needed = "FROM base:1\nRUN --mount=type=secret,id=k,required true\n";
    let refused = build(world, &[], needed);
    assert!(
        refused.stderr.contains("secret k") && refused.code() == Some(125),
        "{refused:?}"
    );
    let refused = build(world, &["--secret", "id=k,src=no-such"], needed);
    assert!(refused.stderr.contains("no-such"), "{refused:?}");
}

fn memory_is_gone_after_its_command(world: &World) {
    base(world);
    let file = "FROM base:1\nRUN --mount=type=tmpfs,target=/t,size=64k echo x >/t/x && cat /proc/mounts >/mounts; \
                (cat /bin/busybox >/t/much) 2>/dev/null || echo full >/said\nRUN ls / >/names\n";
    built(world, &["-t", "memory"], file);
    assert_eq!(said(world, "memory", &["cat", "/said"]), "full\n");
    let mounts = said(world, "memory", &["cat", "/mounts"]);
    assert!(
        mounts
            .lines()
            .any(|line| line.contains(" /t tmpfs ") && line.contains("size=64k")),
        "{mounts}"
    );
    let names = said(world, "memory", &["cat", "/names"]);
    assert!(!names.lines().any(|name| name == "t"), "{names}");
    assert_eq!(world.try_coracle(&["containers", "-q"]).success(), "");
}

fn what_a_mount_asks_for_is_there_or_refused(world: &World) {
    base(world);
    for (mount, named) in [
        ("type=ssh", "type=ssh"),
        ("target=/proc/x", "/proc"),
        ("target=/", "whole tree"),
        ("target=/x,source=none", "none"),
        ("type=cache,target=/x,uid=-1", "uid"),
        ("target=/x,bind-propagation=shared", "bind-propagation"),
        ("target=/x,from=", "from"),
    ] {
        let file = format!("FROM base:1\nRUN --mount={mount} true\n");
        let refused = build(world, &[], &file);
        assert_eq!(refused.code(), Some(125), "{mount}: {refused:?}");
        assert!(
            refused.stderr.contains("line 2"),
            "{mount} ({named}): {refused:?}"
        );
    }
    assert_eq!(world.try_coracle(&["containers", "-q"]).success(), "");
    let offline = "FROM base:1\nRUN --network=none ls /sys/class/net >/names\n";
    built(world, &["-t", "offline", "--network", "default"], offline);
    assert_eq!(said(world, "offline", &["cat", "/names"]), "lo\n");
}

fn steps_become_one_layer(world: &World) {
    base(world);
    put(world, "context/f", b"f");
    let file = "FROM base:1 AS one\nRUN echo a >/a\nFROM one\nENV X=1\nRUN echo b >/b; rm /a\nCOPY f /f\nLABEL l=1\n";
    let count = |flags: &[&str]| {
        built(world, &[&["-t", "made"], flags].concat(), file);
        let ran = run_image(
            world,
            &["made", "sh", "-c", "cat /b /f; echo $X; ls /a 2>/dev/null"],
        );
        assert_eq!(ran.stdout, "b\nf1\n", "{flags:?}");
        let (config, layers) = saved(world, "made");
        assert_eq!(config["config"]["Labels"]["l"], "1");
        let history = config["history"].as_array().expect("a history").clone();
        let made: Vec<_> = history
            .iter()
            .map(|step| !step["empty_layer"].as_bool().unwrap_or(false))
            .collect();
        (layers.len(), made)
    };
    // The base has no history of its own.
    assert_eq!(count(&[]), (4, vec![true, false, true, true, false]));
    assert_eq!(
        count(&["--squash"]),
        (3, vec![true, false, false, false, true])
    );
    assert_eq!(
        count(&["--layers=false"]),
        (3, vec![true, false, false, false, true])
    );
    assert_eq!(count(&["--squash-all"]), (1, vec![true]));
    let both = build(world, &["--squash", "--squash-all"], file);
    assert_eq!(both.code(), Some(125), "{both:?}");
    // What is squashed has the labels and names that it is given.
    built(
        world,
        &["-t", "x", "--squash-all", "--label", "a=b"],
        "FROM base:1\n",
    );
    let (config, layers) = saved(world, "x");
    assert_eq!(config["config"]["Labels"]["a"], "b");
    assert_eq!(layers.len(), 1);
}

fn what_the_last_stage_does_not_need_is_left_out(world: &World) {
    base(world);
    let file = "FROM base:1 AS broken\nRUN exit 3\nFROM base:1 AS used\nRUN echo x >/x\n\
                FROM base:1\nCOPY --from=used /x /x\n";
    let lines = built(world, &["-t", "last"], file);
    assert!(
        !lines.iter().any(|line| line.starts_with("[1/3]")),
        "{lines:?}"
    );
    assert_eq!(lines[0], "[2/3] STEP 1/2: FROM base:1 AS used");
    let all = build(world, &["--skip-unused-stages=false"], file);
    assert_eq!(all.code(), Some(3), "{all:?}");
}
