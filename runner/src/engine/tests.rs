//! The verbs against records whose processes are not a container's, but plain children of the
//! test's.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use portfwd::spec::{Protocol, Publish};
use tempfile::TempDir;

use super::*;
use crate::signal::Signal;
use crate::spec::ContainerSpec;
use crate::state::{NewContainer, ProcessRef, Status};

const LONG: Duration = Duration::from_secs(60);

fn engine() -> (TempDir, Engine) {
    let base = tempfile::tempdir().unwrap();
    let dirs = Dirs::at(base.path().join("run"), base.path().join("data")).unwrap();
    (base, Engine::open(dirs).unwrap())
}

fn named(name: &str) -> NewContainer {
    NewContainer {
        name: Some(name.into()),
        ..Default::default()
    }
}

/// A process that runs until its standard input ends, or until a signal ends it.
fn process() -> (Child, ProcessRef) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = ProcessRef::of(child.id().cast_signed()).unwrap();
    (child, process)
}

fn ended_process() -> ProcessRef {
    let (mut child, process) = process();
    child.kill().unwrap();
    child.wait().unwrap();
    process
}

/// A container that runs as far as its record tells, with one process for its first and its
/// monitor.
fn running(engine: &Engine, name: &str) -> (Child, Container) {
    let container = engine.store.create(named(name)).unwrap();
    let (child, process) = process();
    let container = engine.store.modify(&container.id, |container| {
        container.init = Some(process.clone());
        container.monitor = Some(process);
        container.status = Status::Running;
    });
    (child, container.unwrap())
}

fn kind<T: std::fmt::Debug>(result: Result<T, EngineError>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn errors_say_what_a_caller_can_do() {
    let (_base, engine) = engine();
    assert_eq!(kind(engine.find("nobody")), ErrorKind::NoSuchContainer);
    assert_eq!(
        kind(engine.logs("nobody", None)),
        ErrorKind::NoSuchContainer
    );
    assert_eq!(
        kind(engine.remove("nobody", false)),
        ErrorKind::NoSuchContainer
    );
    assert_eq!(engine.remove("nobody", true).unwrap(), Removed::WasNotThere);
    engine.store.create(named("new")).unwrap();
    assert_eq!(
        kind(engine.kill("new", Signal::KILL)),
        ErrorKind::NotRunning
    );
    let create = |name| engine.store.create(named(name)).map_err(EngineError::from);
    assert_eq!(kind(create("new")), ErrorKind::InUse);
    assert_eq!(kind(create("-")), ErrorKind::Invalid);
}

#[test]
fn what_runs_is_removed_by_force_only() {
    let (_base, engine) = engine();
    let (mut child, container) = running(&engine, "web");
    assert_eq!(kind(engine.remove("web", false)), ErrorKind::StillRunning);
    assert!(container.is_alive());
    assert_eq!(engine.remove("web", true).unwrap(), Removed::Removed);
    child.wait().unwrap();
    assert_eq!(kind(engine.find("web")), ErrorKind::NoSuchContainer);
    assert!(!engine.store.dir(&container).data.exists());
}

#[test]
fn containers_stop_under_one_deadline_and_in_order() {
    let (_base, engine) = engine();
    let children = ["one", "two"].map(|name| running(&engine, name).0);
    let begun = Instant::now();
    let stop = engine.stop(&["one", "nobody", "two"].map(str::to_owned), Some(LONG));
    assert!(stop.still_running_after(LONG).is_empty());
    let ended: Vec<_> = stop.finish().collect();
    assert!(begun.elapsed() < LONG);
    assert!(ended[0].is_ok() && ended[2].is_ok(), "{ended:?}");
    let missing = ended.into_iter().nth(1).unwrap();
    assert_eq!(kind(missing), ErrorKind::NoSuchContainer);
    for mut child in children {
        child.wait().unwrap();
    }
}

#[test]
fn an_end_is_waited_for() {
    let (_base, engine) = engine();
    let (mut child, container) = running(&engine, "web");
    let waiting = thread::spawn({
        let engine = engine.clone();
        move || engine.wait("web")
    });
    let ended = |container: &mut Container| container.status = Status::exited_now(7);
    engine.store.modify(&container.id, ended).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), Some(7));
    assert_eq!(engine.wait("web").unwrap(), Some(7));
}

#[test]
fn a_container_without_monitor_is_ended_and_removed_if_it_was_to_be() {
    let (_base, engine) = engine();
    let children = [("kept", false), ("gone", true)].map(|(name, remove)| {
        let (child, container) = running(&engine, name);
        let orphaned = engine.store.modify(&container.id, |container| {
            container.monitor = Some(ended_process());
            container.remove = remove;
        });
        orphaned.unwrap();
        child
    });
    assert!(engine.repair().unwrap().is_empty());
    for mut child in children {
        assert!(!child.wait().unwrap().success());
    }
    assert!(engine.find("kept").unwrap().status.has_ended());
    assert_eq!(kind(engine.find("gone")), ErrorKind::NoSuchContainer);
}

#[test]
fn published_ports_are_told_one_by_one() {
    let (_base, engine) = engine();
    let publish = ["127.0.0.1:8080-8081:80-81", "[::1]:53:53/udp"].map(str::to_owned);
    let new = NewContainer {
        publish: publish.into(),
        ..Default::default()
    };
    let ports = published_ports(&engine.store.create(new).unwrap());
    let port = |host: &str, guest, protocol| PublishedPort {
        host: host.parse().unwrap(),
        guest,
        protocol,
    };
    let expected = [
        port("127.0.0.1:8080", 80, Protocol::Tcp),
        port("127.0.0.1:8081", 81, Protocol::Tcp),
        port("[::1]:53", 53, Protocol::Udp),
    ];
    assert_eq!(ports, expected);
}

fn request(source: Source) -> ContainerRequest {
    ContainerRequest {
        name: Some("new".into()),
        // Where root may give no others, the caller's own IDs can be had.
        host_root: true,
        ..ContainerRequest::new(source, SoftLimits::default())
    }
}

fn directory(dir: &Path) -> Source {
    Source::Directory {
        dir: dir.to_owned(),
        in_place: false,
        command: vec!["true".into()],
    }
}

#[test]
fn a_container_is_made_of_a_plain_request() {
    let (base, engine) = engine();
    let variable = |name: &str, value: &str| (name.into(), value.into());
    let request = ContainerRequest {
        labels: [("a".to_owned(), String::new())].into(),
        env: vec![variable("A", "1"), variable("PATH", "/bin")],
        ..request(directory(base.path()))
    };
    let created = engine.create(request, &mut |_| {}).unwrap();
    assert_eq!((created.status, &created.monitor), (Status::Created, &None));
    assert!(created.id_maps.is_some());
    assert_eq!(created.labels, [("a".to_owned(), String::new())].into());
    let kept = ContainerSpec::load(&engine.store.dir(&created).data).unwrap();
    assert_eq!(kept.process.args, ["true"]);
    let hostname = format!("HOSTNAME={}", created.id.short());
    let expected = ["PATH=/bin", "container=coracle", &hostname, "A=1"];
    assert_eq!(kept.process.env, expected);
    // Nobody answers for it, and it is not lost.
    assert!(engine.repair().unwrap().is_empty());
    assert_eq!(engine.find("new").unwrap(), created);
    assert_eq!(kind(engine.wait("new")), ErrorKind::NotRunning);
    assert_eq!(engine.remove("new", false).unwrap(), Removed::Removed);
}

#[test]
fn only_what_rests_is_started() {
    let (base, engine) = engine();
    let (mut child, _) = running(&engine, "runs");
    assert_eq!(kind(engine.start("runs", None)), ErrorKind::WrongState);
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = engine.find("runs").unwrap();
    assert!(ended.status.has_ended());
    // It has no specification.
    assert_eq!(kind(engine.start("runs", None)), ErrorKind::Internal);
    assert_eq!(engine.find("runs").unwrap().status, ended.status);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let published = format!("{}:80", taken.local_addr().unwrap());
    let request = ContainerRequest {
        publish: vec![published.parse().unwrap()],
        network: Network::default(),
        ..request(directory(base.path()))
    };
    let created = engine.create(request, &mut |_| {}).unwrap();
    assert_eq!(kind(engine.start("new", None)), ErrorKind::PortUnavailable);
    assert_eq!(engine.find("new").unwrap(), created);
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let (base, engine) = engine();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let published = format!("{}:80", taken.local_addr().unwrap());
    let published: Vec<Publish> = vec![published.parse().unwrap()];
    let image = Source::Image {
        name: "no/such".into(),
        args: Vec::new(),
    };
    let volume = VolumeArg::parse("/no/such:/v".as_ref()).unwrap();
    let good = || request(directory(base.path()));
    let labelled = |key: &str, len| ContainerRequest {
        labels: [(key.to_owned(), "x".repeat(len))].into(),
        ..good()
    };
    let cases = [
        (request(image), ErrorKind::NoSuchImage),
        (labelled("", 0), ErrorKind::Invalid),
        (labelled("a", 256 * 1024), ErrorKind::Invalid),
        (
            request(directory(&base.path().join("no"))),
            ErrorKind::Invalid,
        ),
        (
            ContainerRequest {
                publish: published.clone(),
                ..good()
            },
            ErrorKind::Invalid,
        ),
        (
            ContainerRequest {
                publish: published,
                network: Network::default(),
                ..good()
            },
            ErrorKind::PortUnavailable,
        ),
        (
            ContainerRequest {
                volumes: vec![volume],
                ..good()
            },
            ErrorKind::Invalid,
        ),
    ];
    for (request, expected) in cases {
        let failed = engine.run(request, None, &mut |_| {});
        assert_eq!(kind(failed), expected);
        assert!(engine.list().unwrap().containers.is_empty());
        let runs = std::fs::read_dir(&engine.store.dirs().run).unwrap();
        assert_eq!(runs.count(), 0);
    }
}
