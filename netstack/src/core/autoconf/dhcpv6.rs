//! A DHCPv6 server (RFC 8415) with one address to give, or with none: then it only answers who asks
//! for other configuration.
//!
//! Temporary addresses and prefixes are not given; requests for them are passed over in an answer,
//! and nobody renumbers this link, so that there are no Reconfigure messages. Relay agents are not
//! served.

use std::net::Ipv6Addr;

use super::names::Names;
use super::{LEASE_SECONDS, MAX_MESSAGE_LEN, MAX_OPTIONS, Malformed};
use crate::core::packet::MacAddr;

/// What follows from a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub message: Vec<u8>,
    /// The address that the client has from now on.
    pub assigned: Option<Ipv6Addr>,
}

/// Answers `message`, if it is for this server, whose Ethernet address is `mac`. Clients that ask
/// for an address get `offered`.
pub fn handle(
    message: &[u8],
    offered: Option<Ipv6Addr>,
    mac: MacAddr,
    names: &Names,
) -> Result<Option<Answer>, Malformed> {
    let request = Request::parse(message)?;
    let [a, b, c, d, e, f] = mac;
    let duid = [0, DUID_LL, 0, ETHERNET, a, b, c, d, e, f];
    if !request.is_for(&duid) {
        return Ok(None);
    }
    let Some(kind) = request.answered_by(offered.is_some()) else {
        return Ok(None);
    };
    let mut reply = Reply::new(kind, request.transaction);
    reply.option(OPTION_SERVER_ID, &duid);
    if let Some(id) = request.client {
        reply.option(OPTION_CLIENT_ID, id);
    }
    let mut assigned = None;
    match (request.kind, offered) {
        (CONFIRM, Some(address)) => {
            let is_on_link = request.addresses.iter().all(|claimed| *claimed == address);
            reply.status(if is_on_link { SUCCESS } else { NOT_ON_LINK });
            return Ok(Some(Answer {
                message: reply.0,
                assigned,
            }));
        }
        (RELEASE | DECLINE, _) => reply.status(SUCCESS),
        (INFORMATION_REQUEST, _) => {}
        (_, Some(address)) => {
            if let Some(association) = request.association {
                reply.address(association, address);
                assigned = Some(address).filter(|_| kind == REPLY);
            }
            if kind == REPLY && request.kind == SOLICIT {
                reply.option(OPTION_RAPID_COMMIT, &[]);
            }
        }
        (_, None) => {}
    }
    tell_names(&mut reply, names, request.knows_fqdn);
    Ok(Some(Answer {
        message: reply.0,
        assigned,
    }))
}

fn tell_names(reply: &mut Reply, names: &Names, knows_fqdn: bool) {
    let resolvers = names.resolvers_v6();
    if !resolvers.is_empty() {
        reply.option(OPTION_DNS, &resolvers);
    }
    if let Some(search) = names.search.encoded() {
        reply.option(OPTION_DOMAIN_LIST, search);
    }
    if let Some(name) = names.fqdn.as_ref().filter(|_| knows_fqdn) {
        // No flag is set: nobody updates DNS here (RFC 4704 4.1).
        let mut data = vec![0];
        name.write(&mut data);
        reply.option(OPTION_CLIENT_FQDN, &data);
    }
}

/// What is looked at in a client's message.
#[derive(Default)]
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// The IAID of the first association that wants an address.
    association: Option<[u8; 4]>,
    /// What the client says it has in that.
    addresses: Vec<Ipv6Addr>,
    wants_rapid_commit: bool,
    knows_fqdn: bool,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        if message.len() > MAX_MESSAGE_LEN {
            return Err(Malformed);
        }
        let (&[kind, a, b, c], mut options) = message.split_first_chunk().ok_or(Malformed)?;
        let mut request = Self {
            kind,
            transaction: [a, b, c],
            ..Self::default()
        };
        for _ in 0..MAX_OPTIONS {
            if options.is_empty() {
                return Ok(request);
            }
            let (option, data);
            (option, data, options) = split_option(options)?;
            match option {
                OPTION_CLIENT_ID if data.len() <= MAX_DUID_LEN => request.client = Some(data),
                OPTION_CLIENT_ID => return Err(Malformed),
                OPTION_SERVER_ID => request.server = Some(data),
                OPTION_IA_NA if request.association.is_none() => request.associate(data)?,
                OPTION_RAPID_COMMIT => request.wants_rapid_commit = true,
                OPTION_CLIENT_FQDN => request.knows_fqdn = true,
                OPTION_REQUESTED => {
                    let wanted = OPTION_CLIENT_FQDN.to_be_bytes();
                    request.knows_fqdn |= data.chunks_exact(2).any(|code| code == wanted);
                }
                _ => {}
            }
        }
        Err(Malformed)
    }

    /// Reads an association: IAID, T1, T2, options.
    fn associate(&mut self, data: &'a [u8]) -> Result<(), Malformed> {
        let (&[a, b, c, d, ..], mut options) = data.split_first_chunk::<12>().ok_or(Malformed)?;
        self.association = Some([a, b, c, d]);
        while !options.is_empty() {
            let (option, data);
            (option, data, options) = split_option(options)?;
            if option == OPTION_IA_ADDRESS {
                let address = data.first_chunk::<16>().ok_or(Malformed)?;
                self.addresses.push(Ipv6Addr::from(*address));
            }
            if self.addresses.len() > MAX_OPTIONS {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    /// Which messages name a server, and all but one a client, is fixed (RFC 8415 16).
    fn is_for(&self, duid: &[u8]) -> bool {
        let names_us = match self.kind {
            SOLICIT | CONFIRM | REBIND => self.server.is_none(),
            INFORMATION_REQUEST => self.server.is_none_or(|server| server == duid),
            _ => self.server == Some(duid),
        };
        names_us && (self.client.is_some() || self.kind == INFORMATION_REQUEST)
    }

    fn answered_by(&self, has_address: bool) -> Option<u8> {
        match self.kind {
            INFORMATION_REQUEST => Some(REPLY),
            _ if !has_address => None,
            SOLICIT if !self.wants_rapid_commit => Some(ADVERTISE),
            // Without an address there is nothing to confirm (RFC 8415 18.3.3).
            CONFIRM if self.addresses.is_empty() => None,
            SOLICIT | REQUEST | CONFIRM | RENEW | REBIND | RELEASE | DECLINE => Some(REPLY),
            _ => None,
        }
    }
}

/// Number and data of the first option, and what follows.
fn split_option(options: &[u8]) -> Result<(u16, &[u8], &[u8]), Malformed> {
    let (&[a, b, c, d], rest) = options.split_first_chunk().ok_or(Malformed)?;
    let len = u16::from_be_bytes([c, d]);
    let (data, rest) = rest.split_at_checked(len.into()).ok_or(Malformed)?;
    Ok((u16::from_be_bytes([a, b]), data, rest))
}

/// A message to a client while it is written.
struct Reply(Vec<u8>);

impl Reply {
    fn new(kind: u8, [a, b, c]: [u8; 3]) -> Self {
        Self(vec![kind, a, b, c])
    }

    /// `data` is one of ours or of a message's, and those are shorter than an option may be.
    fn option(&mut self, option: u16, data: &[u8]) {
        self.0.extend(option.to_be_bytes());
        self.0.extend((data.len() as u16).to_be_bytes());
        self.0.extend_from_slice(data);
    }

    fn status(&mut self, code: u16) {
        self.option(OPTION_STATUS, &code.to_be_bytes());
    }

    /// An association with `address` in it. When to renew it is left to the client.
    fn address(&mut self, association: [u8; 4], address: Ipv6Addr) {
        let lifetime = LEASE_SECONDS.to_be_bytes();
        let mut inner = Self(Vec::new());
        let address = [address.octets().as_slice(), &lifetime, &lifetime].concat();
        inner.option(OPTION_IA_ADDRESS, &address);
        let times = [0; 8];
        let data = [association.as_slice(), &times, &inner.0].concat();
        self.option(OPTION_IA_NA, &data);
    }
}

// RFC 8415 7.3.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

// RFC 8415 21; from 23 on RFC 3646, 4704.
const OPTION_CLIENT_ID: u16 = 1;
const OPTION_SERVER_ID: u16 = 2;
const OPTION_IA_NA: u16 = 3;
const OPTION_IA_ADDRESS: u16 = 5;
const OPTION_REQUESTED: u16 = 6;
const OPTION_STATUS: u16 = 13;
const OPTION_RAPID_COMMIT: u16 = 14;
const OPTION_DNS: u16 = 23;
const OPTION_DOMAIN_LIST: u16 = 24;
const OPTION_CLIENT_FQDN: u16 = 39;

const SUCCESS: u16 = 0;
const NOT_ON_LINK: u16 = 4;

/// An identifier made from an Ethernet address (RFC 8415 11.4).
const DUID_LL: u8 = 3;
const ETHERNET: u8 = 1;
/// RFC 8415 11.1.
const MAX_DUID_LEN: usize = 130;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddr = [0x52, 0x55, 10, 0, 2, 2];
    const DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 10, 0, 2, 2];
    const OFFERED: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

    fn message(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = Reply::new(kind, [1, 2, 3]);
        for (option, data) in options {
            message.option(*option, data);
        }
        message.0
    }

    const CLIENT: (u16, &[u8]) = (OPTION_CLIENT_ID, b"client");
    const SERVER: (u16, &[u8]) = (OPTION_SERVER_ID, &DUID);
    const WANTS: (u16, &[u8]) = (OPTION_IA_NA, &[9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);

    fn answer(kind: u8, options: &[(u16, &[u8])]) -> Option<Answer> {
        let message = message(kind, options);
        handle(&message, Some(OFFERED), MAC, &Names::default()).expect("well-formed")
    }

    fn options_of(message: &[u8]) -> Vec<(u16, &[u8])> {
        let mut rest = &message[4..];
        let mut options = Vec::new();
        while !rest.is_empty() {
            let (option, data);
            (option, data, rest) = split_option(rest).unwrap();
            options.push((option, data));
        }
        options
    }

    /// An association of the client's in which it has `address`.
    fn holds(address: Ipv6Addr) -> Vec<u8> {
        let mut inner = Reply(Vec::new());
        inner.address([9; 4], address);
        inner.0[4..].to_vec()
    }

    #[test]
    fn a_client_is_advertised_an_address_and_gets_it() {
        let held = holds(OFFERED);
        let given = (OPTION_IA_NA, held.as_slice());
        let advertised = answer(SOLICIT, &[CLIENT, WANTS]).unwrap();
        assert_eq!(advertised.message[..4], [ADVERTISE, 1, 2, 3]);
        assert_eq!(options_of(&advertised.message), [SERVER, CLIENT, given]);
        assert_eq!(advertised.assigned, None);
        for (kind, options) in [
            (REQUEST, vec![CLIENT, SERVER, WANTS]),
            (RENEW, vec![CLIENT, SERVER, given]),
            (REBIND, vec![CLIENT, given]),
        ] {
            let reply = answer(kind, &options).unwrap();
            assert_eq!(reply.message[..4], [REPLY, 1, 2, 3]);
            assert_eq!(options_of(&reply.message), [SERVER, CLIENT, given]);
            assert_eq!(reply.assigned, Some(OFFERED));
        }
        let rapid = answer(SOLICIT, &[CLIENT, WANTS, (OPTION_RAPID_COMMIT, &[])]).unwrap();
        assert_eq!((rapid.message[0], rapid.assigned), (REPLY, Some(OFFERED)));
        assert!(options_of(&rapid.message).contains(&(OPTION_RAPID_COMMIT, &[])));
    }

    #[test]
    fn an_address_of_another_link_is_not_confirmed() {
        for (address, status) in [(OFFERED, SUCCESS), (Ipv6Addr::LOCALHOST, NOT_ON_LINK)] {
            let held = holds(address);
            let reply = answer(CONFIRM, &[CLIENT, (OPTION_IA_NA, &held)]).unwrap();
            let status = (OPTION_STATUS, &status.to_be_bytes()[..]);
            assert_eq!(options_of(&reply.message), [SERVER, CLIENT, status]);
        }
        assert_eq!(answer(CONFIRM, &[CLIENT, WANTS]), None);
    }

    #[test]
    fn what_is_given_back_is_acknowledged() {
        for kind in [RELEASE, DECLINE] {
            let reply = answer(kind, &[CLIENT, SERVER]).unwrap();
            let status = (OPTION_STATUS, &[0, 0][..]);
            assert_eq!(options_of(&reply.message), [SERVER, CLIENT, status]);
        }
    }

    #[test]
    fn messages_that_miss_something_or_are_for_others_are_not_answered() {
        let other = (OPTION_SERVER_ID, &[0; 10][..]);
        for (kind, options) in [
            (SOLICIT, vec![WANTS]),
            (SOLICIT, vec![CLIENT, SERVER, WANTS]),
            (REQUEST, vec![CLIENT, WANTS]),
            (REQUEST, vec![CLIENT, other, WANTS]),
            (INFORMATION_REQUEST, vec![other]),
            (REPLY, vec![CLIENT, SERVER]),
            (ADVERTISE, vec![CLIENT, SERVER]),
            (12, vec![CLIENT, SERVER]),
        ] {
            assert_eq!(answer(kind, &options), None, "{kind} {options:?}");
        }
    }

    #[test]
    fn names_are_told_with_an_address_or_without() {
        let names = Names {
            resolvers: ["10.0.2.3", "fd00::3"].map(|ip| ip.parse().unwrap()).into(),
            fqdn: Some("box.test".parse().unwrap()),
            ..Names::default()
        };
        let asks = (OPTION_REQUESTED, &[0, 23, 0, 39][..]);
        let message = |kind| message(kind, &[CLIENT, asks]);
        let handle = |message: Vec<u8>| handle(&message, None, MAC, &names).unwrap();
        let reply = handle(message(INFORMATION_REQUEST)).unwrap();
        let dns: Ipv6Addr = "fd00::3".parse().unwrap();
        let expected = [
            SERVER,
            CLIENT,
            (OPTION_DNS, &dns.octets()),
            (OPTION_CLIENT_FQDN, b"\0\x03box\x04test\0"),
        ];
        assert_eq!(options_of(&reply.message), expected);
        assert_eq!(handle(message(SOLICIT)), None, "there is no address");
    }

    #[test]
    fn malformed_messages_are_refused() {
        let long = [0; MAX_DUID_LEN + 1];
        let many: Vec<_> = (0..=MAX_OPTIONS).map(|_| (99, &[][..])).collect();
        for message in [
            vec![SOLICIT],
            [message(SOLICIT, &[CLIENT]), vec![0, 1, 0, 9]].concat(),
            message(SOLICIT, &[(OPTION_CLIENT_ID, &long)]),
            message(SOLICIT, &[CLIENT, (OPTION_IA_NA, &[0; 11])]),
            message(SOLICIT, &[CLIENT, (OPTION_IA_NA, &[0; 13])]),
            message(SOLICIT, &many),
            vec![0; MAX_MESSAGE_LEN + 1],
        ] {
            let result = handle(&message, Some(OFFERED), MAC, &Names::default());
            assert_eq!(result, Err(Malformed), "{message:?}");
        }
    }

    proptest! {
        /// Whatever follows the client's name, an answer can be read to its end.
        #[test]
        fn any_options_are_survived(
            kind in 0u8..13,
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let message = [message(kind, &[CLIENT]), tail].concat();
            if let Ok(Some(answer)) = handle(&message, Some(OFFERED), MAC, &Names::default()) {
                prop_assert!(options_of(&answer.message).contains(&CLIENT));
            }
        }
    }
}
