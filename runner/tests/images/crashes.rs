//! The store when processes are killed, or many use it at once.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::harness::{World, cases, eventually, finish, finish_with_input, wait};
use crate::recipe::{Layer, Recipe, layer_dirs, load, run_image};

cases![
    what_a_killed_process_left_is_cleared_away,
    many_may_load_and_remove_at_once,
    damage_is_told_and_repaired_by_loading,
    a_store_to_come_is_left_alone,
];

fn image(name: &str, world: &World, text: &str) -> Recipe {
    let upper = Layer::new().file("text", 0o644, 0, text.as_bytes());
    Recipe::new(name, [Layer::busybox(world), upper])
}

fn what_a_killed_process_left_is_cleared_away(world: &World) {
    let archive = image("localhost/one:1", world, "1").docker_archive();
    let new = world.storage().join("new");
    for part in [archive.len() / 3, archive.len() - 2000] {
        let mut command = world.coracle(["load"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("coracle");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(&archive[..part]).expect("written");
        eventually("it writes", || {
            fs::read_dir(&new).is_ok_and(|mut entries| entries.next().is_some())
        });
        child.kill().expect("killed");
        wait(&mut child);
        assert!(fs::read_dir(&new).expect("a directory").next().is_some());
        drop(stdin);
    }
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    load(world, &archive).success();
    assert_eq!(fs::read_dir(&new).expect("a directory").count(), 0);
    run_image(world, &["one:1", "true"]).success();
}

fn many_may_load_and_remove_at_once(world: &World) {
    const COUNT: usize = 6;
    let archives: Vec<_> = (0..COUNT)
        .map(|number| {
            // Two of each, with one layer in common to all.
            let number = number / 2;
            image(
                &format!("localhost/i{number}:1"),
                world,
                &number.to_string(),
            )
            .docker_archive()
        })
        .collect();
    std::thread::scope(|scope| {
        for (number, archive) in archives.iter().enumerate() {
            scope.spawn(move || {
                let name = format!("i{}:1", number / 2);
                for _ in 0..3 {
                    let loaded = finish_with_input(world.coracle(["load"]), archive);
                    assert_eq!(loaded.code(), Some(0), "{loaded:?}");
                    // Another may have removed it, and say so; nothing else may go wrong.
                    let words = [
                        "run",
                        "--rm",
                        "--pull=never",
                        "--network",
                        "none",
                        &name,
                        "cat",
                        "text",
                    ];
                    let ran = finish(world.coracle(words));
                    let gone = ran.stderr.contains("image not known");
                    let fine = ran.code() == Some(0) && ran.stdout == (number / 2).to_string();
                    assert!(fine || gone, "{ran:?}");
                    let removed = finish(world.coracle(["rmi", "-i", &name]));
                    assert!(matches!(removed.code(), Some(0 | 2)), "{removed:?}");
                }
            });
        }
    });
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
}

fn damage_is_told_and_repaired_by_loading(world: &World) {
    let one = image("localhost/one:1", world, "1");
    let id = one.load(world);
    let config = world.storage().join("oci/blobs/sha256").join(&id);
    let whole = fs::read(&config).expect("a configuration");
    fs::write(&config, &whole[..whole.len() - 1]).expect("written");
    let refused = run_image(world, &["one:1", "true"]);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains(&id), "{refused:?}");
    fs::write(&config, &whole).expect("written");
    // A layer without the mark that it is complete is none.
    let marks: Vec<_> = layer_dirs(world)
        .iter()
        .map(|dir| dir.with_file_name("layer.json"))
        .collect();
    assert_eq!(marks.len(), 2);
    for mark in marks {
        fs::remove_file(mark).expect("removed");
    }
    let ran = run_image(world, &["one:1", "cat", "text"]);
    assert_eq!(ran.success(), "1", "{ran:?}");
    let index = world.storage().join("oci/index.json");
    fs::write(&index, "{").expect("written");
    let refused = world.try_coracle(&["images"]);
    assert!(
        refused.stderr.contains("index.json is damaged"),
        "{refused:?}"
    );
}

fn a_store_to_come_is_left_alone(world: &World) {
    image("localhost/one:1", world, "1").load(world);
    let version = world.storage().join("version");
    let ours = fs::read(&version).expect("a version");
    fs::write(&version, r#"{"version":99}"#).expect("written");
    for words in [&["images"][..], &["run", "--rm", "one:1"], &["rmi", "-a"]] {
        let refused = world.try_coracle(words);
        assert_eq!(refused.code(), Some(125));
        assert!(refused.stderr.contains("version 99"), "{refused:?}");
    }
    fs::write(&version, ours).expect("written");
}
