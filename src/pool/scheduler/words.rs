//! What is said between the scheduler and its caller.

use tokio::time::Instant;

/// Identifies a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::pool) struct StackId(pub(super) u64);

#[cfg(test)]
impl StackId {
    pub(in crate::pool) const fn for_tests(number: u64) -> Self {
        Self(number)
    }
}

/// Which of the addresses and logins that a stack has had, one after the other, a connection was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::pool) struct Generation(u64);

impl Generation {
    pub(in crate::pool) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A connection at rest.
pub(in crate::pool) trait Rest {
    /// Since when it rests.
    fn since(&self) -> Instant;

    /// What it was made with.
    fn generation(&self) -> Generation;
}

/// What to do once the lock is released.
#[derive(Debug)]
pub(in crate::pool) enum Action<C, W> {
    /// Hand a connection to a caller.
    Deliver(StackId, W, C),
    /// Open a connection; the permit is taken.
    Connect(StackId),
    /// Close a connection and then release its permit.
    Close(C),
}

/// In which part of its life a permit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Phase {
    /// The connection is being opened.
    Connecting,
    /// It is lent or at rest.
    Open,
    /// It is being closed.
    Closing,
}

/// What a caller gets who found nothing at rest a moment ago.
#[derive(Debug)]
pub(in crate::pool) enum Offer<C> {
    /// A connection that has come back meanwhile.
    Connection(C),
    /// The number of its place in the queue.
    Place(u64),
}

/// Why a caller cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Refusal {
    /// The pool is closed.
    Closed,
    /// As many wait as may wait.
    Full,
}

/// What a waiting caller is held up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum HeldUpBy {
    /// A connection is on its way, or none has ever arrived.
    Connect,
    /// The cap of its stack.
    Stack,
    /// What the server has room for.
    Server,
    /// The cap of the process.
    Process,
}

/// How far a stack that was held may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Leave {
    /// One connection, and then it is held again.
    One,
    /// As many as it wants.
    All,
}
