//! Images from registries: a real one, and one that does what a case wants.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::docker_registry::Registry;
use crate::harness::{Outcome, World, cases, collect, finish, finish_with_input, unique};
use crate::judges::other;
use crate::recipe::{Layer, Packed, Recipe, digest, put};
use crate::server::Server;

cases![
    an_image_of_a_registry_is_run,
    policies_say_when_to_pull,
    a_download_that_breaks_off_goes_on,
    what_has_another_digest_is_refused,
    registries_say_what_is_wrong,
    of_several_platforms_the_wanted_one_comes,
    passwords_are_kept_and_shown,
    names_are_completed_and_mirrors_asked,
    docker_registry_and_skopeo_agree,
    a_download_outlives_its_registry,
    tokens_are_got_and_shown,
    a_proxy_is_asked,
    two_pulls_at_once_do_no_harm;
    a_full_disk_is_told,
];

fn image(world: &World) -> Recipe {
    let upper = Layer::new().file("etc/upper", 0o644, 0, b"upper");
    // Of a size that takes several packets.
    let noise: Vec<u8> = (0..400_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let large = Layer::new().file("noise", 0o644, 0, &noise);
    let layers = [Layer::busybox(world), large, upper];
    Recipe::new("localhost/unused:1", layers).config(json!({"Cmd": ["cat", "/etc/upper"]}))
}

#[track_caller]
fn pull(world: &World, server: &Server) -> Outcome {
    world.try_coracle(&["pull", "--tls-verify=false", &server.name()])
}

fn run(world: &World, flags: &[&str], name: &str) -> Outcome {
    let fixed = ["run", "--rm", "--network", "none", "--tls-verify=false"];
    world.try_coracle(&[&fixed, flags, &[name][..]].concat())
}

fn an_image_of_a_registry_is_run(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    let name = server.name();
    let container = unique("pulled");
    let words = [
        "run",
        "-d",
        "--name",
        &container,
        "--network",
        "none",
        "--tls-verify=false",
        &name,
        "sleep",
        "60",
    ];
    let ran = world.try_coracle(&words);
    let id = ran.success().trim_end();
    assert!(id.len() == 64 && ran.stdout.lines().count() == 1, "{ran:?}");
    let mut lines = ran.stderr.lines();
    let mut expect = |beginning: &str, end: &str| {
        let line = lines.next().unwrap_or_default();
        assert!(
            line.starts_with(beginning) && line.ends_with(end),
            "{line:?} in {ran:?}"
        );
    };
    expect(&format!("Trying to pull {name}..."), "");
    expect("Getting image source signatures", "");
    for _ in 0..3 {
        expect("Copying blob ", " done");
    }
    expect(&format!("Copying config {} done", &image.id()[..10]), "");
    expect("Writing manifest to image destination", "");
    expect("Storing signatures", "");
    assert_eq!(world.inspect(&container).expect("recorded")["image"], name);
    world.try_coracle(&["rm", "-f", &container]).success();

    let again = pull(world, &server);
    assert_eq!(again.success(), format!("{}\n", image.id()));
    assert!(
        again.stderr.contains("skipped: already exists"),
        "{again:?}"
    );
    let quiet = world.try_coracle(&["pull", "-q", "--tls-verify=false", &name]);
    assert_eq!(
        (quiet.success(), &*quiet.stderr),
        (&*format!("{}\n", image.id()), "")
    );
    let partial = fs::read_dir(world.storage().join("partial")).expect("a directory");
    assert_eq!(partial.count(), 0);
}

fn policies_say_when_to_pull(world: &World) {
    let server = Server::start(&image(world));
    let name = server.name();
    let never = run(world, &["--pull", "never"], &name);
    assert_eq!(never.code(), Some(125), "{never:?}");
    assert!(never.stderr.contains("image not known") && server.asked("manifests") == 0);
    assert_eq!(run(world, &["-q"], &name).success(), "upper");
    let asked = server.asked("manifests");
    for policy in ["missing", "never"] {
        assert_eq!(run(world, &["--pull", policy], &name).success(), "upper");
    }
    assert_eq!(server.asked("manifests"), asked);

    let newer = Layer::new().file("etc/upper", 0o644, 0, b"newer");
    let newer = Recipe::new("localhost/unused:1", [Layer::busybox(world), newer]);
    server.serve_image(&newer.config(json!({"Cmd": ["cat", "/etc/upper"]})));
    assert_eq!(run(world, &[], &name).success(), "upper");
    let updated = run(world, &["--pull=newer"], &name);
    assert_eq!(updated.success(), "newer", "{updated:?}");
    let blobs = server.asked("blobs");
    assert_eq!(run(world, &["--pull=newer"], &name).success(), "newer");
    assert_eq!(run(world, &["--pull=always"], &name).success(), "newer");
    assert_eq!(server.asked("blobs"), blobs);
    // Without its registry it is as new as can be.
    server.answers.lock().expect("a lock").status = Some((500, "{}"));
    let kept = run(world, &["--pull=newer"], &name);
    assert_eq!(kept.success(), "newer");
    assert!(kept.stderr.contains("500"), "{kept:?}");
    assert_eq!(run(world, &["--pull=always"], &name).code(), Some(125));
}

fn a_download_that_breaks_off_goes_on(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    server.answers.lock().expect("a lock").cut_after = Some(150_000);
    // As a store is that was made before there was such a place.
    world.try_coracle(&["images"]).success();
    fs::remove_dir(world.storage().join("partial")).expect("removed");
    world.try_coracle(&["rmi", "-a"]).success();
    assert_eq!(pull(world, &server).success(), format!("{}\n", image.id()));
    assert!(server.asked("from 150000") >= 1 && server.asked("from 300000") >= 1);
    assert_eq!(run(world, &[], &server.name()).success(), "upper");
    world.try_coracle(&["rmi", "-a"]).success();

    // Without parts it begins again, and does not come to an end.
    {
        let mut answers = server.answers.lock().expect("a lock");
        (answers.no_parts, answers.cut_after) = (true, Some(150_000));
    }
    let broken = pull(world, &server);
    assert_eq!(broken.code(), Some(125));
    assert!(broken.stderr.contains("broke off"), "{broken:?}");
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    // A later call goes on where this one ended.
    {
        let mut answers = server.answers.lock().expect("a lock");
        (answers.no_parts, answers.cut_after) = (false, None);
    }
    server.requests.lock().expect("a lock").clear();
    assert_eq!(pull(world, &server).success(), format!("{}\n", image.id()));
    assert!(server.asked("from 150000") >= 1);
    assert_eq!(run(world, &[], &server.name()).success(), "upper");
}

fn what_has_another_digest_is_refused(world: &World) {
    let image = image(world);
    let manifest = image.oci_files(Packed::Gzip);
    let manifest = manifest[manifest.len() - 3].1.clone();
    type Tamper<'a> = &'a dyn Fn(&Server);
    let cases: [(&str, Tamper); 8] = [
        ("what should be sha256:", &|s| {
            s.tamper("blobs", |blob| blob[30] ^= 1)
        }),
        ("longer than the manifest says", &|s| {
            s.tamper("blobs", |blob| blob.push(0))
        }),
        ("broke off", &|s| {
            s.tamper("blobs", |blob| blob.truncate(blob.len() / 2))
        }),
        ("encoded value", &|s| {
            let text = String::from_utf8_lossy(&manifest).replace("sha256:", "sha256:../");
            s.serve_manifest(
                "application/vnd.oci.image.manifest.v1+json",
                text.as_bytes(),
            );
        }),
        ("manifest and an index", &|s| {
            let text = String::from_utf8_lossy(&manifest);
            let text = text.replacen('{', r#"{"manifests":[],"#, 1);
            s.serve_manifest(
                "application/vnd.oci.image.manifest.v1+json",
                text.as_bytes(),
            );
        }),
        ("out of use", &|s| {
            let text = br#"{"schemaVersion":1,"fsLayers":[]}"#;
            s.serve_manifest("application/vnd.docker.distribution.manifest.v1+json", text);
        }),
        ("too long", &|s| {
            let text = vec![b' '; 5 << 20];
            s.serve_manifest("application/vnd.oci.image.manifest.v1+json", &text);
        }),
        ("layers", &|s| {
            let mut text: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
            text["layers"].as_array_mut().expect("layers").pop();
            let text = text.to_string();
            s.serve_manifest(
                "application/vnd.oci.image.manifest.v1+json",
                text.as_bytes(),
            );
        }),
    ];
    for (why, tamper) in cases {
        let server = Server::start(&image);
        tamper(&server);
        let refused = pull(world, &server);
        assert_eq!(refused.code(), Some(125), "{why}: {refused:?}");
        assert!(refused.stderr.contains(why), "{why}: {refused:?}");
        assert_eq!(world.try_coracle(&["images", "-q"]).success(), "", "{why}");
        world.try_coracle(&["rmi", "-a"]).success();
    }
    // What a liar has sent does not stay in the way of the truth.
    let server = Server::start(&image);
    server.tamper("blobs", |blob| blob[30] ^= 1);
    server.answers.lock().expect("a lock").cut_after = Some(100);
    assert_eq!(pull(world, &server).code(), Some(125));
    let honest = Server::start(&image);
    assert_eq!(pull(world, &honest).success(), format!("{}\n", image.id()));
    world.try_coracle(&["rmi", "-a"]).success();
    // Of a name with a digest nothing else will do.
    let server = Server::start(&image);
    let pinned = |content: &[u8]| format!("{}/team/app@{}", server.registry(), digest(content));
    let good = run(world, &[], &pinned(&manifest));
    assert_eq!(good.success(), "upper", "{good:?}");
    let listed = world.try_coracle(&["images", "--digests"]);
    assert!(listed.stdout.contains(&digest(&manifest)) && listed.stdout.contains("<none>"));
    server.tamper("manifests", |manifest| manifest.push(b' '));
    let evil = world.try_coracle(&["pull", "--tls-verify=false", &pinned(&manifest)]);
    assert_eq!(evil.code(), Some(125), "{evil:?}");
    let blobs = world.storage().join("oci/blobs/sha256");
    for blob in fs::read_dir(blobs).expect("blobs").flatten() {
        let content = fs::read(blob.path()).expect("a blob");
        let name = format!("sha256:{}", blob.file_name().to_string_lossy());
        assert_eq!(digest(&content), name);
    }
}

fn registries_say_what_is_wrong(world: &World) {
    let server = Server::start(&image(world));
    let registry = server.registry();
    let refused = |outcome: Outcome, said: &str| {
        assert_eq!(outcome.code(), Some(125), "{outcome:?}");
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains(said) && last.contains("registry"),
            "{said}: {outcome:?}"
        );
    };
    let plain = world.try_coracle(&["pull", &server.name()]);
    refused(plain, "does not speak TLS");
    let name = format!("{registry}/team/app:2");
    let unknown = world.try_coracle(&["pull", "--tls-verify=false", &name]);
    refused(unknown, "has no image");
    for (status, body, said) in [
        (401, "{}", "coracle login"),
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            "coracle login",
        ),
        (
            429,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"no"}]}"#,
            "no more requests",
        ),
        (429, "slow down", "no more requests"),
        (503, "<html>", "503"),
    ] {
        server.answers.lock().expect("a lock").status = Some((status, body));
        refused(pull(world, &server), said);
    }
    let unused = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = format!("{}/team/app:1", unused.local_addr().expect("bound"));
    drop(unused);
    let gone = world.try_coracle(&["pull", "--tls-verify=false", &name]);
    refused(gone, "cannot reach");
    let short = world.try_coracle(&["pull", "no-alias-for-this"]);
    assert_eq!(short.code(), Some(125));
    assert!(short.stderr.contains("no-alias-for-this"), "{short:?}");
}

fn of_several_platforms_the_wanted_one_comes(world: &World) {
    let server = Server::start(&image(world));
    let other = Recipe::new(
        "localhost/unused:1",
        [Layer::new().file("other", 0o644, 0, b"")],
    );
    let ours = server.add(&image(world));
    let theirs = server.add(&other);
    let this = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let answers = server.answers.lock().expect("a lock").clone();
    drop(answers);
    let entry = |digest: &str, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
            "size": 1, "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index =
        json!({"schemaVersion": 2, "manifests": [entry(&theirs, "s390x"), entry(&ours, this)]});
    let index_type = "application/vnd.oci.image.index.v1+json";
    server.serve_manifest(index_type, index.to_string().as_bytes());
    assert_eq!(run(world, &[], &server.name()).success(), "upper");
    let words = [
        "pull",
        "--tls-verify=false",
        "--platform",
        "linux/s390x",
        &server.name(),
    ];
    let foreign = world.try_coracle(&words);
    assert_eq!(foreign.success(), format!("{}\n", other.id()));
    // What it says of itself is another matter.
    assert!(
        foreign.stderr.contains("the image is for linux/"),
        "{foreign:?}"
    );
    let words = [
        "pull",
        "--tls-verify=false",
        "--platform",
        "linux/ppc64le",
        &server.name(),
    ];
    let none = world.try_coracle(&words);
    assert_eq!(none.code(), Some(125));
    assert!(none.stderr.contains("linux/s390x"), "{none:?}");
}

fn passwords_are_kept_and_shown(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    let registry = server.registry();
    // me:secret
    server.answers.lock().expect("a lock").password = Some("bWU6c2VjcmV0".to_owned());
    let refused = pull(world, &server);
    assert!(refused.stderr.contains("coracle login"), "{refused:?}");
    let login = |password: &str| {
        let words = [
            "login",
            "--tls-verify=false",
            "-u",
            "me",
            "--password-stdin",
            registry,
        ];
        let mut command = world.coracle(words);
        command.env("REGISTRY_AUTH_FILE", world.path("home/auth.json"));
        finish_with_input(command, password.as_bytes())
    };
    let wrong = login("wrong");
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("does not take"), "{wrong:?}");
    assert!(!world.path("home/auth.json").exists());
    assert_eq!(login("secret\n").success(), "Login Succeeded!\n");
    let with_file = |words: &[&str]| {
        let mut command = world.coracle(words);
        command.env("REGISTRY_AUTH_FILE", world.path("home/auth.json"));
        finish(command)
    };
    assert_eq!(
        with_file(&["login", "--get-login", registry]).success(),
        "me\n"
    );
    let pulled = with_file(&["pull", "-q", "--tls-verify=false", &server.name()]);
    assert_eq!(pulled.success(), format!("{}\n", image.id()));
    let by_creds = [
        "pull",
        "-q",
        "--tls-verify=false",
        "--creds",
        "me:secret",
        &server.name(),
    ];
    world.try_coracle(&by_creds).success();
    let removed = with_file(&["logout", registry]);
    assert_eq!(
        removed.success(),
        format!("Removed login credentials for {registry}\n")
    );
    assert_eq!(with_file(&["logout", registry]).code(), Some(125));
    assert_eq!(
        with_file(&["login", "--get-login", registry]).code(),
        Some(125)
    );

    // A helper's, as Docker keeps them.
    let script = b"#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n";
    let helper = put(world, "home/bin/docker-credential-test", script);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&helper, mode).expect("a program");
    let config = json!({"credHelpers": {(registry): "test"}}).to_string();
    put(world, "home/.docker/config.json", config.as_bytes());
    world.give_away(&world.path("home"));
    let path = format!(
        "PATH={}:/usr/bin:/bin:/usr/sbin:/sbin",
        world.path("home/bin").display()
    );
    let coracle = crate::harness::coracle().to_str().expect("plain");
    let words = [
        &path,
        coracle,
        "pull",
        "-q",
        "--tls-verify=false",
        &server.name(),
    ];
    let helped = finish(world.command(&["/usr/bin/env".as_ref()], words));
    assert_eq!(helped.success(), format!("{}\n", image.id()));
}

fn names_are_completed_and_mirrors_asked(world: &World) {
    let server = Server::start(&image(world));
    let conf = format!(
        "unqualified-search-registries = [\"{registry}\"]\n\
         [aliases]\n\"nick\" = \"{registry}/team/app\"\n\
         [[registry]]\nlocation = \"{registry}\"\ninsecure = true\n\
         [[registry]]\nlocation = \"registry.invalid\"\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:1/none\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{registry}\"\ninsecure = true\n\
         [[registry]]\nlocation = \"blocked.invalid\"\nblocked = true\n",
        registry = server.registry(),
    );
    put(
        world,
        "home/.config/containers/registries.conf",
        conf.as_bytes(),
    );
    world.give_away(&world.path("home"));
    for (name, listed) in [
        ("team/app:1", server.name()),
        ("nick:1", server.name()),
        (
            "registry.invalid/team/app:1",
            "registry.invalid/team/app:1".to_owned(),
        ),
    ] {
        let ran = world.try_coracle(&["run", "--rm", "-q", "--network", "none", name]);
        assert_eq!(ran.success(), "upper", "{name}: {ran:?}");
        let images = world.try_coracle(&["images", "--format", "json"]);
        assert!(images.stdout.contains(&listed), "{name}: {images:?}");
        world.try_coracle(&["rmi", "-a", "-f"]).success();
    }
    // A name that several registries may have: refused, with what it may mean, or tried in order.
    let empty = format!("{}/none", server.registry());
    let several = |mode: &str| {
        let conf = format!(
            "unqualified-search-registries = [\"{empty}\", \"{}\"]\nshort-name-mode = \"{mode}\"\n\
             [[registry]]\nlocation = \"{}\"\ninsecure = true\n",
            server.registry(),
            server.registry()
        );
        let path = "home/.config/containers/registries.conf";
        put(world, path, conf.as_bytes());
        world.try_coracle(&["pull", "-q", "team/app:1"])
    };
    let refused = several("enforcing");
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    for meant in [&format!("{empty}/team/app:1"), &server.name()] {
        assert!(refused.stderr.contains(meant), "{meant}: {refused:?}");
    }
    for mode in ["permissive", "disabled"] {
        let tried = several(mode);
        assert_eq!(tried.success().trim_end().len(), 64, "{tried:?}");
        world.try_coracle(&["rmi", "-a", "-f"]).success();
    }
    let unknown = several("loose");
    assert!(unknown.stderr.contains("registries.conf"), "{unknown:?}");
    put(
        world,
        "home/.config/containers/registries.conf",
        conf.as_bytes(),
    );
    let blocked = world.try_coracle(&["pull", "blocked.invalid/x"]);
    assert!(blocked.stderr.contains("blocks"), "{blocked:?}");
}

/// The real one, filled by skopeo.
fn docker_registry_and_skopeo_agree(world: &World) {
    let image = image(world);
    put(world, "image.tar", &image.oci_archive(Packed::Gzip));
    let registry = Registry::start(world);
    let name = format!("{}/team/app:1", registry.address);
    let place = format!("docker://{name}");
    let copy = |from: &str, to: &str| {
        let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        let words = [&["--insecure-policy", "copy"], &insecure[..], &[from, to]].concat();
        other(world, "skopeo", &words);
    };
    copy("oci-archive:image.tar", &place);
    assert_eq!(run(world, &["-q"], &name).success(), "upper");
    world.try_coracle(&["rmi", "-a"]).success();
    // In Docker's own form.
    let words = ["save", "-o", "docker.tar", "image"];
    crate::recipe::load(world, &image.docker_archive()).success();
    world.try_coracle(&["tag", &image.id(), "image"]).success();
    world.try_coracle(&words).success();
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    copy("docker-archive:docker.tar", &place);
    let pulled = pull_by_name(world, &name);
    assert_eq!(pulled.success(), format!("{}\n", image.id()));
    assert_eq!(run(world, &[], &name).success(), "upper");
    let words = ["save", "--format", "oci-archive", "-o", "back.tar", &name];
    world.try_coracle(&words).success();
    copy(
        "oci-archive:back.tar",
        &format!("docker://{}/team/back:1", registry.address),
    );
}

/// Killed in mid-download and started again.
fn a_download_outlives_its_registry(world: &World) {
    const LEN: usize = 8 << 20;
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_le_bytes()
    })
    .take(LEN / 8)
    .flatten()
    .collect();
    let upper = Layer::new()
        .file("noise", 0o644, 0, &noise)
        .file("etc/upper", 0o644, 0, b"upper");
    let image = Recipe::new("localhost/long:1", [Layer::busybox(world), upper]);
    let image = image.config(json!({"Cmd": ["cat", "/etc/upper"]}));
    crate::recipe::load(world, &image.oci_archive(Packed::Gzip)).success();
    let mut registry = Registry::start(world);
    let stored = format!("docker://{}/long:1", registry.address);
    let words = ["push", "-q", "--tls-verify=false", "long:1", &stored];
    world.try_coracle(&words).success();
    world.try_coracle(&["rmi", "-a", "-f"]).success();
    let line = registry.line();
    let name = format!("{}/long:1", line.address);
    let pull = || world.try_coracle(&["pull", "-q", "--tls-verify=false", &name]);
    line.allow(LEN / 2);
    registry.restart(|| {
        // Nobody answers at all.
        let refused = pull();
        assert_eq!(refused.code(), Some(125), "{refused:?}");
    });
    let broken = pull();
    assert_eq!(broken.code(), Some(125), "{broken:?}");
    assert!(
        broken.stderr.contains("pulling again goes on there"),
        "{broken:?}"
    );
    let first = line.passed();
    assert!(first > LEN / 4, "{first}");
    registry.restart(|| line.allow(usize::MAX));
    let whole = pull();
    assert_eq!(whole.success().trim_end(), image.id());
    // What had come did not come again: but for what each answer says before its content.
    let second = line.passed();
    assert!(second < LEN * 3 / 4, "{first} and then {second} of {LEN}");
    assert_eq!(run(world, &["-q"], &name).success(), "upper");
}

fn tokens_are_got_and_shown(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    let id = format!("{}\n", image.id());
    server.answers.lock().expect("a lock").token = Some("T0ken");
    assert_eq!(pull(world, &server).success(), id);
    assert!(server.asked("/token?") >= 1 && server.asked("repository%3Ateam%2Fapp%3Apull") >= 1);
    world.try_coracle(&["rmi", "-a"]).success();
    // One that is given to those with a password only.
    server.answers.lock().expect("a lock").password = Some("bWU6c2VjcmV0".to_owned());
    let refused = pull(world, &server);
    assert!(refused.stderr.contains("coracle login"), "{refused:?}");
    let words = [
        "pull",
        "-q",
        "--tls-verify=false",
        "--creds",
        "me:secret",
        &server.name(),
    ];
    assert_eq!(world.try_coracle(&words).success(), id);
}

fn a_proxy_is_asked(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    // Nobody listens there.
    let words = ["pull", "-q", "--tls-verify=false", "127.0.0.1:1/team/app:1"];
    let direct = world.try_coracle(&words);
    assert!(direct.stderr.contains("cannot reach"), "{direct:?}");
    let mut command = world.coracle(words);
    command.env("http_proxy", format!("http://{}", server.registry()));
    assert_eq!(finish(command).success(), format!("{}\n", image.id()));
    assert!(server.asked("/v2/team/app/manifests/1") >= 1);
}

fn two_pulls_at_once_do_no_harm(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    server.answers.lock().expect("a lock").cut_after = Some(150_000);
    let name = server.name();
    let pulls: Vec<_> = (0..3)
        .map(|_| {
            let words = ["pull", "-q", "--tls-verify=false", &name];
            let mut command = world.coracle(words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.stdin(Stdio::null()).spawn().expect("coracle")
        })
        .collect();
    for child in pulls {
        assert_eq!(collect(child).success(), format!("{}\n", image.id()));
    }
    assert_eq!(run(world, &["--pull", "never"], &name).success(), "upper");
    world.try_coracle(&["system", "check"]).success();
}

/// Less room than an image takes.
fn a_full_disk_is_told(world: &World) {
    let image = image(world);
    let server = Server::start(&image);
    let place = world.store().join("storage");
    fs::create_dir_all(&place).expect("a directory");
    world.give_away(world.store().as_path());
    let options = format!("size=600k,mode=700,uid={}", world.uid());
    let tmpfs = Some("tmpfs");
    mount(tmpfs, &place, tmpfs, MsFlags::empty(), Some(&*options)).expect("a tmpfs");
    let unmount = Unmount(place);
    let full = pull(world, &server);
    assert_eq!(full.code(), Some(125), "{full:?}");
    assert!(full.stderr.contains("No space left"), "{full:?}");
    let loaded = crate::recipe::load(world, &image.docker_archive());
    assert_eq!(loaded.code(), Some(125), "{loaded:?}");
    assert!(loaded.stderr.contains("No space left"), "{loaded:?}");
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    // What there was no room for is no damage.
    world.try_coracle(&["system", "check"]).success();
    drop(unmount);
    assert_eq!(pull(world, &server).success(), format!("{}\n", image.id()));
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn pull_by_name(world: &World, name: &str) -> Outcome {
    world.try_coracle(&["pull", "-q", "--tls-verify=false", name])
}
