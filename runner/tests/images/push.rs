//! Images to registries and into files, judged by skopeo, Podman and by getting them back.

use std::fs;

use serde_json::{Value, json};

use crate::docker_registry::{Options, Registry};
use crate::harness::{Outcome, World, cases};
use crate::judges::{other, podman};
use crate::recipe::{Layer, Packed, Recipe, digest, load, put, run_image};

cases![
    what_was_pushed_comes_back,
    plain_layers_are_compressed,
    a_manifest_is_in_the_words_that_are_asked_for,
    what_is_there_is_not_sent_again,
    archives_and_directories_are_written,
    a_layout_holds_several_images,
    passwords_and_certificates_are_asked_for,
    an_upload_that_breaks_off_says_so,
    what_cannot_be_pushed_is_refused,
    a_registry_is_searched;
    podman_pulls_what_is_pushed,
];

const INSECURE: &str = "--tls-verify=false";

fn image(world: &World) -> Recipe {
    let upper = Layer::new().file("etc/upper", 0o644, 0, b"upper");
    let image = Recipe::new("localhost/pushed:1", [Layer::busybox(world), upper]);
    image.config(json!({"Cmd": ["cat", "/etc/upper"], "Labels": {"a": "b"}}))
}

/// Loads it as a registry would give it, with compressed layers.
fn load_packed(world: &World) -> Recipe {
    let image = image(world);
    load(world, &image.oci_archive(Packed::Gzip)).success();
    image
}

#[track_caller]
fn push(world: &World, words: &[&str]) -> Outcome {
    world.try_coracle(&[&["push"], words].concat())
}

#[track_caller]
fn skopeo_sees(world: &World, place: &str) -> Value {
    let seen = other(world, "skopeo", &["inspect", INSECURE, place]);
    serde_json::from_str(&seen.stdout).expect("JSON")
}

fn manifest_of(image: &Recipe) -> Vec<u8> {
    let files = image.oci_files(Packed::Gzip).into_iter();
    let mut manifests = files.filter(|(_, content)| {
        let text = String::from_utf8_lossy(content);
        text.starts_with('{') && text.contains("\"layers\":[{")
    });
    manifests.next().expect("a manifest").1
}

fn what_was_pushed_comes_back(world: &World) {
    let image = load_packed(world);
    let registry = Registry::start(world);
    let name = format!("{}/team/app:1", registry.address);
    let words = [INSECURE, "--digestfile", "digest", "pushed:1", &name];
    let pushed = push(world, &words);
    assert_eq!(pushed.success(), "");
    let lines: Vec<_> = pushed.stderr.lines().collect();
    assert_eq!(lines[0], "Getting image source signatures", "{pushed:?}");
    for line in &lines[1..3] {
        assert!(line.starts_with("Copying blob ") && line.ends_with(" done"));
    }
    let config = format!("Copying config {} done", &image.id()[..10]);
    let end = [
        "Writing manifest to image destination",
        "Storing signatures",
    ];
    assert_eq!(lines[3..], [&*config, end[0], end[1]]);
    // With its digest, and so with what others have signed.
    let manifest = digest(&manifest_of(&image));
    assert_eq!(
        fs::read_to_string(world.path("digest")).expect("written"),
        manifest
    );
    let seen = skopeo_sees(world, &format!("docker://{name}"));
    assert_eq!(seen["Digest"], json!(manifest));
    assert_eq!(seen["Labels"], json!({"a": "b"}));

    world.try_coracle(&["rmi", "-a"]).success();
    let pulled = world.try_coracle(&["pull", "-q", INSECURE, &name]);
    assert_eq!(pulled.success(), format!("{}\n", image.id()));
    assert_eq!(run_image(world, &[&name]).success(), "upper");
    // To where it came from.
    let quiet = push(world, &["-q", INSECURE, &name]);
    assert_eq!((quiet.success(), &*quiet.stderr), ("", ""));
}

fn a_manifest_is_in_the_words_that_are_asked_for(world: &World) {
    let image = load_packed(world);
    let registry = Registry::start(world);
    let place = |name: &str| format!("{}/words/{name}:1", registry.address);
    let raw = |name: &str| -> Value {
        let place = format!("docker://{}", place(name));
        let seen = other(world, "skopeo", &["inspect", "--raw", INSECURE, &place]);
        serde_json::from_str(&seen.stdout).expect("JSON")
    };
    for (form, whole, layer) in [
        (
            "v2s2",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        (
            "oci",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
    ] {
        let words = [
            INSECURE,
            "--digestfile",
            "digest",
            "--format",
            form,
            "pushed:1",
            &place(form),
        ];
        push(world, &words).success();
        let found = raw(form);
        assert_eq!(found["mediaType"], whole);
        assert_eq!(found["layers"][0]["mediaType"], layer);
        let seen = skopeo_sees(world, &format!("docker://{}", place(form)));
        let said = fs::read_to_string(world.path("digest")).expect("a digest");
        assert_eq!(seen["Digest"], json!(said));
        assert_eq!(seen["Labels"]["a"], "b");
        // It is the same image, whatever is said of it.
        let pulled = world.try_coracle(&["pull", "-q", INSECURE, &place(form)]);
        assert_eq!(pulled.success().trim_end(), image.id());
        world.try_coracle(&["rmi", &place(form)]).success();
    }
    // What came in Docker's words goes in OCI's.
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    world
        .try_coracle(&["pull", "-q", INSECURE, &place("v2s2")])
        .success();
    push(
        world,
        &[INSECURE, "-f", "oci", &place("v2s2"), &place("back")],
    )
    .success();
    assert_eq!(
        raw("back")["config"]["mediaType"],
        "application/vnd.oci.image.config.v1+json"
    );
    // Docker has no word for a layer that is packed by zstd.
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    load(world, &image.oci_archive(Packed::Zstd)).success();
    let refused = push(world, &[INSECURE, "-f", "v2s2", "pushed:1", &place("zstd")]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("tar+zstd"), "{refused:?}");
    for (words, said) in [
        (&["-f", "v2s1", "pushed:1", "quay.io/x"][..], "v2s1"),
        (&["-f", "v2s2", "pushed:1", "oci:layout"], "form of its own"),
        (
            &["-f", "oci", "pushed:1", "docker-archive:x"],
            "form of its own",
        ),
        (&["pushed:1", "containers-storage:x"], "podman load"),
    ] {
        let refused = push(world, words);
        assert_eq!(refused.code(), Some(125), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
}

fn plain_layers_are_compressed(world: &World) {
    let image = image(world);
    image.load(world);
    let registry = Registry::start(world);
    let place = format!("docker://{}/team/plain:1", registry.address);
    push(world, &[INSECURE, "pushed:1", &place]).success();
    let raw = other(world, "skopeo", &["inspect", "--raw", INSECURE, &place]);
    let manifest: Value = serde_json::from_str(&raw.stdout).expect("JSON");
    for layer in manifest["layers"].as_array().expect("layers") {
        assert_eq!(
            layer["mediaType"],
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
    }
    assert_eq!(
        manifest["config"]["digest"],
        format!("sha256:{}", image.id())
    );
    world.try_coracle(&["rmi", "-a"]).success();
    let name = place.strip_prefix("docker://").expect("one");
    world.try_coracle(&["pull", "-q", INSECURE, name]).success();
    assert_eq!(run_image(world, &[name]).success(), "upper");
}

fn what_is_there_is_not_sent_again(world: &World) {
    load_packed(world);
    let registry = Registry::start(world);
    let name = |tag: &str| format!("{}/team/app:{tag}", registry.address);
    push(world, &[INSECURE, "pushed:1", &name("1")]).success();
    // Less than a layer passes here.
    let short = registry.cut_after(20_000);
    let there = format!("{short}/team/app:2");
    let again = push(world, &[INSECURE, "pushed:1", &there]);
    again.success();
    let skipped = again.stderr.lines();
    let skipped = skipped.filter(|line| line.ends_with("skipped: already exists"));
    assert_eq!(skipped.count(), 2, "{again:?}");
    skopeo_sees(world, &format!("docker://{}", name("2")));
}

fn archives_and_directories_are_written(world: &World) {
    let image = load_packed(world);
    for place in ["oci-archive:o.tar", "oci-archive:p.tar:web", "oci:layout"] {
        let pushed = push(world, &["pushed:1", place]);
        assert!(
            pushed.stderr.contains("Copying blob"),
            "{place}: {pushed:?}"
        );
        let seen = other(world, "skopeo", &["inspect", "--config", place]);
        let seen: Value = serde_json::from_str(&seen.stdout).expect("JSON");
        assert_eq!(seen["rootfs"]["diff_ids"], json!(image.diff_ids), "{place}");
    }
    push(world, &["-q", "pushed:1", "docker-archive:d.tar:web:2"]).success();
    let there = push(world, &["-q", "pushed:1", "docker-archive:d.tar"]);
    assert_eq!(there.code(), Some(125));
    assert!(there.stderr.contains("d.tar is there already"), "{there:?}");
    world.try_coracle(&["rmi", "-a"]).success();
    let loaded = world.try_coracle(&["load", "-i", "d.tar"]);
    assert_eq!(
        loaded.success(),
        "Loaded image: docker.io/library/web:2\nLoaded image: localhost/pushed:1\n"
    );
    assert_eq!(run_image(world, &["web:2"]).success(), "upper");
}

fn a_layout_holds_several_images(world: &World) {
    load_packed(world);
    let other_image = Layer::new().file("other", 0o644, 0, b"");
    let other_image = Recipe::new("localhost/other:1", [other_image]);
    other_image.load(world);
    for (image, name) in [("pushed:1", "a"), ("other:1", "b"), ("other:1", "a")] {
        push(world, &["-q", image, &format!("oci:layout:{name}")]).success();
    }
    let index = fs::read(world.path("layout/index.json")).expect("an index");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let manifests = index["manifests"].as_array().expect("manifests");
    assert_eq!(manifests.len(), 2, "a name has one image: {index}");
    for name in ["a", "b"] {
        let words = ["inspect", "--config", &format!("oci:layout:{name}")];
        let seen = other(world, "skopeo", &words);
        assert!(seen.stdout.contains(&other_image.diff_ids[0]), "{name}");
    }
    // What is no layout is not made one.
    put(world, "full/file", b"");
    world.give_away(&world.path("full"));
    let refused = push(world, &["pushed:1", "oci:full"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("full"), "{refused:?}");
}

fn passwords_and_certificates_are_asked_for(world: &World) {
    let image = load_packed(world);
    let options = Options {
        tls: true,
        password: true,
    };
    let registry = Registry::with(world, options);
    let name = format!("{}/team/app:1", registry.address);
    let refused = |outcome: Outcome, said: &str| {
        assert_eq!(outcome.code(), Some(125), "{outcome:?}");
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains(said) && last.contains(&registry.address),
            "{said}: {outcome:?}"
        );
    };
    refused(push(world, &["pushed:1", &name]), "certs.d");
    let certs = format!(
        "home/.config/containers/certs.d/{}/ca.crt",
        registry.address
    );
    let authority = fs::read(world.path("authority.crt")).expect("made");
    put(world, &certs, &authority);
    world.give_away(&world.path("home"));
    refused(push(world, &["pushed:1", &name]), "coracle login");
    let wrong = ["--creds", "me:wrong", "pushed:1", &name];
    refused(push(world, &wrong), "coracle login");
    push(world, &["--creds", "me:secret", "pushed:1", &name]).success();

    let pulled = ["pull", "-q", "--creds", "me:secret", &name];
    let pulled = world.try_coracle(&pulled);
    assert_eq!(pulled.success(), format!("{}\n", image.id()));
    // By a directory that is named, and by none.
    fs::remove_file(world.path(&certs)).expect("removed");
    let words = ["--creds", "me:secret", "pushed:1", &name];
    refused(push(world, &words), "certs.d");
    put(world, "trusted/any.crt", &authority);
    world.give_away(&world.path("trusted"));
    push(world, &[&["--cert-dir", "trusted"], &words[..]].concat()).success();
    push(world, &[&[INSECURE], &words[..]].concat()).success();
    let missing = push(world, &[&["--cert-dir", "no/such"], &words[..]].concat());
    assert!(missing.stderr.contains("no/such"), "{missing:?}");
}

fn an_upload_that_breaks_off_says_so(world: &World) {
    load_packed(world);
    let registry = Registry::start(world);
    let cut = registry.cut_after(100_000);
    let name = format!("{cut}/team/app:1");
    let broken = push(world, &[INSECURE, "pushed:1", &name]);
    assert_eq!(broken.code(), Some(125), "{broken:?}");
    let last = broken.stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("broke off") && last.contains(&name) && last.contains("pushing again"),
        "{broken:?}"
    );
    let none = world.try_coracle(&[
        "pull",
        "-q",
        INSECURE,
        &format!("{}/team/app:1", registry.address),
    ]);
    assert!(none.stderr.contains("has no image"), "{none:?}");
    let address = registry.address.clone();
    drop(registry);
    let gone = push(world, &[INSECURE, "pushed:1", &format!("{address}/x")]);
    assert!(gone.stderr.contains("cannot reach") && gone.stderr.contains(&address));
}

fn what_cannot_be_pushed_is_refused(world: &World) {
    let id = load_packed(world).id();
    for (words, said) in [
        (&["no/such"][..], "image not known"),
        (&["pushed:1"], "localhost/pushed:1 says of no registry"),
        (&[&id], "says of no registry"),
        (&["pushed:1", "dir:x"], "does not push to dir"),
        (&["pushed:1", "short"], "\"short\""),
        (
            &[
                "pushed:1",
                &format!("127.0.0.1:1/x@sha256:{}", "0".repeat(64)),
            ],
            "has a digest",
        ),
        (&["--compress", "pushed:1"], "does not have --compress yet"),
    ] {
        let refused = push(world, words);
        assert_eq!(refused.code(), Some(125), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
}

fn a_registry_is_searched(world: &World) {
    load_packed(world);
    let registry = Registry::start(world);
    let address = &registry.address;
    for name in ["team/app:1", "team/app:2", "other/web:1"] {
        let name = format!("{address}/{name}");
        push(world, &["-q", INSECURE, "pushed:1", &name]).success();
    }
    let search = |words: &[&str]| world.try_coracle(&[&["search", INSECURE], words].concat());
    let found = search(&["--format", "{{.Name}}", &format!("{address}/app")]);
    assert_eq!(found.success(), format!("{address}/team/app\n"));
    let all = search(&["--noheading", &format!("{address}/")]);
    assert_eq!(all.success().lines().count(), 2, "{all:?}");
    let one = search(&["--limit", "1", "--format", "json", &format!("{address}/")]);
    let one: Value = serde_json::from_str(one.success()).expect("JSON");
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(one[0]["Index"], json!(address));
    let tags = search(&["--list-tags", &format!("{address}/team/app")]);
    let mut tags: Vec<_> = tags.success().lines().collect();
    tags.sort_unstable();
    let of = |tag: &str| format!("{address}/team/app  {tag}");
    assert!(
        tags.contains(&&*of("1")) && tags.contains(&&*of("2")),
        "{tags:?}"
    );
    assert!(
        tags.iter()
            .any(|line| line.starts_with("NAME ") && line.ends_with("  TAG"))
    );
    let missing = search(&["--list-tags", &format!("{address}/none")]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    let nowhere = search(&["app"]);
    assert!(
        nowhere.stderr.contains("no registry is to be searched"),
        "{nowhere:?}"
    );
}

fn podman_pulls_what_is_pushed(world: &World) {
    if !world.is_root() {
        return;
    }
    let image = load_packed(world);
    let registry = Registry::start(world);
    let name = |name: &str| format!("{}/team/{name}:1", registry.address);
    push(world, &[INSECURE, "pushed:1", &name("ours")]).success();
    let pulled = podman(world, &["pull", "-q", INSECURE, &name("ours")]);
    assert_eq!(pulled.stdout, format!("{}\n", image.id()));
    // More than this process may have is asked for otherwise.
    let limits = ["--ulimit", "nofile=64", "--ulimit", "nproc=64"];
    let words = [&["run", "--rm", "--network", "none"], &limits[..]].concat();
    let ran = podman(world, &[&words[..], &[&name("ours")]].concat());
    assert_eq!(ran.stdout, "upper");
    // And the other way round.
    podman(
        world,
        &["push", "-q", INSECURE, &name("ours"), &name("theirs")],
    );
    podman(world, &["rmi", "-a", "-f"]);
    world.try_coracle(&["rmi", "-a"]).success();
    let pulled = world.try_coracle(&["pull", "-q", INSECURE, &name("theirs")]);
    assert_eq!(pulled.success(), format!("{}\n", image.id()));
    assert_eq!(run_image(world, &[&name("theirs")]).success(), "upper");
}
