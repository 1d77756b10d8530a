//! What the micro-benches measure: parsers, the flow table, the core's way from a frame to what it
//! answers, and the grammar of `-p`.
//!
//! A case is one operation on a state that the operation leaves as it was, so that it can be
//! repeated for as long as one likes.

mod core;
mod packets;

use std::hint::black_box;

use netstack::core::flow::{FlowTable, HashKey, Protocol, Tuple};
use netstack::core::vnet::Offload;
use portfwd::Publish;

/// A named operation.
pub struct Case {
    pub name: &'static str,
    pub run: Box<dyn FnMut()>,
}

/// All cases, in the order of a packet's way.
pub fn all() -> Vec<Case> {
    let mut cases = vec![vnet_header()];
    cases.extend(core::cases());
    cases.extend(flow_table());
    cases.extend(port_rules());
    cases
}

fn case(name: &'static str, run: impl FnMut() + 'static) -> Case {
    let run = Box::new(run);
    Case { name, run }
}

fn vnet_header() -> Case {
    let frame = packets::udp(40_000, 100);
    case("vnet/split", move || {
        black_box(Offload::split(black_box(&frame)));
    })
}

/// The table as it is under load: lookups and changes among ten thousand others.
fn flow_table() -> Vec<Case> {
    const OTHERS: u16 = 10_000;
    let filled = || {
        let mut table = FlowTable::new(HashKey(1, 2));
        for port in 0..OTHERS {
            table.insert(tuple(port), u64::from(port));
        }
        table
    };
    let (known, unknown) = (filled(), filled());
    let mut changing = filled();
    vec![
        case("flow-table/find", move || {
            let found = known.find(black_box(&tuple(OTHERS / 2)));
            assert!(black_box(found).is_some());
        }),
        case("flow-table/find-nothing", move || {
            let found = unknown.find(black_box(&tuple(OTHERS)));
            assert!(black_box(found).is_none());
        }),
        case("flow-table/insert-and-remove", move || {
            let id = changing.insert(black_box(tuple(OTHERS)), 0);
            black_box(id.and_then(|id| changing.remove(id)));
        }),
    ]
}

fn tuple(port: u16) -> Tuple {
    Tuple {
        protocol: Protocol::Tcp,
        guest: (packets::GUEST, port).into(),
        remote: Some((packets::REMOTE, 443).into()),
    }
}

fn port_rules() -> Vec<Case> {
    let parse = |name, text: &'static str| {
        case(name, move || {
            drop(black_box(black_box(text).parse::<Publish>()));
        })
    };
    vec![
        parse("port-rule/plain", "8080:80"),
        parse(
            "port-rule/ipv6-range",
            "[2001:db8::2]:8000-8099:9000-9099/udp",
        ),
        parse("port-rule/refused", "127.0.0.1:8080:80/sctp"),
    ]
}
