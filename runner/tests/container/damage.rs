//! What commands make of a full disk, of output that cannot be written, and of damaged files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::harness::{OverlayStore, World, cases, eventually, is_running, parent_of, unique};

cases![
    output_that_cannot_be_written_is_an_error,
    a_damaged_record_hides_no_running_container,
    a_record_that_tells_something_else_hides_no_running_container,
    a_container_without_monitor_and_record_is_found,
    what_is_in_a_files_place_makes_nobody_wait;
    a_store_on_an_overlay_has_copies,
    a_full_disk_keeps_no_command_from_working,
];

/// The directory of the only container of this world.
fn container_dir(world: &World) -> PathBuf {
    let containers = world.containers();
    let mut entries = fs::read_dir(&containers).expect("containers").flatten();
    let entry = entries.find(|entry| entry.path().is_dir());
    entry.expect("a container").path()
}

fn a_full_disk_keeps_no_command_from_working(world: &World) {
    let store = &world.store();
    fs::create_dir_all(store).expect("made");
    let options = format!("size=2m,mode=700,uid={0},gid={0}", world.uid());
    mount(
        Some("none"),
        store,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(&*options),
    )
    .expect("a disk");

    let is_full = || {
        let found = nix::sys::statvfs::statvfs(store).expect("a file system");
        found.blocks_available() == 0
    };

    let name = unique("full");
    let script = "trap 'exit 7' TERM; echo ready; sleep 0.3; dd if=/dev/zero of=/fill bs=64k 2>/dev/null; echo x >/more; while :; do sleep 0.1 & wait $!; done";
    world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    eventually("the disk is full", is_full);
    assert!(world.try_coracle(&["ps"]).success().contains(&name));
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "ready\n");
    world.try_coracle(&["exec", &name, "true"]).success();
    world.try_coracle(&["kill", "-s", "CONT", &name]).success();
    world.try_coracle(&["stop", &name]).success();
    let ended = world.inspect(&name).expect("kept");
    assert_eq!(ended["exit_code"], 7, "{ended}");
    world.try_coracle(&["rm", &name]).success();

    // The same with nobody left to write the exit code, and for one that is still running.
    let script = "dd if=/dev/zero of=/fill bs=64k 2>/dev/null; sleep 1000";
    let fill = ["sh", "-c", script];
    world.detach(&name, &["--network", "none"], &fill);
    let init = world.init_of(&name);
    let monitor = nix::unistd::Pid::from_raw(parent_of(init));
    eventually("the disk is full", is_full);
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("killed");
    eventually("it has ended", || !is_running(init));
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 137);
    world.try_coracle(&["rm", "-f", &name]).success();
    world.detach(&name, &["--network", "none"], &fill);
    world.try_coracle(&["rm", "-f", &name]).success();
    assert!(world.inspect(&name).is_none());
    nix::mount::umount2(store, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
}

fn output_that_cannot_be_written_is_an_error(world: &World) {
    let name = unique("output");
    world.detach(
        &name,
        &["--network", "none"],
        &["sh", "-c", "echo out; echo err >&2; sleep 1000"],
    );
    eventually("it has written", || {
        !world.try_coracle(&["logs", &name]).stderr.is_empty()
    });
    let run = world.run_args(&[], &["sh", "-c", "echo hello"]);
    let run: Vec<&str> = run.iter().map(String::as_str).collect();
    let commands: [&[&str]; 9] = [
        &["ps"],
        &["ps", "-q"],
        &["ps", "--format", "json"],
        &["logs", &name],
        &["kill", "-s", "CONT", &name],
        &["exec", &name, "echo", "hello"],
        &["--help"],
        &["run", "--help"],
        &run,
    ];
    for command in commands {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let child = world
            .coracle(command)
            .stdin(Stdio::null())
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn();
        let failed = child.expect("coracle").wait_with_output().expect("a child");
        assert_eq!(failed.status.code(), Some(125), "{command:?}");
        let said = String::from_utf8_lossy(&failed.stderr);
        assert!(
            said.contains("No space left on device"),
            "{command:?}: {said}"
        );
        // A reader that has seen enough, as `head` has, is none.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child = world
            .coracle(command)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn();
        let left = child.expect("coracle").wait_with_output().expect("a child");
        let said = String::from_utf8_lossy(&left.stderr);
        assert!(!said.contains("cannot write"), "{command:?}: {said}");
    }
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_damaged_record_hides_no_running_container(world: &World) {
    let name = unique("damaged");
    let damages: [fn(&Path); 5] = [
        |record| fs::write(record, "{ \"id\": ").expect("damaged"),
        |record| fs::write(record, "").expect("emptied"),
        |record| {
            fs::remove_file(record).expect("removed");
            nix::unistd::mkfifo(record, Mode::S_IRWXU).expect("a FIFO");
        },
        |record| {
            fs::remove_file(record).expect("removed");
            fs::create_dir(record).expect("a directory");
        },
        |record| {
            let text = fs::read_to_string(record).expect("a record");
            fs::write(record, text.replace("\"status\"", "\"sta\"")).expect("damaged");
        },
    ];
    for damage in damages {
        world.detach(&name, &["--network", "none"], &["sh", "-c", "sleep 1000"]);
        let init = world.init_of(&name);
        let monitor = parent_of(init);
        let dir = container_dir(world);
        let id = dir
            .file_name()
            .expect("an id")
            .to_str()
            .expect("plain")
            .to_owned();
        damage(&dir.join("config.json"));

        let listed = world.try_coracle(&["ps", "-a"]);
        assert!(listed.success().lines().count() == 1, "{listed:?}");
        assert!(listed.stderr.contains(&id[..12]), "{listed:?}");
        let unknown = world.try_coracle(&["rm", "-f", &name]);
        assert_eq!(
            unknown.code(),
            Some(125),
            "it may be the damaged one: {unknown:?}"
        );
        assert!(unknown.stderr.contains(&id[..12]), "{unknown:?}");
        let refused = world.try_coracle(&["rm", &id]);
        assert_eq!(refused.code(), Some(2), "{refused:?}");
        assert!(is_running(init));
        world.try_coracle(&["rm", "-f", &id]).success();
        assert!(!is_running(init) && !is_running(monitor));
        assert!(!dir.exists());
    }
}

/// It can be read, and does not fit the container.
fn a_record_that_tells_something_else_hides_no_running_container(world: &World) {
    let name = unique("wrong");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let init = world.init_of(&name);
    let record = container_dir(world).join("config.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(
        &record,
        text.replacen(&format!("\"pid\": {init}"), "\"pid\": -1", 1),
    )
    .expect("changed");
    assert_eq!(world.try_coracle(&["rm", &name]).code(), Some(2));
    assert!(is_running(init));
    world.try_coracle(&["rm", "-f", &name]).success();
    assert!(!is_running(init));
}

/// Changing IDs undoes what ties a process to the end of its parent.
fn a_container_without_monitor_and_record_is_found(world: &World) {
    if world.has_single_id() {
        return;
    }
    let name = unique("alone");
    let script = "mkdir /o && cp /bin/busybox /o/sleep && chown 7 /o/sleep \
                  && chmod 4755 /o/sleep && exec /o/sleep 1000";
    world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    let init = world.init_of(&name);
    eventually("it runs the program of another ID", || {
        let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
        status.contains("Name:\tsleep")
    });
    let dir = container_dir(world);
    let monitor = nix::unistd::Pid::from_raw(parent_of(init));
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("killed");
    eventually("the monitor is gone", || !is_running(monitor.as_raw()));
    fs::write(dir.join("config.json"), "garbage").expect("damaged");
    let id = dir.file_name().expect("an id").to_str().expect("plain");
    world.try_coracle(&["rm", "-f", id]).success();
    eventually("init has ended", || !is_running(init));
}

/// As in a container of another engine.
fn a_store_on_an_overlay_has_copies(world: &World) {
    let overlay = OverlayStore::of(world);
    let name = unique("copied");
    let script = "echo $(cat /kept) >>/kept; echo x >>/kept; wc -l </kept; exit 3";
    let flags = ["--name", &name, "--network", "none"];
    let ran = world.run(&flags, &["sh", "-c", script]);
    assert_eq!(ran.code(), Some(3), "{ran:?}");
    // Said once, in one line.
    let said = ran.stderr.lines().filter(|line| line.contains("copy"));
    assert_eq!(said.count(), 1, "{ran:?}");
    assert!(ran.stderr.contains("an overlay itself"), "{ran:?}");
    let once = world.run(&["--rm", "--network", "none"], &["ls", "/kept"]);
    drop(overlay);
    assert_ne!(once.code(), Some(0), "each has its own: {once:?}");
}

fn what_is_in_a_files_place_makes_nobody_wait(world: &World) {
    let name = unique("places");
    for file in ["spec.json", "log", "log.1", "monitor", "config.json.new"] {
        world.detach(
            &name,
            &["--network", "none"],
            &[
                "sh",
                "-c",
                "trap 'exit 6' TERM; echo ready; while :; do sleep 0.1 & wait $!; done",
            ],
        );
        let path = container_dir(world).join(file);
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        if nix::unistd::geteuid().is_root() {
            world.give_away(&path);
        }
        for command in [&["ps"][..], &["logs", &name], &["exec", &name, "true"]] {
            // Whether it works or says what is wrong, it ends.
            let code = world.try_coracle(command).code();
            assert!(
                matches!(code, Some(0 | 125)),
                "{file}: {command:?}: {code:?}"
            );
        }
        world.try_coracle(&["stop", &name]).success();
        world.try_coracle(&["rm", &name]).success();
    }
}
