//! Much of something: bytes, connections at once, connections in sequence, and dials that nobody
//! answers.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::harness::traffic::{
    EchoServer, Pattern, accept, assert_echo, assert_end, connect, listen, pass, reset, try_connect,
};
use crate::harness::{Case, Family, Helper, Netns, World, case, eventually, full, long_case, skip};

pub const CASES: &[Case] = &[
    long_case("load::bulk_outbound_65520_cubic", |world| {
        bulk_outbound(world, 65520, "cubic")
    }),
    long_case("load::bulk_outbound_1500_cubic", |world| {
        bulk_outbound(world, 1500, "cubic")
    }),
    long_case("load::bulk_outbound_65520_bbr", |world| {
        bulk_outbound(world, 65520, "bbr")
    }),
    long_case("load::bulk_outbound_1500_bbr", |world| {
        bulk_outbound(world, 1500, "bbr")
    }),
    long_case("load::bulk_published_65520", |world| {
        bulk_published(world, 65520)
    }),
    long_case("load::bulk_published_1500", |world| {
        bulk_published(world, 1500)
    }),
    long_case("load::both_directions_at_once", both_directions_at_once),
    case("load::connections_2000_at_once", connections_at_once),
    case("load::idle_connections_9500", idle_connections),
    case("load::unread_by_the_host", |world| {
        unread_connections(world, true)
    }),
    case("load::unread_by_the_guest", |world| {
        unread_connections(world, false)
    }),
    long_case("load::connections_in_sequence", connections_in_sequence),
    case("load::dials_without_answer", dials_without_answer),
    case("load::out_of_descriptors", out_of_descriptors),
];

/// How much one bulk transfer moves each way.
fn bulk_length() -> usize {
    if full() { 1 << 30 } else { 64 << 20 }
}

fn bulk_outbound(world: &mut World, mtu: u32, congestion_control: &str) {
    use_congestion_control(world, congestion_control);
    let _helper = world.helper().mtu(mtu).start();
    for family in Family::BOTH {
        let listener = listen(&world.elsewhere, family.elsewhere(), 0);
        for guest_sends in [true, false] {
            let guest = connect(&world.guest.net, listener.local_addr().unwrap());
            let (remote, _) = accept(&listener);
            let (sender, receiver) = if guest_sends {
                (guest, remote)
            } else {
                (remote, guest)
            };
            transfer(sender, receiver);
        }
    }
}

fn bulk_published(world: &mut World, mtu: u32) {
    let _helper = world.helper().mtu(mtu).publish("8080:80").start();
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.guest(), 80);
        for guest_sends in [true, false] {
            let client = connect(&world.elsewhere, (family.host(), 8080).into());
            let (guest, _) = accept(&service);
            let (sender, receiver) = if guest_sends {
                (guest, client)
            } else {
                (client, guest)
            };
            transfer(sender, receiver);
        }
    }
}

/// Sends the bulk length and compares each byte where it arrives.
fn transfer(mut sender: TcpStream, mut receiver: TcpStream) {
    let length = bulk_length();
    let sending = std::thread::spawn(move || {
        Pattern::new(1).send(&mut sender, length).expect("send");
    });
    Pattern::new(1).expect(&mut receiver, length);
    sending.join().unwrap();
    assert_end(&mut receiver);
}

/// Four connections, each full in both directions at the same time.
fn both_directions_at_once(world: &mut World) {
    let _helper = world.helper().mtu(1500).start();
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let length = bulk_length() / 8;
    let mut workers = Vec::new();
    for seed in 0..4 {
        let guest = connect(&world.guest.net, listener.local_addr().unwrap());
        let (remote, _) = accept(&listener);
        for (stream, sent, received) in [(guest, seed, seed + 100), (remote, seed + 100, seed)] {
            let mut reader = stream.try_clone().unwrap();
            let mut writer = stream;
            workers.push(std::thread::spawn(move || {
                Pattern::new(2 * received + 1).expect(&mut reader, length)
            }));
            workers.push(std::thread::spawn(move || {
                Pattern::new(2 * sent + 1)
                    .send(&mut writer, length)
                    .expect("send");
            }));
        }
    }
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
}

/// All connections are open before the first byte is sent; each echoes its own bytes.
fn connections_at_once(world: &mut World) {
    const CONNECTIONS: usize = 2000;
    require_descriptors(2 * CONNECTIONS + 500);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let remote = server.address;
    in_runtime(&world.guest.net, async move {
        let all_open = Arc::new(Barrier::new(CONNECTIONS));
        let mut clients = JoinSet::new();
        for number in 0..CONNECTIONS {
            let all_open = all_open.clone();
            clients.spawn(async move {
                let stream = tokio::net::TcpStream::connect(remote)
                    .await
                    .expect("connect");
                all_open.wait().await;
                let (mut reader, mut writer) = stream.into_split();
                let message: Vec<u8> = (0..32_768)
                    .map(|index| (index * 7 + number * 13 + (index >> 8)) as u8)
                    .collect();
                let mut back = vec![0; message.len()];
                let (sent, heard) =
                    tokio::join!(writer.write_all(&message), reader.read_exact(&mut back));
                sent.expect("send");
                heard.expect("hear the echo");
                assert!(back == message, "the echo on connection {number} differs");
            });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("client");
        }
    });
    assert_eq!(server.accepted(), CONNECTIONS);
    helper.expect_fds_back_to(baseline);
}

/// Many open connections cost little memory, and that comes back with their descriptors.
fn idle_connections(world: &mut World) {
    /// As many as most systems give descriptors for, two to each in this process.
    const CONNECTIONS: usize = 9_500;
    /// The helper's resident memory with all of them open, each having carried a message.
    const RSS_LIMIT_KIB: u64 = 100 * 1024;
    require_descriptors(2 * CONNECTIONS + 500);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let mut open: Vec<TcpStream> = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = connect(&world.guest.net, server.address);
        assert_echo(&mut stream, &[7; 512]);
        open.push(stream);
    }
    let rss = helper.rss_kib();
    println!("{rss} KiB resident with {CONNECTIONS} connections open");
    assert!(helper.fd_count() >= baseline + CONNECTIONS);
    assert!(
        rss <= RSS_LIMIT_KIB,
        "{rss} KiB resident with {CONNECTIONS} connections open"
    );
    open.iter_mut()
        .step_by(97)
        .for_each(|stream| assert_echo(stream, b"still there"));
    drop(open);
    helper.expect_fds_back_to(baseline);
    expect_memory_back(&helper);
}

/// Connections that nobody reads from are bounded together, and what they held comes back when they
/// are closed.
fn unread_connections(world: &mut World, guest_sends: bool) {
    const CONNECTIONS: usize = 2_000;
    /// Beside the bound: the program, and state and partly used pages of each connection.
    const SLACK_KIB: u64 = 32 * 1024;
    require_descriptors(2 * CONNECTIONS + 500);
    let socket = world.dir.join("status.sock");
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 7);
    // Promoted, the kernel would have the bytes.
    let setup = world.helper().option("--promote=off");
    let helper = setup.option("--status-socket").option(&socket).start();
    let baseline = helper.resting_fd_count();
    let pairs: Vec<(TcpStream, TcpStream)> = (0..CONNECTIONS)
        .map(|_| {
            let guest = connect(&world.guest.net, listener.local_addr().unwrap());
            (guest, accept(&listener).0)
        })
        .collect();
    let senders = pairs.iter().map(|(guest, remote)| match guest_sends {
        true => guest,
        false => remote,
    });
    fill(&senders.collect::<Vec<_>>());
    let memory = &crate::options::status(&socket)["memory"];
    let number = |name: &str| memory[name].as_u64().expect("a number");
    let limit = number("limit");
    let used = number("receive") + number("send") + number("owed");
    let rss = helper.rss_kib();
    println!("{rss} KiB resident with {CONNECTIONS} unread connections, {memory}");
    assert!(used <= limit, "{memory}");
    assert!(rss <= limit / 1024 + SLACK_KIB, "{rss} KiB resident");
    assert!(
        number(if guest_sends { "receive" } else { "send" }) > limit / 16,
        "{memory}"
    );

    // Others go on, in both directions.
    let talker = connect(&world.guest.net, listener.local_addr().unwrap());
    let (remote, _) = accept(&listener);
    for (sender, receiver) in [(&talker, &remote), (&remote, &talker)] {
        let mut patterns = [Pattern::new(5), Pattern::new(5)];
        pass(sender, receiver, &mut patterns, 200_000);
    }
    drop((pairs, talker, remote));
    helper.expect_fds_back_to(baseline);
    expect_memory_back(&helper);
}

/// Sends on each stream until none takes more.
fn fill(streams: &[&TcpStream]) {
    use std::io::Write;
    let piece = vec![0; 256 * 1024];
    for stream in streams {
        stream.set_nonblocking(true).expect("O_NONBLOCK");
    }
    let mut quiet = 0;
    while quiet < 10 {
        let sent: usize = streams
            .iter()
            .filter_map(|stream| (&mut &**stream).write(&piece).ok())
            .sum();
        quiet = if sent == 0 { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With nothing open a helper is small, whatever there was. (Without optimization the program
/// itself is larger.)
fn expect_memory_back(helper: &Helper) {
    const RSS_LIMIT_KIB: u64 = if cfg!(debug_assertions) { 40 } else { 20 } * 1024;
    let mut rss = 0;
    eventually("memory goes back", Duration::from_secs(20), || {
        rss = helper.rss_kib();
        rss < RSS_LIMIT_KIB
    });
    println!("{rss} KiB resident afterwards");
}

/// A helper that can accept nobody waits for a descriptor at rest, and then serves who has been
/// waiting.
fn out_of_descriptors(world: &mut World) {
    const SERVED: usize = 20;
    const CLIENTS: usize = 2 * SERVED;
    /// A loop that never sleeps uses up to a hundred hundredths of a second.
    const TICKS_IN_A_SECOND: u64 = 30;
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    let helper = world.helper().publish("8080:80").start();
    let limit = helper.resting_fd_count() + SERVED;
    helper.limit_descriptors(limit);
    let address = (Family::V4.host(), 8080).into();
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| connect(&world.elsewhere, address))
        .collect();
    eventually("descriptors are used up", Duration::from_secs(20), || {
        helper.fd_count() >= limit
    });
    let before = helper.cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    let used = helper.cpu_ticks() - before;
    assert!(used < TICKS_IN_A_SECOND, "{used} ticks spent on waiting");

    let mut last = clients.pop().expect("there are some");
    drop(clients);
    assert_echo(&mut last, b"served after all");
}

/// Connections that come and go leave neither descriptors nor memory behind.
fn connections_in_sequence(world: &mut World) {
    const AT_ONCE: usize = 32;
    /// Allocator noise, and tables that grew to the size of the connections open at once.
    const GROWTH_LIMIT_KIB: u64 = 8 * 1024;
    let total = if full() && !cfg!(debug_assertions) {
        500_000
    } else {
        5_000
    };
    // The remote closes first, so the guest's ports are free again at once.
    let servers = [7, 8, 9, 10]
        .map(|port| EchoServer::start_one_shot(&world.elsewhere, Family::V4.elsewhere(), port));
    world
        .guest
        .net
        .sysctl("ipv4/ip_local_port_range", "1024 65535");
    world.host.sysctl("ipv4/ip_local_port_range", "1024 65535");
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let addresses: [SocketAddr; 4] = std::array::from_fn(|index| servers[index].address);
    let round = |connections: usize| {
        in_runtime(&world.guest.net, async move {
            let mut clients = JoinSet::new();
            for worker in 0..AT_ONCE {
                clients.spawn(async move {
                    for number in 0..connections / AT_ONCE {
                        let remote = addresses[(worker + number) % addresses.len()];
                        let mut stream = tokio::net::TcpStream::connect(remote)
                            .await
                            .expect("connect");
                        stream.write_all(&number.to_be_bytes()).await.expect("send");
                        let mut back = Vec::new();
                        stream.read_to_end(&mut back).await.expect("hear the echo");
                        assert_eq!(back, number.to_be_bytes());
                    }
                });
            }
            while let Some(client) = clients.join_next().await {
                client.expect("client");
            }
        });
    };
    round(total / 5);
    helper.expect_fds_back_to(baseline);
    let before = helper.rss_kib();
    round(total - total / 5);
    helper.expect_fds_back_to(baseline);
    let after = helper.rss_kib();
    assert!(
        after <= before + GROWTH_LIMIT_KIB,
        "memory grew from {before} to {after} KiB over {total} connections"
    );
}

/// A guest that dials 20,000 times into silence: the helper's sockets for them are bounded, and
/// neither open nor new connections of other programs suffer.
fn dials_without_answer(world: &mut World) {
    const DIALS: u32 = 20_000;
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let mut open = connect(&world.guest.net, server.address);
    assert_echo(&mut open, b"before");

    let peak = Arc::new(AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(helper.fd_count(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        world.guest.net.run(|| (0..DIALS).for_each(dial_silence));
        assert_echo(&mut open, b"meanwhile");
        done.store(true, Ordering::Relaxed);
    });
    let peak = peak.load(Ordering::Relaxed);
    assert!(
        peak <= baseline + PENDING_LIMIT,
        "{peak} descriptors for dials that nobody answers"
    );
    assert!(helper.is_running());
    assert_echo(&mut open, b"after");
    let mut other = try_connect(&world.guest.net, server.address, Duration::from_secs(10))
        .expect("a new connection");
    assert_echo(&mut other, b"another");
    reset(open);
}

/// Sends one SYN to a silent address. Closing the socket sends nothing more, so the dial stays with
/// the helper.
fn dial_silence(number: u32) {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{SockaddrIn, connect};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let dial = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("socket");
    let host = u8::try_from(1 + number % 250).expect("below 251");
    let port = u16::try_from(1000 + number / 250).expect("20,000 dials");
    let remote = SockaddrIn::new(203, 0, 113, host, port);
    assert_eq!(
        connect(dial.as_raw_fd(), &remote),
        Err(nix::errno::Errno::EINPROGRESS)
    );
}

/// Runs `work` on a runtime of its own inside `netns`.
pub fn in_runtime(netns: &Netns, work: impl Future<Output = ()> + Send) {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(work);
    });
}

pub fn require_descriptors(count: usize) {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("RLIMIT_NOFILE");
    if hard < count as u64 {
        skip(format!(
            "RLIMIT_NOFILE allows {hard} descriptors, {count} are needed"
        ));
    }
}

/// Makes the guest's sockets use this congestion control. It may be a kernel module, which a
/// namespace cannot load, or one that the machine does not allow to its namespaces.
pub fn use_congestion_control(world: &World, name: &str) {
    let set = world
        .guest
        .net
        .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name));
    if let Err(error) = set {
        skip(format!(
            "no congestion control {name} here (net.ipv4.tcp_allowed_congestion_control): {error}"
        ));
    }
}

/// More sockets than this for unanswered dials would be a way to exhaust the host.
const PENDING_LIMIT: usize = 4096 + 64;
