//! A guest whose tap nobody sets up configures itself: by real DHCP clients and by its kernel. Each
//! is tried with slirp4netns as well, which serves DHCPv4 and router advertisements.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{Case, Family, Helper, Setup, World, case, eventually, exit_by, skip};
use crate::slirp4netns::{Who, both};

pub const CASES: &[Case] = &[
    case("autoconf::dhclient", |world| both(world, dhclient)),
    case("autoconf::udhcpc", |world| both(world, udhcpc)),
    case("autoconf::search_domains", search_domains),
    case("autoconf::kernel", |world| both(world, kernel)),
    case("autoconf::dhclient_v6", dhclient_v6),
    case("autoconf::published_at_a_lease", published_at_a_lease),
    case(
        "autoconf::published_at_a_chosen_address",
        published_at_a_chosen_address,
    ),
];

/// Where slirp4netns's DHCP begins.
const LEASE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 15));
const MTU: u32 = 1400;

/// Started, with the tap up and nothing else set up.
fn bare(world: &World, setup: Setup) -> Helper {
    let helper = setup.without_configure().mtu(MTU).start();
    world.guest.net.link(|links| links.up("tap0"));
    helper
}

fn dhclient(world: &World, who: Who) {
    let _helper = bare(world, who.on(world));
    let client = Client::dhclient(world, &["-4"]);
    expect_lease(world, who);
    client.end();
}

fn udhcpc(world: &World, who: Who) {
    let _helper = bare(world, who.on(world));
    let client = Client::udhcpc(world);
    expect_lease(world, who);
    client.end();
}

/// The domains that the host searches are for the guest to search, too.
fn search_domains(world: &mut World) {
    let text = "search old.test\nnameserver 198.51.100.7\nsearch corp.test lab.test\n";
    fs::write("/etc/resolv.conf", text).expect("write resolv.conf");
    let _helper = bare(world, world.helper());
    let client = Client::udhcpc(world);
    let told = world.dir.join("told");
    eventually("they are told", LONG, || {
        fs::read_to_string(&told).is_ok_and(|told| told.contains("search=corp.test lab.test"))
    });
    fs::remove_file(told).expect("remove what was told");
    client.end();
}

/// Address, route and MTU have come, and lead outside.
fn expect_lease(world: &World, who: Who) {
    eventually("there is a default route", LONG, || {
        let routes = world
            .guest
            .net
            .run(|| fs::read_to_string("/proc/thread-self/net/route"));
        let routes = routes.expect("routes");
        routes
            .lines()
            .any(|line| line.starts_with("tap0\t00000000\t0202000A"))
    });
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut stream = connect(&world.guest.net, server.address);
    assert_eq!(stream.local_addr().unwrap().ip(), LEASE, "{who:?}");
    assert_echo(&mut stream, b"outbound");
    let told = fs::read_to_string(world.dir.join("told")).expect("what the client told");
    assert!(told.contains("dns=10.0.2.3"), "{who:?}: {told}");
    if who == Who::Ours {
        // slirp4netns says nothing of it.
        assert!(told.contains(&format!("mtu={MTU}")), "{told}");
    }
    fs::remove_file(world.dir.join("told")).expect("remove what was told");
}

/// SLAAC: an address in the prefix, the route, the MTU.
fn kernel(world: &World, who: Who) {
    let guest = &world.guest.net;
    guest.sysctl("ipv6/conf/default/dad_transmits", "1");
    let _helper = bare(world, who.on(world).option("--enable-ipv6"));
    let own = chosen_address(world);
    guest.wait_until_local(own);
    let server = EchoServer::start(&world.elsewhere, Family::V6.elsewhere(), 7);
    eventually("there is a way out", LONG, || {
        let route = guest.run(|| fs::read_to_string("/proc/thread-self/net/ipv6_route"));
        let default = format!("{:032x} 00 ", 0);
        let is_default =
            |line: &str| line.starts_with(&default) && line.trim_end().ends_with("tap0");
        route.expect("routes").lines().any(is_default)
    });
    let mut stream = connect(guest, server.address);
    assert_eq!(stream.local_addr().unwrap().ip(), own, "{who:?}");
    assert_echo(&mut stream, b"outbound");
    if who == Who::Ours {
        let mtu = guest.run(|| fs::read_to_string("/proc/sys/net/ipv6/conf/tap0/mtu"));
        assert_eq!(mtu.expect("an MTU").trim(), MTU.to_string());
    }
}

/// The address in fd00::/64 that the guest's kernel has made, once it is its own.
fn chosen_address(world: &World) -> IpAddr {
    let mut found = None;
    eventually("the kernel has chosen an address", LONG, || {
        let addresses = world
            .guest
            .net
            .run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
        let addresses = addresses.expect("addresses");
        found = addresses.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u128::from_str_radix(fields.next()?, 16).ok()?;
            let flags = u8::from_str_radix(fields.nth(3)?, 16).ok()?;
            const TENTATIVE: u8 = 0x40;
            let is_ready = address >> 64 == 0xfd00 << 48 && flags & TENTATIVE == 0;
            is_ready.then(|| Ipv6Addr::from_bits(address).into())
        });
        found.is_some()
    });
    found.expect("just found")
}

/// It has no address to give here, but names.
fn dhclient_v6(world: &mut World) {
    let _helper = bare(world, world.helper());
    let own = chosen_address(world);
    world.guest.net.wait_until_local(own);
    let client = Client::dhclient(world, &["-6", "-S"]);
    let told = world.dir.join("told");
    eventually("the client has heard", LONG, || {
        fs::read_to_string(&told).is_ok_and(|told| told.contains("dns6=fd00::3"))
    });
    client.end();
    fs::remove_file(told).expect("remove what was told");
}

fn published_at_a_lease(world: &mut World) {
    let _helper = bare(world, world.helper().publish("8080:80"));
    let client = Client::dhclient(world, &["-4"]);
    expect_lease(world, Who::Ours);
    client.end();
    let _server = EchoServer::start(&world.guest.net, LEASE, 80);
    let published = (Family::V4.host(), 8080).into();
    assert_echo(&mut connect(&world.elsewhere, published), b"published");
}

fn published_at_a_chosen_address(world: &mut World) {
    let _helper = bare(world, world.helper().publish("8080:80"));
    let own = chosen_address(world);
    world.guest.net.wait_until_local(own);
    let _server = EchoServer::start(&world.guest.net, own, 80);
    let published = (Family::V6.host(), 8080).into();
    assert_echo(&mut connect(&world.elsewhere, published), b"published");
}

/// A DHCP client in the guest, with the script that it does its work by.
struct Client {
    child: Child,
    files: Vec<PathBuf>,
}

impl Client {
    fn dhclient(world: &World, options: &[&str]) -> Self {
        let (script, conf) = (world.dir.join("script"), world.dir.join("conf"));
        let leases = world.dir.join("leases");
        write_script(&script);
        fs::write(&leases, "").expect("write a file");
        fs::write(
            &conf,
            "request subnet-mask, routers, interface-mtu, domain-name-servers;\n\
             also request dhcp6.name-servers;\n",
        )
        .expect("write a file");
        let mut command = Command::new("dhclient");
        command.args(options).args(["-1", "-d", "--no-pid", "-sf"]);
        command
            .arg(&script)
            .arg("-cf")
            .arg(&conf)
            .arg("-lf")
            .arg(&leases);
        Self::start(world, command.arg("tap0"), vec![script, conf, leases])
    }

    fn udhcpc(world: &World) -> Self {
        let script = world.dir.join("script");
        write_script(&script);
        let mut command = Command::new("udhcpc");
        command.args(["-f", "-n", "-i", "tap0", "-O", "mtu", "-O", "search", "-s"]);
        Self::start(world, command.arg(&script), vec![script.clone()])
    }

    fn start(world: &World, command: &mut Command, files: Vec<PathBuf>) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = world.guest.net.run(|| command.spawn());
        let child = child.unwrap_or_else(|error| {
            files.iter().for_each(|file| drop(fs::remove_file(file)));
            skip(format!(
                "{:?} cannot be started: {error}",
                command.get_program()
            ))
        });
        Self { child, files }
    }

    fn end(mut self) {
        self.child.kill().expect("end the client");
        exit_by(&mut self.child, Instant::now() + LONG).expect("the client ends");
        for file in self.files {
            // Of leases there is a second file while they are written.
            let _ = fs::remove_file(file.with_extension("old"));
            fs::remove_file(file).expect("remove a file of the client's");
        }
    }
}

/// Sets up what it is told, by the variables of dhclient or of udhcpc, and writes it down.
fn write_script(path: &std::path::Path) {
    let script = format!(
        r#"#!/bin/sh
ip=${{new_ip_address:-$ip}} mask=${{new_subnet_mask:-$subnet}} router=${{new_routers:-$router}}
mtu=${{new_interface_mtu:-$mtu}} dns=${{new_domain_name_servers:-$dns}}
search=${{new_domain_search:-$search}}
case "${{reason:-$1}}" in
    PREINIT | PREINIT6 | deconfig) exit 0 ;;
esac
if [ -n "$ip" ]; then
    ip addr replace "$ip/$mask" dev tap0
    [ -z "$mtu" ] || ip link set tap0 mtu "$mtu"
    ip route replace default via "$router"
fi
echo "ip=$ip mtu=$mtu dns=$dns dns6=$new_dhcp6_name_servers search=$search" >>{}
"#,
        path.with_file_name("told").display()
    );
    fs::write(path, script).expect("write a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

/// DHCP clients wait for seconds before they ask.
const LONG: Duration = Duration::from_secs(30);
