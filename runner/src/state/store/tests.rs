//! The store against crashes, clashes and damage. A dead process is one that a test started and
//! reaped.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, Store) {
    let base = tempfile::tempdir().unwrap();
    let dirs = Dirs::at(base.path().join("run"), base.path().join("data")).unwrap();
    (base, Store::open(dirs).unwrap())
}

fn named(name: &str) -> NewContainer {
    NewContainer {
        name: Some(name.into()),
        image: "test".into(),
        command: vec!["true".into()],
        ..Default::default()
    }
}

fn dead_process() -> ProcessRef {
    let mut child = Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let process = ProcessRef::of(child.id() as i32).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    process
}

/// As if every process of the container had been killed.
fn crash(store: &Store, container: &Container, status: Status) {
    store
        .modify(&container.id, |c| {
            c.monitor = Some(dead_process());
            c.init = Some(dead_process());
            c.status = status;
        })
        .unwrap();
}

#[test]
fn creates_with_directories_and_defaults() {
    let (_base, store) = store();
    let container = store.create(NewContainer::default()).unwrap();
    assert_eq!(container.hostname, container.id.short());
    assert!(is_valid_name(&container.name));
    assert!(container.monitor.as_ref().unwrap().is_alive());
    let dir = store.dir(&container);
    assert_eq!(fs::metadata(dir.upper()).unwrap().mode() & 0o7777, 0o755);
    assert!(dir.work().is_dir() && dir.run.is_dir());
    assert_eq!(store.find(&container.name).unwrap(), container);
}

#[test]
fn finds_by_name_then_id_then_unique_beginning() {
    let (_base, store) = store();
    let one = store.create(named("one")).unwrap();
    let two = store.create(named("two")).unwrap();
    assert_eq!(store.find("two").unwrap(), two);
    assert_eq!(store.find(one.id.as_str()).unwrap(), one);
    let common = one
        .id
        .as_str()
        .bytes()
        .zip(two.id.as_str().bytes())
        .take_while(|(a, b)| a == b)
        .count();
    assert_eq!(store.find(&one.id.as_str()[..=common]).unwrap(), one);
    if common > 0 {
        assert!(matches!(
            store.find(&one.id.as_str()[..common]),
            Err(StateError::Ambiguous { .. })
        ));
    }
    for nobody in ["", "three", "on", "xyz"] {
        assert!(
            matches!(store.find(nobody), Err(StateError::NotFound { .. })),
            "{nobody:?}"
        );
    }

    // A name may look like the beginning of an id, and then it is the name that counts.
    let short = store.create(named(&one.id.as_str()[..=common])).unwrap();
    assert_eq!(store.find(&short.name).unwrap(), short);
}

#[test]
fn an_ambiguous_beginning_names_the_candidates() {
    let (_base, store) = store();
    // 17 ids cannot all begin with different digits.
    let all: Vec<_> = (0..17)
        .map(|_| store.create(NewContainer::default()).unwrap())
        .collect();
    let digit = "0123456789abcdef"
        .chars()
        .find(|&digit| {
            all.iter()
                .filter(|c| c.id.as_str().starts_with(digit))
                .count()
                > 1
        })
        .unwrap();
    let message = store.find(&digit.to_string()).unwrap_err().to_string();
    for container in all.iter().filter(|c| c.id.as_str().starts_with(digit)) {
        assert!(
            message.contains(&format!("{} ({})", container.id.short(), container.name)),
            "{message}"
        );
    }
}

#[test]
fn a_name_belongs_to_one_container_however_many_ask_at_once() {
    let (_base, store) = store();
    let start = Barrier::new(8);
    let results: Vec<_> = thread::scope(|scope| {
        let creators: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    store.create(named("web"))
                })
            })
            .collect();
        creators
            .into_iter()
            .map(|creator| creator.join().unwrap())
            .collect()
    });
    let winners: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().ok())
        .collect();
    assert_eq!(winners.len(), 1);
    for loser in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(
            matches!(loser, StateError::NameTaken { holder, .. } if *holder == winners[0].id),
            "{loser}"
        );
    }
    // The losers left nothing behind.
    assert_eq!(fs::read_dir(&store.dirs.run).unwrap().count(), 1);
    assert!(matches!(
        store.create(named("no/path")),
        Err(StateError::InvalidName { .. })
    ));
}

#[test]
fn concurrent_changes_all_count() {
    let (_base, store) = store();
    let container = store.create(named("web")).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    store
                        .modify(&container.id, |c| c.command.push("x".into()))
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(store.find("web").unwrap().command.len(), 1 + 100);
}

#[test]
fn a_monitor_that_takes_over_keeps_what_others_have_changed() {
    let (_base, store) = store();
    let container = store.create(named("web")).unwrap();
    // Whoever starts it ends, and its monitor goes on.
    let publish = vec!["127.0.0.1:8080:80".to_owned()];
    let starter = dead_process();
    let changed = store.modify(&container.id, |c| {
        c.monitor = Some(starter.clone());
        c.publish.clone_from(&publish);
    });
    changed.unwrap();
    let first = dead_process();
    let taken = store.take_over(&container.id, Some(&starter), |c| {
        c.init = Some(first.clone());
    });
    let taken = taken.unwrap();
    assert_eq!(taken.monitor, Some(ProcessRef::current().unwrap()));
    assert_eq!((&taken.init, &taken.publish), (&Some(first), &publish));
    assert_eq!(store.find("web").unwrap(), taken);
}

#[test]
fn what_was_taken_for_lost_is_not_taken_over() {
    let (_base, store) = store();
    let container = store.create(named("web")).unwrap();
    crash(&store, &container, Status::Starting);
    let lost = store.find("web").unwrap();
    let refused = store.take_over(&container.id, lost.monitor.as_ref(), |c| c.init = None);
    assert!(matches!(refused, Err(StateError::WrongState { .. })));
    assert_eq!(store.find("web").unwrap(), lost);
}

#[test]
fn a_start_is_its_starters_alone() {
    let (_base, store) = store();
    let container = store.create(named("web")).unwrap();
    let (mine, other) = (ProcessRef::current().unwrap(), dead_process());
    // Lost, and started again by somebody else.
    let refused = store.take_over(&container.id, Some(&other), |c| c.init = None);
    assert!(matches!(refused, Err(StateError::WrongState { .. })));
    let refused = store.call_off(&container.id, Status::Created, std::slice::from_ref(&other));
    assert!(matches!(refused, Err(StateError::WrongState { .. })));
    assert_eq!(store.find("web").unwrap(), container);

    let ended = Status::Exited { code: 3, at: 7 };
    store
        .call_off(&container.id, ended, &[other, mine])
        .unwrap();
    let as_before = store.find("web").unwrap();
    assert_eq!((as_before.status, as_before.monitor), (ended, None));
}

#[test]
fn a_name_is_one_containers() {
    let (_base, store) = store();
    let web = store.create(named("web")).unwrap();
    store.create(named("db")).unwrap();
    let taken = store.rename(&web.id, "db");
    assert!(matches!(taken, Err(StateError::NameTaken { .. })));
    let invalid = store.rename(&web.id, "../db");
    assert!(matches!(invalid, Err(StateError::InvalidName { .. })));
    store.rename(&web.id, "web").unwrap();
    assert_eq!(store.rename(&web.id, "site").unwrap().name, "site");
    assert_eq!(store.find("site").unwrap().id, web.id);
    store.create(named("web")).unwrap();
}

#[test]
fn a_crash_is_repaired_by_the_next_look() {
    let (_base, store) = store();
    let running = store.create(named("running")).unwrap();
    let starting = store.create(named("starting")).unwrap();
    let ended = store.create(named("ended")).unwrap();
    let alive = store.create(named("alive")).unwrap();
    crash(&store, &running, Status::Running);
    crash(&store, &starting, Status::Starting);
    crash(&store, &ended, Status::Exited { code: 3, at: 7 });
    store
        .modify(&alive.id, |c| c.status = Status::Running)
        .unwrap();

    let code = |name| match store.find(name).unwrap().status {
        Status::Exited { code, .. } => Some(code),
        _ => None,
    };
    assert_eq!(code("running"), Some(LOST_EXIT_CODE));
    assert_eq!(code("starting"), Some(NEVER_STARTED_EXIT_CODE));
    assert_eq!(
        store.find("ended").unwrap().status,
        Status::Exited { code: 3, at: 7 }
    );
    assert_eq!(code("alive"), None);
}

#[test]
fn a_lost_container_that_was_to_be_removed_is_gone() {
    let (_base, store) = store();
    let lost = store
        .create(NewContainer {
            remove: true,
            ..named("lost")
        })
        .unwrap();
    let left_over = store
        .create(NewContainer {
            remove: true,
            ..named("left-over")
        })
        .unwrap();
    let ending = store
        .create(NewContainer {
            remove: true,
            ..named("ending")
        })
        .unwrap();
    crash(&store, &lost, Status::Running);
    crash(&store, &left_over, Status::Exited { code: 0, at: 7 });
    // Its monitor is alive, and about to remove it.
    store
        .modify(&ending.id, |c| c.status = Status::Exited { code: 0, at: 7 })
        .unwrap();

    let names: Vec<_> = store
        .list()
        .unwrap()
        .containers
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(names, ["ending"]);
    for gone in [&lost, &left_over] {
        let dir = store.dir(gone);
        assert!(!dir.run.exists() && !dir.data.exists());
    }
}

#[test]
fn removes_what_has_ended_and_nothing_that_runs() {
    let (_base, store) = store();
    let container = store.create(named("web")).unwrap();
    let running = store
        .modify(&container.id, |c| {
            c.init = Some(ProcessRef::current().unwrap());
            c.status = Status::Running;
        })
        .unwrap();
    assert!(matches!(
        store.remove(&running),
        Err(StateError::StillRunning { .. })
    ));

    let ended = store
        .modify(&container.id, |c| {
            c.init = None;
            c.status = Status::exited_now(0);
        })
        .unwrap();
    let dir = store.dir(&ended);
    fs::create_dir_all(dir.upper().join("var/log")).unwrap();
    fs::write(dir.log(), "x").unwrap();
    store.remove(&ended).unwrap();
    assert!(!dir.run.exists() && !dir.data.exists());
    assert!(matches!(
        store.find("web"),
        Err(StateError::NotFound { .. })
    ));
    store.create(named("web")).expect("the name is free again");
}

#[test]
fn a_damaged_record_is_named_and_harms_no_other() {
    let (_base, store) = store();
    let good = store.create(named("good")).unwrap();
    let texts: [&[u8]; 5] = [b"", b"{", b"[1,2]", b"{\"id\": 7}", b"\xff\xfe"];
    for text in texts {
        let bad = store.create(named("bad")).unwrap();
        let config = store.dir(&bad).config();
        fs::write(&config, text).unwrap();
        assert_eq!(
            store.list().unwrap().containers,
            std::slice::from_ref(&good)
        );
        let message = store.find(bad.id.as_str()).unwrap_err().to_string();
        assert!(message.contains(config.to_str().unwrap()), "{message}");
        store.remove_damaged(&bad.id).unwrap();
        assert!(!store.dir(&bad).data.exists() && !store.dir(&bad).run.exists());
    }

    // A record that says it is another container's cannot lead anybody there.
    let stray = store.create(named("stray")).unwrap();
    fs::copy(store.dir(&good).config(), store.dir(&stray).config()).unwrap();
    assert!(matches!(
        store.find(stray.id.as_str()),
        Err(StateError::Damaged { .. })
    ));
    assert_eq!(store.find("good").unwrap(), good);
}

#[test]
fn a_directory_without_a_record_is_swept() {
    let (_base, store) = store();
    let cut_short = store.create(named("cut-short")).unwrap();
    fs::remove_file(store.dir(&cut_short).config()).unwrap();
    fs::write(store.containers_dir().join("not-an-id"), "kept").unwrap();
    assert!(store.list().unwrap().containers.is_empty());
    assert!(!store.dir(&cut_short).data.exists() && !store.dir(&cut_short).run.exists());
    assert!(store.containers_dir().join("not-an-id").exists());
}

#[test]
fn made_up_names_never_run_out() {
    let (_base, store) = store();
    let mut taken: Vec<Container> = Vec::new();
    let template = store.create(named("template")).unwrap();
    for first in 0..32 {
        for second in 0..32 {
            taken.push(Container {
                name: made_up_name([first, second]),
                ..template.clone()
            });
        }
    }
    let name = free_name(&taken).unwrap();
    assert!(is_valid_name(&name) && taken.iter().all(|other| other.name != name));
}

#[test]
fn a_record_of_a_version_to_come_is_named_and_stays() {
    let (_base, store) = store();
    let container = store.create(named("future")).unwrap();
    let path = store.dir(&container).config();
    let text = fs::read_to_string(&path).unwrap();
    let version = format!("\"version\": {}", version::VERSION);
    assert!(text.contains(&version), "{text}");
    let newer = text.replacen(&version, "\"version\": 999", 1);
    fs::write(&path, &newer).unwrap();

    let short = container.id.short();
    let refused = store.find(short).unwrap_err();
    assert!(matches!(refused, StateError::Newer { version: 999, .. }));
    let said = refused.to_string();
    assert!(said.contains("use the coracle that wrote it"), "{said}");
    assert_eq!(store.list().unwrap().damaged.len(), 1);
    assert!(matches!(
        store.find("future"),
        Err(StateError::PerhapsDamaged { .. })
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}
