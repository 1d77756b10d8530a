//! `coracle-net hook`: what it does for a runtime that writes a state to it, for LXC, and in the
//! hands of runc where that is installed. A runtime is played by the case: the guest's process is
//! that of its container.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use serde_json::{Value, json};

use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{
    Case, Family, Guest, GuestUsers, World, case, eventually, exit_by, root_case, skip,
};

pub const CASES: &[Case] = &[
    case("hook::attach_and_detach", attach_and_detach),
    case("hook::ends_with_the_container", ends_with_the_container),
    case("hook::twice", twice),
    case("hook::failure_leaves_nothing", failure_leaves_nothing),
    case("hook::killed_half_way", killed_half_way),
    case("hook::container_killed_half_way", container_killed_half_way),
    case(
        "hook::words_count_more_than_annotations",
        words_and_annotations,
    ),
    case("hook::lxc", lxc),
    case("hook::runc", runc),
    root_case("hook::name_of_a_strangers", name_of_a_strangers),
];

/// Ready when it returns; ports free again when the end's hook returns.
fn attach_and_detach(world: &mut World) {
    world.guest = Guest::new(GuestUsers::Own);
    let annotations = json!({"coracle.publish": "8080:80, 198.51.100.1:8081:80"});
    expect(&hook(&["-p", "8082:80"], &created(world, annotations)));
    assert_outbound(world);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    for port in [8080, 8081, 8082] {
        let mut client = connect(&world.elsewhere, (Family::V4.host(), port).into());
        assert_echo(&mut client, b"published");
    }
    for _ in 0..2 {
        expect(&hook(&[], &stopped()));
        assert!(nothing_is_left(world));
    }
    drop(TcpListener::bind((Family::V4.host(), 8080)).expect("the port is free"));
}

/// The next one of the same name gets its network although the hook of the end was forgotten.
fn ends_with_the_container(world: &mut World) {
    for _ in 0..3 {
        expect(&hook(&["-p", "8080:80"], &created(world, json!({}))));
        assert_outbound(world);
        world.guest.kill_process();
        world.guest = Guest::new(GuestUsers::Cases);
    }
}

/// The second one fails, and leaves the first alone. So does one under another name.
fn twice(world: &mut World) {
    let first = created(world, json!({}));
    let mut other = first.clone();
    other["id"] = "another".into();
    expect(&hook(&[], &first));
    for (state, part) in [(&first, "serves it already"), (&other, "tap0")] {
        let text = refusal(&hook(&[], state));
        assert!(text.contains(part), "{text}");
    }
    assert_outbound(world);
    expect(&hook(&[], &stopped()));
}

fn failure_leaves_nothing(world: &mut World) {
    let _taken = TcpListener::bind((Family::V4.host(), 8080)).expect("take a port");
    let without = |key: &str| {
        let mut state = created(world, json!({}));
        state.as_object_mut().expect("an object").remove(key);
        state
    };
    let with = |key: &str, value: Value| {
        let mut state = created(world, json!({}));
        state[key] = value;
        state
    };
    let annotated = |key: &str, value: &str| created(world, json!({ key: value }));
    let bomb = "1024-65535:1024-65535,".repeat(40_000);
    let trials: [(&[&str], Value, &str); 14] = [
        (&[], json!("garbage"), "not the state of a container"),
        (&[], without("pid"), "no process ID"),
        (&[], without("bundle"), "bundle"),
        (&[], with("pid", json!(0)), "no process ID"),
        (
            &[],
            with("pid", json!(4_194_305)),
            "process 4194305 cannot be found",
        ),
        (
            &[],
            with("pid", json!(std::process::id())),
            "no network namespace of its own",
        ),
        (&[], with("status", json!("paused")), "paused"),
        (
            &[],
            annotated("coracle.publish", "x"),
            "\"x\" is not a publishing rule",
        ),
        (
            &[],
            annotated("coracle.publish", &bomb),
            "more than 256 ports",
        ),
        (
            &[],
            annotated("coracle.publish", "80:80"),
            "takes a privilege",
        ),
        (
            &[],
            annotated("coracle.publish", "198.51.100.1:8080:80"),
            "already in use",
        ),
        (
            &[],
            annotated("coracle.pcap", "/etc/x"),
            "\"coracle.pcap\" is unknown",
        ),
        (
            &["-p", "198.51.100.1:8080:80"],
            created(world, json!({})),
            "already in use",
        ),
        (
            &["--interface", "a/b"],
            created(world, json!({})),
            "\"a/b\" is not a name for a tap",
        ),
    ];
    for (words, state, part) in trials {
        let text = refusal(&hook(words, &state));
        assert!(text.contains(part) && text.len() < 500, "{part}: {text}");
        assert!(nothing_is_left(world), "{part}");
    }
    let text = refusal(&hook_on(&["8080:80"], b"{}"));
    assert!(text.contains("unexpected argument"), "{text}");
}

/// Whatever it had come to: the process in the background ends too, or serves the container.
fn killed_half_way(world: &mut World) {
    let state = created(world, json!({})).to_string();
    for delay in 0..30 {
        let mut hook = start(&["-p", "8080:80"], state.as_bytes());
        std::thread::sleep(Duration::from_micros(1000 * delay));
        hook.kill().expect("kill the hook");
        hook.wait().expect("wait for the hook");
        expect(&self::hook(&[], &stopped()));
        eventually("nothing is left", Duration::from_secs(10), || {
            nothing_is_left(world)
        });
    }
}

fn container_killed_half_way(world: &mut World) {
    for delay in 0..30 {
        let state = created(world, json!({})).to_string();
        let hook = start(&["-p", "8080:80"], state.as_bytes());
        std::thread::sleep(Duration::from_micros(1000 * delay));
        world.guest.kill_process();
        let output = hook.wait_with_output().expect("wait for the hook");
        if !output.status.success() {
            refusal(&output);
        }
        world.guest = Guest::new(GuestUsers::Cases);
        eventually("nothing is left", Duration::from_secs(10), || {
            nothing_is_left(world)
        });
    }
}

fn words_and_annotations(world: &mut World) {
    let annotations = json!({"coracle.publish": "8080:80", "coracle.unheard-of": ""});
    let words = [
        "--ignore-annotations",
        "-p",
        "8081:80",
        "--interface",
        "eth0",
    ];
    expect(&hook(&words, &created(world, annotations)));
    let is_there = || nix::net::if_::if_nametoindex("eth0").is_ok();
    assert!(world.guest.net.run(is_there));
    drop(TcpListener::bind((Family::V4.host(), 8080)).expect("nobody has published it"));
    TcpListener::bind((Family::V4.host(), 8081)).expect_err("this one is published");
    expect(&hook(&[], &stopped()));
}

/// In both forms of its hooks; a container of an OCI runtime's by the same name is another one.
fn lxc(world: &mut World) {
    let container = world.guest.pid.to_string();
    let call = |words: &[&str], hook: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-net"));
        command.arg("hook").args(words).stdin(Stdio::null());
        command.env("LXC_NAME", ID).env("LXC_CONFIG_FILE", "/c");
        command.env("LXC_PID", &container);
        if let Some(hook) = hook {
            command.env("LXC_HOOK_TYPE", hook);
        }
        command.output().expect("start the hook")
    };
    let old = |kind| call(&["--mtu", "1500", ID, "lxc", kind], None);
    let new = |kind| call(&["-p", "8080:80"], Some(kind));
    for form in [&old as &dyn Fn(&'static str) -> Output, &new] {
        expect(&form("start-host"));
        assert_outbound(world);
        expect(&hook(&[], &stopped()));
        assert_outbound(world);
        expect(&form("post-stop"));
        assert!(nothing_is_left(world));
        assert!(refusal(&form("mount")).contains("lxc.hook.start-host"));
    }
}

/// Its containers get a network and published ports, its user hears of failures, and its end is
/// the network's.
fn runc(world: &mut World) {
    let bundle = world.dir.join("bundle");
    make_bundle(&bundle);
    let run = |hooks: Value, annotations: Value| {
        let config = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["hooks"] = hooks;
        spec["annotations"] = annotations;
        fs::write(&config, spec.to_string()).expect("write config.json");
        let mut command = Command::new("runc");
        command.arg("--root").arg(world.dir.join("run"));
        command.args(["run", "--bundle"]).arg(&bundle).arg(ID);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("start runc")
    };
    let of = |words: &[&str]| {
        let program = env!("CARGO_BIN_EXE_coracle-net");
        let words = ["coracle-net", "hook"].iter().chain(words);
        json!([{"path": program, "args": words.collect::<Vec<_>>()}])
    };
    let hooks = |words| json!({"createRuntime": of(words), "poststop": of(&[])});

    let output = run(hooks(&["-p", "x"]), json!({}))
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("not a publishing rule"),
        "{text}"
    );

    let _server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    for _ in 0..2 {
        let running = run(
            hooks(&["-p", "8081:80"]),
            json!({"coracle.publish": "8080:80"}),
        );
        // Published before the container runs; what it begins with is its echo.
        let address = SocketAddr::from((Family::V4.host(), 8080));
        let mut answer = None;
        eventually("runc's container answers", Duration::from_secs(20), || {
            answer = ask(world, address);
            answer.is_some()
        });
        assert_eq!(answer.as_deref(), Some("outbound"));
        let output = running.wait_with_output().expect("wait for runc");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(nothing_is_left(world));
    }
    fs::remove_dir_all(&bundle).expect("remove the bundle");
    fs::remove_dir_all(world.dir.join("run")).expect("remove runc's directory");
}

/// A container that sends a word to elsewhere's echo server, and what comes back to the first
/// client of its port 80.
fn make_bundle(bundle: &Path) {
    for program in ["runc", "busybox"] {
        if Command::new(program).arg("--help").output().is_err() {
            skip(format!("{program} is not installed"));
        }
    }
    let root = bundle.join("rootfs");
    for dir in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).expect("make a directory");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox"), root.join("bin/busybox")).expect("copy busybox");
    let made = Command::new("runc")
        .args(["spec", "--rootless"])
        .current_dir(bundle)
        .output();
    assert!(made.expect("start runc").status.success());
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let script = format!(
        "echo outbound | /bin/busybox timeout 10 /bin/busybox nc {} 7 | /bin/busybox head -n1 | \
         /bin/busybox nc -l -p 80",
        Family::V4.elsewhere()
    );
    spec["process"]["args"] = json!(["/bin/busybox", "sh", "-c", script]);
    spec["process"]["terminal"] = json!(false);
    let namespaces = spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces");
    if !namespaces
        .iter()
        .any(|namespace| namespace["type"] == "network")
    {
        namespaces.push(json!({"type": "network"}));
    }
    fs::write(config, spec.to_string()).expect("write config.json");
}

/// The line that a service sends, `None` while there is none.
fn ask(world: &World, address: SocketAddr) -> Option<String> {
    use std::io::{BufRead, BufReader};
    let stream =
        crate::harness::traffic::try_connect(&world.elsewhere, address, Duration::from_secs(5));
    let stream = stream.ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .expect("a timeout");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line.trim_end().to_owned()).filter(|line| !line.is_empty())
}

/// Whoever takes the name first keeps no container from its network.
fn name_of_a_strangers(world: &mut World) {
    expect(&hook(&[], &created(world, json!({}))));
    let all = fs::read_to_string("/proc/net/unix").expect("the Unix sockets");
    let name = all
        .split_whitespace()
        .find_map(|word| word.strip_prefix("@coracle-net/"));
    let name = format!("coracle-net/{}", name.expect("the helper's name"));
    expect(&hook(&[], &stopped()));
    let address = UnixAddr::from_abstract_name(name).expect("an address");
    let nobody = rustix::thread::Uid::from_raw(65534);
    let listen = || {
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("become nobody");
        UnixListener::bind_addr(&address).expect("take the name")
    };
    let _listener = std::thread::scope(|scope| scope.spawn(listen).join()).expect("a listener");
    expect(&hook(&[], &created(world, json!({}))));
    assert_outbound(world);
    expect(&hook(&[], &stopped()));
    assert_outbound(world);
    world.guest.kill_process();
}

/// The container's ID.
const ID: &str = "web";

fn created(world: &World, annotations: Value) -> Value {
    let process = world.guest.pid.as_raw();
    json!({
        "ociVersion": "1.0.2", "id": ID, "status": "creating", "pid": process, "bundle": "/bundle",
        "annotations": annotations,
    })
}

fn stopped() -> Value {
    json!({"ociVersion": "1.0.2", "id": ID, "status": "stopped", "bundle": "/bundle"})
}

fn hook(words: &[&str], state: &Value) -> Output {
    hook_on(words, state.to_string().as_bytes())
}

fn hook_on(words: &[&str], state: &[u8]) -> Output {
    let mut child = start(words, state);
    let ended = exit_by(
        &mut child,
        std::time::Instant::now() + Duration::from_secs(20),
    );
    if ended.is_none() {
        child.kill().expect("kill the hook");
        panic!("the hook did not return");
    }
    // Returns only if nobody in the background has kept these streams open.
    child.wait_with_output().expect("read what it has said")
}

fn start(words: &[&str], state: &[u8]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_coracle-net"))
        .arg("hook")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the hook");
    // One that does not read all of it has found a mistake before.
    let _ = child.stdin.take().expect("a pipe").write_all(state);
    child
}

fn expect(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.lines().count() <= 1,
        "{text}"
    );
}

/// What a hook says that must fail: one line, behind warnings if there are any.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines = || text.lines().filter(|line| !line.starts_with(" WARN "));
    assert!(
        lines().count() == 1 && lines().all(|line| line.starts_with("coracle-net hook: ")),
        "{text}"
    );
    lines().collect()
}

fn assert_outbound(world: &World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"outbound");
}

/// No process of the helper's, which would be a child of the case's by now, and no interface.
fn nothing_is_left(world: &World) -> bool {
    let is_child = |flags| waitpid(world.guest.pid, Some(flags)).is_ok();
    assert!(is_child(WaitPidFlag::WNOHANG), "the container is there");
    let has_tap = || nix::net::if_::if_nametoindex("tap0").is_ok();
    let named = |process: &fs::DirEntry| {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let mut fields = after.split(' ');
        let (state, parent) = (fields.next(), fields.next());
        let ours = parent == Some(&std::process::id().to_string());
        ours && state != Some("Z") && name.starts_with("coracle-net")
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter(named).count() == 0 && !world.guest.net.run(has_tap)
}
