//! What coracle tells of itself and of the host.

use serde_json::Value;

use crate::harness::{World, cases, unique};

cases![
    the_host_and_the_store_are_told,
    a_host_that_allows_less_is_told_with_the_remedy,
    the_version_is_told_as_scripts_ask_for_it,
];

fn the_host_and_the_store_are_told(world: &World) {
    let told = || -> Value {
        let said = world.try_coracle(&["info", "--format", "json"]);
        serde_json::from_str(said.success()).expect("JSON")
    };
    let before = told();
    assert_eq!(before["store"]["containerStore"]["number"], 0);
    let maps = before["host"]["idMappings"]["uidmap"].as_array();
    assert_eq!(maps.expect("a list")[0]["container_id"], 0);
    let name = unique("counted");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let counted = &told()["store"]["containerStore"];
    assert_eq!(
        (&counted["number"], &counted["running"]),
        (&1.into(), &1.into())
    );
    world.try_coracle(&["rm", "-f", &name]).success();

    let kernel = world.try_coracle(&["info", "-f", "{{.Host.Kernel}}"]);
    assert_eq!(kernel.success().trim(), before["host"]["kernel"]);
    let system = world.try_coracle(&["system", "info"]);
    assert!(
        system
            .success()
            .contains("what this host allows:\n  users: ")
    );
    let wrong = world.try_coracle(&["info", "-f", "{{.Host.Nonsense}}"]);
    assert_eq!(wrong.code(), Some(125), "{wrong:?}");
}

/// A user without sub-IDs, or with them; a host on which nobody may make control groups, or not.
fn a_host_that_allows_less_is_told_with_the_remedy(world: &World) {
    let said = world.try_coracle(&["info", "--format", "json"]);
    let told: Value = serde_json::from_str(said.success()).expect("JSON");
    let findings = told["findings"].as_array().expect("a list");
    let about = |what: &str| {
        let finding = findings.iter().find(|one| one["about"] == what);
        finding.unwrap_or_else(|| panic!("nothing about {what}: {findings:?}"))
    };
    let maps = told["host"]["idMappings"]["uidmap"].as_array();
    let has_many = maps
        .expect("a list")
        .iter()
        .any(|line| line["size"].as_u64() > Some(65_000));
    assert_eq!(about("users")["is_well"], has_many);
    for what in [
        "network device",
        "ping",
        "published ports",
        "control groups",
    ] {
        let finding = about(what);
        assert_eq!(
            finding["is_well"] == true,
            finding["remedy"].is_null(),
            "{finding}"
        );
    }
}

fn the_version_is_told_as_scripts_ask_for_it(world: &World) {
    let version = env!("CARGO_PKG_VERSION");
    let said = world.try_coracle(&["version", "--format", "{{.Client.Version}}"]);
    assert_eq!(said.success(), format!("{version}\n"));
    let said = world.try_coracle(&["version"]);
    assert!(
        said.success()
            .contains(&format!("Version:      {version}\n")),
        "{said:?}"
    );
    let said = world.try_coracle(&["version", "-f", "json"]);
    let told: Value = serde_json::from_str(said.success()).expect("JSON");
    assert_eq!(told["Client"]["Version"], version);
}
