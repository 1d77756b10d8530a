//! Profiles against what they are to decide, call by call.

use netstack::seccomp::{Action, Architecture};
use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_text_is_a_profile_or_an_error(text in ".{0,200}") {
        let _ = Profile::parse(text.as_bytes());
    }
}

/// What a profile makes of calls by name, for a container with the given capabilities.
struct Judge {
    architectures: Vec<Architecture>,
    default: Action,
}

impl Judge {
    fn of(profile: &Profile, capabilities: Capabilities) -> Self {
        Self {
            architectures: profile
                .decisions(capabilities, &Machine::this().unwrap())
                .unwrap(),
            default: profile.default_action().unwrap(),
        }
    }

    fn number(&self, audit: u32, number: u32, arguments: &[u64]) -> Action {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let architecture = self.architectures.iter().find(|one| one.audit == audit);
        let Some(architecture) = architecture else {
            return Action::KillProcess;
        };
        let mut rules = architecture.calls.get(&number).into_iter().flatten();
        rules
            .find(|rule| rule.applies(&all))
            .map_or(self.default, |rule| rule.action)
    }

    fn call(&self, name: &str, arguments: &[u64]) -> Action {
        let number = Machine::NATIVE.numbers()[name];
        self.number(Machine::NATIVE.audit, number, arguments)
    }
}

const ALLOW: Action = Action::Allow;

fn errno(errno: i32) -> Action {
    Action::Errno(errno as u16)
}

fn with(names: &[&str]) -> Capabilities {
    let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    Capabilities::DEFAULT.adjusted(&names, &[])
}

#[test]
fn the_default_profile_by_example() {
    let plain = Judge::of(&default::profile(), Capabilities::DEFAULT);
    for (name, arguments, verdict) in [
        ("read", &[][..], ALLOW),
        ("clone", &[], ALLOW),
        ("unshare", &[], ALLOW),
        ("chroot", &[], ALLOW),
        ("setns", &[], errno(libc::EPERM)),
        ("bpf", &[], errno(libc::EPERM)),
        ("open_by_handle_at", &[], errno(libc::EPERM)),
        ("init_module", &[], errno(libc::EPERM)),
        ("userfaultfd", &[], errno(libc::EPERM)),
        ("io_uring_setup", &[], errno(libc::ENOSYS)),
        ("add_key", &[], errno(libc::ENOSYS)),
        ("personality", &[8], ALLOW),
        ("personality", &[0xffff_ffff], ALLOW),
        // ADDR_NO_RANDOMIZE.
        ("personality", &[0x4_0000], errno(libc::ENOSYS)),
        ("socket", &[2, 1, 0], ALLOW),
        ("socket", &[16, 3, 0], ALLOW),
        ("socket", &[2, 3, 9], ALLOW),
        ("socket", &[16, 3, 9], errno(libc::EINVAL)),
    ] {
        assert_eq!(plain.call(name, arguments), verdict, "{name} {arguments:?}");
    }
    // A number that no kernel knows yet.
    assert_eq!(
        plain.number(Machine::NATIVE.audit, 4000, &[]),
        errno(libc::ENOSYS)
    );
    // Another architecture than the machine's.
    assert_eq!(plain.number(0x1234, 0, &[]), Action::KillProcess);

    let mighty = Judge::of(&default::profile(), with(&["SYS_ADMIN", "AUDIT_WRITE"]));
    for (name, arguments, verdict) in [
        ("setns", &[][..], ALLOW),
        ("bpf", &[], ALLOW),
        ("socket", &[16, 3, 9], ALLOW),
        ("init_module", &[], errno(libc::EPERM)),
    ] {
        assert_eq!(
            mighty.call(name, arguments),
            verdict,
            "{name} {arguments:?}"
        );
    }
}

/// A name with a slip of the pen would silently forbid a call.
#[test]
fn every_name_in_the_default_profile_is_a_system_call() {
    // Of ARM, 32-bit or 64-bit; where this machine has it, more are known and none is missed.
    const ELSEWHERE: &[&str] = &[
        "arm_fadvise64_64",
        "arm_sync_file_range",
        "breakpoint",
        "cacheflush",
        "recv",
        "send",
        "set_tls",
        "sync_file_range2",
        "syscall",
    ];
    let known: Vec<_> = Machine::VARIANTS
        .iter()
        .map(|variant| variant.numbers())
        .collect();
    let profile = default::profile();
    let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
    let unknown: Vec<&str> = names
        .map(|name| &**name)
        .filter(|name| !known.iter().any(|numbers| numbers.contains_key(name)))
        .filter(|name| !ELSEWHERE.contains(name))
        .collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

/// Against the profile of the Podman that is installed here, call by call.
#[test]
fn the_default_profile_is_podmans() {
    const FILE: &str = "/usr/share/containers/seccomp.json";
    let Ok(text) = std::fs::read(FILE) else {
        println!("skipped the_default_profile_is_podmans: there is no {FILE}");
        return;
    };
    // Newer than that file, or allowed there to some and refused to others at once.
    const KNOWN: &[&str] = &[
        "cachestat",
        "fchmodat2",
        "file_getattr",
        "file_setattr",
        "futex_requeue",
        "futex_wait",
        "futex_waitv",
        "futex_wake",
        "getxattrat",
        "listmount",
        "listxattrat",
        "lsm_get_self_attr",
        "lsm_list_modules",
        "lsm_set_self_attr",
        "map_shadow_stack",
        "mseal",
        "open_tree_attr",
        "removexattrat",
        "set_mempolicy_home_node",
        "setxattrat",
        "statmount",
    ];
    let theirs = Profile::parse(&text).unwrap();
    for capabilities in [
        Capabilities::DEFAULT,
        Capabilities::ALL,
        Capabilities::DEFAULT.adjusted(&[], &["ALL".parse().unwrap()]),
        with(&["SYS_ADMIN"]),
        with(&["AUDIT_WRITE", "SYS_PTRACE"]),
    ] {
        let (ours, theirs) = (
            Judge::of(&default::profile(), capabilities),
            Judge::of(&theirs, capabilities),
        );
        for variant in Machine::VARIANTS {
            for (name, number) in variant.numbers() {
                if KNOWN.contains(&name) {
                    continue;
                }
                for arguments in [
                    [0, 0, 0],
                    [16, 3, 9],
                    [16, 3, 0],
                    [2, 1, 9],
                    [8, 0, 0],
                    [0x4_0000, 0, 0],
                ] {
                    assert_eq!(
                        ours.number(variant.audit, number, &arguments),
                        theirs.number(variant.audit, number, &arguments),
                        "{name} {arguments:?} {} {capabilities:?}",
                        variant.go_name
                    );
                }
            }
        }
    }
}

#[test]
fn profiles_are_read_in_all_their_forms() {
    let judge = |text: &str| {
        Judge::of(
            &Profile::parse(text.as_bytes()).unwrap(),
            Capabilities::DEFAULT,
        )
    };
    // OCI: a deny-list, with an errno and without.
    let oci = judge(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["mkdir", "mkdirat", "nosuchcall"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["kill"], "action": "SCMP_ACT_LOG",
             "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
            {"names": ["tkill"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    assert_eq!(oci.call("mkdirat", &[]), errno(libc::EPERM));
    assert_eq!(oci.call("sync", &[]), errno(libc::EIO));
    assert_eq!(oci.call("kill", &[1, 9]), Action::Log);
    assert_eq!(oci.call("kill", &[1, 15]), ALLOW);
    assert_eq!(
        oci.call("tkill", &[1, 15]),
        errno(libc::EPERM),
        "alternatives"
    );
    assert_eq!(oci.call("tkill", &[1, 1]), ALLOW);
    assert_eq!(oci.call("reboot", &[]), Action::KillProcess);
    let compatible = Machine::VARIANTS[1].audit;
    assert_eq!(oci.number(compatible, 1, &[]), Action::KillProcess);

    // Docker's, with one name and null arguments; a mask; a kernel version.
    let docker = judge(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"name": "read", "action": "SCMP_ACT_ALLOW", "args": null},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}]}"#,
    );
    assert_eq!(docker.call("read", &[]), ALLOW);
    assert_eq!(docker.call("clone", &[17]), ALLOW);
    assert_eq!(docker.call("clone", &[0x1000_0000]), errno(libc::EPERM));
    assert_eq!(docker.call("ptrace", &[]), ALLOW);
    assert_eq!(docker.call("write", &[]), errno(libc::EPERM));
}

#[test]
fn what_cannot_be_heeded_is_refused() {
    for (text, word) in [
        ("", "JSON"),
        (r#"{"syscalls": []}"#, "defaultAction"),
        (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "listens"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#,
            "5000",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "includes": {"caps": ["CAP_FLY"]}}]}"#,
            "CAP_FLY",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]}"#,
            "FLAG_NEW",
        ),
    ] {
        let error = Profile::parse(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_profile_that_is_kept_means_the_same() {
    let seccomp = Seccomp::Profile(Box::new(default::profile()));
    let kept = serde_json::to_string(&seccomp).unwrap();
    let Seccomp::Profile(read) = serde_json::from_str(&kept).unwrap() else {
        panic!("{kept}");
    };
    let machine = Machine::this().unwrap();
    let compile = |profile: &Profile| {
        let decisions = profile.decisions(Capabilities::DEFAULT, &machine).unwrap();
        compile(&decisions, profile.default_action().unwrap()).unwrap()
    };
    assert_eq!(compile(&read), compile(&default::profile()));
}
