//! What a container has of its own, and what it may not do.

use std::fs;

use crate::harness::{World, cases, coracle, finish, snapshot};

cases![
    seven_namespaces_are_the_containers_own,
    root_inside_is_the_caller_and_has_few_capabilities,
    capabilities_and_no_new_privileges_can_be_chosen,
    kernel_files_are_hidden_or_read_only,
    the_callers_descriptors_stay_with_the_caller,
    the_directory_is_written_only_when_asked,
    volumes_are_shared_and_may_be_read_only,
    users_are_those_of_the_container,
    names_and_variables_are_set,
    unshare_gives_users_and_mounts_only,
];

fn seven_namespaces_are_the_containers_own(world: &World) {
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];
    let links = world.sh(
        &[],
        "for kind in user mnt pid net ipc uts cgroup time; do readlink /proc/self/ns/$kind; done",
    );
    let links: Vec<&str> = links.lines().collect();
    assert_eq!(links.len(), kinds.len());
    for (kind, inside) in kinds.iter().zip(links) {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert_eq!(
            outside.to_str() == Some(inside),
            *kind == "time",
            "{kind}: {inside}"
        );
    }
}

fn root_inside_is_the_caller_and_has_few_capabilities(world: &World) {
    let status = world.sh(&[], "cat /proc/self/status");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    assert_eq!(field("Uid:"), Some("0\t0\t0\t0"));
    for (set, value) in [
        ("CapInh:", "0000000000000000"),
        ("CapPrm:", "00000000800405fb"),
        ("CapEff:", "00000000800405fb"),
        ("CapBnd:", "00000000800405fb"),
        ("CapAmb:", "0000000000000000"),
        ("NoNewPrivs:", "0"),
    ] {
        assert_eq!(field(set), Some(value), "{set}");
    }
    let map = world.sh(&[], "cat /proc/self/uid_map");
    let extents: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let uid = world.uid().to_string();
    if !world.is_root() {
        assert_eq!(extents[0], ["0", &uid, "1"]);
        assert_eq!(extents.len() == 1, world.has_single_id(), "{map}");
    }
}

fn capabilities_and_no_new_privileges_can_be_chosen(world: &World) {
    let effective = |flags: &[&str]| world.sh(flags, "grep CapEff /proc/self/status");
    assert!(
        effective(&["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"])
            .ends_with("0000000000000400\n")
    );
    assert!(effective(&["--cap-drop=all"]).ends_with("0000000000000000\n"));
    assert_eq!(
        world.run(&["--cap-add", "FLY"], &["true"]).code(),
        Some(125)
    );
    let flags = ["--security-opt", "no-new-privileges"];
    assert_eq!(
        world.sh(&flags, "grep NoNewPrivs /proc/self/status"),
        "NoNewPrivs:\t1\n"
    );
}

fn kernel_files_are_hidden_or_read_only(world: &World) {
    let script = "
        for file in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /proc/sched_debug; do
            test ! -e $file || test -c $file || echo shown: $file
        done
        for dir in /proc/acpi /proc/scsi /sys/firmware; do test -z \"$(ls $dir 2>/dev/null)\" || echo shown: $dir; done
        for file in /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger /proc/irq/x /sys/x \
                /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/x; do
            (echo 1 > $file) 2>/dev/null && echo written: $file
        done
        mount -t tmpfs none /tmp 2>/dev/null && echo mounted
        echo done";
    assert_eq!(world.sh(&[], script), "done\n");
}

fn the_callers_descriptors_stay_with_the_caller(world: &World) {
    let args = world.run_args(&[], &["ls", "/proc/self/fd"]);
    let script = "exec 3</etc/passwd 5</ 7>/dev/null 9</etc/passwd; exec \"$0\" \"$@\"";
    let program = [
        "sh".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
        coracle().as_os_str(),
    ];
    let listed = finish(world.command(&program, args));
    // The fourth is the directory that ls itself has open.
    assert_eq!(
        listed
            .success()
            .split_ascii_whitespace()
            .collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
}

fn the_directory_is_written_only_when_asked(world: &World) {
    let before = snapshot(&world.rootfs());
    let script = "set -e; echo x > /new; rm /bin/tty; mkdir -p /a/b; echo changed > /etc/passwd; chmod 700 /bin/busybox; ls /";
    assert!(world.sh(&[], script).contains("new"));
    assert_eq!(snapshot(&world.rootfs()), before);

    let rootfs = world.rootfs();
    world
        .run_in_place(&rootfs, &["sh", "-c", "echo x > /new"])
        .success();
    assert_eq!(
        fs::read_to_string(rootfs.join("new")).expect("the new file"),
        "x\n"
    );
}

fn volumes_are_shared_and_may_be_read_only(world: &World) {
    let shared = world.path("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::write(shared.join("file"), "host\n").expect("a file");
    world.give_away(&shared);
    if world.is_root() && world.container_root() != 0 {
        // What the host's root has not given away, its containers may read and not write.
        let volume = format!("{}:/mnt", shared.display());
        let refused = world.run(&["-v", &volume], &["touch", "/mnt/reply"]);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        world.give_to_container(&shared);
    }
    let volume = |options: &str| format!("{}:/mnt/deep{options}", shared.display());
    assert_eq!(
        world.sh(
            &["-v", &volume("")],
            "cat /mnt/deep/file; echo box > /mnt/deep/reply"
        ),
        "host\n"
    );
    assert_eq!(
        fs::read_to_string(shared.join("reply")).expect("the reply"),
        "box\n"
    );
    world.sh(
        &["-v", &volume(":ro")],
        "! touch /mnt/deep/other 2>/dev/null",
    );
    assert!(!shared.join("other").exists());

    let file = format!("{}:/etc/motd:ro", shared.join("file").display());
    assert_eq!(world.sh(&["-v", &file], "cat /etc/motd"), "host\n");
    for bad in [
        "/no/such/dir:/mnt",
        "shared:/proc/x",
        "shared:/sys",
        "shared:/",
    ] {
        assert_eq!(
            world.run(&["-v", bad], &["true"]).code(),
            Some(125),
            "{bad}"
        );
    }
}

fn users_are_those_of_the_container(world: &World) {
    let etc = world.rootfs().join("etc");
    fs::write(
        etc.join("passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(etc.join("group"), "root:x:0:\nweb:x:33:\nlog:x:4:web\n").expect("group");
    assert_eq!(world.run(&["-u", "nobody"], &["true"]).code(), Some(125));
    assert_eq!(
        world.sh(&["-u", "0"], "id -u; id -G; echo $HOME"),
        "0\n0\n/root\n"
    );
    if world.has_single_id() {
        let refused = world.run(&["-u", "web"], &["true"]);
        assert_eq!(refused.code(), Some(125));
        assert!(refused.stderr.contains("no such ID"), "{refused:?}");
        return;
    }
    let script = "id -u; id -G; echo $HOME; grep CapEff /proc/self/status; echo via > /dev/stdout";
    let expected = "33\n33 4\n/srv\nCapEff:\t0000000000000000\nvia\n";
    assert_eq!(world.sh(&["-u", "web"], script), expected);
    assert_eq!(world.sh(&["-u", "33:33"], "id -G"), "33\n");
    assert_eq!(
        world.sh(&["-u", "1000:4"], "id -u; id -g; echo $HOME"),
        "1000\n4\n/\n"
    );
}

fn names_and_variables_are_set(world: &World) {
    let flags = [
        "--hostname",
        "box",
        "-e",
        "A=1",
        "-e",
        "A=2",
        "-e",
        "HOME=/tmp",
    ];
    let script = "hostname; cat /etc/hostname; echo $A $HOME $HOSTNAME $container; env | grep -c -E 'XDG|CARGO'";
    let listed = world.run(&flags, &["sh", "-c", script]);
    assert_eq!(
        listed.stdout, "box\nbox\n2 /tmp box coracle\n0\n",
        "{listed:?}"
    );
    assert_eq!(world.sh(&["-w", "/tmp"], "pwd; umask"), "/tmp\n0022\n");
}

fn unshare_gives_users_and_mounts_only(world: &World) {
    let sh = |script: &str| world.try_coracle(&["unshare", "sh", "-c", script]);
    assert_eq!(sh("id -u").success(), "0\n");
    if world.container_root() == world.uid() {
        assert_eq!(
            sh("cat /proc/self/uid_map").success(),
            world.sh(&[], "cat /proc/self/uid_map")
        );
    }
    let net = fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert_eq!(
        sh("readlink /proc/self/ns/net").success().trim_end(),
        net.to_str().expect("plain")
    );
    let file = world.path("home").join("file");
    assert!(
        sh("echo hidden > ~/file; mount -t tmpfs none ~ && echo x > ~/file")
            .success()
            .is_empty()
    );
    assert_eq!(
        fs::read_to_string(file).expect("the file below"),
        "hidden\n"
    );
    assert_eq!(sh("exit 3").code(), Some(3));
    for (command, code) in [("/etc", 126), ("no-such-program", 127), ("--foo", 125)] {
        assert_eq!(
            world.try_coracle(&["unshare", command]).code(),
            Some(code),
            "{command}"
        );
    }
    if world.has_single_id() {
        assert!(sh("true").stderr.contains("one user and one group only"));
    }
}
