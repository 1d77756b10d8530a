//! Connections of a container in a network namespace of its own behind the guest, which forwards
//! and masquerades them.

use std::fs;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, LinkVeth};

use super::*;
use crate::guest::promotion::Reach;
use crate::guest::promotion::conntrack::{Conntrack, Owner};
use crate::guest::{GuestThread, InterfaceSettings, configure};
use crate::netlink::Encoder;
use crate::network::{Family, Network};

const CONTAINER: &str = "10.88.0.5";
const CONTAINER_V6: &str = "fd88::5";
const BRIDGE: [u8; 4] = [10, 88, 0, 1];
const BRIDGE_V6: &str = "fd88::1";

#[test]
fn connections_behind_masquerading_are_taken_over() {
    in_namespaces(
        module_path!(),
        "connections_behind_masquerading_are_taken_over",
        || {
            let container = add_container();
            let mut world = World::new(65520);
            let mut conntrack = world.guest.run(Conntrack::open).unwrap().unwrap();
            for (remote, address) in REMOTES.into_iter().zip([CONTAINER, CONTAINER_V6]) {
                let (mut client, inside) = container.run(move || connect(remote)).unwrap();
                talk_to_peer(&mut client);
                let on_tap = world.peer.latest(&inside.remote());
                assert_eq!(inside.guest().ip().to_string(), address);
                assert_ne!(on_tap, inside);
                let owner = conntrack.owner(&on_tap).unwrap();
                assert_eq!(owner, Owner::Behind(inside));

                world.peer.mute(&on_tap);
                let snapshot = world.peer.snapshot(&on_tap);
                let socket = world.fresh_socket(&inside);
                let socket =
                    RepairSocket::restore(socket, inside, Reach::Forwarded, &snapshot).unwrap();
                world.gate.add(inside, Reach::Forwarded).unwrap();
                let server = stream(socket.leave().unwrap());
                world.peer.acknowledge(&on_tap);
                assert_eq!(server.peer_addr().unwrap(), inside.guest());
                talk(&client, &server);
                exchange(&client, &server, 4 * MIB, 4 * MIB);
                assert_eq!(world.peer.flow(&on_tap).ignored, 0);

                drop(client);
                world.forget(&inside, server);
                conntrack.forget(&on_tap).unwrap();
                conntrack.forget(&on_tap).unwrap();
                assert_eq!(conntrack.owner(&on_tap).unwrap(), Owner::Guest);

                // Beside it, the guest's own connections.
                let (mut client, endpoints) = connect(remote);
                assert_eq!(conntrack.owner(&endpoints).unwrap(), Owner::Guest);
                talk_to_peer(&mut client);
                let server = world.promote(&endpoints);
                talk(&client, &server);
            }
            let remote = REMOTES[0].parse().unwrap();
            let bridge = SocketAddr::from((BRIDGE, 5555));
            let _client = connect_from(bridge, remote).unwrap();
            let on_tap = world.peer.latest(&remote);
            assert_eq!(conntrack.owner(&on_tap).unwrap(), Owner::Translated);
        },
    );
}

/// Makes the container, the guest's interface to it, forwarding and masquerading.
fn add_container() -> GuestThread {
    let unshared = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let network = unshared.join().unwrap();
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
    let mut request = |message, flags| netlink.request(message, flags).unwrap();
    let pair = LinkVeth::new("bridge0", "peer0").build();
    request(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE);
    let index = |name| if_nametoindex(name).unwrap();
    let moved = LinkUnspec::new_with_index(index("peer0"))
        .name("eth0")
        .setns_by_fd(network.as_raw_fd())
        .build();
    request(RouteNetlinkMessage::SetLink(moved), 0);
    let bridge = index("bridge0");
    let up = LinkUnspec::new_with_index(bridge).up().build();
    request(RouteNetlinkMessage::SetLink(up), 0);
    let v4 = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(bridge)
        .address(BRIDGE.into(), 16)
        .build();
    let mut v6 = AddressMessageBuilder::<Ipv6Addr>::new()
        .index(bridge)
        .address(BRIDGE_V6.parse().unwrap(), 64)
        .build();
    v6.attributes
        .push(AddressAttribute::Flags(AddressFlags::Nodad));
    for address in [v4, v6] {
        request(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE);
    }
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
    }
    masquerade();

    let container = GuestThread::spawn(network.into()).unwrap();
    let settings = InterfaceSettings {
        name: "eth0".to_owned(),
        mtu: Some(1500),
        mac: None,
        network: Network {
            v4: Some(Family::<Ipv4Addr>::isolated(
                CONTAINER.parse().unwrap(),
                16,
                BRIDGE.into(),
                None,
            )),
            v6: Some(Family::<Ipv6Addr>::isolated(
                CONTAINER_V6.parse().unwrap(),
                64,
                BRIDGE_V6.parse().unwrap(),
                None,
            )),
        },
    };
    assert!(
        container
            .run(move || configure(&settings))
            .unwrap()
            .unwrap()
    );
    container
}

/// ```text
/// add chain inet engine post { type nat hook postrouting priority srcnat; }
/// add rule inet engine post oifname "tap0" masquerade
/// ```
fn masquerade() {
    const NFTA_TABLE_NAME: u16 = 1;
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    const NFTA_CHAIN_HOOK: u16 = 4;
    const NFTA_CHAIN_TYPE: u16 = 7;
    const NFTA_HOOK_HOOKNUM: u16 = 1;
    const NFTA_HOOK_PRIORITY: u16 = 2;
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    const NFTA_LIST_ELEM: u16 = 1;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    const NFTA_DATA_VALUE: u16 = 1;
    const NFTA_META_DREG: u16 = 1;
    const NFTA_META_KEY: u16 = 2;
    const NFTA_CMP_SREG: u16 = 1;
    const NFTA_CMP_OP: u16 = 2;
    const NFTA_CMP_DATA: u16 = 3;
    const REGISTER: u32 = libc::NFT_REG32_00 as u32;
    let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
    let head = [libc::NFPROTO_INET as u8, 0, 0, 0];
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let kind = |message: c_int| subsystem << 8 | message as u16;
    let mut netlink = Netlink::open(libc::NETLINK_NETFILTER).unwrap();
    let made = netlink.transaction(subsystem, |transaction| {
        transaction.message(kind(libc::NFT_MSG_NEWTABLE), flags, |message| {
            message.put(&head);
            message.string(NFTA_TABLE_NAME, "engine");
        });
        transaction.message(kind(libc::NFT_MSG_NEWCHAIN), flags, |message| {
            message.put(&head);
            message.string(NFTA_CHAIN_TABLE, "engine");
            message.string(NFTA_CHAIN_NAME, "post");
            message.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.u32_be(NFTA_HOOK_HOOKNUM, libc::NF_INET_POST_ROUTING as u32);
                hook.u32_be(NFTA_HOOK_PRIORITY, libc::NF_IP_PRI_NAT_SRC as u32);
            });
            message.string(NFTA_CHAIN_TYPE, "nat");
        });
        transaction.message(kind(libc::NFT_MSG_NEWRULE), flags, |message| {
            message.put(&head);
            message.string(NFTA_RULE_TABLE, "engine");
            message.string(NFTA_RULE_CHAIN, "post");
            message.nest(NFTA_RULE_EXPRESSIONS, |rule| {
                let mut add = |name, data: &dyn Fn(&mut Encoder)| {
                    rule.nest(NFTA_LIST_ELEM, |expression| {
                        expression.string(NFTA_EXPR_NAME, name);
                        expression.nest(NFTA_EXPR_DATA, data);
                    });
                };
                add("meta", &|meta| {
                    meta.u32_be(NFTA_META_DREG, REGISTER);
                    meta.u32_be(NFTA_META_KEY, libc::NFT_META_OIFNAME as u32);
                });
                add("cmp", &|compare| {
                    compare.u32_be(NFTA_CMP_SREG, REGISTER);
                    compare.u32_be(NFTA_CMP_OP, libc::NFT_CMP_EQ as u32);
                    compare.nest(NFTA_CMP_DATA, |data| {
                        data.attribute(NFTA_DATA_VALUE, b"tap0\0\0\0\0\0\0\0\0\0\0\0\0");
                    });
                });
                add("masq", &|_| {});
            });
        });
    });
    made.unwrap();
}
