//! The gate's tables as nf_tables messages, one for each address family. What they say, in nft's
//! language:
//!
//! ```text
//! table ip coracle {
//!   flags owner
//!   set promoted { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
//!   chain prerouting { type filter hook prerouting priority mangle + 1;
//!     iif != lo meta l4proto tcp tcp flags & (syn | ack) != syn
//!       ip saddr . tcp sport . ip daddr . tcp dport @promoted meta mark set DIVERTED
//!   }
//!   chain output { type route hook output priority mangle + 1; … meta mark set DIVERTED }
//!   chain raw { type filter hook prerouting priority raw; … notrack }
//!   chain rawoutput { type filter hook output priority raw; meta mark UNTRACKED notrack }
//! }
//! ```
//!
//! Every chain costs each packet of the guest's, promoted or not; a chain is made when there is a
//! use for it ([`Reach`]), and for the same reason a table knows one family only.
//!
//! Behind `mangle`, because that is where others restore a connection's mark. What comes from `lo`
//! has been routed on its way out. Numbers are those of linux/netfilter/nf_tables.h; a rule is a
//! list of small expressions over registers.

use std::net::{IpAddr, SocketAddr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::mark;
use crate::core::flow::Endpoints;
use crate::netlink::Encoder;

pub const NFNL_SUBSYS_NFTABLES: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;

/// An attribute is below 64 KiB; an IPv6 element takes 52 bytes.
pub const ELEMENTS_PER_MESSAGE: usize = 1000;

const TABLE: &str = "coracle";
const SET: &str = "promoted";
/// Names the set to rules of the same transaction.
const SET_ID: u32 = 1;

/// Which connections a table can divert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Those of sockets in the guest's network namespace.
    Own,
    /// Those that the guest only forwards, too. Needs connection tracking (nft_ct).
    Forwarded,
}

/// What its sets hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(endpoints: &Endpoints) -> Self {
        if endpoints.guest().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    fn nfproto(self) -> u8 {
        match self {
            Self::V4 => libc::NFPROTO_IPV4 as u8,
            Self::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }

    fn address_len(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Where the source is in the IP header (RFC 791 3.1, RFC 8200 3); the destination follows it.
    fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    /// nft's number for the type of a concatenation, six bits each.
    fn key_type(self) -> u32 {
        const IPV4_ADDR: u32 = 7;
        const IPV6_ADDR: u32 = 8;
        const INET_SERVICE: u32 = 13;
        let address = match self {
            Self::V4 => IPV4_ADDR,
            Self::V6 => IPV6_ADDR,
        };
        [address, INET_SERVICE, address, INET_SERVICE]
            .into_iter()
            .fold(0, |types, kind| types << 6 | kind)
    }

    /// In bytes: everything is padded to whole registers.
    fn key_len(self) -> u32 {
        2 * (self.address_len() + REGISTER_LEN)
    }
}

/// Takes the table away if there is one. (It is made first, because what is not there cannot be
/// deleted.)
pub fn delete_table(transaction: &mut Encoder, family: Family) {
    let name = |message: &mut Encoder| message.string(NFTA_TABLE_NAME, TABLE);
    let mut message = |kind, flags| message(transaction, family, kind, flags, name);
    message(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE);
    message(libc::NFT_MSG_DELTABLE, 0);
}

/// Makes the table with an empty set. With `owned` it is the sending socket's alone and goes with
/// it (Linux 5.12).
pub fn make_table(transaction: &mut Encoder, family: Family, owned: bool) {
    let mut create = |kind, attributes: &dyn Fn(&mut Encoder)| {
        message(transaction, family, kind, NLM_F_CREATE, attributes);
    };
    create(libc::NFT_MSG_NEWTABLE, &|message| {
        message.string(NFTA_TABLE_NAME, TABLE);
        if owned {
            message.u32_be(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        }
    });
    create(libc::NFT_MSG_NEWSET, &|message| {
        message.string(NFTA_SET_TABLE, TABLE);
        message.string(NFTA_SET_NAME, SET);
        message.u32_be(NFTA_SET_KEY_TYPE, family.key_type());
        message.u32_be(NFTA_SET_KEY_LEN, family.key_len());
        message.u32_be(NFTA_SET_ID, SET_ID);
    });
}

/// Adds the chains and rules that a table lacks which has those of `from`, if any, and is to have
/// those of `to`.
pub fn extend_table(transaction: &mut Encoder, family: Family, from: Option<Reach>, to: Reach) {
    if from < Some(Reach::Own) {
        divert_own(transaction, family);
    }
    if from < Some(Reach::Forwarded) && to == Reach::Forwarded {
        leave_forwarded_untracked(transaction, family);
    }
}

fn divert_own(transaction: &mut Encoder, family: Family) {
    use libc::{NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE};
    let mut chain = Chain {
        transaction,
        family,
        name: "prerouting",
    };
    chain.make("filter", NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE + 1);
    chain.rule(|rule| {
        not_from_loopback(rule);
        is_promoted(rule, family);
        set_mark(rule);
    });
    chain.name = "output";
    chain.make("route", NF_INET_LOCAL_OUT, NF_IP_PRI_MANGLE + 1);
    chain.rule(|rule| {
        is_promoted(rule, family);
        set_mark(rule);
    });
}

fn leave_forwarded_untracked(transaction: &mut Encoder, family: Family) {
    use libc::{NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NF_IP_PRI_RAW};
    let mut chain = Chain {
        transaction,
        family,
        name: "raw",
    };
    chain.make("filter", NF_INET_PRE_ROUTING, NF_IP_PRI_RAW);
    chain.rule(|rule| {
        not_from_loopback(rule);
        is_promoted(rule, family);
        expression(rule, "notrack", |_| {});
    });
    chain.name = "rawoutput";
    chain.make("filter", NF_INET_LOCAL_OUT, NF_IP_PRI_RAW);
    chain.rule(|rule| {
        meta(rule, libc::NFT_META_MARK);
        compare(rule, libc::NFT_CMP_EQ, &mark::UNTRACKED.to_ne_bytes());
        expression(rule, "notrack", |_| {});
    });
}

/// Puts `elements`, all of `family`, into their set; one that is in it already is no error.
pub fn add_elements(transaction: &mut Encoder, family: Family, elements: &[Endpoints]) {
    let kind = libc::NFT_MSG_NEWSETELEM;
    message(transaction, family, kind, NLM_F_CREATE, |message| {
        element_list(message, elements)
    });
}

/// Takes `elements`, all of `family`, out of their set. ENOENT if one is not in it.
pub fn delete_elements(transaction: &mut Encoder, family: Family, elements: &[Endpoints]) {
    let kind = libc::NFT_MSG_DELSETELEM;
    message(transaction, family, kind, 0, |message| {
        element_list(message, elements)
    });
}

fn element_list(message: &mut Encoder, elements: &[Endpoints]) {
    message.string(NFTA_SET_ELEM_LIST_TABLE, TABLE);
    message.string(NFTA_SET_ELEM_LIST_SET, SET);
    message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
        for element in elements {
            list.nest(NFTA_LIST_ELEM, |item| {
                item.nest(NFTA_SET_ELEM_KEY, |value| {
                    value.value(NFTA_DATA_VALUE, |key| {
                        put_end(key, element.guest());
                        put_end(key, element.remote());
                    });
                });
            });
        }
    });
}

/// Address and port, each padded to whole registers.
fn put_end(key: &mut Encoder, end: SocketAddr) {
    match end.ip() {
        IpAddr::V4(ip) => key.put(&ip.octets()),
        IpAddr::V6(ip) => key.put(&ip.octets()),
    }
    key.put(&end.port().to_be_bytes());
    key.put(&[0; 2]);
}

/// A chain under construction.
struct Chain<'a> {
    transaction: &'a mut Encoder,
    family: Family,
    name: &'static str,
}

impl Chain<'_> {
    fn make(&mut self, kind: &str, hook: libc::c_int, priority: libc::c_int) {
        self.message(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message, name| {
            message.string(NFTA_CHAIN_TABLE, TABLE);
            message.string(NFTA_CHAIN_NAME, name);
            message.nest(NFTA_CHAIN_HOOK, |nest| {
                nest.u32_be(NFTA_HOOK_HOOKNUM, hook.cast_unsigned());
                nest.u32_be(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            message.string(NFTA_CHAIN_TYPE, kind);
        });
    }

    fn rule(&mut self, expressions: impl FnOnce(&mut Encoder)) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.message(libc::NFT_MSG_NEWRULE, flags, |message, name| {
            message.string(NFTA_RULE_TABLE, TABLE);
            message.string(NFTA_RULE_CHAIN, name);
            message.nest(NFTA_RULE_EXPRESSIONS, expressions);
        });
    }

    fn message(
        &mut self,
        kind: libc::c_int,
        flags: u16,
        attributes: impl FnOnce(&mut Encoder, &str),
    ) {
        message(self.transaction, self.family, kind, flags, |message| {
            attributes(message, self.name)
        });
    }
}

fn not_from_loopback(rule: &mut Encoder) {
    /// lo is number 1 in every network namespace (include/net/flow.h).
    const LOOPBACK_IFINDEX: u32 = 1;
    meta(rule, libc::NFT_META_IIF);
    compare(rule, libc::NFT_CMP_NEQ, &LOOPBACK_IFINDEX.to_ne_bytes());
}

/// A segment of a connection in the set, but no SYN.
fn is_promoted(rule: &mut Encoder, family: Family) {
    /// RFC 9293 3.1.
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    meta(rule, libc::NFT_META_L4PROTO);
    compare(rule, libc::NFT_CMP_EQ, &[libc::IPPROTO_TCP as u8]);
    transport_header(rule, FIRST_REGISTER, FLAGS_OFFSET, 1);
    mask(rule, SYN | ACK);
    compare(rule, libc::NFT_CMP_NEQ, &[SYN]);

    let address_len = family.address_len();
    let source = family.source_offset();
    let end_registers = (address_len + REGISTER_LEN) / REGISTER_LEN;
    for (end, address_offset) in [(0, source), (1, source + address_len)] {
        let register = FIRST_REGISTER + end * end_registers;
        network_header(rule, register, address_offset, address_len);
        transport_header(rule, register + end_registers - 1, end * 2, 2);
    }
    expression(rule, "lookup", |lookup| {
        lookup.string(NFTA_LOOKUP_SET, SET);
        lookup.u32_be(NFTA_LOOKUP_SREG, FIRST_REGISTER);
        lookup.u32_be(NFTA_LOOKUP_SET_ID, SET_ID);
    });
}

fn set_mark(rule: &mut Encoder) {
    expression(rule, "immediate", |immediate| {
        immediate.u32_be(NFTA_IMMEDIATE_DREG, FIRST_REGISTER);
        // Marks are numbers in the machine's own byte order.
        data(
            immediate,
            NFTA_IMMEDIATE_DATA,
            &mark::DIVERTED.to_ne_bytes(),
        );
    });
    expression(rule, "meta", |meta| {
        meta.u32_be(NFTA_META_KEY, libc::NFT_META_MARK.cast_unsigned());
        meta.u32_be(NFTA_META_SREG, FIRST_REGISTER);
    });
}

/// Loads `len` bytes of the IP header into registers from `register` on.
fn network_header(rule: &mut Encoder, register: u32, offset: u32, len: u32) {
    payload(
        rule,
        libc::NFT_PAYLOAD_NETWORK_HEADER,
        register,
        offset,
        len,
    );
}

/// The same of the TCP header.
fn transport_header(rule: &mut Encoder, register: u32, offset: u32, len: u32) {
    payload(
        rule,
        libc::NFT_PAYLOAD_TRANSPORT_HEADER,
        register,
        offset,
        len,
    );
}

fn payload(rule: &mut Encoder, base: libc::c_int, register: u32, offset: u32, len: u32) {
    expression(rule, "payload", |payload| {
        payload.u32_be(NFTA_PAYLOAD_DREG, register);
        payload.u32_be(NFTA_PAYLOAD_BASE, base.cast_unsigned());
        payload.u32_be(NFTA_PAYLOAD_OFFSET, offset);
        payload.u32_be(NFTA_PAYLOAD_LEN, len);
    });
}

/// Loads what the kernel knows of the packet.
fn meta(rule: &mut Encoder, key: libc::c_int) {
    expression(rule, "meta", |meta| {
        meta.u32_be(NFTA_META_DREG, FIRST_REGISTER);
        meta.u32_be(NFTA_META_KEY, key.cast_unsigned());
    });
}

/// Keeps these bits of the first register's first byte.
fn mask(rule: &mut Encoder, bits: u8) {
    expression(rule, "bitwise", |bitwise| {
        bitwise.u32_be(NFTA_BITWISE_SREG, FIRST_REGISTER);
        bitwise.u32_be(NFTA_BITWISE_DREG, FIRST_REGISTER);
        bitwise.u32_be(NFTA_BITWISE_LEN, 1);
        data(bitwise, NFTA_BITWISE_MASK, &[bits]);
        data(bitwise, NFTA_BITWISE_XOR, &[0]);
    });
}

/// Ends the rule unless the first register and `value` compare as `operator` says.
fn compare(rule: &mut Encoder, operator: libc::c_int, value: &[u8]) {
    expression(rule, "cmp", |compare| {
        compare.u32_be(NFTA_CMP_SREG, FIRST_REGISTER);
        compare.u32_be(NFTA_CMP_OP, operator.cast_unsigned());
        data(compare, NFTA_CMP_DATA, value);
    });
}

fn expression(rule: &mut Encoder, name: &str, attributes: impl FnOnce(&mut Encoder)) {
    rule.nest(NFTA_LIST_ELEM, |expression| {
        expression.string(NFTA_EXPR_NAME, name);
        expression.nest(NFTA_EXPR_DATA, attributes);
    });
}

fn data(nest: &mut Encoder, kind: u16, value: &[u8]) {
    nest.nest(kind, |data| data.attribute(NFTA_DATA_VALUE, value));
}

fn message(
    transaction: &mut Encoder,
    family: Family,
    kind: libc::c_int,
    flags: u16,
    attributes: impl FnOnce(&mut Encoder),
) {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind as u16;
    transaction.message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, |message| {
        message.put(&[family.nfproto(), NFNETLINK_V0, 0, 0]);
        attributes(message);
    });
}

const NFNETLINK_V0: u8 = 0;
const NFT_TABLE_F_OWNER: u32 = 2;
/// The first of sixteen registers of four bytes.
const FIRST_REGISTER: u32 = libc::NFT_REG32_00 as u32;
const REGISTER_LEN: u32 = libc::NFT_REG32_SIZE as u32;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
