//! A small netlink client: a request goes out, the kernel's verdict comes back with its own words.
//!
//! The kernel carries out these families' requests within the call that sends them, so the answer
//! is there on return and nothing ever blocks. A socket belongs to the network namespace of the
//! thread that opened it and works from any thread. Messages are rtnetlink's (route family) or
//! written with an [`Encoder`] (the other families). RFC 3549; extended ACKs: Linux 4.12.

mod encode;
mod listening;
mod route;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rtnetlink::packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr};
use tracing::debug;

use crate::sys;

pub use encode::Encoder;
pub use listening::{Listening, ListeningSockets};
pub use route::AS_IN_TABLE;

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Whose rights count.
    rights: Rights,
}

/// Whose rights the kernel asks for before it carries out a request. Since the fix of
/// CVE-2014-0181 (Linux 3.15) a message with no destination needs those of whoever has opened the
/// socket as well; one that names the kernel as its destination needs the sender's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    OpenersAndSenders,
    Senders,
}

/// The kernel's refusal, or a failure to ask.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// `text` is the kernel's explanation, in ": …" form, or empty.
    #[error("{source}{text}")]
    Refused { source: io::Error, text: String },
}

impl NetlinkError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(error) | Self::Refused { source: error, .. } => error.raw_os_error(),
        }
    }
}

impl Netlink {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(protocol as isize)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without these the refusal has no words, or repeats the request; both are only less
        // comfortable.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self {
            socket,
            sequence: 0,
            rights: Rights::OpenersAndSenders,
        })
    }

    /// Takes over a socket that a process in another network namespace has opened with
    /// [`Netlink::open`]. Requests need this process's rights over what they concern, and not that
    /// one's: whoever has made two user namespaces may so join what is in both.
    pub fn adopt(socket: OwnedFd) -> Self {
        Self {
            socket: sys::netlink_socket(socket),
            sequence: 0,
            rights: Rights::Senders,
        }
    }

    /// Sends a route request and reads its acknowledgement. `flags` are added to REQUEST and ACK.
    pub fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut message = NetlinkMessage::from(message);
        self.sequence += 1;
        message.header.sequence_number = self.sequence;
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.exchange(&bytes, self.sequence, Some(self.sequence), |_| {})
    }

    /// Asks for a list of the route family, and shows `take` what is on it. Since Linux 4.20 the
    /// kernel heeds what `question` says of the entries; before, it lists all of the family.
    pub fn dump(
        &mut self,
        question: RouteNetlinkMessage,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        let _ = self.socket.set_netlink_get_strict_chk(true);
        let mut question = NetlinkMessage::from(question);
        self.sequence += 1;
        question.header.sequence_number = self.sequence;
        question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        self.list(&bytes, |message| match message.route() {
            Ok(entry) => take(entry),
            Err(error) => debug!(%error, "netlink: an entry is in no known form"),
        })
    }

    /// Asks for a list with a message of type `kind`, whose body `write` adds, and hands the
    /// payload of each entry to `take`.
    pub fn dump_payloads(
        &mut self,
        kind: u16,
        write: impl FnOnce(&mut Encoder),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let mut encoder = Encoder::new(self.sequence);
        encoder.message(kind, NLM_F_REQUEST | NLM_F_DUMP, write);
        self.list(encoder.bytes(), |message| take(message.payload))
    }

    /// Sends a request for a list and takes its entries.
    fn list(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.socket.send(request, 0)?;
        let mut datagram = Vec::with_capacity(ANSWER_LEN);
        loop {
            datagram.clear();
            // The next part is there once this one has been read.
            self.socket.recv(&mut datagram, libc::MSG_DONTWAIT)?;
            for message in Messages(&datagram).filter(|message| message.sequence == self.sequence) {
                match message.kind {
                    NLMSG_DONE => return message.verdict(),
                    NLMSG_ERROR => message.verdict()?,
                    _ => take(&message),
                }
            }
        }
    }

    /// Sends the messages that `write` adds, hands the payload of each answer to `take`, and
    /// returns the verdict: the first refusal, if any. To be sure that a message was heard, let it
    /// ask for an acknowledgement.
    pub fn query(
        &mut self,
        write: impl FnOnce(&mut Encoder),
        take: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        let first = self.sequence + 1;
        let mut encoder = Encoder::new(first);
        write(&mut encoder);
        self.sequence = encoder.last_sequence();
        self.exchange(encoder.bytes(), first, encoder.awaited(), take)
    }

    /// Sends the messages that `write` adds as one netfilter transaction of `subsystem`: all of
    /// them take effect, or none.
    pub fn transaction(
        &mut self,
        subsystem: u16,
        write: impl FnOnce(&mut Encoder),
    ) -> Result<(), NetlinkError> {
        let bracket = |encoder: &mut Encoder| {
            encoder.put(&[libc::AF_UNSPEC as u8, NFNETLINK_V0]);
            encoder.put(&subsystem.to_be_bytes());
        };
        self.query(
            |encoder| {
                encoder.message(libc::NFNL_MSG_BATCH_BEGIN as u16, NLM_F_REQUEST, bracket);
                write(encoder);
                encoder.message(libc::NFNL_MSG_BATCH_END as u16, NLM_F_REQUEST, bracket);
            },
            |_| {},
        )
    }

    /// All answers are in the queue when the send returns. Those to a request before `first` are
    /// what an earlier failure left behind.
    fn exchange(
        &mut self,
        requests: &[u8],
        first: u32,
        awaited: Option<u32>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        match self.rights {
            Rights::OpenersAndSenders => self.socket.send(requests, 0)?,
            Rights::Senders => self.socket.send_to(requests, &SocketAddr::new(0, 0), 0)?,
        };
        let mut acknowledged = awaited.is_none();
        let mut datagram = Vec::with_capacity(ANSWER_LEN);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && acknowledged => {
                    return Ok(());
                }
                received => received?,
            };
            for message in Messages(&datagram).filter(|message| message.sequence >= first) {
                if message.kind == NLMSG_ERROR {
                    message.verdict()?;
                    acknowledged |= awaited == Some(message.sequence);
                } else {
                    take(message.payload);
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The kernel's answers in one datagram.
struct Messages<'a>(&'a [u8]);

/// One netlink message (RFC 3549 2.3.2), without its length.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = read_u32(self.0, 0)? as usize;
        let message = self.0.get(..len)?;
        let (kind, flags) = (read_u16(message, 4)?, read_u16(message, 6)?);
        let sequence = read_u32(message, 8)?;
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Message {
            kind,
            flags,
            sequence,
            payload: message.get(HEADER_LEN..)?,
        })
    }
}

impl Message<'_> {
    /// As one of the route family.
    fn route(&self) -> Result<RouteNetlinkMessage, DecodeError> {
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        RouteNetlinkMessage::deserialize(&header, self.payload)
    }

    /// The meaning of an NLMSG_ERROR: a negated errno, the header of the request (and the request
    /// itself unless capped), attributes. An NLMSG_DONE has the errno alone.
    fn verdict(&self) -> Result<(), NetlinkError> {
        let code = read_u32(self.payload, 0).unwrap_or_default().cast_signed();
        if code == 0 {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(code.saturating_neg());
        Err(NetlinkError::Refused {
            source,
            text: self.explanation().unwrap_or_default(),
        })
    }

    fn explanation(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let request_len = read_u32(self.payload, 4)? as usize;
        let echoed_len = if self.flags & NLM_F_CAPPED != 0 {
            HEADER_LEN
        } else {
            request_len.next_multiple_of(ALIGN)
        };
        let mut attributes = self.payload.get(4 + echoed_len..)?;
        loop {
            let (len, kind) = (read_u16(attributes, 0)? as usize, read_u16(attributes, 2)?);
            let value = attributes.get(4..len)?;
            if kind == NLMSGERR_ATTR_MSG {
                let text = value.split(|byte| *byte == 0).next()?;
                return Some(format!(": {}", String::from_utf8_lossy(text)));
            }
            attributes = attributes.get(len.next_multiple_of(ALIGN)..)?;
        }
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Acknowledgements are capped, so they are far shorter than this.
const ANSWER_LEN: usize = 8192;
const HEADER_LEN: usize = 16;
const ALIGN: usize = 4;
/// linux/netfilter/nfnetlink.h.
const NFNETLINK_V0: u8 = 0;
/// linux/netlink.h, `enum nlmsgerr_attrs`.
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use rtnetlink::LinkUnspec;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn refusals_carry_errno_and_the_kernels_words() {
        in_namespaces(
            module_path!(),
            "refusals_carry_errno_and_the_kernels_words",
            || {
                let mut netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
                let up = LinkUnspec::new_with_name("lo").up().build();
                netlink
                    .request(RouteNetlinkMessage::SetLink(up), 0)
                    .unwrap();
                let up = LinkUnspec::new_with_name("nosuch").up().build();
                let error = netlink
                    .request(RouteNetlinkMessage::SetLink(up), 0)
                    .unwrap_err();
                assert_eq!(error.errno(), Some(libc::ENODEV));
                // lo takes no MTU of 2^31: "mtu greater than device maximum".
                let large = LinkUnspec::new_with_name("lo").mtu(1 << 31).build();
                let error = netlink
                    .request(RouteNetlinkMessage::SetLink(large), 0)
                    .unwrap_err();
                assert!(error.to_string().contains("mtu"), "{error}");
            },
        );
    }

    #[test]
    fn truncated_answers_end_the_iteration() {
        let mut bytes = Vec::new();
        bytes.extend(20u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend(0u16.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((-libc::EPERM).to_ne_bytes());
        let message = Messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence), (NLMSG_ERROR, 7));
        assert_eq!(message.verdict().unwrap_err().errno(), Some(libc::EPERM));
        for len in 0..bytes.len() {
            assert!(Messages(&bytes[..len]).next().is_none(), "{len}");
        }
    }
}
