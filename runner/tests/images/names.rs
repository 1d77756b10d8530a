//! Names of images, and the commands that list, give and take them.

use serde_json::json;

use crate::harness::{World, cases, unique};
use crate::recipe::{Layer, Recipe, load};

cases![
    filters_leave_what_they_ask_for,
    images_are_listed_as_podman_lists_them,
    names_are_given_and_taken,
    an_image_goes_with_its_last_name,
    an_image_in_use_stays,
    all_images_go_at_once,
];

fn small(name: &str, text: &str) -> Recipe {
    let layer = Layer::new().file("text", 0o644, 0, text.as_bytes());
    Recipe::new(name, [layer])
}

fn images(world: &World, flags: &[&str]) -> String {
    let listed = world.try_coracle(&[&["images"], flags].concat());
    listed.success().to_owned()
}

fn images_are_listed_as_podman_lists_them(world: &World) {
    assert_eq!(
        images(world, &[]),
        "REPOSITORY  TAG         IMAGE ID    CREATED     SIZE\n"
    );
    assert_eq!(images(world, &["-q"]), "");
    assert_eq!(images(world, &["--format", "json"]), "[]\n");
    let layer = Layer::new().file("zeros", 0o644, 0, &[0; 1_987_662]);
    let image = Recipe::new("quay.io/a/b:2", [layer]);
    let image = image.config(json!({"Labels": {"x": "y"}}));
    let id = image.load(world);
    let short = &id[..12];
    let listed = images(world, &[]);
    let mut lines = listed.lines();
    assert_eq!(
        lines.next(),
        Some("REPOSITORY   TAG         IMAGE ID      CREATED      SIZE")
    );
    let line = lines.next().expect("an image");
    assert!(
        line.starts_with(&format!("quay.io/a/b  2           {short}  ")),
        "{line}"
    );
    assert!(line.ends_with("years ago  1.99 MB"), "{line}");
    assert_eq!(images(world, &["-q"]), format!("{short}\n"));
    assert_eq!(
        images(world, &["-q", "--no-trunc"]),
        format!("sha256:{id}\n")
    );
    assert_eq!(images(world, &["--noheading"]).lines().count(), 1);
    assert!(images(world, &["--digests"]).contains("  sha256:"));
    assert_eq!(images(world, &["-q", "a/b"]), format!("{short}\n"));
    let json = images(world, &["--format", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(rows[0]["Id"], *id);
    assert_eq!(rows[0]["Names"], json!(["quay.io/a/b:2"]));
    assert_eq!(rows[0]["Size"], 1_987_662);
    assert_eq!(rows[0]["Created"], 1_704_164_645);
    assert_eq!(rows[0]["Labels"], json!({"x": "y"}));
    let line = images(
        world,
        &["--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Size}}"],
    );
    assert_eq!(line, format!("{short} quay.io/a/b:2 1.99 MB\n"));
    let table = images(world, &["--format", "table {{.ID}} {{.Labels}}"]);
    assert_eq!(table, format!("IMAGE ID      LABELS\n{short}  map[x:y]\n"));
    let unknown = world.try_coracle(&["images", "--format", "{{.Nope}}"]);
    assert_eq!(unknown.code(), Some(125), "{unknown:?}");
    assert!(unknown.stderr.contains("\"Nope\"") && unknown.stderr.contains("Repository"));
    let unknown = world.try_coracle(&["images", "no/such"]);
    assert_eq!(unknown.code(), Some(125), "{unknown:?}");
}

fn filters_leave_what_they_ask_for(world: &World) {
    small("localhost/one:1", "1").load(world);
    let labelled = small("quay.io/a/two:2", "2").config(json!({"Labels": {"x": "y"}}));
    labelled.load(world);
    world.try_coracle(&["tag", "one:1", "three"]).success();
    small("localhost/one:1", "3").load(world);
    world.try_coracle(&["untag", "one:1"]).success();
    let shown = |filters: &[&str]| {
        let mut words = vec![
            "--format",
            "{{.Repository}}:{{.Tag}}",
            "--sort",
            "repository",
        ];
        words.extend(filters.iter().flat_map(|filter| ["-f", filter]));
        images(world, &words)
    };
    let (one, two, none) = (
        "localhost/three:latest\n",
        "quay.io/a/two:2\n",
        "<none>:<none>\n",
    );
    for (filters, expected) in [
        (&["dangling=true"][..], none.to_owned()),
        (&["dangling=false"], format!("{one}{two}")),
        (&["label=x"], two.to_owned()),
        (&["label=x=y", "label=z"], String::new()),
        (&["label!=x", "dangling=false"], one.to_owned()),
        (&["reference=two"], two.to_owned()),
        (
            &["reference=quay.io/*/two:*", "reference=three"],
            format!("{one}{two}"),
        ),
        (&["until=1h", "dangling=false"], format!("{one}{two}")),
        (&["until=2020-01-01T00:00:00Z"], String::new()),
        (&["containers=true"], String::new()),
    ] {
        assert_eq!(shown(filters), expected, "{filters:?}");
    }
    for (filter, said) in [
        ("nope=1", "no filter \"nope\""),
        ("dangling=x", "true or false"),
        ("since=no/such", "image not known"),
        ("until=soon", "how long ago"),
        ("x", "KEY=VALUE"),
    ] {
        let refused = world.try_coracle(&["images", "-f", filter]);
        assert_eq!(refused.code(), Some(125), "{filter}");
        assert!(refused.stderr.contains(said), "{filter}: {refused:?}");
    }
}

fn names_are_given_and_taken(world: &World) {
    let one = small("localhost/one:1", "1").load(world);
    let two = small("localhost/two:1", "2").load(world);
    let tag = |words: &[&str]| world.try_coracle(&[&["tag"], words].concat());
    tag(&["one:1", "three", "quay.io/x/y:z"]).success();
    let names = |id: &str| {
        let json = images(world, &["--format", "json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        let row = rows.into_iter().find(|row| row["Id"] == id);
        row.expect("the image")["Names"].clone()
    };
    let all = json!(["localhost/one:1", "localhost/three:latest", "quay.io/x/y:z"]);
    assert_eq!(names(&one), all);
    // A name has one image.
    tag(&["two:1", "three"]).success();
    assert_eq!(
        names(&two),
        json!(["localhost/two:1", "localhost/three:latest"])
    );
    assert_eq!(names(&one), json!(["localhost/one:1", "quay.io/x/y:z"]));
    for wrong in ["no/such", "BAD"] {
        assert_eq!(tag(&[wrong, "x"]).code(), Some(125), "{wrong}");
    }
    assert_eq!(tag(&["one:1", "x", "BAD"]).code(), Some(125));
    assert_eq!(
        names(&one),
        json!(["localhost/one:1", "quay.io/x/y:z"]),
        "all or none"
    );

    let untag = |words: &[&str]| world.try_coracle(&[&["untag"], words].concat());
    untag(&["one:1", "quay.io/x/y:z"]).success();
    assert_eq!(names(&one), json!(["localhost/one:1"]));
    assert_eq!(untag(&["one:1", "two:1"]).code(), Some(125));
    untag(&["two:1"]).success();
    assert_eq!(names(&two), json!([]));
    assert!(images(world, &[]).contains("<none>"));
    // It can still be meant.
    tag(&[&two[..8], "back"]).success();
    assert_eq!(names(&two), json!(["localhost/back:latest"]));
}

fn an_image_goes_with_its_last_name(world: &World) {
    let rmi = |words: &[&str]| world.try_coracle(&[&["rmi"], words].concat());
    let id = small("localhost/one:1", "1").load(world);
    world.try_coracle(&["tag", "one:1", "two"]).success();
    assert_eq!(rmi(&["one:1"]).success(), "Untagged: localhost/one:1\n");
    assert_eq!(
        rmi(&["two"]).success(),
        format!("Untagged: localhost/two:latest\nDeleted: {id}\n")
    );
    let unknown = rmi(&["two"]);
    assert_eq!(unknown.code(), Some(1));
    assert!(
        unknown.stderr.contains("two: image not known"),
        "{unknown:?}"
    );
    assert_eq!(rmi(&["-i", "two"]).success(), "");

    small("localhost/one:1", "1").load(world);
    world.try_coracle(&["tag", "one:1", "two"]).success();
    let several = rmi(&[&id]);
    assert_eq!(several.code(), Some(2), "{several:?}");
    assert_eq!(
        rmi(&["-f", &id[..12]]).success(),
        format!("Untagged: localhost/one:1\nUntagged: localhost/two:latest\nDeleted: {id}\n")
    );
    // Another image of the same name leaves the first without.
    let first = small("localhost/one:1", "1").load(world);
    let second = small("localhost/one:1", "2").load(world);
    assert_eq!(rmi(&[&first]).success(), format!("Deleted: {first}\n"));
    let both = rmi(&["no/such", "one:1"]);
    assert_eq!(both.code(), Some(1));
    assert!(
        both.stdout.ends_with(&format!("Deleted: {second}\n")),
        "{both:?}"
    );
    let blobs = world.storage().join("oci/blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).expect("blobs").count(), 0);
}

fn an_image_in_use_stays(world: &World) {
    Recipe::new("localhost/one:1", [Layer::busybox(world)]).load(world);
    let name = unique("user");
    let words = [
        "run",
        "-d",
        "--name",
        &name,
        "--network",
        "none",
        "one:1",
        "sleep",
        "60",
    ];
    world.try_coracle(&words).success();
    let refused = world.try_coracle(&["rmi", "one:1"]);
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr.contains(&name), "{refused:?}");
    // Its layers stay under another name, and under none.
    small("localhost/one:1", "2").load(world);
    world.try_coracle(&["rmi", "one:1"]).success();
    world.try_coracle(&["exec", &name, "true"]).success();
    assert_eq!(world.try_coracle(&["rmi", "-a"]).code(), Some(2));
    let removed = world.try_coracle(&["rmi", "-a", "-f"]);
    assert!(removed.success().starts_with("Deleted: "), "{removed:?}");
    assert!(world.inspect(&name).is_none());
}

fn all_images_go_at_once(world: &World) {
    assert_eq!(
        world.try_coracle(&["rmi", "--all", "--force"]).success(),
        ""
    );
    small("localhost/one:1", "1").load(world);
    small("localhost/two:1", "2").load(world);
    world.try_coracle(&["tag", "one:1", "three"]).success();
    let removed = world.try_coracle(&["rmi", "--all", "--force"]);
    let is_line = |line: &str| match line.split_once(": ") {
        Some(("Untagged", name)) => name.contains(':'),
        Some(("Deleted", id)) => id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        _ => false,
    };
    assert!(removed.success().lines().all(is_line), "{removed:?}");
    assert_eq!(removed.stdout.lines().count(), 5);
    assert_eq!(images(world, &["-q"]), "");
    assert_eq!(world.try_coracle(&["rmi"]).code(), Some(125));
    assert_eq!(load(world, b"").code(), Some(125));
}
