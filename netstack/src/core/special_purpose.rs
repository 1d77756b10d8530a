//! Addresses with a meaning of their own, whatever way they are spelled (the special-purpose
//! registries of RFC 6890, and what clouds have added).
//!
//! Many IPv6 addresses stand for an IPv4 address: translators and tunnels on the way, or the host's
//! own kernel, turn one into the other. [`stands_for`] reads them. Forms that are known to one
//! network only (6rd, a NAT64 prefix of its own) cannot be told from any other address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IPv4 addresses that `ip` may be read as, none for most.
///
/// A packet to it may end up at each of them, so all must be allowed where it is to go. No
/// allocation and hardly a cost: datagrams are judged one by one.
pub fn stands_for(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = ip.to_bits();
    let is_within = |prefix: u128, len: u32| (bits ^ prefix) >> (128 - len) == 0;
    let v4_at = |end: u32| Some(Ipv4Addr::from_bits((bits >> end) as u32));

    let in_last_bits = is_within(MAPPED, 96)
        || is_within(COMPATIBLE, 96)
        || is_within(TRANSLATED, 96)
        || is_within(NAT64, 96);
    let is_teredo = is_within(TEREDO, 32);
    // RFC 5214 6.1; the bit that is left out says whether the IPv4 address is unique in the world.
    let is_isatap = (bits >> 32) as u32 & !UNIVERSAL == ISATAP;
    let local_nat64 = match is_within(LOCAL_NAT64, 48) {
        true => local_nat64(bits),
        false => [None; 4],
    };
    let others = [
        v4_at(0).filter(|_| in_last_bits || is_isatap),
        v4_at(80).filter(|_| is_within(SIX_TO_FOUR, 16)),
        // RFC 4380 4: the server, and the client with all bits inverted.
        v4_at(64).filter(|_| is_teredo),
        v4_at(0).filter(|_| is_teredo).map(|client| !client),
    ];
    others.into_iter().chain(local_nat64).flatten()
}

/// What an address of the NAT64 prefix for local use may stand for. The prefix that is in use
/// begins with it and is 48, 56, 64 or 96 bits long, which only its network knows; with all but the
/// last the address lies around bits 64 to 71 (RFC 6052 2.2). A reading that is no unicast host
/// comes of another length, unless all are such.
fn local_nat64(bits: u128) -> [Option<Ipv4Addr>; 4] {
    let behind_48 = (bits >> 64 << 16) as u32 | (bits >> 40) as u16 as u32;
    let behind_56 = (bits >> 64 << 24) as u32 | (bits >> 32) as u32 & 0xff_ffff;
    let behind_64 = (bits >> 24) as u32;
    let behind_96 = bits as u32;
    let readings = [behind_48, behind_56, behind_64, behind_96]
        .map(Ipv4Addr::from_bits)
        .map(|ip| Some(ip).filter(|ip| is_unicast_host(*ip)));
    match readings {
        [None, None, None, None] => [None, None, None, Some(Ipv4Addr::from_bits(behind_96))],
        readings => readings,
    }
}

/// Whether `ip`, as it is written, is the address of one host that may be somebody else's than
/// ours.
///
/// Not so are loopback, link-local, multicast, unspecified and reserved addresses, and those of the
/// services that a cloud offers to each of its machines, credentials among them. Private addresses
/// are: the host's neighbours are no secret.
pub fn is_another_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            is_unicast_host(ip)
                && !ip.is_loopback()
                && !ip.is_link_local()
                && !CLOUD_SERVICES.contains(&ip)
        }
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            // ::ffff:a.b.c.d and the deprecated ::a.b.c.d, loopback and unspecified among them: a
            // host socket would take the former for IPv4, and neither is ever seen on a wire (RFC
            // 4291 2.5.5).
            let is_written_v4 = bits >> 32 == MAPPED >> 32 || bits >> 32 == COMPATIBLE >> 32;
            let is_cloud_service = bits >> 96 == AWS_SERVICES >> 96 || bits == GCP_METADATA;
            !(is_written_v4 || ip.is_unicast_link_local() || ip.is_multicast() || is_cloud_service)
        }
    }
}

/// 0/8 is "this host" (a connect to 0.0.0.0 reaches loopback), 224/4 multicast; 240/4 is reserved
/// and ends in broadcast.
fn is_unicast_host(ip: Ipv4Addr) -> bool {
    (1..224).contains(&ip.octets()[0])
}

/// RFC 4291 2.5.5.2 and 2.5.5.1.
const MAPPED: u128 = 0xffff << 32;
const COMPATIBLE: u128 = 0;
/// RFC 2765 2.1, ::ffff:0:a.b.c.d.
const TRANSLATED: u128 = 0xffff << 48;
/// RFC 6052 2.1, 64:ff9b::/96.
const NAT64: u128 = 0x64_ff9b << 96;
/// RFC 8215, 64:ff9b:1::/48.
const LOCAL_NAT64: u128 = 0x64_ff9b_0001 << 80;
/// RFC 3056 2, 2002::/16.
const SIX_TO_FOUR: u128 = 0x2002 << 112;
/// RFC 4380 2.6, 2001::/32.
const TEREDO: u128 = 0x2001_0000 << 96;
/// The first half of an interface identifier.
const ISATAP: u32 = 0x0000_5efe;
const UNIVERSAL: u32 = 0x0200_0000;

/// Metadata outside 169.254/16: Alibaba Cloud, and Oracle Cloud's older one.
const CLOUD_SERVICES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// fd00:ec2::/32 is to AWS what 169.254/16 is: metadata at ::254, credentials of pods at ::23,
/// time, DNS.
const AWS_SERVICES: u128 = 0xfd00_0ec2 << 96;
/// fd20:ce::254. What is around it belongs to customers.
const GCP_METADATA: u128 = 0xfd20_00ce << 96 | 0x254;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn readings(text: &str) -> Vec<String> {
        let ip = text.parse().unwrap();
        stands_for(ip).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn each_form_is_read() {
        for (form, readable) in [
            ("::ffff:192.0.2.33", &["192.0.2.33"][..]),
            ("::192.0.2.33", &["192.0.2.33"]),
            ("::1", &["0.0.0.1"]),
            ("::ffff:0:192.0.2.33", &["192.0.2.33"]),
            ("64:ff9b::192.0.2.33", &["192.0.2.33"]),
            ("2002:c000:221::", &["192.0.2.33"]),
            ("2002:c000:221:1:2:3:4:5", &["192.0.2.33"]),
            // The example of RFC 4380, with its server and its client.
            (
                "2001:0:4136:e378:8000:63bf:3fff:fdd2",
                &["65.54.227.120", "192.0.2.45"],
            ),
            ("2001:db8::5efe:192.0.2.33", &["192.0.2.33"]),
            ("2001:db8::200:5efe:192.0.2.33", &["192.0.2.33"]),
            ("fe80::5efe:192.0.2.33", &["192.0.2.33"]),
            // Two at once.
            ("2002:c000:221::5efe:10.0.0.1", &["10.0.0.1", "192.0.2.33"]),
        ] {
            assert_eq!(readings(form), readable, "{form}");
        }
    }

    /// RFC 6052 2.4, with the prefix for local use.
    #[test]
    fn local_nat64_is_read_at_each_length() {
        for form in [
            "64:ff9b:1:c000:2:2100::",
            "64:ff9b:1:ffc0:0:221::",
            "64:ff9b:1:fffe:c0:2:2100:0",
            "64:ff9b:1:fffe::192.0.2.33",
            // What is behind the address is to be ignored (2.2), so it hides nothing.
            "64:ff9b:1:c000:2:21ff:ffff:ffff",
        ] {
            let readings = readings(form);
            assert!(
                readings.iter().any(|ip| ip == "192.0.2.33"),
                "{form}: {readings:?}"
            );
        }
        // A usual prefix is not mistaken for a shorter one.
        assert_eq!(readings("64:ff9b:1:fffe::198.51.100.7"), ["198.51.100.7"]);
    }

    #[test]
    fn other_addresses_stand_for_themselves() {
        for plain in [
            "2001:db8::7",
            "2001:1::1",
            "64:ff9b:2::1",
            "64:ff9b:0:1::1",
            "2003::7f00:1",
            "fd00::5eff:7f00:1",
            "2001:db8::300:5efe:7f00:1",
            "::1:7f00:1",
            "::fffe:7f00:1",
        ] {
            assert!(readings(plain).is_empty(), "{plain}");
        }
    }

    proptest! {
        /// Whatever the address and what surrounds it: the reading is among those of each form.
        #[test]
        fn every_spelling_of_an_address_is_read(v4: u32, around: u128) {
            let wide = u128::from(v4);
            let free = |prefix: u128, len: u32| prefix | around & (u128::MAX >> len);
            let low_bits = !u128::from(u32::MAX);
            let forms = [
                MAPPED | wide,
                COMPATIBLE | wide,
                TRANSLATED | wide,
                NAT64 | wide,
                free(SIX_TO_FOUR | wide << 80, 48),
                free(TEREDO, 32) & low_bits | u128::from(!v4),
                free(TEREDO | wide << 64, 64),
                around & !(u128::MAX >> 64) | 0x0000_5efe << 32 | wide,
                around & !(u128::MAX >> 64) | 0x0200_5efe << 32 | wide,
            ];
            for form in forms {
                let form = Ipv6Addr::from_bits(form);
                prop_assert!(
                    stands_for(form).any(|ip| ip.to_bits() == v4),
                    "{} as {form}", Ipv4Addr::from_bits(v4)
                );
            }
            if is_unicast_host(Ipv4Addr::from_bits(v4)) {
                let (a, b, c) = (wide >> 16, wide & 0xffff, wide >> 24);
                let local = [
                    free(LOCAL_NAT64, 48) & low_bits | wide,
                    LOCAL_NAT64 | a << 64 | b << 40 | around & 0xff_ffff_ffff,
                    LOCAL_NAT64 | (around & 0xff) << 72 | c << 64 | (wide & 0xff_ffff) << 32,
                    LOCAL_NAT64 | (around & 0xffff) << 64 | wide << 24 | around & 0xff_ffff,
                ];
                for form in local {
                    let form = Ipv6Addr::from_bits(form);
                    prop_assert!(
                        stands_for(form).any(|ip| ip.to_bits() == v4),
                        "{} as {form}", Ipv4Addr::from_bits(v4)
                    );
                }
            }
        }
    }
}
