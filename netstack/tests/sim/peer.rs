//! A guest's end of one TCP connection, scripted: it keeps the numbers, the test decides what is
//! said and when.

use std::net::SocketAddr;

use netstack::core::flow::FlowId;
use smoltcp::socket::tcp::State;

use crate::host::Host;
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment};
use crate::world::{World, address, guest_address};

/// The guest's initial sequence number.
pub const ISS: u32 = 7_000;
/// Its MSS on a link with an MTU of 1500.
pub const MSS: u16 = 1460;

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Peer {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
    /// As in the header: shifted right by `scale`.
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
}

impl Peer {
    /// A guest's end that will talk to `remote`.
    pub fn new(remote: &str) -> Self {
        let remote = address(remote);
        Self {
            guest: SocketAddr::new(guest_address(remote), 40_000),
            remote,
            snd_nxt: ISS,
            rcv_nxt: 0,
            window: 65_535,
            mss: Some(MSS),
            scale: Some(4),
        }
    }

    /// A bare ACK: the template of all others.
    pub fn ack(&self) -> Segment {
        Segment {
            source: self.guest,
            destination: self.remote,
            flags: ACK,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            window: self.window,
            mss: None,
            scale: None,
            payload: Vec::new(),
        }
    }

    /// SYN, or SYN-ACK if a SYN has been heard.
    pub fn syn(&mut self) -> Segment {
        let answers = self.rcv_nxt != 0;
        let syn = Segment {
            flags: if answers { SYN | ACK } else { SYN },
            mss: self.mss,
            scale: self.scale,
            ..self.ack()
        };
        self.say(syn)
    }

    pub fn data(&mut self, payload: &[u8]) -> Segment {
        let data = Segment {
            flags: PSH | ACK,
            payload: payload.to_vec(),
            ..self.ack()
        };
        self.say(data)
    }

    pub fn fin(&mut self) -> Segment {
        let fin = Segment {
            flags: FIN | ACK,
            ..self.ack()
        };
        self.say(fin)
    }

    pub fn rst(&self) -> Segment {
        Segment {
            flags: RST | ACK,
            ..self.ack()
        }
    }

    fn say(&mut self, segment: Segment) -> Segment {
        self.snd_nxt = self.snd_nxt.wrapping_add(segment.seg_len());
        segment
    }

    /// Takes a segment that must be the next in sequence and acknowledge all that was said; returns
    /// its flags.
    pub fn hear(&mut self, segment: &Segment) -> u8 {
        if segment.flags & SYN != 0 {
            self.rcv_nxt = segment.seq;
        }
        assert_eq!(segment.source, self.remote, "{segment:?}");
        assert_eq!(segment.destination, self.guest, "{segment:?}");
        assert_eq!(segment.seq, self.rcv_nxt, "in sequence: {segment:?}");
        if segment.flags & ACK != 0 {
            assert_eq!(segment.ack, self.snd_nxt, "all acknowledged: {segment:?}");
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(segment.seg_len());
        segment.flags
    }

    /// Begins to connect: the dial succeeds, with `host` as the stream, and is answered with the
    /// SYN-ACK that is returned.
    pub fn dial(&mut self, world: &mut World, host: Host) -> (FlowId, Segment) {
        world.send(self.syn());
        let (flow, _) = world.dialled();
        world.dial_ends_with(flow, Ok(()), host);
        let answer = world.segment();
        assert_eq!(self.hear(&answer), SYN | ACK);
        (flow, answer)
    }

    /// Connects: the dial succeeds and the handshake is done.
    pub fn open(&mut self, world: &mut World) -> FlowId {
        let (flow, _) = self.dial(world, Host::default());
        world.send(self.ack());
        world.assert_quiet();
        flow
    }

    /// Connects, and brings the core's side into `state`.
    pub fn open_into(&mut self, world: &mut World, state: State) -> FlowId {
        if state == State::SynReceived {
            return self.dial(world, Host::default()).0;
        }
        let flow = self.open(world);
        let guest_first = matches!(state, State::CloseWait | State::LastAck);
        if guest_first {
            world.send(self.fin());
        }
        if !matches!(state, State::Established | State::CloseWait) {
            world.host_finishes(flow);
            let segments = world.segments();
            let heard: Vec<u8> = segments.iter().map(|segment| self.hear(segment)).collect();
            assert_eq!(heard.last(), Some(&(FIN | ACK)), "{state:?}");
        }
        match state {
            State::FinWait2 => world.send(self.ack()),
            State::Closing => {
                let unheard = Segment {
                    ack: self.rcv_nxt - 1,
                    ..self.fin()
                };
                world.send(unheard);
            }
            _ => {}
        }
        assert_eq!(world.states(), [state]);
        world.frames();
        flow
    }
}

/// The states that an open flow of the guest goes through.
pub const STATES: [State; 7] = [
    State::SynReceived,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::Closing,
    State::CloseWait,
    State::LastAck,
];
