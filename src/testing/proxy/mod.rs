//! A TCP proxy that breaks connections when a test tells it to.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use biplane::{tenant::{Endpoint, Server}, testing::proxy::{Arrivals, Direction, FaultProxy, NetworkFault}};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::new(Endpoint::new("127.0.0.1", 5432), "acme"); // or that of a throwaway cluster
//! let proxy = FaultProxy::start(&server.endpoints[0]).await?;
//! let server = proxy.through(&server).expect("the proxy stands before it");
//!
//! // … connect to `server`; then, while connections are open:
//! proxy.set(Direction::ToClient, NetworkFault::Delay(Duration::from_millis(200)));
//! proxy.set_open(Direction::Both, NetworkFault::BlackHole); // those that come later are well
//! proxy.set_arrivals(Arrivals::Refuse).await?;              // no others come
//! proxy.heal().await?;
//! proxy.reset();                                            // every open connection ends with a reset
//! # Ok(()) }
//! ```
//!
//! # Contract
//! - **What is sent after a method has returned feels what it set.** That holds for connections that are open and, except
//!   where a method says otherwise, for those that come. A connection is open once the proxy has accepted it, which may be
//!   a moment after the client's connect; [`FaultProxy::reached`] waits for it.
//! - **A stream has no holes**, because TCP's have none. A direction that has lost bytes to [`NetworkFault::BlackHole`]
//!   passes nothing any more, also when the fault is over; one that has lost none goes on. Which is what happens to the
//!   connections of a firewall that has forgotten them: no byte and no end comes through, and neither side is told.
//! - **Ends travel as bytes do.** The end of one side reaches the other after the same delay, not while the direction is
//!   stalled, and never through a black hole; a reset likewise.
//! - **Both sides are told when there is nobody to pass on to**: when the server cannot be reached, the client is accepted
//!   and then reset.
//! - **The proxy lives in a thread of its own**, on real time. A test whose tokio clock is paused, whose thread is busy or
//!   whose runtime has ended does not change what the proxy does, so one in a `static` works too.
//! - **Nothing is left behind.** Once `drop` has returned, every connection is closed, and the port is free.
//! - At most 1 MiB of each direction of a connection is under way; a sender of more waits, as with any full buffer.
//!
//! # Why it is written here
//! Looked at in November 2026: `noxious` does this in process, but its last release is of April 2021, on `rand` 0.8 and
//! `tokio-util` 0.6, and it knows neither resets nor half-closed connections nor what a lost connection does after the
//! fault. `tokio-netem` wraps single streams and leaves the proxy to be written, has unsafe code, and brings `clap` and a
//! subscriber for logs. `turmoil` and `madsim` replace the network of a simulation, which no real Postgres can be in.
//! `toxiproxy` is a server of its own, to be installed.

mod connection;
mod worker;

use std::{
    collections::HashMap,
    fmt, io,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::port::Port;
use crate::tenant::{Endpoint, Server};

/// A TCP proxy in front of an endpoint, for as long as this handle lives. See [the module](self).
pub struct FaultProxy {
    upstream: Endpoint,
    port: Port,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// Which bytes a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Direction {
    /// Those from the client to the server: what is asked.
    ToServer,
    /// Those from the server to the client: what is answered.
    ToClient,
    /// All.
    Both,
}

/// What becomes of the bytes of one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkFault {
    /// They are passed on at once.
    #[default]
    None,
    /// Each arrives this much later, whatever else is under way. In both directions, a question and its answer take twice
    /// as long.
    Delay(Duration),
    /// No more than this many bytes pass in a second, on each connection.
    Throttle(NonZeroU32),
    /// They wait until the fault changes. Nothing is lost: so does a network behave that is down for a while. New
    /// connections are accepted, and the server hears of them when the fault changes.
    Stall,
    /// They are read and thrown away, and the direction passes nothing any more, ever. New connections are accepted, and
    /// the server never hears of them if this is the direction [`ToServer`](Direction::ToServer).
    BlackHole,
    /// So many more bytes of each connection pass, and then it is closed in order, both ways. A connection that is new has
    /// this many in all.
    CutAfter(u64),
    /// The receiving side is told that no more will come, and what is sent after that is thrown away. The other direction
    /// is not affected. What was told cannot be taken back: the end of the fault concerns new connections alone.
    HalfClose,
}

/// What becomes of new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arrivals {
    /// They are accepted and passed on.
    #[default]
    Accept,
    /// Nobody listens: the system refuses them. The port stays reserved.
    Refuse,
    /// They are accepted and then reset.
    Reset,
}

/// What has come through a proxy since it was started. Whoever has received bytes finds them counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that were accepted, those included that were reset at once.
    pub accepted: usize,
    /// Connections that are open, be it on one side alone.
    pub open: usize,
    passed: PerWay<u64>,
    lost: PerWay<u64>,
}

impl FaultProxy {
    /// Starts a proxy in front of an endpoint, which need not be there yet. It listens on 127.0.0.1, at a port of its own.
    ///
    /// # Errors
    /// When the endpoint is a Unix socket, and when the system gives no port or no thread.
    ///
    /// # Cancel safety
    /// If the future is dropped, the proxy ends as soon as it has started.
    pub async fn start(upstream: &Endpoint) -> io::Result<Self> {
        if upstream.host.starts_with('/') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a fault proxy stands in front of a TCP endpoint, not of a Unix socket",
            ));
        }
        let shared = Arc::new(Shared::default());
        let (orders, given) = mpsc::unbounded_channel();
        let (started, start) = oneshot::channel();
        let thread = worker::spawn(upstream.clone(), Arc::clone(&shared), given, started)?;
        let port = start.await.map_err(|_| worker::gone())??;
        Ok(Self {
            upstream: upstream.clone(),
            port,
            shared,
            orders,
            thread: Some(thread),
        })
    }

    /// Where it listens. The same for the whole life of the handle.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new("127.0.0.1", self.port.number())
    }

    /// What it stands in front of.
    #[must_use]
    pub const fn upstream(&self) -> &Endpoint {
        &self.upstream
    }

    /// The same server, reached through this proxy: wherever it names the proxy's upstream, it names the proxy. `None` if
    /// it does not name it at all, because a test would then wait for faults that never come.
    ///
    /// Other endpoints and the name of the cluster stay. A certificate has to be valid for 127.0.0.1.
    #[must_use]
    pub fn through(&self, server: &Server) -> Option<Server> {
        let mut server = server.clone();
        let mut found = false;
        for endpoint in &mut server.endpoints {
            if *endpoint == self.upstream {
                *endpoint = self.endpoint();
                found = true;
            }
        }
        found.then_some(server)
    }

    /// Sets what becomes of bytes, on the connections that are open and on those that come.
    pub fn set(&self, direction: Direction, fault: NetworkFault) {
        self.change(direction, fault, Whom::All);
    }

    /// Sets what becomes of bytes on the connections that are open now. Those that come are not affected.
    pub fn set_open(&self, direction: Direction, fault: NetworkFault) {
        self.change(direction, fault, Whom::Open);
    }

    /// Sets what becomes of bytes on the connections that come. Those that are open now are not affected.
    pub fn set_new(&self, direction: Direction, fault: NetworkFault) {
        self.change(direction, fault, Whom::New);
    }

    /// Resets every connection that is open now, towards both sides, also those that a black hole has swallowed. New ones
    /// are not affected.
    pub fn reset(&self) {
        for link in self.shared.registry().open.values() {
            link.send_modify(|state| state.reset = true);
        }
    }

    /// Sets what becomes of new connections. Those that are open are not affected.
    ///
    /// When this returns, it is so: a connect is refused or accepted accordingly.
    ///
    /// # Errors
    /// When the port cannot be had back from somebody who took it while it was closed.
    ///
    /// # Cancel safety
    /// If the future is dropped, it happens all the same.
    pub async fn set_arrivals(&self, arrivals: Arrivals) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        self.orders
            .send(Order::Arrivals(arrivals, done))
            .map_err(|_| worker::gone())?;
        outcome.await.map_err(|_| worker::gone())?
    }

    /// Ends all faults. What has been lost stays lost; see the contract of [the module](self).
    ///
    /// # Errors
    /// As [`FaultProxy::set_arrivals`].
    ///
    /// # Cancel safety
    /// If the future is dropped, it happens all the same.
    pub async fn heal(&self) -> io::Result<()> {
        self.set(Direction::Both, NetworkFault::None);
        self.set_arrivals(Arrivals::Accept).await
    }

    /// What has come through since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the counts are as wanted, and returns them.
    ///
    /// # Cancel safety
    /// Safe: only waits.
    pub async fn until(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        *self
            .shared
            .counts
            .subscribe()
            .wait_for(wanted)
            .await
            .expect("the sender lives in self")
    }

    /// Waits until this many connections have been accepted since the start.
    ///
    /// # Cancel safety
    /// Safe: only waits.
    pub async fn reached(&self, accepted: usize) {
        self.until(|counts| counts.accepted >= accepted).await;
    }

    fn change(&self, direction: Direction, fault: NetworkFault, whom: Whom) {
        let mut registry = self.shared.registry();
        registry.settings += 1;
        let setting = Setting {
            fault,
            number: registry.settings,
        };
        if whom != Whom::Open {
            registry.new.set(direction, setting);
        }
        if whom != Whom::New {
            for link in registry.open.values() {
                link.send_modify(|state| state.settings.set(direction, setting));
            }
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // It fails only if the thread is gone already.
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("upstream", &self.upstream)
            .field("endpoint", &self.endpoint())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Counts {
    /// How many bytes were passed on.
    #[must_use]
    pub const fn passed(&self, direction: Direction) -> u64 {
        self.passed.sum(direction)
    }

    /// How many bytes were read and thrown away: in a black hole, after an end, or because the receiver was gone.
    #[must_use]
    pub const fn lost(&self, direction: Direction) -> u64 {
        self.lost.sum(direction)
    }
}

/// Whom a setting concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    All,
    Open,
    New,
}

/// What the thread is told.
enum Order {
    Arrivals(Arrivals, oneshot::Sender<io::Result<()>>),
    Stop,
}

/// What handle and thread share.
#[derive(Default)]
struct Shared {
    registry: Mutex<Registry>,
    counts: watch::Sender<Counts>,
}

/// Under one lock, so that no connection slips through between what is set for those that are open and for new ones.
#[derive(Default)]
struct Registry {
    new: PerWay<Setting>,
    open: HashMap<u64, watch::Sender<State>>,
    accepted: u64,
    settings: u64,
}

/// What one connection has been told.
#[derive(Clone, Copy, Default)]
struct State {
    settings: PerWay<Setting>,
    reset: bool,
}

/// A fault and which setting it is, so that a cut that is set again counts from then.
#[derive(Clone, Copy, Default)]
struct Setting {
    fault: NetworkFault,
    number: u64,
}

/// One of the two ways through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PerWay<T> {
    to_server: T,
    to_client: T,
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing that is done under the lock panics halfway.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Copy> PerWay<T> {
    fn set(&mut self, direction: Direction, value: T) {
        if direction != Direction::ToClient {
            self.to_server = value;
        }
        if direction != Direction::ToServer {
            self.to_client = value;
        }
    }

    const fn of(&self, way: Way) -> T {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }

    const fn of_mut(&mut self, way: Way) -> &mut T {
        match way {
            Way::ToServer => &mut self.to_server,
            Way::ToClient => &mut self.to_client,
        }
    }
}

impl PerWay<u64> {
    const fn sum(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
            Direction::Both => self.to_server + self.to_client,
        }
    }
}
