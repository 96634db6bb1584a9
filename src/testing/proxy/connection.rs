//! One connection through a proxy: two ways, each with a reader that stamps what arrives and a writer that passes it on
//! as the fault of the moment says.

use std::{future::pending, io, num::NonZeroU32, time::Duration};

use futures_util::future::try_join;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{NetworkFault, Setting, State, Way, worker::Link};
use crate::tenant::Endpoint;

/// What is read at once.
const CHUNK: usize = 16 * 1024;
/// How many chunks may be under way: with [`CHUNK`], 1 MiB.
const UNDER_WAY: usize = 64;
/// A throttled way passes this many slices in a second: few enough that timers of a millisecond are exact enough, many
/// enough that the bytes flow.
const SLICES: u32 = 50;

/// Serves one client until both sides are done or the connection is broken.
pub(super) async fn serve(mut client: TcpStream, upstream: Endpoint, link: Link) {
    let mut server = None;
    let mut state = link.state.clone();
    let end = tokio::select! {
        biased;
        _ = state.wait_for(|state| state.reset) => End::Reset,
        end = live(&mut client, &mut server, &upstream, &link) => end,
    };
    if end == End::Reset {
        reset([&client].into_iter().chain(&server));
    }
    // Closed before the link is dropped, so that whoever sees that none is open finds the sockets closed.
    drop((client, server));
    drop(link);
}

/// Lets the sockets say "reset" instead of "no more" when they are closed.
pub(super) fn reset<'s>(streams: impl IntoIterator<Item = &'s TcpStream>) {
    for stream in streams {
        // It fails on a socket that is closed by the other side already.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InOrder,
    Cut,
    Reset,
}

/// What comes out of a side.
enum Piece {
    Bytes(Vec<u8>),
    End,
    Reset,
}

struct Arrived {
    at: Instant,
    piece: Piece,
}

async fn live(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    upstream: &Endpoint,
    link: &Link,
) -> End {
    // What is passed on in pieces must not wait for acknowledgements. It fails on a socket that is closed already.
    let _ = client.set_nodelay(true);
    let end = match reach(upstream, link).await {
        Reached::Server(stream) => {
            let _ = stream.set_nodelay(true);
            let stream = server.insert(stream);
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = stream.split();
            both_ways(
                Pump::new(link, Way::ToServer, Some(to_server)).run(from_client),
                Pump::new(link, Way::ToClient, Some(to_client)).run(from_server),
            )
            .await
        }
        Reached::Nobody(said) => {
            let (from_client, to_client) = client.split();
            let (says, under_way) = mpsc::channel(1);
            if let Some(piece) = said {
                let at = Instant::now();
                let _ = says.try_send(Arrived { at, piece });
            }
            let mut silence = Pump::new(link, Way::ToClient, Some(to_client));
            tokio::select! {
                // Its end is the client's.
                _ = Pump::new(link, Way::ToServer, None).run(from_client) => End::InOrder,
                end = silence.write(under_way) => match end {
                    Ok(()) => pending().await,
                    Err(end) => end,
                },
            }
        }
    };
    if end == End::Cut {
        for side in [&mut *client].into_iter().chain(server.as_mut()) {
            let _ = side.shutdown().await;
        }
        // A socket that is closed with bytes unread says "reset", on which the other side may forget what it has not
        // read yet. Hence every byte is read.
        let mut sink = vec![0; CHUNK];
        for side in [client].into_iter().chain(server.as_mut()) {
            while matches!(side.read(&mut sink).await, Ok(1..)) {}
        }
        return End::InOrder;
    }
    end
}

async fn both_ways(
    to_server: impl Future<Output = Result<(), End>>,
    to_client: impl Future<Output = Result<(), End>>,
) -> End {
    match try_join(to_server, to_client).await {
        Ok(_) => End::InOrder,
        Err(end) => end,
    }
}

enum Reached {
    Server(TcpStream),
    /// Nobody, and what the client hears of it.
    Nobody(Option<Piece>),
}

/// Connects to the server, as far as the way there lets that through.
async fn reach(upstream: &Endpoint, link: &Link) -> Reached {
    let mut state = link.state.clone();
    loop {
        let fault = state.borrow_and_update().settings.of(Way::ToServer).fault;
        match fault {
            NetworkFault::Stall => changed(&mut state).await,
            NetworkFault::BlackHole => return Reached::Nobody(None),
            _ => break,
        }
    }
    match TcpStream::connect((&*upstream.host, upstream.port)).await {
        Ok(stream) => Reached::Server(stream),
        Err(_) => Reached::Nobody(Some(Piece::Reset)),
    }
}

/// One way.
struct Pump<'c> {
    link: &'c Link,
    way: Way,
    state: watch::Receiver<State>,
    to: Option<WriteHalf<'c>>,
    /// Whether something is missing in what the receiver got or was told; nothing may follow then.
    lost: bool,
    /// The setting that is being followed, and what has become of it.
    setting: Setting,
    left: u64,
    slice: Option<(Instant, usize)>,
    free_at: Instant,
}

impl<'c> Pump<'c> {
    /// Without a receiver everything is lost.
    fn new(link: &'c Link, way: Way, to: Option<WriteHalf<'c>>) -> Self {
        let mut pump = Self {
            link,
            way,
            state: link.state.clone(),
            lost: to.is_none(),
            to,
            setting: Setting::default(),
            left: 0,
            slice: None,
            free_at: Instant::now(),
        };
        let setting = pump.state.borrow_and_update().settings.of(way);
        pump.follow(setting);
        pump
    }

    /// Passes on what comes from a side, until that has ended.
    async fn run(mut self, from: ReadHalf<'c>) -> Result<(), End> {
        let (sender, under_way) = mpsc::channel(UNDER_WAY);
        let read = async {
            read(from, sender).await;
            Ok(())
        };
        try_join(read, self.write(under_way)).await.map(drop)
    }

    async fn write(&mut self, mut under_way: mpsc::Receiver<Arrived>) -> Result<(), End> {
        let mut piece = None;
        loop {
            let setting = self.state.borrow_and_update().settings.of(self.way);
            if setting.number != self.setting.number {
                self.follow(setting);
            }
            if !self.lost {
                match self.setting.fault {
                    NetworkFault::HalfClose => self.close().await,
                    NetworkFault::CutAfter(_) if self.left == 0 => return Err(End::Cut),
                    _ => {}
                }
            }
            match piece.take() {
                None => {
                    piece = tokio::select! {
                        biased;
                        () = changed(&mut self.state) => None,
                        arrived = under_way.recv() => match arrived {
                            None => return Ok(()),
                            arrived => arrived,
                        },
                    };
                }
                Some(Arrived {
                    piece: Piece::Bytes(bytes),
                    ..
                }) if self.lost => {
                    self.link.lost(self.way, bytes.len());
                }
                Some(_) if self.lost => return Ok(()),
                Some(arrived) => piece = self.pass(arrived).await?,
            }
        }
    }

    /// Makes one step with a piece, and returns what is left of it. Comes back early when the setting changes.
    async fn pass(&mut self, arrived: Arrived) -> Result<Option<Arrived>, End> {
        let (at, fault) = (arrived.at, self.setting.fault);
        match fault {
            NetworkFault::BlackHole => {
                self.lost = true;
                return Ok(Some(arrived));
            }
            NetworkFault::Stall => {
                changed(&mut self.state).await;
                return Ok(Some(arrived));
            }
            NetworkFault::Delay(delay) if !self.reaches(at.checked_add(delay)).await => {
                return Ok(Some(arrived));
            }
            _ => {}
        }
        let mut bytes = match arrived.piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Reset => return Err(End::Reset),
            Piece::End => {
                self.close().await;
                return Ok(Some(arrived));
            }
        };
        let most = match fault {
            NetworkFault::CutAfter(_) => usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len()),
            NetworkFault::Throttle(rate) => {
                let (due, slice) = self.slice(rate, bytes.len());
                if !self.reaches(Some(due)).await {
                    return Ok(Some(Arrived {
                        at,
                        piece: Piece::Bytes(bytes),
                    }));
                }
                slice
            }
            _ => bytes.len(),
        };
        let to = self.to.as_ref().expect("without a receiver everything is lost");
        let ready = tokio::select! {
            biased;
            () = changed(&mut self.state) => return Ok(Some(Arrived { at, piece: Piece::Bytes(bytes) })),
            ready = to.writable() => ready,
        };
        let write = || to.try_write(&bytes[..most]);
        let written = match ready.and_then(|()| self.link.pass(self.way, write)) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // The receiver is gone. Its own end or reset travels the other way.
            Err(_) => {
                self.lost = true;
                0
            }
        };
        if written > 0 {
            self.left = self.left.saturating_sub(written as u64);
            if let Some((due, _)) = self.slice.take() {
                self.free_at = due;
            }
            bytes.drain(..written);
        }
        let piece = Piece::Bytes(bytes);
        Ok(match &piece {
            Piece::Bytes(bytes) if bytes.is_empty() => None,
            _ => Some(Arrived { at, piece }),
        })
    }

    fn follow(&mut self, setting: Setting) {
        self.setting = setting;
        self.slice = None;
        self.left = match setting.fault {
            NetworkFault::CutAfter(bytes) => bytes,
            _ => 0,
        };
    }

    /// The next bytes that a throttled way may pass, and when: so late that at no time more have passed than the rate
    /// allows.
    fn slice(&mut self, rate: NonZeroU32, waiting: usize) -> (Instant, usize) {
        let free_at = self.free_at.max(Instant::now());
        *self.slice.get_or_insert_with(|| {
            let most = (rate.get() / SLICES).max(1);
            let bytes = u32::try_from(waiting).map_or(most, |waiting| waiting.min(most));
            let due = free_at + Duration::from_secs(1) * bytes / rate.get();
            (due, bytes as usize)
        })
    }

    /// Waits for a moment; none never comes. False if the setting changed before.
    async fn reaches(&mut self, due: Option<Instant>) -> bool {
        let moment = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = changed(&mut self.state) => false,
            () = moment => true,
        }
    }

    /// Tells the receiver that no more will come, and sees to it that no more does.
    async fn close(&mut self) {
        if let Some(to) = &mut self.to {
            // It fails when the receiver is gone.
            let _ = to.shutdown().await;
        }
        self.lost = true;
    }
}

/// Reads a side to its end.
async fn read(mut from: ReadHalf<'_>, under_way: mpsc::Sender<Arrived>) {
    loop {
        let mut bytes = vec![0; CHUNK];
        let piece = match from.read(&mut bytes).await {
            Ok(0) => Piece::End,
            Ok(read) => {
                bytes.truncate(read);
                Piece::Bytes(bytes)
            }
            Err(_) => Piece::Reset,
        };
        let last = !matches!(piece, Piece::Bytes(_));
        let at = Instant::now();
        if under_way.send(Arrived { at, piece }).await.is_err() || last {
            return;
        }
    }
}

/// Waits for the next setting.
async fn changed(state: &mut watch::Receiver<State>) {
    // The sender is in the registry for as long as the link lives, which outlives this.
    if state.changed().await.is_err() {
        pending().await
    }
}
