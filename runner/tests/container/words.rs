//! What is typed: whose a word is, which words are taken, and what is said about the others.

use crate::harness::{World, unique, worlds};

#[test]
fn a_commands_flags_are_no_rights_of_ours() {
    for world in worlds() {
        let plain = world.sh(&[], "grep CapEff /proc/self/status");
        let script = r#"echo "$@"; grep CapEff /proc/self/status"#;
        for flag in [
            "--cap-add=ALL",
            "-d",
            "--rm",
            "--volume=/etc:/mnt",
            "-p8080:80",
            "-uroot",
        ] {
            let said = world.run(&[], &["sh", "-c", script, "sh", flag, "-e", "--", "-h"]);
            assert_eq!(said.success(), format!("{flag} -e -- -h\n{plain}"));
        }
        assert_eq!(world.run(&[], &["ls", "-d", "/etc"]).success(), "/etc\n");
        assert_eq!(
            world.run(&[], &["env", "-i", "A=1", "env"]).success(),
            "A=1\n"
        );
        // Ours stand before; two dashes may stand between.
        assert_eq!(world.run(&["-e", "A=1", "--"], &[]).code(), Some(125));
        let dashes = [&["--rm", "--"][..], &["sh", "-c", "echo $0", "--rm"]].concat();
        let mut args = vec!["run", "--network=none", "--rootfs=rootfs"];
        args.extend(dashes);
        assert_eq!(world.try_coracle(&args).success(), "--rm\n");
    }
}

#[test]
fn a_command_that_is_added_keeps_its_flags() {
    for world in worlds() {
        let name = unique("words");
        detach(&world, &name, &["sleep", "1000"]);
        for flag in ["-t", "-e", "-u", "--workdir=/no/such", "--help", "--"] {
            let said = world.try_coracle(&["exec", &name, "sh", "-c", r#"echo "$@""#, "sh", flag]);
            assert_eq!(said.success(), format!("{flag}\n"));
        }
        // Behind the container's name it is the command, whatever it looks like.
        assert_eq!(
            world.try_coracle(&["exec", &name, "-t", "true"]).code(),
            Some(127)
        );
        world.try_coracle(&["rm", "-f", &name]).success();
    }
}

/// `coracle run -d` with a name.
fn detach(world: &World, name: &str, command: &[&str]) {
    let fixed = [
        "run", "-d", "--name", name, "--network", "none", "--rootfs", "rootfs",
    ];
    world.try_coracle(&[&fixed, command].concat()).success();
}
