//! Answers to questions for the names of the engine ([`HostNames`]): addresses (RFC 1035, RFC 3596)
//! and names of addresses; everything else is for a resolver.
//!
//! `domain` takes messages apart and puts them together. hickory-proto would as well, but brings
//! sixty crates along, Unicode's tables for names among them, into a process that is to hold
//! little; `domain`, of the makers of Unbound and NSD, brings two, and reads in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::header::HeaderSection;
use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AnswerBuilder, PushError};
use domain::base::name::Label;
use domain::base::{
    HeaderCounts, Message, MessageBuilder, Name, Rtype, StaticCompressor, ToName, Ttl,
};
use domain::rdata::{A, Aaaa, Ptr};

use super::names::HostNames;

/// Containers come and go, and so do their names.
const TTL: Ttl = Ttl::from_secs(5);
/// What a UDP message may have without EDNS (RFC 1035 2.3.4).
const PLAIN_LEN: usize = 512;
/// What we send, and say that we take: no more than any path carries whole (RFC 9715).
const EDNS_LEN: u16 = 1232;
/// An OPT record without options (RFC 6891 6.1.2).
const OPT_LEN: usize = 11;

/// How an answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// What does not fit is left out, and the asker told to ask over TCP (RFC 2181 9).
    Udp,
    Tcp,
}

/// What is known of a question.
enum Known {
    Addresses(Vec<IpAddr>),
    Names(Vec<Name<Vec<u8>>>),
    /// The name exists, without data of this type (RFC 2308 2.2).
    NoData,
}

/// The answer to `query` if it asks for a name of ours that `asker` may see.
pub fn answer(query: &[u8], carrier: Carrier, names: &HostNames, asker: IpAddr) -> Option<Vec<u8>> {
    let query = Message::from_slice(query).ok()?;
    let header = query.header();
    if header.qr() || header.opcode() != Opcode::QUERY || header.tc() {
        return None;
    }
    let question = query.sole_question().ok()?;
    if question.qclass() != Class::IN {
        return None;
    }
    let mut name: Name<Vec<u8>> = question.qname().try_to_name().ok()?;
    name.make_canonical();
    let known = look_up(&name, question.qtype(), names, asker)?;
    write(query, carrier, question.qname(), &known).ok()
}

/// An answer that says that nobody can answer `query`, or that it does not ask a single question
/// (RFC 9619). `None` if it is no query. Never longer than `query`: the question goes back as it
/// came, since a name that came compressed would grow if it were written anew.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_slice(query).ok()?;
    if message.header().qr() {
        return None;
    }
    let (rcode, end) = match sole_question_end(message) {
        Some(end) => (Rcode::SERVFAIL, end),
        None => (Rcode::FORMERR, size_of::<HeaderSection>()),
    };
    let mut answer = query[..end].to_vec();
    let section = HeaderSection::for_message_slice_mut(&mut answer);
    let header = section.header_mut();
    header.set_qr(true);
    header.set_aa(false);
    header.set_tc(false);
    header.set_ra(true);
    header.set_ad(false);
    header.set_rcode(rcode);
    let mut counts = HeaderCounts::default();
    counts.set_qdcount((rcode == Rcode::SERVFAIL).into());
    *section.counts_mut() = counts;
    Some(answer)
}

/// Where the only question of `message` ends, in bytes from its start.
fn sole_question_end(message: &Message<[u8]>) -> Option<usize> {
    message.sole_question().ok()?;
    let mut questions = message.question();
    questions.next()?.ok()?;
    Some(questions.pos())
}

fn look_up(name: &Name<Vec<u8>>, kind: Rtype, names: &HostNames, asker: IpAddr) -> Option<Known> {
    if let Some(address) = reversed(name) {
        let found = names.names(address, asker).map(|name| {
            let mut octets = Vec::new();
            name.write(&mut octets);
            Name::from_octets(octets).ok()
        });
        let found: Vec<_> = found.flatten().collect();
        return match kind {
            _ if found.is_empty() => None,
            Rtype::PTR | Rtype::ANY => Some(Known::Names(found)),
            _ => Some(Known::NoData),
        };
    }
    let mut found = names.addresses(name.as_slice(), asker);
    if found.is_empty() {
        return None;
    }
    found.retain(|address| match kind {
        Rtype::A => address.is_ipv4(),
        Rtype::AAAA => address.is_ipv6(),
        kind => kind == Rtype::ANY,
    });
    Some(match found.is_empty() {
        true => Known::NoData,
        false => Known::Addresses(found),
    })
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for (RFC 1035 3.5, RFC 3596 2.5).
fn reversed(name: &Name<Vec<u8>>) -> Option<IpAddr> {
    let labels: Vec<&[u8]> = name.iter().map(Label::as_slice).collect();
    let number = |label: &[u8], radix| {
        let text = std::str::from_utf8(label).ok()?;
        u8::from_str_radix(text, radix).ok()
    };
    match labels.as_slice() {
        [octets @ .., b"in-addr", b"arpa", b""] if octets.len() == 4 => {
            let octets = octets.iter().rev().map(|octet| number(octet, 10));
            let octets: Vec<u8> = octets.collect::<Option<_>>()?;
            Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into())
        }
        [nibbles @ .., b"ip6", b"arpa", b""] if nibbles.len() == 32 => {
            let mut bits = 0u128;
            for nibble in nibbles.iter().rev() {
                let nibble = Some(number(nibble, 16)?).filter(|nibble| *nibble < 16);
                bits = bits << 4 | u128::from(nibble?);
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

fn write(
    query: &Message<[u8]>,
    carrier: Carrier,
    name: impl ToName,
    known: &Known,
) -> Result<Vec<u8>, PushError> {
    let edns = query.opt();
    let target = StaticCompressor::new(Vec::new());
    let builder = MessageBuilder::from_target(target).map_err(|_| PushError::ShortBuf)?;
    let mut answer = builder.start_answer(query, Rcode::NOERROR)?;
    answer.header_mut().set_ra(true);
    answer.header_mut().set_aa(true);
    let is_bad = edns.as_ref().is_some_and(|edns| edns.version() != 0);
    if carrier == Carrier::Udp {
        let limit = match &edns {
            Some(edns) => {
                usize::from(edns.udp_payload_size().min(EDNS_LEN)).max(PLAIN_LEN) - OPT_LEN
            }
            None => PLAIN_LEN,
        };
        answer.set_push_limit(limit);
    }
    if !is_bad && push(&mut answer, name, known).is_err() {
        answer.header_mut().set_tc(true);
    }
    answer.clear_push_limit();
    let mut additional = answer.additional();
    if let Some(edns) = edns {
        additional.opt(|opt| {
            opt.set_udp_payload_size(EDNS_LEN);
            opt.set_dnssec_ok(edns.dnssec_ok());
            if is_bad {
                opt.set_rcode(OptRcode::BADVERS);
            }
            Ok(())
        })?;
    }
    Ok(additional.finish().into_target())
}

/// As many records as there is room for.
fn push(
    answer: &mut AnswerBuilder<StaticCompressor<Vec<u8>>>,
    name: impl ToName,
    known: &Known,
) -> Result<(), PushError> {
    match known {
        Known::Addresses(addresses) => addresses.iter().try_for_each(|address| match address {
            IpAddr::V4(ip) => answer.push((&name, Class::IN, TTL, A::from(*ip))),
            IpAddr::V6(ip) => answer.push((&name, Class::IN, TTL, Aaaa::from(*ip))),
        }),
        Known::Names(names) => names
            .iter()
            .try_for_each(|own| answer.push((&name, Class::IN, TTL, Ptr::new(own)))),
        Known::NoData => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use domain::base::message_builder::QuestionBuilder;
    use domain::rdata::AllRecordData;
    use proptest::prelude::*;

    use super::*;

    const ASKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 89, 0, 7));

    fn names() -> HostNames {
        let texts = [
            "db=10.89.0.5,fd89::5@10.89.0.0/24",
            "web=10.89.0.6",
            "secret=10.90.0.5@10.90.0.0/24",
        ];
        HostNames::new(texts.map(|text| text.parse().unwrap())).unwrap()
    }

    fn query(name: &str, kind: Rtype) -> QuestionBuilder<Vec<u8>> {
        let mut query = MessageBuilder::new_vec();
        query.header_mut().set_id(77);
        query.header_mut().set_rd(true);
        let mut question = query.question();
        let name = Name::vec_from_str(name).unwrap();
        question.push((name, kind)).unwrap();
        question
    }

    fn ask(names: &HostNames, query: &[u8], carrier: Carrier) -> Option<Message<Vec<u8>>> {
        let answer = answer(query, carrier, names, ASKER)?;
        Some(Message::from_octets(answer).unwrap())
    }

    /// What is told of `name`; `None` if it is not ours.
    fn told(name: &str, kind: Rtype) -> Option<Vec<String>> {
        let answer = ask(&names(), &query(name, kind).finish(), Carrier::Udp)?;
        let header = answer.header();
        assert!(header.qr() && header.aa() && header.ra() && header.rd() && !header.tc());
        assert_eq!((header.id(), header.rcode()), (77, Rcode::NOERROR));
        assert_eq!(answer.sole_question().unwrap().qtype(), kind);
        let records = answer
            .answer()
            .unwrap()
            .into_records::<AllRecordData<_, _>>();
        let records = records.map(|record| {
            let record = record.unwrap();
            assert_eq!(record.ttl(), TTL);
            record.data().to_string()
        });
        Some(records.collect())
    }

    #[test]
    fn names_and_addresses_are_told_and_what_they_have_not_is_nothing() {
        for (name, kind, expected) in [
            ("db", Rtype::A, Some(vec!["10.89.0.5"])),
            ("DB.", Rtype::AAAA, Some(vec!["fd89::5"])),
            ("db", Rtype::ANY, Some(vec!["10.89.0.5", "fd89::5"])),
            ("web", Rtype::AAAA, Some(vec![])),
            ("web", Rtype::MX, Some(vec![])),
            ("5.0.89.10.in-addr.arpa", Rtype::PTR, Some(vec!["db."])),
            ("5.0.89.10.IN-ADDR.arpa", Rtype::A, Some(vec![])),
            ("9.0.89.10.in-addr.arpa", Rtype::PTR, None),
            ("0.5.0.89.10.in-addr.arpa", Rtype::PTR, None),
            ("x.0.89.10.in-addr.arpa", Rtype::PTR, None),
            ("other", Rtype::A, None),
            ("x.db", Rtype::A, None),
            ("secret", Rtype::A, None),
            (".", Rtype::NS, None),
        ] {
            let expected = expected.map(|told| told.into_iter().map(str::to_owned).collect());
            assert_eq!(told(name, kind), expected, "{name} {kind}");
        }
        let nibbles = format!("5{}9.8.d.f.ip6.arpa", ".0".repeat(27) + ".");
        assert_eq!(told(&nibbles, Rtype::PTR), Some(vec!["db.".to_owned()]));
    }

    #[test]
    fn what_is_no_query_is_left_alone() {
        let names = names();
        let mut response = query("db", Rtype::A);
        response.header_mut().set_qr(true);
        let mut notify = query("db", Rtype::A);
        notify.header_mut().set_opcode(Opcode::NOTIFY);
        for message in [response.finish(), notify.finish()] {
            assert!(ask(&names, &message, Carrier::Udp).is_none());
        }
        let mut two = query("db", Rtype::A);
        let web = Name::vec_from_str("web").unwrap();
        two.push((web, Rtype::A)).unwrap();
        assert!(ask(&names, &two.finish(), Carrier::Udp).is_none());
    }

    #[test]
    fn edns_is_answered_by_edns() {
        for (version, dnssec_ok, rcode, count) in [
            (0, true, OptRcode::NOERROR, 1),
            (0, false, OptRcode::NOERROR, 1),
            (1, false, OptRcode::BADVERS, 0),
        ] {
            let mut asked = query("web", Rtype::A).additional();
            asked
                .opt(|opt| {
                    opt.set_udp_payload_size(4096);
                    opt.set_version(version);
                    opt.set_dnssec_ok(dnssec_ok);
                    Ok(())
                })
                .unwrap();
            let answer = ask(&names(), &asked.finish(), Carrier::Udp).unwrap();
            let opt = answer.opt().unwrap();
            assert_eq!((opt.version(), opt.dnssec_ok()), (0, dnssec_ok));
            assert_eq!(opt.udp_payload_size(), EDNS_LEN);
            assert_eq!(answer.opt_rcode(), rcode);
            assert_eq!(answer.header_counts().ancount(), count);
        }
        let plain = ask(&names(), &query("web", Rtype::A).finish(), Carrier::Udp);
        assert!(plain.unwrap().opt().is_none());
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_asked_for_over_tcp() {
        let many = (0..60).map(|last| format!("many=fd89::{last:x}").parse().unwrap());
        let names = HostNames::new(many).unwrap();
        let plain = query("many", Rtype::AAAA).finish();
        let mut asked = query("many", Rtype::AAAA).additional();
        asked
            .opt(|opt| {
                opt.set_udp_payload_size(65_535);
                Ok(())
            })
            .unwrap();
        for (asked, carrier, len, is_cut) in [
            (&plain, Carrier::Udp, PLAIN_LEN, true),
            (&asked.finish(), Carrier::Udp, EDNS_LEN.into(), true),
            (&plain, Carrier::Tcp, 65_535, false),
        ] {
            let answer = ask(&names, asked, carrier).unwrap();
            assert_eq!(answer.header().tc(), is_cut);
            assert!(
                answer.as_slice().len() <= len,
                "{}",
                answer.as_slice().len()
            );
            let count = answer.header_counts().ancount();
            assert!(count == 60 || is_cut && count > 10, "{count}");
        }
    }

    /// Forty-nine questions of six bytes, each a pointer to a name of 255, would come back as
    /// twelve thousand bytes.
    #[test]
    fn failures_do_not_grow() {
        let long = Name::vec_from_str(&["x".repeat(49).as_str(); 5].join(".")).unwrap();
        let mut one = MessageBuilder::new_vec().question();
        one.push((&long, Rtype::A)).unwrap();
        let one = one.finish();
        let failed = failure(&one).unwrap();
        let failed = Message::from_octets(failed).unwrap();
        assert_eq!(failed.header().rcode(), Rcode::SERVFAIL);
        assert_eq!(failed.sole_question().unwrap().qname(), &long);

        let mut many = one.clone();
        for _ in 0..48 {
            many.extend([0xc0, 12, 0, 1, 0, 1]);
        }
        HeaderSection::for_message_slice_mut(&mut many)
            .counts_mut()
            .set_qdcount(49);
        let failed = Message::from_octets(failure(&many).unwrap()).unwrap();
        assert_eq!(failed.header().rcode(), Rcode::FORMERR);
        assert_eq!(failed.as_slice().len(), size_of::<HeaderSection>());
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(message in proptest::collection::vec(any::<u8>(), 0..100), cut in 0..40usize) {
            let names = names();
            let mut like = query("db", Rtype::A).finish();
            like.truncate(cut);
            like.extend(&message);
            for query in [&message, &like] {
                if let Some(answer) = answer(query, Carrier::Udp, &names, ASKER) {
                    prop_assert!(answer.len() <= EDNS_LEN.into());
                }
                if let Some(failure) = failure(query) {
                    prop_assert!(failure.len() <= query.len());
                }
            }
        }
    }
}
