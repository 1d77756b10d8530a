//! What a container knows of names and of the time.

use std::fs;

use crate::harness::{World, cases, skip};

cases![
    name_servers_can_be_chosen,
    hosts_can_be_added,
    the_images_files_can_stay,
    a_container_has_a_time_zone,
];

fn name_servers_can_be_chosen(world: &World) {
    let flags = [
        "--dns",
        "192.0.2.1,192.0.2.2",
        "--dns-search",
        "a.test",
        "--dns-option",
        "ndots:2",
    ];
    let with_network = [&["--network", "coracle"], &flags[..]].concat();
    crate::harness::need_tun();
    let said = world.sh(&with_network, "cat /etc/resolv.conf");
    assert_eq!(
        said,
        "search a.test\noptions ndots:2\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n"
    );
    let none = [&["--network", "none"], &flags[..]].concat();
    let wrong = world.run(&none, &["true"]);
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("--network none"), "{wrong:?}");
    let wrong = world.run(&["--dns", "none", "--dns", "192.0.2.1"], &["true"]);
    assert!(wrong.stderr.contains("--dns none"), "{wrong:?}");
}

fn hosts_can_be_added(world: &World) {
    let flags = [
        "--add-host",
        "db:192.0.2.7",
        "--add-host",
        "a;b.test:2001:db8::1",
    ];
    let said = world.sh(&flags, "cat /etc/hosts");
    assert!(
        said.starts_with("192.0.2.7\tdb\n2001:db8::1\ta b.test\n127.0.0.1\tlocalhost\n"),
        "{said}"
    );
    let wrong = world.run(&["--add-host", "db:host-gateway"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("map-host="), "{wrong:?}");
    crate::harness::need_tun();
    let flags = [
        "--network",
        "coracle:map-host=192.0.2.9",
        "--add-host",
        "db:host-gateway",
    ];
    let said = world.sh(&flags, "head -1 /etc/hosts");
    assert_eq!(said, "192.0.2.9\tdb\n");
}

fn the_images_files_can_stay(world: &World) {
    let rootfs = world.make_rootfs("names");
    fs::create_dir_all(rootfs.join("etc")).expect("a directory");
    fs::write(rootfs.join("etc/hosts"), "mine\n").expect("a file");
    fs::write(rootfs.join("etc/resolv.conf"), "mine too\n").expect("a file");
    let rootfs = rootfs.to_str().expect("plain");
    let words = [
        "run",
        "--rm",
        "--network",
        "none",
        "--no-hosts",
        "--dns",
        "none",
        "--rootfs",
        rootfs,
        "cat",
        "/etc/hosts",
        "/etc/resolv.conf",
    ];
    assert_eq!(world.try_coracle(&words).success(), "mine\nmine too\n");
}

fn a_container_has_a_time_zone(world: &World) {
    if !std::path::Path::new("/usr/share/zoneinfo/Asia/Kolkata").exists() {
        skip("the host has no time zones");
    }
    // Busybox knows no names of zones, but a program with a C library reads the file.
    let script = "head -c 4 /etc/localtime; cat /etc/localtime | md5sum";
    let said = world.sh(&["--tz", "Asia/Kolkata"], script);
    let file = fs::read("/usr/share/zoneinfo/Asia/Kolkata").expect("a zone");
    assert!(said.starts_with("TZif"), "{said}");
    let other = world.sh(&["--tz", "Europe/Berlin"], script);
    assert_ne!(said, other);
    assert_eq!(
        world.sh(&["--tz", "Asia/Kolkata"], "wc -c < /etc/localtime"),
        format!("{}\n", file.len())
    );
    for zone in [
        "../../../etc/passwd",
        "No/Such",
        "",
        "/etc/passwd",
        "tzdata.zi",
    ] {
        let wrong = world.run(&["--tz", zone], &["true"]);
        assert_eq!(wrong.code(), Some(125), "{zone}: {wrong:?}");
    }
}
