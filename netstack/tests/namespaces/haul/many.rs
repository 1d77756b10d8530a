//! Thousands of promoted flows at once: all of them work, each costs little, and nothing is left of
//! them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Watched;
use crate::harness::traffic::{EchoServer, Pattern};
use crate::harness::{Family, Netns, World, eventually, full, nft, tcp_sockets};
use crate::load::{in_runtime, require_descriptors};

pub fn thousands(world: &mut World) {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("RLIMIT_NOFILE");
    // Two descriptors for each flow, and half of the helper's are for open connections.
    let possible = (most as usize).saturating_sub(SPARE) / 4;
    let connections = if full() { possible.min(10_000) } else { 2000 };
    require_descriptors(2 * connections + SPARE);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let setup = world.helper().option("--promote=always");
    let watched = Watched::start(setup, &world.dir);
    let helper = &watched.helper;
    let (baseline, rss) = (helper.resting_fd_count(), helper.rss_kib());

    let remote = server.address;
    let (watched, guest) = (&watched, &world.guest.net);
    in_runtime(guest, async move {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut stream = TcpStream::connect(remote).await.expect("connect");
            echo(&mut stream, &[7; 512]).await;
            open.push(stream);
        }
        // On a busy machine a few may find no rest in time.
        let most = connections - connections / 100;
        eventually("the flows are promoted", Duration::from_secs(30), || {
            watched.promoted().count() >= most
        });
        let promoted = watched.promoted().count();
        assert_eq!(diverted(guest), promoted);
        assert_eq!(helpers_sockets(guest, remote), promoted);
        let helper = &watched.helper;
        let cost = (helper.rss_kib() - rss) * 1024 / connections as u64;
        println!(
            "{promoted} of {connections} flows promoted, {cost} bytes of the helper's memory each"
        );
        open = talk(open).await;
        let more = helper.fd_count() - baseline - connections - promoted;
        println!("{more} more descriptors after all talked at once");
        drop(open);
    });

    eventually("no flow is left", Duration::from_secs(60), || {
        watched.flows().is_empty()
    });
    helper.expect_fds_back_to(baseline + POOLED);
    assert_eq!(diverted(guest), 0);
    assert_eq!(helpers_sockets(guest, remote), 0);
}

/// Every connection sends and hears its own bytes, [`AT_ONCE`] at a time.
async fn talk(open: Vec<TcpStream>) -> Vec<TcpStream> {
    let pattern = Pattern::new(37);
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for (number, mut stream) in open.into_iter().enumerate() {
        let (pattern, slots) = (pattern.at(number * 13), slots.clone());
        clients.spawn(async move {
            let _slot = slots.acquire().await.expect("never closed");
            echo(&mut stream, pattern.peek(65_536)).await;
            stream
        });
    }
    clients.join_all().await
}

async fn echo(stream: &mut TcpStream, message: &[u8]) {
    let mut back = vec![0; message.len()];
    let (mut reader, mut writer) = stream.split();
    let (sent, heard) = tokio::join!(writer.write_all(message), reader.read_exact(&mut back));
    sent.expect("send");
    heard.expect("hear the echo");
    assert!(back == message, "the echo differs");
}

/// How many flows the helper's table in the guest diverts, as the `nft` program says. The tables
/// belong to the helper's socket, but anybody may look.
fn diverted(guest: &Netns) -> usize {
    let list = |family| {
        let text = nft(
            guest,
            &["-j", "list", "set", family, "coracle", "promoted"],
            "",
        );
        text.matches("\"concat\"").count()
    };
    ["ip", "ip6"].into_iter().map(list).sum()
}

/// How many TCP sockets there are in the guest, TIME-WAIT included, that have the remote's address
/// and so are the helper's.
fn helpers_sockets(guest: &Netns, remote: SocketAddr) -> usize {
    let sockets = tcp_sockets(guest).into_iter();
    sockets.filter(|socket| socket.local == remote).count()
}

/// Descriptors for everything else.
const SPARE: usize = 500;
/// The helper keeps so many sockets ready to be promoted to, and pipes.
const POOLED: usize = 2 * 64 + 8;
const AT_ONCE: usize = 256;
