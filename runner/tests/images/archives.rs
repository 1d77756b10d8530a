//! Images from files and pipes, and back.

use std::fs;

use serde_json::json;

use crate::harness::{World, cases, finish};
use crate::recipe::{Layer, Packed, Recipe, digest, load, pack, put, run_image, tar_of};

cases![
    every_form_is_loaded,
    what_is_saved_is_loaded_again,
    names_in_archives_are_completed,
    of_several_platforms_this_machines_is_taken,
    what_is_not_what_it_says_leaves_nothing,
    a_tar_becomes_an_image,
    history_tells_every_step,
];

fn two_layers(world: &World) -> Recipe {
    let upper = Layer::new().file("etc/upper", 0o644, 0, b"upper");
    let image = Recipe::new("localhost/two:1", [Layer::busybox(world), upper]);
    image.config(json!({"Cmd": ["cat", "/etc/upper"]}))
}

#[track_caller]
fn runs(world: &World) {
    let ran = run_image(world, &["two:1"]);
    assert_eq!(ran.success(), "upper", "{ran:?}");
    world.try_coracle(&["rmi", "two:1"]).success();
}

fn every_form_is_loaded(world: &World) {
    let image = two_layers(world);
    let archives = [
        image.docker_archive(),
        pack(&image.docker_archive(), Packed::Gzip),
        image.oci_archive(Packed::No),
        image.oci_archive(Packed::Gzip),
        image.oci_archive(Packed::Zstd),
        pack(&image.oci_archive(Packed::Gzip), Packed::Zstd),
    ];
    for archive in &archives {
        assert_eq!(
            load(world, archive).success(),
            "Loaded image: localhost/two:1\n"
        );
        runs(world);
        put(world, "image.tar", archive);
        let loaded = world.try_coracle(&["load", "-q", "--input", "image.tar"]);
        assert_eq!(loaded.success(), "");
        let listed = world.try_coracle(&["images", "-q", "--no-trunc"]);
        assert_eq!(listed.success(), format!("sha256:{}\n", image.id()));
        runs(world);
    }
    for (path, content) in image.oci_files(Packed::Gzip) {
        put(world, &format!("layout/{path}"), &content);
    }
    world.give_away(&world.path("layout"));
    world.try_coracle(&["load", "-i", "layout"]).success();
    runs(world);
    let ran = run_image(world, &["oci:layout"]);
    assert_eq!(ran.success(), "upper");
}

fn what_is_saved_is_loaded_again(world: &World) {
    let image = two_layers(world);
    let archive = image.oci_archive(Packed::Gzip);
    load(world, &archive).success();
    for format in ["docker-archive", "oci-archive", "oci-dir"] {
        let words = [
            "save",
            "--format",
            format,
            "-o",
            format,
            "two:1",
            "quay.io/a/b",
        ];
        world.try_coracle(&words).success();
        world.try_coracle(&["rmi", "-a"]).success();
        let loaded = world.try_coracle(&["load", "-i", format]);
        assert_eq!(
            loaded.success(),
            "Loaded image: localhost/two:1\nLoaded image: quay.io/a/b:latest\n"
        );
        let listed = world.try_coracle(&["images", "-q", "--no-trunc"]);
        assert_eq!(
            listed.success(),
            format!("sha256:{}\n", image.id()),
            "{format}"
        );
        world.try_coracle(&["rmi", "quay.io/a/b"]).success();
        if format == "docker-archive" {
            runs(world);
            load(world, &archive).success();
        }
    }
    // Digests are kept where blobs are.
    let index = fs::read_to_string(world.path("oci-dir/index.json")).expect("an index");
    let manifest = image.oci_files(Packed::Gzip);
    let manifest = &manifest[manifest.len() - 3].1;
    assert!(index.contains(&digest(manifest)), "{index}");
    // Not over something else, and twice the same.
    let again = world.try_coracle(&["save", "--format", "oci-dir", "-o", "oci-dir", "two:1"]);
    assert_eq!(again.code(), Some(125), "{again:?}");
    let piped = [(); 2].map(|()| {
        let mut command = world.coracle(["save", "two:1"]);
        command.output().expect("coracle").stdout
    });
    assert!(piped[0].len() > 512 && piped[0] == piped[1]);

    let other = Recipe::new("localhost/other:1", [Layer::busybox(world)]);
    other.load(world);
    let words = ["save", "-m", "-o", "several.tar", "two:1", "other:1"];
    world.try_coracle(&words).success();
    world.try_coracle(&["rmi", "-a"]).success();
    let loaded = world.try_coracle(&["load", "-i", "several.tar"]);
    assert_eq!(loaded.success().lines().count(), 2);
    let several = world.try_coracle(&["run", "docker-archive:several.tar"]);
    assert!(several.stderr.contains("2 images"), "{several:?}");
}

fn names_in_archives_are_completed(world: &World) {
    for (name, docker, oci) in [
        ("a", "docker.io/library/a:latest", "localhost/a:latest"),
        ("a/b:1", "docker.io/a/b:1", "localhost/a/b:1"),
        ("quay.io/a:1", "quay.io/a:1", "quay.io/a:1"),
    ] {
        let image = Recipe::new(name, [Layer::new().file("x", 0o644, 0, b"")]);
        let loaded = load(world, &image.docker_archive());
        assert_eq!(loaded.success(), format!("Loaded image: {docker}\n"));
        let loaded = load(world, &image.oci_archive(Packed::No));
        assert_eq!(loaded.success(), format!("Loaded image: {oci}\n"));
    }
    let mut nameless = Recipe::new("", [Layer::new().file("y", 0o644, 0, b"")]);
    nameless.names.clear();
    let loaded = load(world, &nameless.docker_archive());
    assert_eq!(
        loaded.success(),
        format!("Loaded image: sha256:{}\n", nameless.id())
    );
}

fn of_several_platforms_this_machines_is_taken(world: &World) {
    let image = two_layers(world);
    let mut files = image.oci_files(Packed::No);
    let manifest = files[files.len() - 3].1.clone();
    let ours = serde_json::from_slice::<serde_json::Value>(&image.whole_config()).expect("JSON");
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let descriptor = |digest: String, size: usize, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": size, "platform": platform(architecture),
        })
    };
    let other = descriptor(digest(b"not there"), 9, "s390x");
    let architecture = ours["architecture"].as_str().expect("text");
    let this = descriptor(digest(&manifest), manifest.len(), architecture);
    let mut with_index = |manifests: serde_json::Value| {
        let inner = json!({"schemaVersion": 2, "manifests": manifests})
            .to_string()
            .into_bytes();
        let outer = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest(&inner), "size": inner.len(),
            "annotations": {"org.opencontainers.image.ref.name": "localhost/two:1"},
        }]});
        let at = files
            .iter()
            .position(|(path, _)| path == "index.json")
            .expect("an index");
        files[at].1 = outer.to_string().into_bytes();
        let inner = (format!("blobs/sha256/{}", &digest(&inner)[7..]), inner);
        tar_of(&[&files[..], &[inner]].concat())
    };
    load(world, &with_index(json!([other.clone(), this]))).success();
    runs(world);
    let foreign = load(world, &with_index(json!([other])));
    assert_eq!(foreign.code(), Some(125));
    assert!(foreign.stderr.contains("no image for"), "{foreign:?}");
}

fn what_is_not_what_it_says_leaves_nothing(world: &World) {
    let image = two_layers(world);
    type Files = Vec<(String, Vec<u8>)>;
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = image.oci_files(Packed::Gzip);
        change(&mut files);
        tar_of(&files)
    };
    let wrong_diff = Recipe {
        diff_ids: vec![digest(b"other"), digest(b"another")],
        ..two_layers(world)
    };
    let fewer = Recipe {
        diff_ids: vec![image.diff_ids[0].clone()],
        ..two_layers(world)
    };
    let confused = with(&|files| {
        let at = files.len() - 3;
        let mut manifest: serde_json::Value = serde_json::from_slice(&files[at].1).expect("JSON");
        manifest["manifests"] = json!([]);
        let bytes = manifest.to_string().into_bytes();
        let name = format!("blobs/sha256/{}", &digest(&bytes)[7..]);
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&bytes), "size": bytes.len(),
        }]});
        files[at] = (name, bytes);
        files[at + 1].1 = index.to_string().into_bytes();
    });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("sha256:", with(&|files| files[0].1[20] ^= 1)),
        ("sha256:", with(&|files| files[0].1.push(0))),
        ("sha256:", with(&|files| files[2].1.push(b' '))),
        ("sha256:", with(&|files| files[3].1.push(b' '))),
        ("missing", with(&|files| drop(files.remove(2)))),
        ("missing", with(&|files| drop(files.remove(0)))),
        (
            "index.json",
            with(&|files| files.retain(|(path, _)| path != "index.json")),
        ),
        ("index.json", with(&|files| files[4].1.truncate(20))),
        ("manifest and an index", confused),
        ("its content is", wrong_diff.docker_archive()),
        ("layers", fewer.docker_archive()),
        ("neither", tar_of(&[("x".to_owned(), Vec::new())])),
        ("tar", b"no archive at all".to_vec()),
        ("xz", b"\xfd7zXZ\0abc".to_vec()),
    ];
    for (why, archive) in cases {
        let refused = load(world, &archive);
        assert_eq!(refused.code(), Some(125), "{why}: {refused:?}");
        assert!(
            refused.stderr.to_lowercase().contains(why),
            "{why}: {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    let truncated = image.docker_archive();
    assert_eq!(
        load(world, &truncated[..truncated.len() / 2]).code(),
        Some(125)
    );
    assert_eq!(
        finish(world.coracle(["load", "-i", "/no/such"])).code(),
        Some(125)
    );
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    // What came before the defect goes with the next removal.
    world.try_coracle(&["rmi", "-a"]).success();
    two_layers(world).load(world);
    world.try_coracle(&["rmi", "-a"]).success();
    for dir in ["new", "oci/blobs/sha256"] {
        let left = fs::read_dir(world.storage().join(dir)).expect("a directory");
        assert_eq!(left.count(), 0, "{dir}");
    }
}

fn a_tar_becomes_an_image(world: &World) {
    let tar = Layer::busybox(world).finish();
    let changes = [
        "CMD [\"sh\", \"-c\", \"echo $A; pwd\"]",
        "ENV A=b c",
        "WORKDIR /srv",
    ];
    let changes: Vec<_> = changes.iter().flat_map(|change| ["-c", *change]).collect();
    for (packed, name) in [
        (Packed::No, "plain"),
        (Packed::Gzip, "packed"),
        (Packed::Zstd, "other"),
    ] {
        put(world, "tree.tar", &pack(&tar, packed));
        let words = [
            &["import", "-m", "by hand"],
            &changes[..],
            &["tree.tar", name],
        ]
        .concat();
        let imported = world.try_coracle(&words);
        let id = imported.success().trim_end().to_owned();
        assert!(id.starts_with("sha256:") && id.len() == 71, "{imported:?}");
        let ran = run_image(world, &[name]);
        assert_eq!(ran.success(), "b c\n/srv\n");
        let history = world.try_coracle(&["history", name]);
        let mut lines = history.success().lines();
        assert!(
            lines
                .next()
                .is_some_and(|head| head.starts_with("ID            CREATED"))
        );
        let line = lines.next().unwrap_or_default();
        assert!(
            line.starts_with(&id[7..19]) && line.ends_with("by hand"),
            "{history:?}"
        );
        assert!(line.contains("coracle import"), "{history:?}");
    }
    let mut command = world.coracle(["import", "-", "piped"]);
    command.stdin(std::process::Stdio::piped());
    let piped = crate::harness::finish_with_input(command, &tar);
    assert_eq!(piped.code(), Some(0), "{piped:?}");
    put(world, "none.tar", b"no tar");
    for wrong in [
        &["import", "none.tar"][..],
        &["import", "/no/such"],
        &["import", "-c", "RUN x", "tree.tar"],
        &["import", "tree.tar", "BAD NAME"],
        &["import", "https://example.org/x.tar"],
    ] {
        assert_eq!(world.try_coracle(wrong).code(), Some(125), "{wrong:?}");
    }
    let listed = world.try_coracle(&["images", "-q"]);
    assert_eq!(listed.success().lines().count(), 4);
}

fn history_tells_every_step(world: &World) {
    let image = two_layers(world);
    image.load(world);
    let history = world.try_coracle(&["history", "two:1"]);
    let lines: Vec<_> = history.success().lines().collect();
    assert_eq!(lines.len(), 3, "{history:?}");
    assert!(lines[1].starts_with(&image.id()[..12]) && lines[2].starts_with("<missing>"));
    assert!(lines[1].contains("5 B"), "{history:?}");
    let ids = world.try_coracle(&["history", "-q", "--no-trunc", "two:1"]);
    assert_eq!(ids.success(), format!("{}\n<missing>\n", image.id()));
    let rows = world.try_coracle(&["history", "--format", "json", "two:1"]);
    let rows: serde_json::Value = serde_json::from_str(rows.success()).expect("JSON");
    assert_eq!(
        (&rows[0]["size"], &rows[0]["id"]),
        (&json!(5), &json!(image.id()))
    );
    assert_eq!(world.try_coracle(&["history", "no/such"]).code(), Some(125));
}
