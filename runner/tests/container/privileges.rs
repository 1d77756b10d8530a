//! More rights than a container has by itself, and fewer.

use crate::harness::{World, cases, coracle, need_tun, unique};

cases![
    a_privileged_container_has_what_its_caller_has,
    a_privileged_container_is_not_the_host,
    masks_can_be_taken_off_and_put_on,
    the_ladder_from_weak_to_strong,
    containers_run_in_containers,
];

/// What the ladder's steps are told apart by.
const RIGHTS: &str =
    "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
const DEFAULT_CAPABILITIES: &str = "00000000800405fb";

/// The value of the highest capability of this kernel, and all below it.
fn all_capabilities() -> String {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("a number");
    let last: u32 = last.trim().parse().expect("a number");
    format!("{:016x}", (1_u64 << (last + 1)) - 1)
}

fn a_privileged_container_has_what_its_caller_has(world: &World) {
    let all = all_capabilities();
    let said = world.sh(&["--privileged"], RIGHTS);
    assert_eq!(said, format!("CapEff:{all} NoNewPrivs:0 Seccomp:0 "));
    let script = "grep -cE ' /proc/| /sys/firmware' /proc/mounts; grep ' /sys ' /proc/mounts; echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward";
    let said = world.sh(&["--privileged"], script);
    assert!(said.starts_with("0\n"), "{said}");
    assert!(said.contains(" /sys sysfs rw,"), "{said}");
    assert!(said.ends_with("1\n"), "{said}");
    let name = unique("exec");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let exec = |flags: &[&str]| {
        let words = [&["exec"], flags, &[&name, "sh", "-c", RIGHTS]].concat();
        world.try_coracle(&words).success().to_owned()
    };
    let usual = format!("CapEff:{DEFAULT_CAPABILITIES} NoNewPrivs:0 Seccomp:2 ");
    assert_eq!(exec(&[]), usual);
    let more = format!("CapEff:{all} NoNewPrivs:0 Seccomp:0 ");
    assert_eq!(exec(&["--privileged"]), more);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_privileged_container_is_not_the_host(world: &World) {
    // It can mount what its own namespaces have, and no disk of the host's.
    let script = "mkdir /m; mount -t tmpfs none /m && echo memory; for d in /dev/vda /dev/sda /dev/nvme0n1; do mount -t ext4 $d /m 2>/dev/null && echo $d; done; sysctl -w kernel.panic=7 2>/dev/null && echo panic; true";
    assert_eq!(world.sh(&["--privileged"], script), "memory\n");
    let said = world.sh(&["--privileged", "--cap-drop", "ALL"], RIGHTS);
    assert_eq!(said, "CapEff:0000000000000000 NoNewPrivs:0 Seccomp:0 ");
}

fn masks_can_be_taken_off_and_put_on(world: &World) {
    let covers = "grep -oE ' /(proc|sys|etc)/[a-z_/-]+ ' /proc/mounts | sort";
    let usual = world.sh(&[], covers);
    assert!(
        usual.contains(" /proc/sys ") && usual.contains(" /proc/keys "),
        "{usual}"
    );
    let said = world.sh(&["--security-opt", "unmask=ALL"], covers);
    assert!(!said.contains("/proc/"), "{said}");
    let said = world.sh(&["--security-opt", "unmask=/proc/sys:/proc/keys"], covers);
    assert!(
        !said.contains("/proc/sys ") && !said.contains("/proc/keys"),
        "{said}"
    );
    assert!(said.contains("/proc/timer_list"), "{said}");
    let mask = "mask=/etc:/proc/version:/no/such";
    let script = "ls /etc; cat /proc/version; touch /etc/x 2>/dev/null || echo kept";
    assert_eq!(world.sh(&["--security-opt", mask], script), "kept\n");
    // Who is who is looked up all the same, by numbers.
    let rootfs = world.make_rootfs("masked");
    std::fs::create_dir_all(rootfs.join("etc")).expect("a directory");
    std::fs::write(rootfs.join("etc/passwd"), "u:x:0:0::/:\n").expect("a file");
    let flags = [
        "run",
        "--rm",
        "--network",
        "none",
        "--security-opt",
        "mask=/etc/passwd",
    ];
    let rootfs = ["--rootfs", rootfs.to_str().expect("plain")];
    let words = [&flags[..], &rootfs, &["sh", "-c", "cat /etc/passwd; id -u"]].concat();
    assert_eq!(world.try_coracle(&words).success(), "0\n");
    let wrong = world.run(&["--security-opt", "apparmor=x"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("AppArmor"), "{wrong:?}");
}

/// From the weakest isolation of all down to the strongest, each step has less than the one before.
fn the_ladder_from_weak_to_strong(world: &World) {
    let script = format!("{RIGHTS}; id -u; cut -c1-24 /proc/self/uid_map | head -1");
    let rung = |flags: &[&str]| {
        let said = world.sh(flags, &script);
        let capabilities = said.split("CapEff:").nth(1).and_then(|rest| rest.get(..16));
        let capabilities = capabilities.map(|hex| u64::from_str_radix(hex, 16));
        let capabilities = capabilities.and_then(Result::ok).expect("a number");
        (
            capabilities.count_ones(),
            said.contains("Seccomp:0"),
            !said.contains("NoNewPrivs:1"),
        )
    };
    // Where there is one user only, it has to do without capabilities instead.
    let user = match world.has_single_id() {
        true => ["--cap-drop", "ALL"],
        false => ["--user", "1"],
    };
    let sealed = ["--security-opt", "no-new-privileges"];
    let rungs = [
        rung(&["--privileged"]),
        rung(&["--security-opt", "seccomp=unconfined", "--cap-add", "ALL"]),
        rung(&[]),
        rung(&["--cap-drop", "ALL"]),
        rung(&user),
        rung(&[user, sealed].concat()),
    ];
    assert!(
        rungs.is_sorted_by(|weak, strong| weak >= strong),
        "{rungs:?}"
    );
    assert_ne!(rungs[0], rungs[5]);
}

/// With what Podman's users give a container for that.
fn containers_run_in_containers(world: &World) {
    need_tun();
    let inner = world.make_rootfs("inner");
    let program = format!("{}:/coracle:ro", coracle().display());
    let inner = format!("{}:/inner:ro", inner.display());
    let mut flags = vec!["--network", "coracle", "--security-opt", "unmask=ALL"];
    flags.extend(["--device", "/dev/net/tun", "-v", &program, "-v", &inner]);
    // Of the debug build, which is linked with them.
    for libraries in ["/lib:/lib:ro", "/lib64:/lib64:ro", "/usr/lib:/usr/lib:ro"] {
        flags.extend(["-v", libraries]);
    }
    flags.extend(["--tmpfs", "/root", "-e", "HOME=/root"]);
    let run = |more: &[&str], command: &str| {
        let flags = [&flags, more].concat();
        let command = format!("/coracle run --rm --rootfs /inner {command}");
        world.run(&flags, &["sh", "-c", &command])
    };
    let said = run(&[], "--network none echo hi");
    assert_eq!(said.success(), "hi\n", "{said:?}");
    assert!(
        said.stderr.contains("the host name of the one around it"),
        "{said:?}"
    );
    // Namespaces can be joined with that capability only, as under Podman.
    let network = "--network coracle:cidr=10.0.3.0/24,cidr6=fd01::/64 ip route show default";
    let said = run(&["--cap-add", "SYS_ADMIN"], network);
    assert!(
        said.success().starts_with("default via 10.0.3.2 "),
        "{said:?}"
    );
}
