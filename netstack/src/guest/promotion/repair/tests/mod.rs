//! Hand-overs between a small TCP in user space and the kernel, in namespaces of their own.

mod forwarded;
mod peer;
mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::*;
use crate::guest::promotion::Reach;
use crate::netlink::Netlink;
use crate::testing::in_namespaces;
use world::*;

#[test]
fn bulk_goes_both_ways_byte_for_byte() {
    in_namespaces(module_path!(), "bulk_goes_both_ways_byte_for_byte", || {
        let mut world = World::new(65520);
        for remote in REMOTES {
            let (mut client, endpoints) = connect(remote);
            talk_to_peer(&mut client);
            let server = world.promote(&endpoints);
            assert_eq!(server.peer_addr().unwrap(), endpoints.guest());
            talk(&client, &server);
            exchange(&client, &server, 24 * MIB, 24 * MIB);
            // The guest's, less the room that the kernel leaves for timestamps which nobody sends.
            let smss = u32::from(world.peer.snapshot(&endpoints).wire.smss.get());
            assert!((smss - 12..=smss).contains(&mss(&server)));
            // Nothing came out of the tap: each segment was diverted.
            assert_eq!(world.peer.flow(&endpoints).written_back, 0);
            drop(client);
            world.forget(&endpoints, server);
        }
    });
}

#[test]
fn the_first_segments_are_full_ones() {
    in_namespaces(module_path!(), "the_first_segments_are_full_ones", || {
        let mut world = World::new(65520);
        for receive_buffer in [131_072, 20_000] {
            let sizes = format!("4096 {receive_buffer} {receive_buffer}");
            std::fs::write("/proc/sys/net/ipv4/tcp_rmem", sizes).unwrap();
            for remote in REMOTES {
                let (mut client, endpoints) = connect(remote);
                talk_to_peer(&mut client);
                let wire = world.peer.snapshot(&endpoints).wire;
                let server = world.promote(&endpoints);
                // Linux counts on half of the window at most, and TCP_MAXSEG takes no more than
                // 32767.
                let most = u32::from(wire.smss.get())
                    .min(wire.max_snd_wnd / 2)
                    .min(32767);
                assert!(
                    (most - 12..=most).contains(&mss(&server)),
                    "{} of {most} bytes at {endpoints}",
                    mss(&server)
                );
                drop((client, server));
            }
        }
    });
}

#[test]
fn a_window_that_closes_is_heeded() {
    in_namespaces(module_path!(), "a_window_that_closes_is_heeded", || {
        // Without timestamps the guest's segments are as long as header prediction expects.
        for off in ["tcp_window_scaling", "tcp_timestamps"] {
            std::fs::write(format!("/proc/sys/net/ipv4/{off}"), "0").unwrap();
        }
        let mut world = World::new(65520);
        for remote in REMOTES {
            let (mut client, endpoints) = connect(remote);
            talk_to_peer(&mut client);
            let server = world.promote(&endpoints);
            server.set_nonblocking(true).unwrap();
            let sent = (&server).write(&vec![b'x'; MIB]).unwrap();
            // Reads as much as makes the guest offer the same window once more, and then none.
            let mut received = vec![0; sent];
            let (first, rest) = received.split_at_mut(20_000);
            client.read_exact(first).unwrap();
            // Longer than the acknowledgement of all that fits takes, but for a machine that is
            // very busy.
            let is_heeded = (0..20).any(|_| {
                thread::sleep(Duration::from_millis(500));
                unacknowledged(&server) == 0
            });
            assert!(is_heeded, "something beyond the window: {endpoints}");
            client.read_exact(rest).unwrap();
            assert!(received.iter().all(|byte| *byte == b'x'));
            drop((client, server));
        }
    });
}

#[test]
fn small_segments_and_published_connections_are_taken_over() {
    in_namespaces(
        module_path!(),
        "small_segments_and_published_connections_are_taken_over",
        || {
            let mut world = World::new(1500);
            for (guest, remote) in ["10.0.2.100:8080", "[fd00::100]:8080"].iter().zip(REMOTES) {
                let listener = TcpListener::bind(guest).unwrap();
                let endpoints =
                    Endpoints::new(guest.parse().unwrap(), remote.parse().unwrap()).unwrap();
                world.peer.connect(endpoints);
                let (mut client, from) = listener.accept().unwrap();
                assert_eq!(from, endpoints.remote());
                limit(&client);
                talk_to_peer(&mut client);
                let server = world.promote(&endpoints);
                talk(&client, &server);
                exchange(&client, &server, 8 * MIB, 8 * MIB);
                drop(client);
                world.forget(&endpoints, server);
            }
        },
    );
}

#[test]
fn frames_in_flight_are_written_back() {
    in_namespaces(module_path!(), "frames_in_flight_are_written_back", || {
        let mut world = World::new(1500);
        for remote in REMOTES {
            // On a machine that is busy enough the guest retransmits anyway, which proves nothing.
            let is_proven = (0..20).any(|_| {
                let (mut client, endpoints) = connect(remote);
                talk_to_peer(&mut client);
                world.peer.mute(&endpoints);
                let snapshot = world.peer.snapshot(&endpoints);
                let socket = world.fresh_socket(&endpoints);
                let socket = restore(socket, &snapshot).unwrap();
                world.peer.change(&endpoints, |flow| {
                    client.write_all(&[b'x'; 8000]).unwrap();
                    world.gate.add(endpoints, Reach::Own).unwrap();
                    flow.promoted = true;
                });
                let mut server = stream(socket.leave().unwrap());
                let mut received = [0; 8000];
                server.read_exact(&mut received).unwrap();
                assert_eq!(received, [b'x'; 8000]);
                talk(&client, &server);
                world.peer.flow(&endpoints).written_back > 0 && retransmissions(&client) == 0
            });
            assert!(is_proven, "only retransmissions arrive");
        }
    });
}

/// `tcpi_total_retrans`.
fn retransmissions(stream: &TcpStream) -> u32 {
    tcp_info(stream, 100)
}

/// `tcpi_unacked`.
fn unacknowledged(stream: &TcpStream) -> u32 {
    tcp_info(stream, 24)
}

/// `tcpi_snd_mss`.
fn mss(stream: &TcpStream) -> u32 {
    tcp_info(stream, 16)
}

/// The field of `struct tcp_info` (linux/tcp.h) at this offset.
fn tcp_info(stream: &TcpStream, offset: usize) -> u32 {
    let mut info = [0; 104];
    let (socket, level) = (stream.as_fd(), libc::IPPROTO_TCP);
    let len = sys::socket_option(socket, level, libc::TCP_INFO, &mut info).unwrap();
    assert_eq!(len, info.len());
    u32::from_ne_bytes(info[offset..offset + 4].try_into().unwrap())
}

#[test]
fn half_closes_and_resets_pass() {
    in_namespaces(module_path!(), "half_closes_and_resets_pass", || {
        let mut world = World::new(65520);
        for remote in REMOTES {
            // The guest closes its half and goes on receiving.
            let (client, endpoints) = connect(remote);
            let mut server = world.promote(&endpoints);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            assert!(!is_closed(&server).unwrap());
            send_pattern(&server, MIB, 1);
            receive_pattern(&client, MIB, 1);
            assert!(!world.forget(&endpoints, server), "the guest closed first");

            // The remote resets.
            let (mut client, endpoints) = connect(remote);
            let server = world.promote(&endpoints);
            reset_on_close(&server);
            drop(server);
            let error = client.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            world.gate.remove(endpoints).unwrap();

            // The guest resets.
            let (client, endpoints) = connect(remote);
            let mut server = world.promote(&endpoints);
            reset_on_close(&client);
            drop(client);
            let error = server.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(!world.forget(&endpoints, server));
        }
    });
}

#[test]
fn a_port_can_be_used_again_for_the_same_remote() {
    in_namespaces(
        module_path!(),
        "a_port_can_be_used_again_for_the_same_remote",
        || {
            let mut world = World::new(65520);
            for (local, remote) in ["10.0.2.100:5555", "[fd00::100]:5555"].iter().zip(REMOTES) {
                let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
                for round in 0..3 {
                    let mut client = connect_from(local, remote).unwrap();
                    let endpoints = Endpoints::new(local, remote).unwrap();
                    talk_to_peer(&mut client);
                    let server = world.promote(&endpoints);
                    talk(&client, &server);
                    // The remote closes first, so it is our end that would be in TIME-WAIT.
                    server.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(client.read(&mut [0]).unwrap(), 0);
                    drop(client);
                    assert!(world.forget(&endpoints, server), "round {round}");
                    assert!(!world.table.forget(&endpoints).unwrap());
                }
            }
        },
    );
}

#[test]
fn what_the_kernel_remembers_is_not_taken_over() {
    in_namespaces(
        module_path!(),
        "what_the_kernel_remembers_is_not_taken_over",
        || {
            let mut world = World::new(65520);
            for (local, remote) in ["10.0.2.100:5555", "[fd00::100]:5555"].iter().zip(REMOTES) {
                let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
                let endpoints = Endpoints::new(local, remote).unwrap();
                let client = connect_from(local, remote).unwrap();
                let server = world.promote(&endpoints);
                server.shutdown(Shutdown::Write).unwrap();
                drop(client);
                while !is_closed(&server).unwrap() {
                    thread::sleep(Duration::from_millis(1));
                }
                world.gate.remove(endpoints).unwrap();
                world.peer.forget(&endpoints);
                drop(server);

                // TIME-WAIT is still there: the new connection stays where it is, and nobody
                // notices.
                let mut client = connect_from(local, remote).unwrap();
                talk_to_peer(&mut client);
                world.peer.mute(&endpoints);
                let snapshot = world.peer.snapshot(&endpoints);
                let socket = world.fresh_socket(&endpoints);
                let error = restore(socket, &snapshot).unwrap_err();
                assert!(matches!(error, RepairError::Remembered(_)), "{error}");
                world.peer.unmute(&endpoints);
                talk_to_peer(&mut client);

                // It can still be forgotten, and then the hand-over succeeds.
                assert!(world.table.forget(&endpoints).unwrap());
                let server = world.promote(&endpoints);
                talk(&client, &server);
            }
        },
    );
}

#[test]
fn the_guest_can_serve_on_a_promoted_port_number() {
    in_namespaces(
        module_path!(),
        "the_guest_can_serve_on_a_promoted_port_number",
        || {
            let mut world = World::new(65520);
            for (remote, any, own) in [
                (REMOTES[0], "0.0.0.0:443", "127.0.0.1:443"),
                (REMOTES[1], "[::]:443", "[::1]:443"),
            ] {
                let (client, endpoints) = connect(remote);
                let mut server = world.promote(&endpoints);
                // std sets SO_REUSEADDR.
                let listener = TcpListener::bind(any).unwrap();
                let visitor = TcpStream::connect(own).unwrap();
                let (host, _) = listener.accept().unwrap();
                talk(&visitor, &host);
                talk(&client, &server);
                // A promotion beside the listener.
                let (second, second_endpoints) = connect(remote);
                let second_server = world.promote(&second_endpoints);
                talk(&second, &second_server);

                // To the kernel the listener is a match where no connection is: it must survive.
                drop(client);
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
                server.shutdown(Shutdown::Write).unwrap();
                assert!(!world.forget(&endpoints, server));
                TcpStream::connect(own).unwrap();
                listener.accept().unwrap();
            }
        },
    );
}

#[test]
fn a_guest_without_options_is_taken_over() {
    in_namespaces(
        module_path!(),
        "a_guest_without_options_is_taken_over",
        || {
            std::fs::write("/proc/sys/net/ipv4/tcp_window_scaling", "0").unwrap();
            std::fs::write("/proc/sys/net/ipv4/tcp_sack", "0").unwrap();
            let mut world = World::new(1500);
            for remote in REMOTES {
                let (mut client, endpoints) = connect(remote);
                talk_to_peer(&mut client);
                let wire = world.peer.snapshot(&endpoints).wire;
                assert_eq!((wire.guest_shift, wire.sack_permitted), (None, false));
                let server = world.promote(&endpoints);
                exchange(&client, &server, 4 * MIB, 4 * MIB);
            }
        },
    );
}

#[test]
fn a_receive_buffer_below_the_open_window_loses_nothing() {
    in_namespaces(
        module_path!(),
        "a_receive_buffer_below_the_open_window_loses_nothing",
        || {
            let mut world = World::new(65520);
            for remote in REMOTES {
                let (client, endpoints) = connect(remote);
                let socket = world.fresh_socket(&endpoints);
                // As with the net.core.rmem_max of older kernels: the guest has been told of 1 MiB.
                let old_max = 208 << 10;
                rustix::net::sockopt::set_socket_recv_buffer_size(&socket, old_max).unwrap();
                let server = world.promote_with(socket, &endpoints);
                exchange(&client, &server, 4 * MIB, 4 * MIB);
            }
        },
    );
}

#[test]
fn a_dropped_repair_socket_leaves_no_trace() {
    in_namespaces(
        module_path!(),
        "a_dropped_repair_socket_leaves_no_trace",
        || {
            let mut world = World::new(65520);
            for remote in REMOTES {
                let (mut client, endpoints) = connect(remote);
                talk_to_peer(&mut client);
                world.peer.mute(&endpoints);
                let snapshot = world.peer.snapshot(&endpoints);
                let socket = world.fresh_socket(&endpoints);
                let socket = restore(socket, &snapshot).unwrap();
                // Say, the gate could not be opened.
                drop(socket);
                world.peer.unmute(&endpoints);
                talk_to_peer(&mut client);
                assert!(!world.peer.flow(&endpoints).reset);
                // A second attempt succeeds.
                let server = world.promote(&endpoints);
                talk(&client, &server);
            }
        },
    );
}

#[test]
fn flushing_the_firewall_does_not_stop_connections() {
    in_namespaces(
        module_path!(),
        "flushing_the_firewall_does_not_stop_connections",
        || {
            let mut world = World::new(65520);
            let mut flows = Vec::new();
            for remote in REMOTES {
                let (client, endpoints) = connect(remote);
                let server = world.promote(&endpoints);
                flows.push((client, server, endpoints));
            }
            flush_ruleset();
            for (client, server, endpoints) in &mut flows {
                talk(client, server);
                assert_eq!(world.peer.flow(endpoints).written_back, 0);
            }

            // As before Linux 5.12: the table goes, segments come out of the tap and are written
            // back in vain.
            world.gate.make_ownerless().unwrap();
            flush_ruleset();
            let (client, server, endpoints) = &mut flows[0];
            client.write_all(b"lost").unwrap();
            let start = Instant::now();
            while world.peer.flow(endpoints).written_back == 0 {
                assert!(start.elapsed() < DEADLINE);
                thread::sleep(Duration::from_millis(1));
            }
            world.gate.heal().unwrap();
            let mut received = [0; 4];
            server.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"lost");
            for (client, server, _) in &mut flows {
                talk(client, server);
            }
            // Adding one finds it out and heals too; removing is content.
            flush_ruleset();
            world.gate.remove(flows[1].2).unwrap();
            let (client, endpoints) = connect(REMOTES[0]);
            let server = world.promote(&endpoints);
            talk(&client, &server);
            let (client, server, _) = &mut flows[0];
            talk(client, server);
        },
    );
}

/// What `nft flush ruleset` sends.
fn flush_ruleset() {
    let mut netlink = Netlink::open(libc::NETLINK_NETFILTER).unwrap();
    netlink
        .transaction(libc::NFNL_SUBSYS_NFTABLES as u16, |transaction| {
            let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_DELTABLE) as u16;
            transaction.message(kind, NLM_F_REQUEST | NLM_F_ACK, |message| {
                message.put(&[0; 4]);
            });
        })
        .unwrap();
}

#[test]
fn thousands_of_connections_can_be_diverted() {
    in_namespaces(
        module_path!(),
        "thousands_of_connections_can_be_diverted",
        || {
            let mut world = World::new(65520);
            let invented = |remote: &str, port: u16| {
                let remote: SocketAddr = remote.parse().unwrap();
                let guest = match remote {
                    SocketAddr::V4(_) => SocketAddr::from(([10, 0, 2, 99], port)),
                    SocketAddr::V6(_) => SocketAddr::new("fd00::99".parse().unwrap(), port),
                };
                Endpoints::new(guest, remote).unwrap()
            };
            for port in 1..=2000 {
                for remote in REMOTES {
                    world.gate.add(invented(remote, port), Reach::Own).unwrap();
                }
            }
            for remote in REMOTES {
                let (client, endpoints) = connect(remote);
                let server = world.promote(&endpoints);
                exchange(&client, &server, MIB, MIB);
                assert_eq!(world.peer.flow(&endpoints).written_back, 0);
            }
            world.gate.heal().unwrap();
            for port in 1..=2000 {
                for remote in REMOTES {
                    world.gate.remove(invented(remote, port)).unwrap();
                    assert!(!world.gate.contains(&invented(remote, port)));
                }
            }
        },
    );
}

#[test]
fn a_thousand_promotions_leave_nothing() {
    in_namespaces(
        module_path!(),
        "a_thousand_promotions_leave_nothing",
        || {
            let mut world = World::new(65520);
            for remote in REMOTES {
                let mut times: [Vec<Duration>; 6] = Default::default();
                for round in 0..500 {
                    let (client, endpoints) = connect(remote);
                    world.peer.mute(&endpoints);
                    let snapshot = world.peer.snapshot(&endpoints);
                    let mut lap = Lap::start(&mut times);
                    let socket = world.fresh_socket(&endpoints);
                    lap.end(0);
                    let socket = restore(socket, &snapshot).unwrap();
                    lap.end(1);
                    world.gate.add(endpoints, Reach::Own).unwrap();
                    lap.end(2);
                    let server = stream(socket.leave().unwrap());
                    lap.end(3);
                    talk(&client, &server);
                    // Every other connection ends in TIME-WAIT on our side, the rest on the
                    // guest's.
                    let remote_is_first = round % 2 == 0;
                    if remote_is_first {
                        server.shutdown(Shutdown::Write).unwrap();
                        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
                    }
                    drop(client);
                    assert_eq!((&server).read(&mut [0]).unwrap(), 0);
                    if !remote_is_first {
                        server.shutdown(Shutdown::Write).unwrap();
                    }
                    while !is_closed(&server).unwrap() {
                        thread::yield_now();
                    }
                    lap.restart();
                    world.gate.remove(endpoints).unwrap();
                    lap.end(4);
                    drop(server);
                    lap.restart();
                    assert_eq!(world.table.forget(&endpoints).unwrap(), remote_is_first);
                    lap.end(5);
                }
                println!("{remote}");
                let names = ["take", "restore", "add", "leave", "remove", "forget"];
                for (name, mut times) in names.into_iter().zip(times) {
                    times.sort();
                    println!("  {name}: median {:?}, p99 {:?}", times[250], times[495]);
                }
            }
            // Of our own there is no socket in any state: the guest's TIME-WAITs have the guest's
            // addresses.
            for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
                let table = std::fs::read_to_string(path).unwrap();
                let is_ours = |line: &str| {
                    let own = line.split_whitespace().nth(1);
                    own.is_some_and(|own| own.ends_with(":01BB"))
                };
                assert_eq!(table.lines().find(|line| is_ours(line)), None);
            }
        },
    );
}

struct Lap<'a> {
    times: &'a mut [Vec<Duration>; 6],
    last: Instant,
}

impl Lap<'_> {
    fn start(times: &mut [Vec<Duration>; 6]) -> Lap<'_> {
        let last = Instant::now();
        Lap { times, last }
    }

    fn restart(&mut self) {
        self.last = Instant::now();
    }

    fn end(&mut self, step: usize) {
        let now = Instant::now();
        self.times[step].push(now - self.last);
        self.last = now;
    }
}
