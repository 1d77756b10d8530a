//! The hostile guest. It listens to what the core answers, so that its connections get as far as
//! established before it misbehaves in them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{SlicedPacket, TransportSlice};
use netstack::core::vnet::VNET_HEADER_LEN;

use super::frames::{
    ACK, FIN, RST, SYN, arp_or_ndp, configuration, fragment, icmp, near, options, remote, segment,
    source, udp,
};
use crate::entropy::Entropy;

/// What the guest remembers of one of its TCP connections.
#[derive(Clone, Debug)]
struct Connection {
    guest: SocketAddr,
    remote: SocketAddr,
    snd_nxt: u32,
    rcv_nxt: u32,
    /// The core has sent at least one segment of it.
    answered: bool,
}

#[derive(Default)]
pub struct Guest {
    connections: Vec<Connection>,
    /// Recent frames, to be sent again, as they were or damaged.
    sent: Vec<Vec<u8>>,
    /// Packets of the core, to be quoted in errors; the last one of each place.
    quotable: [Vec<u8>; 8],
    /// Frames heard since the guest last spoke.
    heard: usize,
}

impl Guest {
    /// Learns from a frame that the core sent. Panics when it is not a frame that a kernel would
    /// take.
    pub fn hear(&mut self, frame: &[u8]) {
        self.heard += 1;
        let ethernet = frame
            .get(VNET_HEADER_LEN..)
            .expect("a virtio header comes first");
        let packet = SlicedPacket::from_ethernet(ethernet).unwrap_or_else(|error| {
            panic!("the core sent a malformed frame: {error}: {ethernet:02x?}")
        });
        let (source, destination): (IpAddr, IpAddr) = match &packet.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            Some(etherparse::NetSlice::Ipv6(ip)) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            Some(etherparse::NetSlice::Arp(_)) => return,
            None => panic!("the core sent a frame of no known protocol"),
        };
        self.quotable[self.heard % 8] = ethernet[14..].to_vec();
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
            return;
        };
        let guest = SocketAddr::new(destination, tcp.destination_port());
        let remote = SocketAddr::new(source, tcp.source_port());
        let length = tcp.payload().len() as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
        let rcv_nxt = tcp.sequence_number().wrapping_add(length);
        match self.find(guest, remote) {
            Some(connection) => {
                connection.answered = true;
                connection.rcv_nxt = rcv_nxt;
                if tcp.ack() {
                    connection.snd_nxt = tcp.acknowledgment_number();
                }
            }
            // A published port: the core opens.
            None if tcp.syn() && !tcp.ack() => {
                self.remember(Connection {
                    guest,
                    remote,
                    snd_nxt: 1_000_000,
                    rcv_nxt,
                    answered: true,
                });
            }
            None => {}
        }
    }

    /// The next frame, virtio header first.
    pub fn speak(&mut self, entropy: &mut Entropy) -> Vec<u8> {
        self.heard = 0;
        let frame = match entropy.below(100) {
            0..18 => self.open(entropy),
            18..40 => self.obey(entropy),
            40..62 => self.misbehave(entropy),
            62..70 => udp(entropy),
            70..74 => self.icmp(entropy),
            74..77 => arp_or_ndp(entropy),
            77 => configuration(entropy),
            78..85 => fragment(entropy),
            85..96 => self.damage(entropy),
            _ => (0..entropy.below(200)).map(|_| entropy.u8()).collect(),
        };
        if self.sent.len() < 64 {
            self.sent.push(frame.clone());
        } else {
            let index = entropy.below(64);
            self.sent[index] = frame.clone();
        }
        frame
    }

    /// An echo, or an error about a packet of the core or about nothing.
    fn icmp(&self, entropy: &mut Entropy) -> Vec<u8> {
        let quote = entropy.choose(&self.quotable);
        match quote.is_empty() || entropy.chance(50) {
            true => icmp(&vec![9; entropy.choose(&[0, 8, 56, 1400, 60_000])], entropy),
            false => {
                let most = entropy.choose(&[548, 65_000, 28, 48, 27]);
                icmp(&quote[..quote.len().min(most)], entropy)
            }
        }
    }

    /// A SYN, of a new connection or of one that exists.
    fn open(&mut self, entropy: &mut Entropy) -> Vec<u8> {
        let remote = remote(entropy);
        let guest = SocketAddr::new(
            source(entropy, remote.is_ipv4()),
            40_000 + entropy.u16() % 200,
        );
        let iss = entropy.u32();
        if self.find(guest, remote).is_none() {
            let opening = Connection {
                guest,
                remote,
                snd_nxt: iss.wrapping_add(1),
                rcv_nxt: 0,
                answered: false,
            };
            self.remember(opening);
        }
        let options = options(entropy);
        let payload = if entropy.chance(10) { 100 } else { 0 };
        segment(
            guest,
            remote,
            iss,
            0,
            SYN,
            entropy.choose(&[0, 1, 1460, 65_535]),
            &options,
            payload,
            entropy,
        )
    }

    /// What a well-behaved peer would send next: everything heard is acknowledged, a little data
    /// goes out.
    fn obey(&mut self, entropy: &mut Entropy) -> Vec<u8> {
        let Some(connection) = self.pick(entropy) else {
            return self.open(entropy);
        };
        let length = entropy.choose(&[0, 0, 1, 500, 1400]);
        let fin = if entropy.chance(8) { FIN } else { 0 };
        let (seq, ack) = (connection.snd_nxt, connection.rcv_nxt);
        connection.snd_nxt = seq.wrapping_add(length as u32 + u32::from(fin != 0));
        let window = entropy.choose(&[65_535, 65_535, 65_535, 1000]);
        let (guest, remote) = (connection.guest, connection.remote);
        segment(
            guest,
            remote,
            seq,
            ack,
            ACK | fin,
            window,
            &[],
            length,
            entropy,
        )
    }

    /// A segment of a real connection with anything wrong in it.
    fn misbehave(&mut self, entropy: &mut Entropy) -> Vec<u8> {
        let Some(connection) = self.pick(entropy).cloned() else {
            return self.open(entropy);
        };
        let flags = match entropy.below(8) {
            0 => RST,
            1 => RST | ACK,
            2 => SYN,
            3 => SYN | ACK,
            4 => FIN | ACK,
            5 => entropy.u8() & 0x3f,
            _ => ACK,
        };
        let seq = near(connection.snd_nxt, entropy);
        let ack = near(connection.rcv_nxt, entropy);
        let window = entropy.choose(&[0, 0, 1, 2, 536, 65_535]);
        let length = entropy.choose(&[0, 0, 1, 1460, 9000, 40_000, 65_400]);
        let options = options(entropy);
        segment(
            connection.guest,
            connection.remote,
            seq,
            ack,
            flags,
            window,
            &options,
            length,
            entropy,
        )
    }

    /// An earlier frame again: as it was, cut, lengthened, or with bytes changed.
    fn damage(&mut self, entropy: &mut Entropy) -> Vec<u8> {
        if self.sent.is_empty() {
            return Vec::new();
        }
        let mut frame = self.sent[entropy.below(self.sent.len())].clone();
        match entropy.below(4) {
            0 => {}
            1 => frame.truncate(entropy.below(frame.len() + 1)),
            2 => frame.extend((0..entropy.below(64)).map(|index| index as u8)),
            _ => {
                for _ in 0..=entropy.below(4) {
                    // Mostly the headers: the payload means nothing to the core.
                    let reach = frame.len().min(120);
                    if reach > 0 {
                        let index = entropy.below(reach);
                        frame[index] = entropy.u8();
                    }
                }
            }
        }
        frame
    }

    fn find(&mut self, guest: SocketAddr, remote: SocketAddr) -> Option<&mut Connection> {
        self.connections
            .iter_mut()
            .find(|connection| connection.guest == guest && connection.remote == remote)
    }

    fn remember(&mut self, connection: Connection) {
        if self.connections.len() >= 256 {
            self.connections.remove(0);
        }
        self.connections.push(connection);
    }

    /// A connection, with preference for those that the core has answered.
    fn pick(&mut self, entropy: &mut Entropy) -> Option<&mut Connection> {
        if self.connections.is_empty() {
            return None;
        }
        let start = entropy.below(self.connections.len());
        let count = self.connections.len();
        let answered = (0..count)
            .map(|step| (start + step) % count)
            .find(|&index| self.connections[index].answered);
        self.connections.get_mut(answered.unwrap_or(start))
    }
}
