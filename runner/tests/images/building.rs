//! Images made by hand: working containers, what is changed in them, and what becomes of that.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use serde_json::{Value, json};
use tar::EntryType;

use crate::harness::caller::program;
use crate::harness::{Outcome, World, cases, coracle, finish, skip};
use crate::judges::other;
use crate::recipe::{Layer, Recipe, put, run_image};

cases![
    an_image_is_made_by_hand,
    a_script_of_buildahs_works,
    a_package_manager_of_the_host_installs,
    a_mount_takes_the_shared_namespaces,
    a_layer_holds_what_has_changed,
    the_same_content_is_the_same_image,
    a_configuration_is_changed_and_what_it_does_not_say_stays,
    files_are_copied_as_buildah_copies_them,
    an_image_with_a_working_container_stays,
    what_was_cut_short_is_swept,
    what_cannot_be_is_refused,
];

fn base(world: &World) -> Recipe {
    let config = json!({"Env": ["PATH=/bin", "A=image"], "WorkingDir": "/work", "Cmd": ["sh"],
                        "Healthcheck": {"Test": ["CMD", "true"]}});
    let layer = Layer::busybox(world)
        .symlink("bin/mkdir", "busybox")
        .symlink("bin/rm", "busybox")
        .symlink("bin/ln", "busybox")
        .symlink("bin/chown", "busybox")
        .dir("lower", 0o755, 0)
        .file("lower/a", 0o644, 0, b"a")
        .file("lower/b", 0o644, 0, b"b")
        .dir("whole", 0o750, 0)
        .file("whole/old", 0o644, 0, b"old");
    Recipe::new("localhost/base:1", [layer]).config(config)
}

fn ok(world: &World, words: &[&str]) -> String {
    world.try_coracle(words).success().to_owned()
}

fn begin(world: &World, image: &str) -> String {
    ok(world, &["from", image]).trim_end().to_owned()
}

fn run_in(world: &World, container: &str, script: &str) -> Outcome {
    let words = [
        "run",
        "--network",
        "none",
        "--user",
        "0",
        container,
        "--",
        "sh",
        "-c",
        script,
    ];
    world.try_coracle(&words)
}

/// Of an image, as another tool would find it.
pub fn saved(world: &World, image: &str) -> (Value, Vec<Vec<u8>>) {
    let dir = world.path("saved");
    let _ = fs::remove_dir_all(&dir);
    let dir_text = dir.to_str().expect("plain");
    ok(
        world,
        &["save", "--format", "oci-dir", "-o", dir_text, image],
    );
    let blob = |digest: &Value| {
        let digest = digest
            .as_str()
            .expect("a digest")
            .trim_start_matches("sha256:");
        fs::read(dir.join("blobs/sha256").join(digest)).expect("a blob")
    };
    let read = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).expect("JSON");
    let index = read(fs::read(dir.join("index.json")).expect("an index"));
    let manifest = read(blob(&index["manifests"][0]["digest"]));
    let config = read(blob(&manifest["config"]["digest"]));
    let layers = manifest["layers"].as_array().expect("a list");
    let layers = layers.iter().map(|layer| blob(&layer["digest"])).collect();
    (config, layers)
}

/// Path, with kind, mode, owner, and content or target.
fn entries(layer: &[u8]) -> BTreeMap<String, (EntryType, u32, u64, String)> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().expect("a tar");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            let mut content = String::from_utf8_lossy(&content).into_owned();
            if let Some(target) = entry.link_name().expect("a target") {
                content = target.display().to_string();
            }
            let header = entry.header();
            let (mode, uid) = (
                header.mode().expect("a mode"),
                header.uid().expect("a user"),
            );
            (path, (header.entry_type(), mode, uid, content))
        })
        .collect()
}

fn an_image_is_made_by_hand(world: &World) {
    base(world).load(world);
    assert_eq!(ok(world, &["from", "base:1"]), "base-working-container\n");
    assert_eq!(ok(world, &["from", "base:1"]), "base-working-container-1\n");
    assert_eq!(ok(world, &["from", "--name", "mine", "base:1"]), "mine\n");
    let said = run_in(world, "mine", "pwd; echo $A; echo new >/work/new; exit 5");
    assert_eq!(
        (said.code(), &*said.stdout),
        (Some(5), "/work\nimage\n"),
        "{said:?}"
    );
    let said = run_in(world, "mine", "cat /work/new");
    assert_eq!(said.success(), "new\n");
    // It is no container that runs or has run.
    assert_eq!(ok(world, &["ps", "-aq"]), "");
    let listed = ok(world, &["containers", "--json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[0]["imagename"], "localhost/base:1");

    let cmd = ["config", "--cmd", "cat /work/new", "mine"];
    ok(world, &cmd);
    let made = world.try_coracle(&["commit", "--rm", "mine", "made"]);
    let id = made.success().trim_end();
    assert!(
        id.len() == 64 && made.stderr.ends_with("Storing signatures\n"),
        "{made:?}"
    );
    assert_eq!(run_image(world, &["made"]).success(), "new\n");
    assert_eq!(run_image(world, &[id]).success(), "new\n");
    // Nothing that a container needs for itself is in the layer, though its place was.
    let (config, layers) = saved(world, "made");
    let names: Vec<_> = entries(&layers[1]).into_keys().collect();
    assert_eq!(names, ["./", "etc/", "work/", "work/new"]);
    assert_eq!(
        config["config"]["Healthcheck"]["Test"],
        json!(["CMD", "true"])
    );
    assert_eq!(
        ok(
            world,
            &["rm", "base-working-container", "base-working-container-1"]
        )
        .lines()
        .count(),
        2
    );
    assert_eq!(ok(world, &["containers", "-q"]), "");
    let words = [
        "inspect",
        "--config",
        &format!(
            "oci:{}/oci:localhost/made:latest",
            world.storage().display()
        ),
    ];
    other(world, "skopeo", &words);
}

/// The script of "What is buildah unshare", corrected, with coracle in the place of buildah.
fn a_script_of_buildahs_works(world: &World) {
    let script = r#"set -e
        ctr=$("$CORACLE" from scratch)
        mnt=$("$CORACLE" mount $ctr)
        mkdir -p $mnt/bin $mnt/etc $mnt/srv
        cp rootfs/bin/busybox $mnt/bin
        for applet in sh id cat; do ln -s busybox $mnt/bin/$applet; done
        echo root:x:0:0::/:/bin/sh >$mnt/etc/passwd
        echo web:x:33:33::/srv:/bin/sh >>$mnt/etc/passwd
        echo page >$mnt/srv/page
        chown $OWNER $mnt/srv/page; chmod 600 $mnt/srv/page
        "$CORACLE" config --entrypoint '["sh", "-c", "id -u; cat /srv/page"]' --user $OWNER $ctr
        "$CORACLE" commit --rm -q $ctr scripted
    "#;
    put(world, "buildimage.sh", script.as_bytes());
    let owner = if world.has_single_id() { "0" } else { "33" };
    let mut command = world.coracle(["unshare", "sh", "./buildimage.sh"]);
    command.env("CORACLE", coracle()).env("OWNER", owner);
    let id = finish(command);
    assert_eq!(id.success().trim_end().len(), 64, "{id:?}");
    let ran = run_image(world, &["scripted"]);
    assert_eq!(ran.success(), format!("{owner}\npage\n"));
    let (_, layers) = saved(world, "scripted");
    let page = &entries(&layers[0])["srv/page"];
    assert_eq!((page.1, page.2.to_string()), (0o600, owner.to_owned()));
    let words = ["inspect", "oci:saved"];
    other(world, "skopeo", &words);
}

/// dnf, from a repository of one package.
fn a_package_manager_of_the_host_installs(world: &World) {
    for name in ["dnf", "rpmbuild", "createrepo_c"] {
        if program(name).is_none() {
            skip(format!("{name} is not installed"));
        }
    }
    // Packages have files of several users.
    if world.has_single_id() {
        return;
    }
    let spec = "Name: toy\nVersion: 1\nRelease: 1\nSummary: A toy\nLicense: MIT\nBuildArch: noarch\nAutoReqProv: no\n\
                %description\nA toy.\n%install\nmkdir -p %{buildroot}/usr/bin %{buildroot}/srv/mine\n\
                printf '#!/bin/sh\\necho toy\\n' >%{buildroot}/usr/bin/toy\n\
                %files\n%attr(4755,root,root) /usr/bin/toy\n%dir %attr(2770,root,root) /srv/mine\n";
    put(world, "toy.spec", spec.as_bytes());
    let script = r#"set -e
        here=$PWD
        rpmbuild --quiet -bb --define "_rpmdir $here/repo" --define "_topdir $here/top" toy.spec
        createrepo_c -q repo
        ctr=$("$CORACLE" from scratch)
        mnt=$("$CORACLE" mount $ctr)
        mkdir -p $mnt/bin && cp rootfs/bin/busybox $mnt/bin/sh
        dnf -y -q --installroot $mnt --releasever 1 --repofrompath toys,file://$here/repo --repo toys --nogpgcheck \
            --setopt=reposdir=/none --setopt=cachedir=$here/cache --setopt=pluginpath=/none install toy
        "$CORACLE" config --entrypoint '["/usr/bin/toy"]' $ctr
        "$CORACLE" commit --rm -q $ctr toys
    "#;
    put(world, "buildimage.sh", script.as_bytes());
    let mut command = world.coracle(["unshare", "sh", "./buildimage.sh"]);
    command.env("CORACLE", coracle());
    let made = finish(command);
    assert_eq!(made.code(), Some(0), "{made:?}");
    assert_eq!(run_image(world, &["toys"]).success(), "toy\n");
    let (_, layers) = saved(world, "toys");
    let found = entries(&layers[0]);
    assert_eq!(
        (found["usr/bin/toy"].1, found["usr/bin/toy"].2),
        (0o4755, 0)
    );
    assert_eq!(found["srv/mine/"].1, 0o2770);
    ok(world, &["unshare", "rm", "-rf", "repo", "top", "cache"]);
}

fn a_mount_takes_the_shared_namespaces(world: &World) {
    base(world).load(world);
    let name = begin(world, "base:1");
    let outside = world.try_coracle(&["mount", &name]);
    let unshared = |words: &[&str]| {
        let program = coracle().to_str().expect("plain");
        world.try_coracle(&[&["unshare", program], words].concat())
    };
    if !world.is_root() {
        assert_eq!(outside.code(), Some(125));
        let text = "cannot mount using driver overlay in rootless mode. You need to run it in a `coracle unshare` session";
        assert!(outside.stderr.contains(text), "{outside:?}");
        assert_eq!(unshared(&["mount"]).success(), "");
        let place = unshared(&["mount", &name]).success().trim_end().to_owned();
        assert_eq!(unshared(&["mount"]).success(), format!("{name} {place}\n"));
        let write = format!("echo by hand >{place}/work-by-hand");
        ok(world, &["unshare", "sh", "-c", &write]);
        // What is mounted is what a command changes, and it stays mounted.
        run_in(world, &name, "cat /work-by-hand; echo run >/by-run").success();
        let read = format!("cat {place}/by-run");
        assert_eq!(ok(world, &["unshare", "sh", "-c", &read]), "run\n");
        assert_eq!(
            fs::read_dir(&place).map_or(0, Iterator::count),
            0,
            "seen outside"
        );
        assert_eq!(ok(world, &["umount", &name]).trim_end().len(), 64);
        assert_eq!(world.try_coracle(&["umount", &name]).code(), Some(125));
        unshared(&["mount", &name]).success();
        world.end_shared_namespaces();
        assert_eq!(run_in(world, &name, "cat /by-run").success(), "run\n");
    } else {
        let place = outside.success().trim_end();
        assert!(fs::metadata(format!("{place}/bin")).is_ok_and(|found| found.is_dir()));
        ok(world, &["umount", "--all"]);
    }
    ok(world, &["rm", &name]);
}

fn a_layer_holds_what_has_changed(world: &World) {
    base(world).load(world);
    let name = begin(world, "base:1");
    let script = "rm /lower/a; echo c >/lower/c; ln /lower/c /lower/d; ln -s c /lower/e; \
                  rm -r /whole; mkdir /whole; echo new >/whole/new; echo x >/etc/.opq; rm /etc/.opq";
    run_in(world, &name, script).success();
    if !world.has_single_id() {
        run_in(world, &name, "chown 48:48 /lower/c").success();
    }
    ok(world, &["commit", "-q", &name, "changed"]);
    let (_, layers) = saved(world, "changed");
    let found = entries(&layers[1]);
    let owner = if world.has_single_id() { 0 } else { 48 };
    let file = |mode, owner, content: &str| (EntryType::Regular, mode, owner, content.to_owned());
    assert_eq!(found["lower/.wh.a"], file(0o644, 0, ""));
    assert_eq!(found["lower/c"], file(0o644, owner, "c\n"));
    assert_eq!(found["lower/d"].0, EntryType::Link);
    assert_eq!(found["lower/d"].3, "lower/c");
    assert_eq!(found["lower/e"].3, "c");
    assert!(found.contains_key("whole/.wh..wh..opq"), "{found:?}");
    assert_eq!(found["whole/new"], file(0o644, 0, "new\n"));
    assert!(
        !found.contains_key("lower/b") && !found.contains_key("etc/.wh..opq"),
        "{found:?}"
    );
    let look = "cd /; echo lower/* whole/*; stat -c %h lower/c";
    let ran = run_image(world, &["changed", "sh", "-c", look]);
    assert_eq!(
        ran.success(),
        "lower/b lower/c lower/d lower/e whole/new\n2\n"
    );
    // In one layer, the same.
    ok(world, &["commit", "-q", "--squash", &name, "squashed"]);
    let (_, layers) = saved(world, "squashed");
    assert_eq!(layers.len(), 1);
    let ran = run_image(world, &["squashed", "sh", "-c", look]);
    assert_eq!(
        ran.success(),
        "lower/b lower/c lower/d lower/e whole/new\n2\n"
    );
    ok(world, &["rm", &name]);
}

fn the_same_content_is_the_same_image(world: &World) {
    base(world).load(world);
    let make = || {
        let name = begin(world, "base:1");
        run_in(
            world,
            &name,
            "echo z >/z; echo a >/a; mkdir /m; echo b >/m/b",
        )
        .success();
        ok(
            world,
            &["commit", "-q", "--rm", "--timestamp", "1700000000", &name],
        )
    };
    let first = make();
    assert_eq!(make(), first);
    // Without a change there is no layer.
    let name = begin(world, "base:1");
    ok(world, &["commit", "-q", "--rm", &name, "nothing"]);
    let (config, layers) = saved(world, "nothing");
    assert_eq!(layers.len(), 1);
    assert_eq!(config["history"][0]["empty_layer"], true);
}

fn a_configuration_is_changed_and_what_it_does_not_say_stays(world: &World) {
    base(world).load(world);
    let name = begin(world, "base:1");
    let words = [
        "config",
        "--entrypoint",
        r#"["sh", "-c"]"#,
        "--cmd",
        r#"echo "a b" c"#,
        "--env",
        "B=1",
        "--env",
        "A-",
        "--label",
        "x=y=z",
        "--port",
        "80",
        "--port",
        "53/udp",
        "--volume",
        "/data",
        "--user",
        "apache",
        "--workingdir",
        "/srv",
        "--stop-signal",
        "SIGINT",
        "--author",
        "me",
        "--created-by",
        "by hand",
        "--healthcheck",
        "curl -f http://localhost",
        "--healthcheck-interval",
        "1m30s",
        "--shell",
        "/bin/sh -e",
        &name,
    ];
    ok(world, &words);
    ok(world, &["commit", "-q", &name, "configured"]);
    let (config, _) = saved(world, "configured");
    let expected = json!({
        "User": "apache", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Env": ["PATH=/bin", "B=1"],
        "Entrypoint": ["sh", "-c"], "Cmd": ["echo", "a b", "c"], "Volumes": {"/data": {}}, "WorkingDir": "/srv",
        "Labels": {"x": "y=z"}, "StopSignal": "SIGINT", "Shell": ["/bin/sh", "-e"],
        "Healthcheck": {"Test": ["CMD-SHELL", "curl -f http://localhost"], "Interval": 90_000_000_000_u64},
    });
    assert_eq!(config["config"], expected);
    assert_eq!(config["author"], "me");
    assert_eq!(config["history"][0]["created_by"], "by hand");
    let words = [
        "config",
        "--port",
        "80-",
        "--env",
        "-",
        "--user",
        "",
        "--entrypoint",
        "echo $0",
        "--healthcheck",
        "NONE",
        &name,
    ];
    ok(world, &words);
    ok(world, &["commit", "-q", "--rm", &name, "configured"]);
    let (config, _) = saved(world, "configured");
    let config = &config["config"];
    assert_eq!(config["ExposedPorts"], json!({"53/udp": {}}));
    assert_eq!((config.get("Env"), config.get("User")), (None, None));
    assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "echo $0"]));
    assert_eq!(config["Healthcheck"]["Test"], json!(["NONE"]));
}

fn files_are_copied_as_buildah_copies_them(world: &World) {
    base(world).load(world);
    let name = begin(world, "base:1");
    put(world, "context/f", b"file");
    put(world, "context/d/g", b"below");
    put(world, "context/d/.hidden", b"hidden");
    std::os::unix::fs::symlink("/etc/passwd", world.path("context/d/link")).expect("a link");
    let archive = Layer::new()
        .dir("unpacked", 0o755, 0)
        .file("unpacked/x", 0o600, 0, b"x")
        .finish();
    put(
        world,
        "context/a.tar",
        &crate::recipe::pack(&archive, crate::recipe::Packed::Gzip),
    );
    let copy = |words: &[&str]| world.try_coracle(&[&["copy"], words].concat());
    assert_eq!(copy(&[&name, "context/f"]).success().trim_end().len(), 64);
    assert_eq!(copy(&["-q", &name, "context/f", "/new/dir/"]).success(), "");
    copy(&["--chmod", "4711", &name, "context/f", "/renamed"]).success();
    copy(&[&name, "context/d", "/tree"]).success();
    copy(&[&name, "context/[df]", "context/a.tar", "/several"]).success();
    ok(world, &["add", &name, "context/a.tar", "/added/"]);
    let owner = if world.has_single_id() {
        "0:0"
    } else {
        "apache"
    };
    copy(&["--chown", owner, &name, "context/f", "/owned"]).success();
    copy(&["--from", "base:1", &name, "/lower/a", "/from-image"]).success();
    let look = "cd /; cat work/f new/dir/f tree/g tree/.hidden several/f several/g; echo; cat added/unpacked/x from-image; echo; \
                stat -c '%a %u' renamed owned tree; ls several; readlink tree/link";
    let uid = if world.has_single_id() { 0 } else { 48 };
    let expected = format!(
        "filefilebelowhiddenfilebelow\nxa\n4711 0\n644 {uid}\n755 0\na.tar\nf\ng\nlink\n/etc/passwd\n"
    );
    assert_eq!(run_in(world, &name, look).success(), expected);
    // No link of the image's leads out of it, nor one of the sources'.
    run_in(world, &name, "ln -s /../../../../../../tmp /out").success();
    copy(&[&name, "context/f", "/out/coracle-copied"]).success();
    assert!(!std::path::Path::new("/tmp/coracle-copied").exists());
    assert_eq!(
        run_in(world, &name, "cat /tmp/coracle-copied").success(),
        "file"
    );
    let refused = copy(&[&name, "context/none", "/x"]);
    assert!(
        refused.code() == Some(125) && refused.stderr.contains("context/none"),
        "{refused:?}"
    );
    let refused = copy(&[&name, "https://example.org/x", "/x"]);
    assert!(refused.stderr.contains("does not fetch"), "{refused:?}");
    // What was there for its files only is gone.
    assert_eq!(ok(world, &["containers", "-q"]).lines().count(), 1);
    ok(world, &["rm", &name]);
}

fn an_image_with_a_working_container_stays(world: &World) {
    let id = base(world).load(world);
    let name = begin(world, "base:1");
    let refused = world.try_coracle(&["rmi", "base:1"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains(&name), "{refused:?}");
    ok(world, &["rmi", "-f", &id]);
    assert_eq!(ok(world, &["containers", "-q"]), "");
    assert_eq!(ok(world, &["images", "-q"]), "");
}

fn what_was_cut_short_is_swept(world: &World) {
    let name = begin(world, "scratch");
    let working = world.storage().with_file_name("working");
    let half = working.join("0123456789abcdef".repeat(4));
    fs::create_dir_all(half.join("upper/some/where")).expect("a directory");
    world.give_away(&half);
    assert_eq!(ok(world, &["containers", "-q"]).lines().count(), 1);
    assert_eq!(begin(world, "scratch"), format!("{name}-1"));
    assert!(!half.exists());
    ok(world, &["rm", &name, &format!("{name}-1")]);
    assert_eq!(fs::read_dir(&working).expect("a directory").count(), 0);
}

fn what_cannot_be_is_refused(world: &World) {
    base(world).load(world);
    let name = begin(world, "scratch");
    let refuse = |words: &[&str], text: &str| {
        let refused = world.try_coracle(words);
        assert_eq!(refused.code(), Some(125), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(text), "{words:?}: {refused:?}");
    };
    refuse(&["from", "--name", &name, "scratch"], "is in use");
    refuse(&["from", "--name", "a b", "scratch"], "cannot name");
    refuse(&["from", "--pull", "never", "no/such"], "image not known");
    refuse(&["config", "--port", "x", &name], "--port x");
    refuse(&["config", "--stop-signal", "SIGNONE", &name], "SIGNONE");
    refuse(&["config", "--cmd", "'x", &name], "quotation mark");
    refuse(&["config", "--annotation", "a=b", &name], "--annotation");
    refuse(&["commit", "none"], "no such working container");
    refuse(&["commit", &name, "BAD"], "BAD");
    refuse(&["run", "-d", &name, "true"], "foreground");
    refuse(
        &["copy", "--chown", "nobody-here", &name, "rootfs", "/"],
        "nobody-here",
    );
    ok(world, &["rm", &name]);
}
