//! What only bytes show, without a database.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use biplane::{
    tenant::Endpoint,
    testing::{
        proxy::{Arrivals, FaultProxy, NetworkFault},
        wait,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    Direction::{ToClient, ToServer},
    LIMIT, PATIENCE, bytes_per_second, raw, read_all, within,
};

/// A server that sends so many bytes to each client and then waits for its end.
fn sender(bytes: usize) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = client.write_all(&vec![7; bytes]);
                let _ = client.read(&mut [0]);
            });
        }
    });
    Endpoint::new("127.0.0.1", port)
}

/// A server that is the test itself.
async fn before_this_test() -> (tokio::net::TcpListener, FaultProxy) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
    (listener, FaultProxy::start(&upstream).await.unwrap())
}

/// Both sides of a connection through a proxy.
async fn pair(listener: &tokio::net::TcpListener, proxy: &FaultProxy) -> (TcpStream, TcpStream) {
    let client = within(raw(proxy)).await.unwrap();
    let (server, _) = within(listener.accept()).await.unwrap();
    (client, server)
}

/// As on a long line: what follows closely arrives closely.
#[tokio::test]
async fn a_long_answer_is_delayed_once() {
    let delay = Duration::from_millis(500);
    let proxy = FaultProxy::start(&sender(500_000)).await.unwrap();
    proxy.set(ToClient, NetworkFault::Delay(delay));
    let mut client = raw(&proxy).await.unwrap();
    let began = Instant::now();
    let mut read = vec![0; 500_000];
    within(client.read_exact(&mut read)).await.unwrap();
    let took = began.elapsed();
    // In pieces of 16 KiB, one delay for each would be 15 seconds.
    assert!(took >= delay && took < 14 * delay, "{took:?}");
}

/// Each has a line of its own.
#[tokio::test]
async fn connections_are_throttled_apart() {
    let proxy = FaultProxy::start(&sender(10_000)).await.unwrap();
    proxy.set_new(ToClient, bytes_per_second(1));
    let mut slow = raw(&proxy).await.unwrap();
    within(proxy.reached(1)).await;
    proxy.set_new(ToClient, NetworkFault::None);
    let mut quick = raw(&proxy).await.unwrap();
    let mut read = vec![0; 10_000];
    within(quick.read_exact(&mut read)).await.unwrap();
    assert!(timeout(PATIENCE, slow.read_exact(&mut read)).await.is_err());
    proxy.heal().await.unwrap();
}

#[tokio::test]
async fn a_cut_comes_after_exactly_so_many_bytes() {
    let proxy = FaultProxy::start(&sender(100_000)).await.unwrap();
    for bytes in [0, 1, 1000, 40_000] {
        proxy.set_new(ToClient, NetworkFault::CutAfter(bytes));
        let (mut answers, mut questions) = raw(&proxy).await.unwrap().into_split();
        // A client that talks on must not lose the last bytes of the answer for it.
        let talking = tokio::spawn(async move { while questions.write_all(&[1; 10_000]).await.is_ok() {} });
        let mut read = Vec::new();
        within(answers.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read.len() as u64, bytes);
        talking.abort();
        drop(answers);
        within(proxy.until(|counts| counts.open == 0)).await;
    }
}

#[tokio::test]
async fn what_follows_a_loss_never_arrives() {
    let (listener, proxy) = before_this_test().await;
    let (mut client, mut server) = pair(&listener, &proxy).await;
    proxy.set(ToServer, NetworkFault::BlackHole);
    client.write_all(b"lost").await.unwrap();
    within(proxy.until(|counts| counts.lost(ToServer) == 4)).await;
    proxy.heal().await.unwrap();
    client.write_all(b"more").await.unwrap();
    within(proxy.until(|counts| counts.lost(ToServer) == 8)).await;
    server.write_all(b"!").await.unwrap();
    assert_eq!(
        within(client.read_u8()).await.unwrap(),
        b'!',
        "the other direction works"
    );
    drop(client);
    let silent = timeout(PATIENCE, server.read_u8()).await;
    assert!(silent.is_err(), "{silent:?}");
    proxy.reset();
    let reset = within(server.read_u8()).await.unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn ends_and_resets_are_stalled_as_bytes_are() {
    let (listener, proxy) = before_this_test().await;
    for end in ["in order", "reset"] {
        let (mut client, mut server) = pair(&listener, &proxy).await;
        proxy.set(ToServer, NetworkFault::Stall);
        if end == "reset" {
            // A socket that is closed with bytes unread says so.
            server.write_all(b"unread").await.unwrap();
            client.readable().await.unwrap();
        } else {
            client.write_all(b"last").await.unwrap();
        }
        drop(client);
        let silent = timeout(PATIENCE, server.read_u8()).await;
        assert!(silent.is_err(), "{end}: {silent:?}");
        proxy.heal().await.unwrap();
        let mut read = [0; 4];
        if end == "in order" {
            within(server.read_exact(&mut read)).await.unwrap();
            assert_eq!(&read, b"last");
        }
        let (_, outcome) = read_all(&mut server).await;
        let reset = outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert_eq!(reset, end == "reset");
    }
}

#[tokio::test]
async fn a_server_behind_a_black_hole_never_hears_of_new_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let upstream = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
    let proxy = FaultProxy::start(&upstream).await.unwrap();
    proxy.set_new(ToServer, NetworkFault::BlackHole);
    let mut client = within(raw(&proxy)).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    within(proxy.until(|counts| counts.lost(ToServer) == 5)).await;
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(client);
    within(proxy.until(|counts| counts.open == 0)).await;
}

#[tokio::test]
async fn a_server_behind_a_stall_hears_of_new_clients_when_it_is_over() {
    let (listener, proxy) = before_this_test().await;
    proxy.set_new(ToServer, NetworkFault::Stall);
    let mut client = within(raw(&proxy)).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert!(timeout(PATIENCE, listener.accept()).await.is_err());
    proxy.heal().await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    assert_eq!(within(server.read_u8()).await.unwrap(), b'x');
}

/// A test whose clock stands still meets a network whose clock does not.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_shorten_a_delay() {
    let delay = Duration::from_millis(300);
    let proxy = FaultProxy::start(&sender(1)).await.unwrap();
    proxy.set(ToClient, NetworkFault::Delay(delay));
    let port = proxy.endpoint().port;
    let began = Instant::now();
    let reading = tokio::task::spawn_blocking(move || {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.read_exact(&mut [0]).unwrap();
    });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    reading.await.unwrap();
    assert!(began.elapsed() >= delay);
}

#[test]
fn a_proxy_outlives_the_runtime_that_started_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let proxy = runtime().block_on(FaultProxy::start(&sender(3))).unwrap();
    let read = |proxy: &FaultProxy| {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", proxy.endpoint().port))?;
        client.set_read_timeout(Some(LIMIT))?;
        client.read_exact(&mut [0; 3])
    };
    read(&proxy).unwrap();
    runtime().block_on(proxy.set_arrivals(Arrivals::Refuse)).unwrap();
    read(&proxy).unwrap_err();
    runtime().block_on(proxy.heal()).unwrap();
    read(&proxy).unwrap();
}

/// In a process of its own, whose threads can be counted.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_start_that_is_given_up_leaves_no_thread() {
    const ALONE: &str = "BIPLANE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let test = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "streams::a_start_that_is_given_up_leaves_no_thread"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&test.stdout);
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let upstream = Endpoint::new("127.0.0.1", 1);
    let before = threads();
    for _ in 0..20 {
        let mut start = Box::pin(FaultProxy::start(&upstream));
        let _ = futures_util::poll!(&mut start);
    }
    // One is that of the waiting.
    wait::until("the threads to end", LIMIT, async || threads() <= before + 1)
        .await
        .unwrap();
}

/// The threads of this process. Not by name, because a new one has none for a moment.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test]
async fn a_unix_socket_is_refused() {
    let refused = FaultProxy::start(&Endpoint::new("/run/postgresql", 5432))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}
