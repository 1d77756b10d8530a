//! A hands-on of rootless Podman, line by line: what each of its commands prints here.

use serde_json::json;

use crate::docker_registry::Registry;
use crate::harness::{World, cases, need_tun};
use crate::recipe::{Layer, Packed, Recipe, load};

cases![
    an_image_of_a_registry_is_run_in_the_background,
    all_images_are_untagged_and_deleted,
    owners_in_an_image_have_names,
    a_volume_that_is_exchanged_while_containers_start_leads_nowhere,
];

const INSECURE: &str = "--tls-verify=false";

/// Its entry point executes what it is given, and waits for a signal without.
fn image(world: &World) -> Recipe {
    let script = b"#!/bin/sh\n[ $# = 0 ] || exec \"$@\"\ntrap 'exit 0' TERM\nsleep 1000 & wait\n";
    let base = Layer::busybox(world)
        .symlink("bin/find", "busybox")
        .symlink("bin/sort", "busybox")
        .symlink("bin/xargs", "busybox");
    let layer = Layer::new()
        .file("usr/bin/container-entrypoint", 0o755, 0, script)
        .dir("var/www", 0o755, 48)
        .file("var/www/index.html", 0o644, 1001, b"hello");
    let image = Recipe::new("localhost/myimage:latest", [base, layer]);
    image.config(json!({
        "Entrypoint": ["/usr/bin/container-entrypoint"],
        "Env": ["PATH=/usr/bin:/bin"],
        "User": "1001",
    }))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// `podman run -d --name myapp IMAGE`, `podman stop myapp`.
fn an_image_of_a_registry_is_run_in_the_background(world: &World) {
    need_tun();
    load(world, &image(world).oci_archive(Packed::Gzip)).success();
    let registry = Registry::start(world);
    let name = format!("{}/rhatdan/myimage", registry.address);
    let words = ["push", "-q", INSECURE, "myimage", &name];
    world.try_coracle(&words).success();
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    let user = if world.has_single_id() { "0" } else { "1001" };
    let run = [
        "run", "-d", INSECURE, "--user", user, "--name", "myapp", &name,
    ];
    let ran = world.try_coracle(&run);
    let id = ran.success().strip_suffix('\n').expect("a line");
    assert!(is_hex(id, 64), "the id alone: {ran:?}");
    let mut said = ran
        .stderr
        .lines()
        .filter(|line| !line.contains("one user and one group"));
    assert_eq!(
        said.next(),
        Some(&*format!("Trying to pull {name}:latest..."))
    );
    assert_eq!(said.next(), Some("Getting image source signatures"));
    let copied = |line: Option<&str>, what: &str, len: usize| {
        let line = line.expect("a line");
        let rest = line
            .strip_prefix(what)
            .and_then(|rest| rest.strip_suffix(" done"));
        let rest = rest.map(|rest| rest.trim_start_matches("sha256:").trim());
        assert!(rest.is_some_and(|hex| is_hex(hex, len)), "{line}");
    };
    copied(said.next(), "Copying blob ", 12);
    copied(said.next(), "Copying blob ", 12);
    copied(said.next(), "Copying config ", 10);
    assert_eq!(said.next(), Some("Writing manifest to image destination"));
    let again = world.try_coracle(&run);
    assert_eq!(again.code(), Some(125), "{again:?}");
    assert!(again.stderr.contains("myapp"), "{again:?}");
    let stopped = world.try_coracle(&["stop", "myapp"]);
    assert_eq!(stopped.success(), "myapp\n");
    let words = ["inspect", "-f", "{{.State.ExitCode}}", "myapp"];
    let code = world.try_coracle(&words);
    assert_eq!(code.success(), "0\n", "it has heard SIGTERM");
    world.try_coracle(&["rm", "myapp"]).success();
}

/// `podman rmi --all --force`.
fn all_images_are_untagged_and_deleted(world: &World) {
    let nothing = world.try_coracle(&["rmi", "--all", "--force"]);
    assert_eq!(nothing.success(), "");
    let id = image(world).load(world);
    world
        .try_coracle(&["tag", "myimage", "quay.io/a/b:2"])
        .success();
    let words = ["run", "--network", "none", "-d", "--user", "0", "myimage"];
    world.try_coracle(&words).success();
    let gone = world.try_coracle(&["rmi", "--all", "--force"]);
    let mut lines: Vec<_> = gone.success().lines().collect();
    lines.sort_unstable();
    let expected = [
        format!("Deleted: {id}"),
        "Untagged: localhost/myimage:latest".to_owned(),
        "Untagged: quay.io/a/b:2".to_owned(),
    ];
    assert_eq!(lines, expected);
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    assert_eq!(world.try_coracle(&["ps", "-aq"]).success(), "");
}

/// `podman run --user=root --rm IMAGE -- bash -c "find / -mount -printf \"%U=%u\n\" | sort -un"`,
/// as busybox has it.
fn owners_in_an_image_have_names(world: &World) {
    image(world).load(world);
    let look = "find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' 2>/dev/null | \
                xargs stat -c '%u=%U' 2>/dev/null | sort -un";
    let words = ["run", "--user=root", "--rm", "--network", "none", "myimage"];
    let ran = world.try_coracle(&[&words[..], &["sh", "-c", look]].concat());
    let expected = match world.has_single_id() {
        true => "0=root\n",
        false => "0=root\n48=apache\n1001=default\n",
    };
    // What is the kernel's and nobody's here has a name in a distribution.
    let said = ran.success().replace("65534=nobody\n", "");
    assert_eq!(said.replace("65534=UNKNOWN\n", ""), expected, "{ran:?}");
    // Without an entry point the two dashes are a command.
    Recipe::new("localhost/plain:1", [Layer::busybox(world)]).load(world);
    let words = ["run", "--rm", "--network", "none", "plain:1", "--", "true"];
    let dashes = world.try_coracle(&words);
    assert_eq!(dashes.code(), Some(127), "{dashes:?}");
}

/// CVE-2024-45310, CVE-2021-30465: one container exchanges a directory of a volume for a link and
/// back while others start with mounts below it.
fn a_volume_that_is_exchanged_while_containers_start_leads_nowhere(world: &World) {
    const STARTS: u32 = 25;
    image(world).load(world);
    let outside = world.path("outside");
    std::fs::create_dir(&outside).expect("made");
    world.give_away(&outside);
    let target = format!("/../../../../../../../..{}", outside.display());
    let shared = world.path("shared");
    std::fs::create_dir_all(shared.join("real")).expect("made");
    std::os::unix::fs::symlink(&target, shared.join("link")).expect("a link");
    world.give_to_container(&shared);
    world.give_to_container(&shared.join("real"));
    let volume = format!("{}:/shared", shared.display());
    let begin = ["run", "--network", "none", "--user", "0", "-v", &volume];
    let exchange = "cd /shared; while :; do busybox mv -T real x; busybox mv -T link real; \
                    busybox mv -T real link; busybox mv -T x real; done 2>/dev/null";
    let words = ["-d", "--name", "racer", "myimage", "sh", "-c", exchange];
    world.try_coracle(&[&begin[..], &words].concat()).success();
    let other = world.path("other");
    std::fs::create_dir(&other).expect("made");
    world.give_to_container(&other);
    let below = format!("{}:/shared/real/below", other.display());
    for _ in 0..STARTS {
        let words = ["--rm", "-v", &below, "myimage", "true"];
        // It may be refused, or find its place within the container.
        let ran = world.try_coracle(&[&begin[..], &words].concat());
        assert!(matches!(ran.code(), Some(0 | 125..=127)), "{ran:?}");
        let made = std::fs::read_dir(&outside).expect("there").count();
        assert_eq!(made, 0, "nothing appears outside: {ran:?}");
    }
    world.try_coracle(&["rm", "-f", "racer"]).success();
}
