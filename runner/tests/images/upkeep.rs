//! Looking after the storage: the group `image`, what `prune` takes away, and damage that `system
//! check` finds and mends.

use std::fs;

use serde_json::json;

use crate::harness::{Outcome, World, cases, finish_with_input, unique};
use crate::recipe::{Layer, Recipe, layer_dirs, run_image};

cases![
    the_group_has_the_same_commands,
    prune_takes_what_nobody_uses,
    damage_is_found_and_mended,
    room_is_told_and_given_back,
    an_image_in_use_is_not_forgotten,
    a_list_of_images_is_made_anew,
];

fn image(world: &World, name: &str, content: &str) -> Recipe {
    let upper = Layer::new().file("etc/upper", 0o644, 0, content.as_bytes());
    let image = Recipe::new(name, [Layer::busybox(world), upper]);
    image.config(json!({"Cmd": ["cat", "/etc/upper"]}))
}

#[track_caller]
fn refused(outcome: &Outcome, said: &str) {
    assert_eq!(outcome.code(), Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains(said), "{said}: {outcome:?}");
}

fn the_group_has_the_same_commands(world: &World) {
    let id = image(world, "localhost/one:1", "1").load(world);
    let image = |words: &[&str]| world.try_coracle(&[&["image"], words].concat());
    let listed = image(&["ls", "-q", "--no-trunc"]);
    assert_eq!(listed.success(), format!("sha256:{id}\n"));
    assert_eq!(image(&["list", "-q"]).success(), format!("{}\n", &id[..12]));
    assert_eq!(
        image(&["inspect", "-f", "{{.Id}}", "one:1"]).success(),
        format!("{id}\n")
    );
    image(&["tag", "one:1", "two"]).success();
    assert_eq!(image(&["exists", "two"]).code(), Some(0));
    image(&["untag", "one:1", "two"]).success();
    let gone = image(&["exists", "two"]);
    assert_eq!((gone.code(), &*gone.stderr), (Some(1), ""));
    image(&["save", "-o", "saved.tar", "one:1"]).success();
    image(&["history", "-q", "one:1"]).success();
    image(&["push", "-q", "one:1", "oci:layout"]).success();
    let removed = image(&["rm", "one:1"]);
    assert!(removed.success().ends_with(&format!("Deleted: {id}\n")));
    assert_eq!(
        image(&["load", "-i", "saved.tar"]).success(),
        "Loaded image: localhost/one:1\n"
    );
    for (words, said) in [
        (&["tree", "x"][..], "coracle image does not have `tree` yet"),
        (
            &["prnue"],
            "coracle image has no command `prnue`; did you mean `prune`?",
        ),
        (
            &["ls", "--history"],
            "coracle image ls does not have --history yet",
        ),
        (&["rm"], "rmi needs"),
        (&["exists"], "coracle image exists needs"),
    ] {
        refused(&image(words), said);
    }
    let help = world.try_coracle(&["image"]);
    assert!(
        help.stdout.contains("prune") || help.stderr.contains("prune"),
        "{help:?}"
    );
}

fn prune_takes_what_nobody_uses(world: &World) {
    let used = image(world, "localhost/used:1", "used").load(world);
    let named = image(world, "localhost/named:1", "named").load(world);
    let nameless = image(world, "localhost/x:1", "nameless").load(world);
    world.try_coracle(&["untag", "x:1"]).success();
    let name = unique("user");
    let words = [
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        &name,
        "used:1",
        "sleep",
        "60",
    ];
    world.try_coracle(&words).success();

    let prune = |words: &[&str]| world.try_coracle(&[&["image", "prune"], words].concat());
    let asked = prune(&[]);
    assert!(
        asked.success().contains("dangling images.\nAre you sure"),
        "{asked:?}"
    );
    let images = || {
        world
            .try_coracle(&["images", "-q"])
            .success()
            .lines()
            .count()
    };
    assert_eq!(images(), 3);
    assert_eq!(prune(&["-f", "--filter", "label=none"]).success(), "");
    let said_yes = finish_with_input(world.coracle(["image", "prune"]), b"y\n");
    assert!(
        said_yes.success().ends_with(&format!("{nameless}\n")),
        "{said_yes:?}"
    );
    assert_eq!(prune(&["-a", "-f"]).success(), format!("{named}\n"));
    let left = world.try_coracle(&["images", "-q", "--no-trunc"]);
    assert_eq!(left.success(), format!("sha256:{used}\n"));
    refused(&prune(&["-f", "--filter", "nope=1"]), "no filter \"nope\"");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn damage_is_found_and_mended(world: &World) {
    let check = |words: &[&str]| world.try_coracle(&[&["system", "check"], words].concat());
    let one = image(world, "localhost/one:1", "1");
    one.load(world);
    let two = image(world, "localhost/two:1", "2");
    two.load(world);
    let sound = check(&[]);
    assert_eq!(
        sound.success(),
        "no damage in 2 images, 7 blobs and 3 layers\n"
    );

    // A blob that rots, a layer without its end, and a configuration that is gone.
    let blobs = world.storage().join("oci/blobs/sha256");
    let blob = |digest: &str| blobs.join(digest.trim_start_matches("sha256:"));
    let shared = blob(&one.diff_ids[0]);
    let mut content = fs::read(&shared).expect("a blob");
    content[700] ^= 1;
    fs::write(&shared, &content).expect("written");
    fs::remove_file(blob(&two.id())).expect("removed");
    let layer = layer_dirs(world).into_iter().next().expect("a layer");
    let layer = layer.parent().expect("its directory").to_owned();
    fs::remove_file(layer.join("layer.json")).expect("removed");
    let quick = check(&["--quick"]);
    assert_eq!(quick.code(), Some(125));
    assert!(
        !quick.stdout.contains("not what its name says"),
        "{quick:?}"
    );
    let found = check(&[]);
    refused(&found, "damaged in 3 places");
    for said in [
        "its content is not what its name says",
        "image localhost/two:1",
        "it is not complete",
    ] {
        assert!(found.stdout.contains(said), "{said}: {found:?}");
    }
    assert_eq!(
        world.try_coracle(&["images"]).code(),
        Some(125),
        "one is unreadable"
    );

    let mended = check(&["--repair"]);
    assert!(mended.success().contains("forgotten"), "{mended:?}");
    check(&[]).success();
    // Both need the blob that has rotted.
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    one.load(world);
    assert_eq!(run_image(world, &["one:1"]).success(), "1");
    check(&[]).success();
    refused(&check(&["--force"]), "--repair");
}

fn room_is_told_and_given_back(world: &World) {
    image(world, "localhost/used:1", "used").load(world);
    image(world, "localhost/named:1", "named").load(world);
    let name = unique("user");
    let script = "mkdir -m 700 /tmp/x; busybox dd if=/dev/zero of=/tmp/x/zeros bs=1000 count=3000";
    let words = [
        "run",
        "--network",
        "none",
        "--name",
        &name,
        "-v",
        "kept:/kept",
        "used:1",
        "sh",
        "-c",
        script,
    ];
    let words_of_user = words;
    world.try_coracle(&words_of_user).success();
    world.try_coracle(&["volume", "create", "unused"]).success();
    let df = |words: &[&str]| world.try_coracle(&[&["system", "df"], words].concat());
    let told = df(&["--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(told.success()).expect("JSON");
    let of = |row: usize| (&told[row]["Total"], &told[row]["Active"]);
    assert_eq!(of(0), (&json!(2), &json!(1)), "{told}");
    assert_eq!(of(1), (&json!(1), &json!(0)), "{told}");
    assert_eq!(of(2), (&json!(2), &json!(1)), "{told}");
    let container = told[1]["Size"].as_u64().expect("bytes");
    assert!((3_000_000..3_010_000).contains(&container), "{told}");
    assert_eq!(told[1]["Reclaimable"], told[1]["Size"]);
    let table = df(&[]);
    assert!(
        table
            .success()
            .starts_with("TYPE           TOTAL       ACTIVE"),
        "{table:?}"
    );
    let verbose = df(&["-v"]);
    for said in ["localhost/named", "used:1", "kept", "UNIQUE SIZE"] {
        assert!(verbose.success().contains(said), "{said}: {verbose:?}");
    }

    let prune = |words: &[&str]| world.try_coracle(&[&["system", "prune"], words].concat());
    let asked = prune(&[]);
    assert!(
        asked.success().contains("all stopped containers"),
        "{asked:?}"
    );
    let volumes = || {
        let listed = world.try_coracle(&["volume", "ls", "-q"]);
        listed.success().to_owned()
    };
    // Volumes are data: they stay unless they are asked for, those of a container that goes too.
    let words = [
        "run",
        "--network",
        "none",
        "-v",
        "/anonymous",
        "used:1",
        "true",
    ];
    world.try_coracle(&words).success();
    let words = ["volume", "create", "-l", "old=yes", "labelled"];
    world.try_coracle(&words).success();
    let before = volumes();
    assert_eq!(before.lines().count(), 4, "{before}");
    let done = prune(&["-f"]);
    assert!(done.success().contains("Deleted Containers\n"), "{done:?}");
    assert_eq!(volumes(), before);
    let done = prune(&["-f", "--volumes", "--filter", "label=old"]);
    assert!(
        done.success().contains("Deleted Volumes\nlabelled\n"),
        "{done:?}"
    );
    assert_eq!(volumes(), before.replace("labelled\n", ""));
    let done = prune(&["-f", "--volumes", "--filter", "name=^kept$"]);
    refused(&done, "no filter \"name\"");
    let anonymous = before.lines().find(|name| name.len() == 64);
    let words = ["volume", "rm", anonymous.expect("one")];
    world.try_coracle(&words).success();
    world.try_coracle(&words_of_user).success();

    let done = prune(&["-a", "-f", "--volumes"]);
    for said in [
        "Deleted Containers\n",
        "Deleted Volumes\nkept\nunused\n",
        "Deleted Images\n",
    ] {
        assert!(done.success().contains(said), "{said}: {done:?}");
    }
    let last = done.stdout.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("Total reclaimed space: ") && last.ends_with(" MB"),
        "{last}"
    );
    let left = df(&["--format", "{{.Total}} {{.Size}}"]);
    assert_eq!(left.success(), "0 0 B\n0 0 B\n0 0 B\n");
}

fn an_image_in_use_is_not_forgotten(world: &World) {
    let one = image(world, "localhost/one:1", "1");
    let id = one.load(world);
    let name = unique("user");
    let words = [
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        &name,
        "one:1",
        "sleep",
        "60",
    ];
    world.try_coracle(&words).success();
    let blob = one.diff_ids[0].trim_start_matches("sha256:").to_owned();
    fs::remove_file(world.storage().join("oci/blobs/sha256").join(blob)).expect("removed");
    let check = |words: &[&str]| world.try_coracle(&[&["system", "check"], words].concat());
    let left = check(&["--repair"]);
    refused(&left, "still damaged");
    assert!(
        left.stdout.contains("a container uses the image"),
        "{left:?}"
    );
    world
        .try_coracle(&["exec", &name, "cat", "/etc/upper"])
        .success();
    // What brings it back mends it.
    one.load(world);
    check(&[]).success();
    let blob = one.diff_ids[1].trim_start_matches("sha256:").to_owned();
    fs::remove_file(world.storage().join("oci/blobs/sha256").join(blob)).expect("removed");
    let forced = check(&["--repair", "--force"]);
    assert!(forced.success().contains(&name), "{forced:?}");
    assert!(world.inspect(&name).is_none());
    assert_eq!(world.try_coracle(&["image", "exists", &id]).code(), Some(1));
}

fn a_list_of_images_is_made_anew(world: &World) {
    let check = |words: &[&str]| world.try_coracle(&[&["system", "check"], words].concat());
    let one = image(world, "localhost/one:1", "1");
    let id = one.load(world);
    let two = image(world, "localhost/two:1", "2");
    two.load(world);
    let list = world.storage().join("oci/index.json");
    let damage: [&dyn Fn(); 3] = [
        &|| fs::remove_file(&list).expect("removed"),
        &|| fs::write(&list, "{\"schemaVersion\": 2, \"mani").expect("written"),
        &|| fs::write(&list, "").expect("written"),
    ];
    for (index, damage) in damage.iter().enumerate() {
        damage();
        refused(&world.try_coracle(&["images"]), "index.json");
        refused(&check(&[]), "damaged in 1 places");
        let mended = check(&["--repair"]);
        assert!(
            mended.success().contains("made anew with 2 images"),
            "{index}: {mended:?}"
        );
        check(&[]).success();
        // By its id, until somebody gives it a name again.
        world.try_coracle(&["tag", &id, "one:1"]).success();
        assert_eq!(run_image(world, &["one:1"]).success(), "1");
    }
    // One that is not whole is not among them.
    let blob = two.diff_ids[1].trim_start_matches("sha256:").to_owned();
    fs::remove_file(world.storage().join("oci/blobs/sha256").join(blob)).expect("removed");
    fs::remove_file(&list).expect("removed");
    let mended = check(&["--repair"]);
    assert!(
        mended.success().contains("made anew with 1 images"),
        "{mended:?}"
    );
}
