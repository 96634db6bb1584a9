//! A door before a server: it counts who comes, and opens, stays shut or answers as it is told.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use biplane::tenant::{Endpoint, Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

/// What happens to those who come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// They are let through.
    Through,
    /// They are thrown out.
    Shut,
    /// They hear nothing.
    Silent,
    /// They are let through when [`Door::let_in`] says so.
    Guarded,
    /// They are told this SQLSTATE and thrown out.
    Says(&'static str),
}

pub(crate) struct Door {
    pub(crate) endpoint: Endpoint,
    inner: Arc<Inner>,
    listening: JoinHandle<()>,
}

struct Inner {
    mode: Mutex<Mode>,
    came: AtomicUsize,
    /// Those who stand before a guarded door, and the most there ever were above what was let in.
    standing: AtomicUsize,
    let_in: AtomicUsize,
    crowd: AtomicUsize,
    guard: Semaphore,
}

impl Door {
    pub(crate) async fn before(server: Endpoint) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
        let inner = Arc::new(Inner {
            mode: Mutex::new(Mode::Through),
            came: AtomicUsize::new(0),
            standing: AtomicUsize::new(0),
            let_in: AtomicUsize::new(0),
            crowd: AtomicUsize::new(0),
            guard: Semaphore::new(0),
        });
        let listening = tokio::spawn({
            let inner = Arc::clone(&inner);
            async move {
                loop {
                    let (visitor, _) = listener.accept().await.unwrap();
                    inner.came.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(Arc::clone(&inner).receive(visitor, server.clone()));
                }
            }
        });
        Self {
            endpoint,
            inner,
            listening,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.inner.mode.lock().unwrap() = mode;
    }

    /// How many came so far.
    pub(crate) fn came(&self) -> usize {
        self.inner.came.load(Ordering::SeqCst)
    }

    /// How many stand before a guarded door.
    pub(crate) fn standing(&self) -> usize {
        self.inner.standing.load(Ordering::SeqCst)
    }

    /// By how many, at most, those who stood there were more than those who had been let in.
    pub(crate) fn crowd(&self) -> usize {
        self.inner.crowd.load(Ordering::SeqCst)
    }

    /// How many went in by a guarded door.
    pub(crate) fn went_in(&self) -> usize {
        self.inner.let_in.load(Ordering::SeqCst)
    }

    /// Lets one in who stands before a guarded door.
    pub(crate) fn let_in(&self) {
        self.inner.guard.add_permits(1);
    }

    /// The server, with this door before it.
    pub(crate) fn to(&self, mut server: Server) -> Server {
        server.endpoints = vec![self.endpoint.clone()];
        server
    }
}

impl Inner {
    async fn receive(self: Arc<Self>, mut visitor: TcpStream, server: Endpoint) {
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Through => {}
            Mode::Shut => return,
            Mode::Silent => {
                // Until the other side has had enough.
                while visitor.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                return;
            }
            Mode::Guarded => {
                let standing = self.standing.fetch_add(1, Ordering::SeqCst) + 1;
                let let_in = self.let_in.load(Ordering::SeqCst);
                self.crowd
                    .fetch_max(standing.saturating_sub(let_in), Ordering::SeqCst);
                self.guard.acquire().await.unwrap().forget();
                self.let_in.fetch_add(1, Ordering::SeqCst);
                self.standing.fetch_sub(1, Ordering::SeqCst);
            }
            Mode::Says(state) => {
                let _ = visitor.read(&mut [0; 512]).await;
                let mut fields = Vec::new();
                for (name, value) in [("S", "FATAL"), ("V", "FATAL"), ("C", state), ("M", "no")] {
                    fields.extend_from_slice(format!("{name}{value}\0").as_bytes());
                }
                fields.push(0);
                let mut message = vec![b'E'];
                message.extend_from_slice(&(fields.len() as u32 + 4).to_be_bytes());
                message.extend(fields);
                let _ = visitor.write_all(&message).await;
                return;
            }
        }
        if let Ok(mut there) = TcpStream::connect((&*server.host, server.port)).await {
            let _ = copy_bidirectional(&mut visitor, &mut there).await;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
