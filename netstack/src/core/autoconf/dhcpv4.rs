//! A DHCPv4 server (RFC 2131) for the one link that the guest is on.
//!
//! - A client is known by its Ethernet address, and keeps what it got while others leave it room.
//! - There is no other server here, so that a request for an address that is not the client's is
//!   denied at once (RFC 2131 4.3.2), and nothing is probed before it is offered.
//! - Relay agents and plain BOOTP are not served.
//!
//! The codec is written here: a header of fixed fields and a list of options are less than what
//! comes with the crates that know all of DHCP.

use std::net::Ipv4Addr;
use std::num::NonZeroU8;

use super::names::Names;
use super::{LEASE_SECONDS, MAX_MESSAGE_LEN, MAX_OPTIONS, Malformed};
use crate::core::packet::MacAddr;

/// What clients are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The first client's address.
    pub first: Ipv4Addr,
    /// How many addresses there are from `first` on: one is given to everybody.
    pub size: NonZeroU8,
    /// In bits, 32 at most.
    pub prefix_len: u8,
    /// The way out, and the server's own address. It may be outside of the prefix.
    pub router: Ipv4Addr,
}

impl Pool {
    /// The last client's address.
    pub fn last(&self) -> Ipv4Addr {
        self.address(usize::from(self.size.get()) - 1)
    }

    fn address(&self, number: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits().saturating_add(number as u32))
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    pool: Pool,
    /// Who has the address of this number in the pool.
    holders: Vec<MacAddr>,
    /// Whose turn it is to lose its address when all are taken.
    next_lost: usize,
}

/// What follows from a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The broadcast address if the client has none yet.
    pub to: Ipv4Addr,
    pub message: Vec<u8>,
    /// The address that the client has from now on.
    pub assigned: Option<Ipv4Addr>,
}

impl Server {
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            holders: Vec::new(),
            next_lost: 0,
        }
    }

    /// Answers `message`, if it is for this server. `mtu`, in bytes, is the link's if it is to be
    /// told.
    pub fn handle(
        &mut self,
        message: &[u8],
        names: &Names,
        mtu: Option<u16>,
    ) -> Result<Option<Answer>, Malformed> {
        let request = Request::parse(message)?;
        let is_others = |server| server != self.pool.router;
        if request.server.is_some_and(is_others) {
            return Ok(None);
        }
        let (kind, assigned) = match request.kind {
            DISCOVER => (OFFER, Some(self.address_of(request.client))),
            REQUEST => {
                let own = self.address_of(request.client);
                // What it was offered is in an option, what it has had for a while in the header.
                let wanted = request.wanted.unwrap_or(request.client_addr());
                match wanted == own {
                    true => (ACK, Some(own)),
                    false => (NAK, None),
                }
            }
            INFORM => (ACK, None),
            // DECLINE and RELEASE get no answer, and the address stays the client's.
            _ => return Ok(None),
        };
        let mut reply = Reply::to(&request, kind, assigned, self.pool.router);
        if kind != NAK {
            self.tell_network(&mut reply, mtu);
            tell_names(&mut reply, names, request.knows_fqdn);
        }
        let address = request.client_addr();
        Ok(Some(Answer {
            to: match address.is_unspecified() || kind == NAK {
                true => Ipv4Addr::BROADCAST,
                false => address,
            },
            message: reply.finish(),
            assigned: assigned.filter(|_| kind == ACK),
        }))
    }

    fn address_of(&mut self, client: MacAddr) -> Ipv4Addr {
        let known = self.holders.iter().position(|holder| *holder == client);
        let number = known.unwrap_or_else(|| {
            let size = usize::from(self.pool.size.get());
            if self.holders.len() < size {
                self.holders.push(client);
                return self.holders.len() - 1;
            }
            let number = self.next_lost;
            self.next_lost = (number + 1) % size;
            self.holders[number] = client;
            number
        });
        self.pool.address(number)
    }

    /// The subnet mask has to come before the router (RFC 2132 3.3).
    fn tell_network(&self, reply: &mut Reply, mtu: Option<u16>) {
        let Pool { first, router, .. } = self.pool;
        let mask = !u32::MAX
            .checked_shr(self.pool.prefix_len.into())
            .unwrap_or(0);
        reply.option(OPTION_SUBNET_MASK, &mask.to_be_bytes());
        reply.option(OPTION_ROUTER, &router.octets());
        if let Some(mtu) = mtu {
            reply.option(OPTION_INTERFACE_MTU, &mtu.to_be_bytes());
        }
        if (router.to_bits() ^ first.to_bits()) & mask != 0 {
            // The router by the link, everything else by the router. Clients that know this option
            // take no notice of the other one (RFC 3442).
            let [a, b, c, d] = router.octets();
            reply.option(
                OPTION_CLASSLESS_ROUTES,
                &[32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d],
            );
        }
    }
}

fn tell_names(reply: &mut Reply, names: &Names, knows_fqdn: bool) {
    let resolvers = names.resolvers_v4();
    if !resolvers.is_empty() {
        reply.option(OPTION_DNS, &resolvers);
    }
    if let Some(search) = names.search.encoded() {
        reply.option(OPTION_DOMAIN_SEARCH, search);
    }
    if let Some(name) = &names.hostname {
        reply.option(OPTION_HOST_NAME, name.as_str().as_bytes());
    }
    if let Some(name) = names.fqdn.as_ref().filter(|_| knows_fqdn) {
        // The flag says that the name is encoded; two fields have no use any more (RFC 4702 2).
        const IS_ENCODED: u8 = 0x04;
        let mut data = vec![IS_ENCODED, 255, 255];
        name.write(&mut data);
        reply.option(OPTION_CLIENT_FQDN, &data);
    }
}

/// What is looked at in a client's message.
struct Request<'a> {
    header: &'a [u8; HEADER_LEN],
    client: MacAddr,
    kind: u8,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    knows_fqdn: bool,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let (header, options) = message.split_first_chunk().ok_or(Malformed)?;
        let header: &[u8; HEADER_LEN] = header;
        let [op, hardware_type, hardware_len, ..] = *header;
        if message.len() > MAX_MESSAGE_LEN
            || [op, hardware_type, hardware_len] != [BOOTREQUEST, ETHERNET, 6]
            || header[GIADDR..GIADDR + 4] != [0; 4]
            || header[MAGIC_AT..] != MAGIC
        {
            return Err(Malformed);
        }
        let client = header[CHADDR..].first_chunk().ok_or(Malformed)?;
        let (mut kind, mut wanted, mut server, mut knows_fqdn) = (None, None, None, false);
        let address = |data: &[u8]| <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
        for (option, data) in Options(options).take(MAX_OPTIONS) {
            match (option, data) {
                (OPTION_MESSAGE_TYPE, [number]) => kind = Some(*number),
                (OPTION_REQUESTED_ADDRESS, data) => wanted = address(data),
                (OPTION_SERVER, data) => server = address(data),
                (OPTION_CLIENT_FQDN, _) => knows_fqdn = true,
                (OPTION_PARAMETER_LIST, list) => knows_fqdn |= list.contains(&OPTION_CLIENT_FQDN),
                _ => {}
            }
        }
        Ok(Self {
            header,
            client: *client,
            kind: kind.ok_or(Malformed)?,
            wanted,
            server,
            knows_fqdn,
        })
    }

    /// The address that the client has already, or none.
    fn client_addr(&self) -> Ipv4Addr {
        let [.., a, b, c, d] = *self.header[..CIADDR + 4]
            .last_chunk::<4>()
            .expect("the header is longer");
        Ipv4Addr::new(a, b, c, d)
    }
}

/// The options of a message up to the last one, or to one that is cut off.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.0.iter().position(|byte| *byte != OPTION_PAD)?;
        let (&option, rest) = self.0[start..].split_first()?;
        if option == OPTION_END {
            return None;
        }
        let (&len, rest) = rest.split_first()?;
        let (data, rest) = rest.split_at_checked(len.into())?;
        self.0 = rest;
        Some((option, data))
    }
}

/// A message to a client while it is written.
struct Reply(Vec<u8>);

impl Reply {
    /// Most fields repeat the request's (RFC 2131 4.3.1, table 3).
    fn to(request: &Request, kind: u8, assigned: Option<Ipv4Addr>, server: Ipv4Addr) -> Self {
        let mut header = *request.header;
        header[0] = BOOTREPLY;
        // hops; secs.
        header[3] = 0;
        header[8..10].fill(0);
        if kind == NAK {
            header[CIADDR..YIADDR].fill(0);
        }
        let assigned = assigned.unwrap_or(Ipv4Addr::UNSPECIFIED);
        header[YIADDR..YIADDR + 4].copy_from_slice(&assigned.octets());
        // siaddr; sname and file.
        header[YIADDR + 4..GIADDR].fill(0);
        header[CHADDR + 16..MAGIC_AT].fill(0);
        let mut reply = Self(header.to_vec());
        reply.option(OPTION_MESSAGE_TYPE, &[kind]);
        reply.option(OPTION_SERVER, &server.octets());
        if !assigned.is_unspecified() {
            reply.option(OPTION_LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        }
        reply
    }

    /// Leaves out what is longer than an option may be: a full name of the longest kind.
    fn option(&mut self, option: u8, data: &[u8]) {
        if let Ok(len) = data.len().try_into() {
            self.0.extend([option, len]);
            self.0.extend_from_slice(data);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push(OPTION_END);
        let len = self.0.len().max(MIN_MESSAGE_LEN);
        self.0.resize(len, OPTION_PAD);
        self.0
    }
}

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// With the magic number, which options follow (RFC 2131 2, 3).
const HEADER_LEN: usize = 240;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const GIADDR: usize = 24;
const CHADDR: usize = 28;
const MAGIC_AT: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// What BOOTP had without options; some clients take nothing shorter (RFC 1542 2.1).
const MIN_MESSAGE_LEN: usize = 300;

// RFC 2132 9.6.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

// RFC 2132; from 81 on RFC 4702, 3397, 3442.
const OPTION_PAD: u8 = 0;
const OPTION_SUBNET_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_HOST_NAME: u8 = 12;
const OPTION_INTERFACE_MTU: u8 = 26;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE_TIME: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_PARAMETER_LIST: u8 = 55;
const OPTION_CLIENT_FQDN: u8 = 81;
const OPTION_DOMAIN_SEARCH: u8 = 119;
const OPTION_CLASSLESS_ROUTES: u8 = 121;
const OPTION_END: u8 = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::autoconf::names::SearchList;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn server(size: u8, prefix_len: u8) -> Server {
        Server::new(Pool {
            first: FIRST,
            size: NonZeroU8::new(size).unwrap(),
            prefix_len,
            router: ROUTER,
        })
    }

    /// A message of the client with this number.
    fn message(client: u8, kind: u8, has: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&[BOOTREQUEST, ETHERNET, 6, 0, 1, 2, 3, 4]);
        header[CIADDR..YIADDR].copy_from_slice(&has.octets());
        header[CHADDR + 5] = client;
        header[MAGIC_AT..].copy_from_slice(&MAGIC);
        let mut reply = Reply(header.to_vec());
        reply.option(OPTION_MESSAGE_TYPE, &[kind]);
        for (option, data) in options {
            reply.option(*option, data);
        }
        reply.finish()
    }

    fn answer(server: &mut Server, message: &[u8]) -> Option<Answer> {
        let names = Names::default();
        server
            .handle(message, &names, Some(1500))
            .expect("well-formed")
    }

    fn option_of(answer: &Answer, wanted: u8) -> Option<&[u8]> {
        Options(&answer.message[HEADER_LEN..])
            .find(|(option, _)| *option == wanted)
            .map(|(_, data)| data)
    }

    fn kind(answer: &Answer) -> u8 {
        option_of(answer, OPTION_MESSAGE_TYPE).unwrap()[0]
    }

    fn given(answer: &Answer) -> Ipv4Addr {
        let octets: [u8; 4] = answer.message[YIADDR..GIADDR - 4].try_into().unwrap();
        octets.into()
    }

    const NOWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    #[test]
    fn a_client_is_offered_an_address_and_gets_it() {
        let mut server = server(16, 24);
        let offer = answer(&mut server, &message(1, DISCOVER, NOWHERE, &[])).unwrap();
        assert_eq!(
            (kind(&offer), given(&offer), offer.assigned),
            (OFFER, FIRST, None)
        );
        assert_eq!(offer.to, Ipv4Addr::BROADCAST);
        assert_eq!(offer.message[..8], [BOOTREPLY, ETHERNET, 6, 0, 1, 2, 3, 4]);
        for (option, expected) in [
            (OPTION_SUBNET_MASK, Some(&[255, 255, 255, 0][..])),
            (OPTION_ROUTER, Some(&[10, 0, 2, 2])),
            (OPTION_INTERFACE_MTU, Some(&1500_u16.to_be_bytes())),
            (OPTION_SERVER, Some(&[10, 0, 2, 2])),
            (OPTION_LEASE_TIME, Some(&LEASE_SECONDS.to_be_bytes())),
            (OPTION_DNS, None),
            (OPTION_CLASSLESS_ROUTES, None),
        ] {
            assert_eq!(option_of(&offer, option), expected, "{option}");
        }
        let wants = [
            (OPTION_REQUESTED_ADDRESS, &FIRST.octets()[..]),
            (OPTION_SERVER, &[10, 0, 2, 2]),
        ];
        let ack = answer(&mut server, &message(1, REQUEST, NOWHERE, &wants)).unwrap();
        assert_eq!(
            (kind(&ack), given(&ack), ack.assigned),
            (ACK, FIRST, Some(FIRST))
        );
        // And has it renewed, by a message to its own address.
        let renewed = answer(&mut server, &message(1, REQUEST, FIRST, &[])).unwrap();
        assert_eq!((kind(&renewed), renewed.to), (ACK, FIRST));
    }

    #[test]
    fn what_is_not_the_clients_is_denied() {
        let mut server = server(16, 24);
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let wants = [(OPTION_REQUESTED_ADDRESS, &other.octets()[..])];
        for message in [
            message(1, REQUEST, NOWHERE, &wants),
            message(1, REQUEST, other, &[]),
            message(1, REQUEST, NOWHERE, &[]),
        ] {
            let nak = answer(&mut server, &message).unwrap();
            assert_eq!(
                (kind(&nak), given(&nak), nak.to),
                (NAK, NOWHERE, Ipv4Addr::BROADCAST)
            );
            assert_eq!(option_of(&nak, OPTION_ROUTER), None);
        }
    }

    #[test]
    fn what_is_for_others_or_no_question_is_not_answered() {
        let mut server = server(16, 24);
        let others = [(OPTION_SERVER, &[10, 0, 2, 1][..])];
        for message in [
            message(1, REQUEST, NOWHERE, &others),
            message(1, 4, NOWHERE, &[]),
            message(1, 7, FIRST, &[]),
            message(1, OFFER, NOWHERE, &[]),
        ] {
            assert_eq!(answer(&mut server, &message), None);
        }
    }

    #[test]
    fn who_asks_for_information_gets_no_address() {
        let own = Ipv4Addr::new(10, 0, 2, 77);
        let ack = answer(&mut server(1, 24), &message(1, INFORM, own, &[])).unwrap();
        assert_eq!((kind(&ack), given(&ack), ack.to), (ACK, NOWHERE, own));
        assert_eq!(ack.assigned, None);
        assert_eq!(option_of(&ack, OPTION_LEASE_TIME), None);
        assert!(option_of(&ack, OPTION_ROUTER).is_some());
    }

    #[test]
    fn each_client_has_its_own_address_until_there_are_too_many() {
        let mut server = server(2, 24);
        let mut offered = |client| {
            let offer = answer(&mut server, &message(client, DISCOVER, NOWHERE, &[]));
            given(&offer.unwrap()).octets()[3]
        };
        assert_eq!([1, 2, 1, 2].map(&mut offered), [15, 16, 15, 16]);
        assert_eq!([3, 2, 1, 3].map(&mut offered), [15, 16, 16, 15]);
    }

    #[test]
    fn a_router_beyond_the_prefix_is_reached_by_the_link() {
        let offer = answer(&mut server(1, 32), &message(1, DISCOVER, NOWHERE, &[])).unwrap();
        let routes = [32, 10, 0, 2, 2, 0, 0, 0, 0, 0, 10, 0, 2, 2];
        assert_eq!(
            option_of(&offer, OPTION_CLASSLESS_ROUTES),
            Some(&routes[..])
        );
        let mask = option_of(&offer, OPTION_SUBNET_MASK);
        assert_eq!(mask, Some(&[255; 4][..]));
    }

    #[test]
    fn names_are_told_and_the_full_one_to_who_knows_the_option() {
        let names = Names {
            resolvers: ["10.0.2.3", "fd00::3", "192.0.2.53"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            search: SearchList::new(&["a.test".parse().unwrap()]).unwrap(),
            hostname: Some("box".parse().unwrap()),
            fqdn: Some("box.test".parse().unwrap()),
        };
        let mut server = server(1, 24);
        let mut answer_to = |options: &[(u8, &[u8])]| {
            let message = message(1, DISCOVER, NOWHERE, options);
            server
                .handle(&message, &names, Some(1500))
                .unwrap()
                .unwrap()
        };
        let offer = answer_to(&[]);
        for (option, expected) in [
            (OPTION_DNS, Some(&[10, 0, 2, 3, 192, 0, 2, 53][..])),
            (OPTION_DOMAIN_SEARCH, Some(b"\x01a\x04test\0")),
            (OPTION_HOST_NAME, Some(b"box")),
            (OPTION_CLIENT_FQDN, None),
        ] {
            assert_eq!(option_of(&offer, option), expected, "{option}");
        }
        let full: &[u8] = b"\x04\xff\xff\x03box\x04test\0";
        for asks in [
            (OPTION_CLIENT_FQDN, &[0; 3][..]),
            (OPTION_PARAMETER_LIST, &[1, 81]),
        ] {
            assert_eq!(
                option_of(&answer_to(&[asks]), OPTION_CLIENT_FQDN),
                Some(full)
            );
        }
    }

    #[test]
    fn malformed_messages_are_refused() {
        let good = message(1, DISCOVER, NOWHERE, &[]);
        let spoilt = |at: usize, byte| {
            let mut message = good.clone();
            message[at] = byte;
            message
        };
        for message in [
            Vec::new(),
            good[..HEADER_LEN].to_vec(),
            spoilt(0, BOOTREPLY),
            spoilt(1, 6),
            spoilt(2, 16),
            spoilt(GIADDR, 10),
            spoilt(MAGIC_AT, 0),
            spoilt(HEADER_LEN, OPTION_PAD),
            [good.clone(), vec![0; MAX_MESSAGE_LEN]].concat(),
        ] {
            let result = server(1, 24).handle(&message, &Names::default(), Some(1500));
            assert_eq!(result, Err(Malformed));
        }
    }

    proptest! {
        /// Whatever the options are, an answer is one that a client could read to its end.
        #[test]
        fn any_options_are_survived(kind: u8, tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut message = message(1, kind, NOWHERE, &[]);
            message.truncate(HEADER_LEN + 3);
            message.extend(tail);
            let mut server = server(16, 24);
            if let Ok(Some(answer)) = server.handle(&message, &Names::default(), Some(1500)) {
                prop_assert!(answer.message.len() >= MIN_MESSAGE_LEN);
                prop_assert!(option_of(&answer, OPTION_SERVER).is_some());
            }
        }
    }
}
