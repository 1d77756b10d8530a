//! A DNS server that knows one address.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Netns;
use crate::traffic::{listen, udp};

/// A resolver inside a namespace, UDP and TCP, that answers every question with 192.0.2.`number`.
pub struct Resolver {
    asked: Arc<AtomicUsize>,
    running: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    pub fn start(netns: &Netns, address: IpAddr, number: u8) -> Self {
        let (asked, running) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(true)),
        );
        let datagrams = udp(netns, address, 53);
        datagrams.set_read_timeout(Some(TICK)).unwrap();
        let listener = listen(netns, address, 53);
        listener.set_nonblocking(true).unwrap();
        let answer = move |query: &[u8]| {
            let mut answer = query.to_vec();
            // A response, recursion available, one answer: a pointer to the name, A, IN, TTL 60,
            // four octets.
            answer[2] |= 0x80;
            answer[3] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(Ipv4Addr::new(192, 0, 2, number).octets());
            answer
        };
        let udp_thread = std::thread::spawn({
            let (asked, running) = (asked.clone(), running.clone());
            move || {
                let mut query = [0; 1500];
                while running.load(Ordering::Relaxed) {
                    if let Ok((count, client)) = datagrams.recv_from(&mut query) {
                        asked.fetch_add(1, Ordering::Relaxed);
                        let _ = datagrams.send_to(&answer(&query[..count]), client);
                    }
                }
            }
        });
        let tcp_thread = std::thread::spawn({
            let (asked, running) = (asked.clone(), running.clone());
            move || {
                while running.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else {
                        std::thread::sleep(TICK / 10);
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    stream
                        .set_read_timeout(Some(Duration::from_secs(5)))
                        .unwrap();
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; u16::from_be_bytes(length).into()];
                        stream.read_exact(&mut query).expect("a whole query");
                        asked.fetch_add(1, Ordering::Relaxed);
                        let answer = answer(&query);
                        let mut message = (answer.len() as u16).to_be_bytes().to_vec();
                        message.extend(answer);
                        stream.write_all(&message).expect("send an answer");
                    }
                }
            }
        });
        Self {
            asked,
            running,
            threads: vec![udp_thread, tcp_thread],
        }
    }

    /// How many questions have come so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How often the resolver's threads look whether they should stop.
const TICK: Duration = Duration::from_millis(100);
