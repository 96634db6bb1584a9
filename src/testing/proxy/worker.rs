//! The thread that a proxy lives in: listening, and beginning connections.

use std::{
    io,
    net::Ipv4Addr,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{mpsc, oneshot, watch},
};

use super::{
    Arrivals, Order, Shared, State, Way,
    connection::{self, reset},
};
use crate::{tenant::Endpoint, testing::port::Port};

/// Somebody else would have to take a port between our look and our bind, this often.
const PORT_ATTEMPTS: u32 = 5;
/// Between two attempts to accept when the system has no file descriptor left, so that waiting for one takes no processor.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// Starts the thread. It says by `started` at which port it listens, and ends when it is told or when nobody is left to
/// tell it; everything that it opened is closed by then.
pub(super) fn spawn(
    upstream: Endpoint,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Order>,
    started: oneshot::Sender<io::Result<Port>>,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name("fault proxy".into()).spawn(move || {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        runtime.block_on(async {
            match listen().await {
                Ok((port, listener)) => {
                    let address = Address(port.number());
                    // Nobody receives the port if the start was abandoned; there are then no orders either.
                    if started.send(Ok(port)).is_ok() {
                        work(address, listener, upstream, &shared, orders).await;
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        // Drops the tasks, and with them the sockets, but does not wait for a name that is being resolved.
        runtime.shutdown_background();
    })
}

/// Why an order could not be carried out.
pub(super) fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the thread of the fault proxy has ended",
    )
}

/// One connection's entry in the registry.
pub(super) struct Link {
    shared: Arc<Shared>,
    number: u64,
    pub(super) state: watch::Receiver<State>,
}

impl Link {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut registry = shared.registry();
        registry.accepted += 1;
        let number = registry.accepted;
        let sender = watch::Sender::new(State {
            settings: registry.new,
            reset: false,
        });
        let state = sender.subscribe();
        registry.open.insert(number, sender);
        shared.counts.send_modify(|counts| {
            counts.accepted += 1;
            counts.open += 1;
        });
        Self {
            shared: Arc::clone(shared),
            number,
            state,
        }
    }

    /// Writes and counts in one, so that whoever has received bytes finds them counted.
    pub(super) fn pass(&self, way: Way, write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        let mut written = Ok(0);
        self.shared.counts.send_if_modified(|counts| {
            written = write();
            match written {
                Ok(bytes) => *counts.passed.of_mut(way) += bytes as u64,
                Err(_) => return false,
            }
            true
        });
        written
    }

    pub(super) fn lost(&self, way: Way, bytes: usize) {
        self.shared
            .counts
            .send_modify(|counts| *counts.lost.of_mut(way) += bytes as u64);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.registry().open.remove(&self.number);
        self.shared.counts.send_modify(|counts| counts.open -= 1);
    }
}

struct Address(u16);

impl Address {
    async fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind((Ipv4Addr::LOCALHOST, self.0)).await
    }
}

async fn listen() -> io::Result<(Port, TcpListener)> {
    let mut attempt = 1;
    loop {
        let port = Port::reserve()
            .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "found no free port on 127.0.0.1"))?;
        match Address(port.number()).bind().await {
            Ok(listener) => return Ok((port, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn work(
    address: Address,
    listener: TcpListener,
    upstream: Endpoint,
    shared: &Arc<Shared>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut arrivals = Arrivals::Accept;
    let mut listener = Some(listener);
    loop {
        tokio::select! {
            // Whoever was told that connections are refused must not see one accepted.
            biased;
            order = orders.recv() => match order {
                Some(Order::Arrivals(wanted, done)) => {
                    arrivals = wanted;
                    let outcome = turn(&mut listener, &address, wanted).await;
                    // The answer is for nobody if the caller has left.
                    let _ = done.send(outcome);
                }
                Some(Order::Stop) | None => return,
            },
            client = accept(listener.as_ref()) => {
                let link = Link::new(shared);
                if arrivals == Arrivals::Reset {
                    reset([&client]);
                } else {
                    tokio::spawn(connection::serve(client, upstream.clone(), link));
                }
            }
        }
    }
}

async fn turn(listener: &mut Option<TcpListener>, address: &Address, wanted: Arrivals) -> io::Result<()> {
    if wanted == Arrivals::Refuse {
        *listener = None;
    } else if listener.is_none() {
        *listener = Some(address.bind().await?);
    }
    Ok(())
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}
