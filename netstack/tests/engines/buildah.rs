//! buildah, which runs slirp4netns for each `buildah run`, and pasta since 1.33.

use testbed::traffic::EchoServer;

use crate::harness::{Case, Family, Machine, case, image};

pub const CASES: &[Case] = &[case("buildah::outbound", outbound)];

fn outbound(machine: &Machine) {
    machine.need("buildah");
    let [root, run_root] = ["storage", "run"].map(|dir| machine.make_dir(dir));
    let options = [
        format!("--root={}", root.display()),
        format!("--runroot={}", run_root.display()),
        "--storage-driver=vfs".into(),
    ];
    let buildah = |words: &[&str]| {
        let options = options.iter().map(String::as_str);
        let all: Vec<&str> = ["buildah"]
            .into_iter()
            .chain(options)
            .chain(words.iter().copied())
            .collect();
        machine.run(&all).expect()
    };
    let image = image::make(machine);
    let container = buildah(&["from", "scratch"]);
    buildah(&["copy", &container, image.to_str().expect("UTF-8"), "/"]);
    let server = EchoServer::start(&machine.elsewhere, Family::V4.elsewhere(), 0);
    let address = server.address.to_string();
    let volume = "--volume=/opt/programs/guest:/guest:ro";
    let run = [
        "run",
        "--isolation=rootless",
        "--runtime=runc",
        volume,
        &container,
    ];
    buildah(
        &[
            &run[..],
            &["--", "/guest", "exchange", &address, "100000000"],
        ]
        .concat(),
    );
    buildah(&["rm", &container]);
}
