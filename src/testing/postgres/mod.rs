//! Throwaway Postgres clusters and PgBouncers.
//!
//! ```no_run
//! # use biplane::testing::postgres::{Cluster, ClusterError};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sqlx::Connection as _;
//!
//! let cluster = Cluster::start().await?;
//! cluster.create_database("acme").await?;
//! cluster.sql("acme", "create table note (text text)").await?;
//!
//! let mut connection = cluster.connect("acme").await?;
//! cluster.kill().await?;
//! assert!(connection.ping().await.is_err());
//!
//! cluster.start_again().await?; // the same address, the same data
//! cluster.sql("acme", "insert into note values ('still here')").await?;
//!
//! let standby = Cluster::builder().standby_of(&cluster).start().await?; // follows it
//! cluster.kill().await?;
//! standby.promote().await?;
//! # Ok(()) }
//! ```
//!
//! # What a machine needs
//! A Postgres server, version 12 or newer; nothing need be running. It is looked for in this order:
//!
//! 1. the directory that the variable `BIPLANE_PG_BIN` names, and then nowhere else;
//! 2. `PATH`;
//! 3. `/usr/lib/postgresql/*/bin` (Debian), newest version first;
//! 4. `/opt/homebrew/opt/postgresql*/bin` and `/usr/local/opt/postgresql*/bin` (Homebrew), newest first;
//! 5. `/usr/pgsql-*/bin` (the PostgreSQL project's rpm packages), newest first, and `/usr/bin`;
//! 6. `$XDG_CACHE_HOME/biplane/packages/*` (or `~/.cache/…`), where packages may lie unpacked.
//!
//! A standby ([`ClusterBuilder::standby_of`]) also takes `pg_basebackup`, beside `postgres`, where packages have it.
//!
//! PgBouncer likewise: `BIPLANE_PGBOUNCER` (a file), `PATH`, the usual `bin` and `sbin` directories, the unpacked
//! packages. One that knows prepared statements, for [`PgBouncerBuilder::newer`]: `BIPLANE_PGBOUNCER_NEW`, then the same
//! places, then `$XDG_CACHE_HOME/biplane/pgbouncer-*`, the first of 1.21 or later. Without them [`Cluster::start`] and [`PgBouncerBuilder::start`] fail with
//! [`ClusterError::NotInstalled`], which says what to install.
//!
//! # Contract
//! - **Nothing is left behind.** Each server is the child of a small shell process that holds the reading end of a
//!   pipe from the test process. When the pipe closes, because the handle was dropped, the test panicked or the
//!   process was killed by whatever signal, the shell ends the server and removes its directory. A handle in a
//!   `static` works too. (`PR_SET_PDEATHSIG` would not do: it is Linux alone, and it strikes when the *thread* that
//!   started the child ends, which for a tokio worker may be long before the test is over.) Only when that shell
//!   itself is killed by `SIGKILL` does a server outlive its test.
//! - **Nothing is shared.** Every cluster has its own directory, its own port on 127.0.0.1, which stays reserved
//!   while it is stopped, and its own Unix socket. Any number run at once, in one process or in many.
//! - **As root, the servers run as another user**, because Postgres and PgBouncer refuse to run as root: `postgres`
//!   if there is such a user, `nobody` otherwise.
//! - **Files live in memory** (`/dev/shm`) where 4 GiB are free there and `TMPDIR` is not set; otherwise in the
//!   directory for temporary files. [`ClusterBuilder::durable`] keeps them on the disk.
//! - **Starts are quick.** `initdb` runs once a day per user and Postgres version; clusters are copies of what it
//!   made. Therefore clusters share what Postgres calls the system identifier, and the superuser's random
//!   password, unless [`ClusterBuilder::own_system_identifier`] asks for an `initdb` of its own.
//! - **Time is real.** Starting and stopping run off the async threads and on the real clock, so they also work, and
//!   move nothing, while tokio's clock is paused.

mod account;
mod certificates;
mod cluster;
mod error;
mod home;
mod locate;
mod pgbouncer;
mod processes;
mod sql;
mod supervisor;
mod template;

pub use certificates::Certificates;
pub use cluster::{Authentication, Cluster, ClusterBuilder};
pub use error::{ClusterError, Missing, ServerLog};
pub use pgbouncer::{BouncerAuth, PgBouncer, PgBouncerBuilder, PgBouncerVersion, PoolMode, UnknownVersion};
pub use sql::RoleAttribute;

/// Runs what blocks (child processes, files) away from the async threads. A paused tokio clock stands still
/// meanwhile instead of running ahead, which it would do if this were awaited through timers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClusterError> + Send + 'static,
) -> Result<T, ClusterError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ClusterError::RuntimeGone),
        },
    }
}
