//! A connection of the guest's that carries DNS queries (RFC 7766): those that names of the engine
//! answer are answered here, all others go on to a resolver. Where none could be connected to, the
//! others fail. Answers keep whole: ours go between those of the resolver.
//!
//! What is kept is bounded: one query that comes, one that the resolver has not taken yet, and
//! answers up to [`MAX_ANSWERS`]; beyond that the guest has to wait.

use std::io;

use super::sockets::Stream;
use crate::core::dns::{Carrier, NamedQueries, answer, failure};
use crate::core::tcp::{HostStream, Readiness};

/// Bytes of our answers that wait for the guest before it is not listened to any more.
const MAX_ANSWERS: usize = 64 << 10;
/// A message's length comes first (RFC 1035 4.2.2).
const LENGTH_LEN: usize = 2;

/// See the module's description.
pub struct QueryStream<S = Stream> {
    queries: NamedQueries,
    resolver: Option<S>,
    /// What has come of a query.
    incoming: Vec<u8>,
    /// What the resolver has still to take of one.
    outgoing: Vec<u8>,
    /// Ours, which the guest has still to take.
    answers: Vec<u8>,
    /// Where in an answer the resolver is.
    place: Place,
    has_finished: bool,
    /// The guest waits for room among the answers.
    is_full: bool,
    news: News,
}

/// What has become of a turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    /// Queries that names have answered.
    pub answered: u64,
    /// What the core would not learn from the resolver's socket.
    pub readiness: Option<Readiness>,
}

/// A place in a row of messages.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Of the message's length, those bytes that have come.
    length: [u8; LENGTH_LEN],
    length_len: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl<S: HostStream> QueryStream<S> {
    /// Without a `resolver` it answers that all other queries have failed.
    pub fn new(queries: NamedQueries, resolver: Option<S>) -> Self {
        Self {
            queries,
            resolver,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            answers: Vec::new(),
            place: Place::default(),
            has_finished: false,
            is_full: false,
            news: News::default(),
        }
    }

    /// To be called before each turn: the resolver may have room again for what the guest has sent
    /// already. An error shows when the core goes on.
    pub fn go_on(&mut self) {
        if self.flush().is_ok()
            && self.has_finished
            && let Some(resolver) = &mut self.resolver
        {
            resolver.finish();
        }
    }

    /// What is new since this was last asked. To be asked after each turn.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// A whole query has come.
    fn take_query(&mut self) {
        let message = std::mem::take(&mut self.incoming);
        let NamedQueries { names, asker } = &self.queries;
        let query = &message[LENGTH_LEN..];
        let by_name = answer(query, Carrier::Tcp, names, *asker);
        self.news.answered += u64::from(by_name.is_some());
        match (by_name, &self.resolver) {
            (None, Some(_)) => self.outgoing = message,
            (by_name, _) => {
                if let Some(answer) = by_name.or_else(|| failure(query))
                    && let Ok(len) = u16::try_from(answer.len())
                {
                    self.answers.extend(len.to_be_bytes());
                    self.answers.extend(answer);
                    self.tell(|readiness| readiness.readable = true);
                }
            }
        }
    }

    fn tell(&mut self, change: impl FnOnce(&mut Readiness)) {
        change(self.news.readiness.get_or_insert_default());
    }

    /// Sends on what the resolver would not take before.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(resolver) = self.resolver.as_mut().filter(|_| !self.outgoing.is_empty()) {
            let sent = resolver.send(&self.outgoing)?;
            self.outgoing.drain(..sent);
        }
        Ok(())
    }

    /// Moves our answers to the beginning of `buffer`, as many as fit.
    fn hand_out(&mut self, buffer: &mut [u8]) -> usize {
        let count = self.answers.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.answers[..count]);
        self.answers.drain(..count);
        if self.is_full && self.answers.len() < MAX_ANSWERS {
            self.is_full = false;
            self.tell(|readiness| readiness.writable = true);
        }
        count
    }
}

impl QueryStream {
    /// Closes the resolver's connection with RST.
    pub fn reset(self) {
        if let Some(resolver) = self.resolver {
            resolver.reset();
        }
    }
}

impl<S: HostStream> HostStream for QueryStream<S> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let own = match self.place.is_between() {
            true => self.hand_out(buffer),
            false => 0,
        };
        let rest = &mut buffer[own..];
        if rest.is_empty() {
            return Ok(own);
        }
        match &mut self.resolver {
            // After all answers, the guest's FIN is answered by ours.
            None if own > 0 || self.has_finished => Ok(own),
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(resolver) => match resolver.receive(rest) {
                Ok(count) => {
                    self.place.pass(&rest[..count]);
                    if self.place.is_between() && !self.answers.is_empty() {
                        self.tell(|readiness| readiness.readable = true);
                    }
                    Ok(own + count)
                }
                Err(_) if own > 0 => {
                    self.tell(|readiness| readiness.readable = true);
                    Ok(own)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.answers.len() >= MAX_ANSWERS {
            self.is_full = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = missing(&self.incoming).min(bytes.len());
        self.incoming.extend_from_slice(&bytes[..count]);
        if missing(&self.incoming) == 0 {
            self.take_query();
            match self.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(count)
    }

    fn finish(&mut self) {
        self.has_finished = true;
        match self.resolver {
            Some(_) => self.go_on(),
            None => self.tell(|readiness| (readiness.readable, readiness.hung_up) = (true, true)),
        }
    }
}

/// How many bytes at least `message` lacks.
fn missing(message: &[u8]) -> usize {
    match message.first_chunk::<LENGTH_LEN>() {
        None => LENGTH_LEN - message.len(),
        Some(len) => LENGTH_LEN + usize::from(u16::from_be_bytes(*len)) - message.len(),
    }
}

impl Place {
    fn is_between(&self) -> bool {
        self.left == 0 && self.length_len == 0
    }

    /// Goes past `bytes`.
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.length[self.length_len] = *first;
            self.length_len += 1;
            bytes = rest;
            if self.length_len == LENGTH_LEN {
                self.left = u16::from_be_bytes(self.length).into();
                self.length_len = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::*;
    use crate::core::dns::HostNames;

    /// A resolver that takes as much at a time as it is told, and says what it is told.
    #[derive(Default)]
    struct Resolver {
        takes: usize,
        taken: Vec<u8>,
        says: VecDeque<Vec<u8>>,
        finished: bool,
    }

    impl HostStream for Resolver {
        fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(said) = self.says.front_mut() else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            let count = said.len().min(buffer.len());
            buffer[..count].copy_from_slice(&said[..count]);
            said.drain(..count);
            if said.is_empty() {
                self.says.pop_front();
            }
            Ok(count)
        }

        fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.takes.min(bytes.len());
            self.takes -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            match count {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }

        fn finish(&mut self) {
            self.finished = true;
        }
    }

    /// A question for the address of `name`, a single label, behind its length.
    fn query(id: u8, name: &str) -> Vec<u8> {
        let mut query = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
        query.extend(name.as_bytes());
        query.extend([0, 0, 1, 0, 1]);
        framed(&query)
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u16).to_be_bytes(), message].concat()
    }

    fn stream(resolver: Option<Resolver>) -> QueryStream<Resolver> {
        let mut names = HostNames::default();
        names.add("db=10.89.0.5".parse().unwrap()).unwrap();
        let queries = NamedQueries {
            names: Arc::new(names),
            asker: "10.0.2.100".parse().unwrap(),
        };
        QueryStream::new(queries, resolver)
    }

    /// Sends in pieces of `size`, as long as it is taken.
    fn send(stream: &mut QueryStream<Resolver>, bytes: &[u8], size: usize) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            let piece = &bytes[sent..bytes.len().min(sent + size)];
            match stream.send(piece) {
                Ok(count) => sent += count,
                Err(_) => break,
            }
        }
        sent
    }

    /// The identifiers of the messages that can be read in pieces of `size`.
    fn read(stream: &mut QueryStream<Resolver>, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; size];
        while let Ok(count) = stream.receive(&mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
            if count == 0 {
                break;
            }
        }
        let mut rest = bytes.as_slice();
        let mut ids = Vec::new();
        while let Some((len, message)) = rest.split_first_chunk::<2>() {
            let (message, behind) = message.split_at(u16::from_be_bytes(*len).into());
            ids.push(message[1]);
            rest = behind;
        }
        ids
    }

    #[test]
    fn names_are_answered_and_the_rest_goes_on() {
        for size in [1, 3, 4096] {
            let resolver = Resolver {
                takes: usize::MAX,
                ..Resolver::default()
            };
            let mut stream = stream(Some(resolver));
            let all = [query(1, "db"), query(2, "other"), query(3, "DB")].concat();
            assert_eq!(send(&mut stream, &all, size), all.len());
            assert_eq!(stream.resolver.as_ref().unwrap().taken, query(2, "other"));
            let News {
                answered,
                readiness,
            } = stream.take_news();
            assert_eq!((answered, readiness.unwrap().readable), (2, true));
            assert_eq!(read(&mut stream, size), [1, 3]);
        }
    }

    #[test]
    fn answers_are_not_put_into_others() {
        for size in [1, 7, 4096] {
            let foreign = framed(&[0, 9, 7, 7, 7, 7, 7, 7]);
            let (first, rest) = foreign.split_at(3);
            let resolver = Resolver {
                takes: usize::MAX,
                says: [first.to_vec()].into(),
                ..Resolver::default()
            };
            let mut stream = stream(Some(resolver));
            let mut heard = Vec::new();
            let mut buffer = vec![0; size];
            while let Ok(count) = stream.receive(&mut buffer) {
                heard.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(heard, first);
            send(&mut stream, &query(1, "db"), size);
            assert!(stream.receive(&mut buffer).is_err(), "not in between");
            stream.take_news();
            stream.resolver.as_mut().unwrap().says = [rest.to_vec()].into();
            while heard.len() < foreign.len() {
                let count = stream.receive(&mut buffer).unwrap();
                heard.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(heard[..foreign.len()], foreign);
            assert!(stream.take_news().readiness.unwrap().readable);
            assert_eq!(read(&mut stream, size), [1]);
        }
    }

    #[test]
    fn a_resolver_that_takes_little_holds_the_guest_up() {
        let resolver = Resolver {
            takes: 5,
            ..Resolver::default()
        };
        let mut stream = stream(Some(resolver));
        let [first, second] = [1, 2].map(|id| query(id, "other"));
        assert_eq!(
            send(&mut stream, &[first.clone(), second].concat(), 4096),
            first.len()
        );
        stream.finish();
        assert!(!stream.resolver.as_ref().unwrap().finished);
        stream.resolver.as_mut().unwrap().takes = usize::MAX;
        stream.go_on();
        let resolver = stream.resolver.as_ref().unwrap();
        assert_eq!(resolver.taken, first);
        assert!(resolver.finished);
    }

    #[test]
    fn a_guest_that_does_not_read_is_not_listened_to() {
        let mut stream = stream(None);
        let queries = query(1, "db").repeat(10_000);
        let sent = send(&mut stream, &queries, 4096);
        assert!(sent < queries.len());
        assert!(stream.answers.len() < MAX_ANSWERS + 512);
        stream.take_news();
        assert!(!read(&mut stream, 4096).is_empty());
        assert!(stream.take_news().readiness.unwrap().writable);
        assert!(send(&mut stream, &queries[sent..], 4096) > 0);
    }

    #[test]
    fn without_a_resolver_all_else_fails_and_the_end_is_an_end() {
        let mut stream = stream(None);
        send(&mut stream, &query(4, "other"), 4096);
        let mut answer = [0; 64];
        let count = stream.receive(&mut answer).unwrap();
        const SERVFAIL: u8 = 2;
        assert_eq!((answer[3], answer[5] & 15), (4, SERVFAIL));
        assert!(count > 0 && stream.receive(&mut answer).is_err());
        send(&mut stream, &query(5, "db"), 4096);
        stream.finish();
        assert!(stream.take_news().readiness.unwrap().hung_up);
        assert_eq!(read(&mut stream, 4096), [5]);
        assert_eq!(stream.receive(&mut answer).unwrap(), 0);
    }
}
