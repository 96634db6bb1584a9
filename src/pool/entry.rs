//! Entering: what a database is told before a connection is used for a tenant, and what a connection remembers of those
//! that it was used for before.
//!
//! What a tenant's statements leave in a session, as far as they can be seen, is gone when the connection comes back.
//! What functions that they call leave there cannot be seen. It matters where the next borrower is another tenant, so
//! there the session is made as new in the same round trip that enters.

use std::{collections::HashSet, hash::BuildHasher};

use sqlx::{AssertSqlSafe, Connection, SqlSafeStr, postgres::PgTransactionManager, raw_sql};
use sqlx_core::transaction::TransactionManager;

use super::connection::Checkout;
use crate::tenant::{DatabaseId, Epoch, Isolation, TenantId};

/// Whose rows a connection is to reach, and what the database must know of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) tenant: TenantId,
    pub(crate) epoch: Epoch,
    pub(crate) database: DatabaseId,
    pub(crate) isolation: Isolation,
}

impl Entry {
    /// Whether other tenants use the same database.
    pub(crate) fn shares(&self) -> bool {
        self.isolation != Isolation::Database
    }

    /// Nothing but UUIDs and a number goes into the text, which has no parameters.
    fn call(&self, function: &'static str) -> String {
        let Self {
            tenant,
            epoch,
            database,
            ..
        } = self;
        format!("select biplane.{function}('{tenant}', {epoch}, '{database}')")
    }

    /// What the session that has entered so holds ready for its transactions.
    fn again(&self) -> String {
        format!(
            "execute biplane_{}_{}",
            self.tenant.as_uuid().simple(),
            self.epoch
        )
    }

    /// In whose schema this entry looks names up.
    fn names(&self) -> Names {
        match self.isolation {
            Isolation::Schema => Names::Of(self.tenant, self.epoch),
            Isolation::Database | Isolation::Row => Names::Shared,
        }
    }
}

/// What a connection remembers of those that it was lent to.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Who used the session last, since it was as new.
    tenant: Option<TenantId>,
    /// As whom the session itself entered.
    entered: Option<Entry>,
    /// Whether it may have prepared what transactions begin with, for anybody.
    prepared: bool,
    /// Where the names in the statements and types were looked up that sqlx keeps for this connection.
    names: Option<Names>,
    /// Hashes of statements whose types sqlx knows for this connection.
    typed: HashSet<u64>,
}

/// How many of those are remembered: more than a service has. Then it begins anew.
const TYPED: usize = 1_000;

impl Memory {
    fn add_typed(&mut self, sql: &str) {
        if self.typed.len() >= TYPED {
            self.typed.clear();
        }
        self.typed.insert(self.typed.hasher().hash_one(sql));
    }

    fn is_typed(&self, sql: &str) -> bool {
        self.typed.contains(&self.typed.hasher().hash_one(sql))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// The same for all.
    Shared,
    /// In one tenant's schema, which another epoch may have elsewhere.
    Of(TenantId, Epoch),
}

/// What `discard all` does, but for the statements that sqlx has prepared: those are the same for everybody, or are
/// closed by themselves. Unlike it, it may stand before something else in a round trip. Settings come first, of which one
/// could keep the rest from working, and the path after that in which the rest is found.
const AS_NEW: &str = "begin; set session authorization default; reset all; close all; unlisten *; \
     select pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences; ";

/// Before a transaction behind a pooler that keeps no statements: one that is left there would take the name from ours.
const FORGET_PREPARED: &str = "begin; deallocate all; commit; ";

/// Closes statements that somebody has prepared by SQL, and no others.
const FORGET_PREPARED_BY_SQL: &str = "do $biplane$ declare left_over record; begin \
     for left_over in select name from pg_catalog.pg_prepared_statements where from_sql loop \
     execute pg_catalog.format('deallocate %I', left_over.name); end loop; end $biplane$; ";

impl Checkout {
    /// Opens a transaction with these options, as this tenant if there is one, in one round trip, and one more where the
    /// session enters first.
    ///
    /// # Cancel safety
    /// A cancelled or failed call leaves the connection to be cleaned when it is dropped.
    pub(crate) async fn begin(&mut self, options: &str, entry: Option<&Entry>) -> sqlx::Result<()> {
        if let Some(entry) = entry.filter(|entry| self.session_can_enter(entry)) {
            self.enter(entry).await?;
        }
        self.be_busy().await?;
        self.look_names_up_anew(entry).await?;
        let mut text = self.make_as_new(entry);
        let held_ready = entry.filter(|entry| self.has_entered(entry));
        match held_ready {
            Some(entry) => text.push_str(&self.text_of_begin(options, Some(&entry.again()))),
            None => text.push_str(&self.text_to_begin(options, entry)),
        }
        let retries = held_ready.is_some() && !cfg!(biplane_mutant = "dropped_entries_are_final");
        let begun = match self.send_begin(text).await {
            // Somebody has dropped it unseen. Nothing of the caller's has run.
            Err(error) if retries && is_not_prepared(&error) => {
                self.memory().entered = None;
                self.fail(&error);
                self.rollback().await?;
                self.be_busy().await?;
                self.send_begin(self.text_to_begin(options, entry)).await
            }
            begun => begun,
        };
        self.entered(begun, entry)
    }

    async fn send_begin(&mut self, text: String) -> sqlx::Result<()> {
        self.begins();
        PgTransactionManager::begin(self.connection(), Some(AssertSqlSafe(text).into_sql_str())).await
    }

    /// Makes the session one of this tenant, so that statements may run in it by themselves. Done once: as long as the
    /// tenant and its epoch stay the same, nothing is asked.
    ///
    /// # Cancel safety
    /// As [`Checkout::begin`].
    pub(crate) async fn enter(&mut self, entry: &Entry) -> sqlx::Result<()> {
        if self.remembers_to_have_entered(entry) {
            return Ok(());
        }
        self.be_busy().await?;
        self.look_names_up_anew(Some(entry)).await?;
        let mut text = self.make_as_new(Some(entry));
        if !text.is_empty() {
            // What fails before its commit leaves a transaction.
            self.begins();
        }
        text.push_str(&entry.call("enter_session_v1"));
        (self.memory().entered, self.memory().prepared) = (None, true);
        let entered = raw_sql(AssertSqlSafe(text)).execute(self.connection()).await;
        self.entered(entered.map(drop), Some(entry))?;
        self.ends();
        self.memory().entered = Some(*entry);
        Ok(())
    }

    /// The text that [`Checkout::begin`] sends where the session need not be made as new, for code that begins by itself on
    /// a connection that has entered. It counts on nothing that the session has prepared.
    pub(crate) fn text_to_begin(&self, options: &str, entry: Option<&Entry>) -> String {
        let entering = entry.map(|entry| entry.call("enter_v1"));
        self.text_of_begin(options, entering.as_deref())
    }

    fn text_of_begin(&self, options: &str, entering: Option<&str>) -> String {
        let mut text = String::from("begin");
        text.push_str(options);
        if !self.dial().session_is_ours() {
            text.push_str("; select ");
            text.push_str(&self.dial().path_of_transaction());
        }
        if let Some(entering) = entering {
            text.push_str("; ");
            text.push_str(entering);
        }
        text
    }

    /// Whether a session can enter as a whole, so that its transactions have less to do.
    fn session_can_enter(&self, entry: &Entry) -> bool {
        !entry.shares() && self.dial().session_is_ours()
    }

    fn remembers_to_have_entered(&self, entry: &Entry) -> bool {
        let entered = self.remembers().entered;
        entered.is_some_and(|entered| still_holds(&entered, entry))
    }

    /// Whether the session holds ready what its transactions begin with, as far as is known.
    fn has_entered(&self, entry: &Entry) -> bool {
        self.session_can_enter(entry) && self.remembers_to_have_entered(entry)
    }

    /// Whether somebody else's state may be in the session. Behind a transaction pooler it may be anybody's each time.
    fn must_be_as_new(&self, entry: Option<&Entry>) -> bool {
        let Some(entry) = entry else { return false };
        if cfg!(biplane_mutant = "tenants_inherit_sessions") {
            return false;
        }
        match self.dial().session_is_ours() {
            true => self
                .remembers()
                .tenant
                .is_some_and(|tenant| tenant != entry.tenant),
            false => entry.shares(),
        }
    }

    /// What to send first: whatever makes the session as new, if it must be; little or nothing if not. One that is made as
    /// new is taken from here on to have entered as nobody, whatever becomes of the round trip: its first part is committed
    /// by itself, and may have been though the rest was refused or nobody waited for the answer.
    fn make_as_new(&mut self, entry: Option<&Entry>) -> String {
        let Some(entry) = entry.filter(|_| self.must_be_as_new(entry)) else {
            return match self.lends_names() {
                true => FORGET_PREPARED.to_owned(),
                false => String::new(),
            };
        };
        if !cfg!(biplane_mutant = "sessions_made_as_new_stay_entered") {
            self.memory().entered = None;
        }
        let mut text = String::from(AS_NEW);
        if self.remembers().prepared {
            // What its transactions began with names the tenant.
            text.push_str(FORGET_PREPARED_BY_SQL);
        }
        if self.dial().session_is_ours() {
            if entry.isolation == Isolation::Schema {
                // sqlx has none left.
                text.push_str("deallocate all; ");
            }
            text.push_str("select ");
            text.push_str(&self.dial().settings_anew());
            text.push_str("; ");
        } else {
            if !cfg!(biplane_mutant = "statements_outlive_tenants") {
                // Those that a pooler keeps for its clients were not prepared by SQL, and it counts on them.
                text.push_str(match self.dial().keeps_statements() {
                    true => FORGET_PREPARED_BY_SQL,
                    false => "deallocate all; ",
                });
            }
            if let Some(announced) = self.dial().announced() {
                text.push_str("select ");
                text.push_str(&announced);
                text.push_str("; ");
            }
        }
        text.push_str("commit; ");
        text
    }

    /// Whether a statement's name lasts no longer than a transaction.
    fn lends_names(&self) -> bool {
        !self.dial().session_is_ours() && !self.dial().keeps_statements()
    }

    /// Whether sqlx knows the types of a statement, so that it need not ask while the statement is under way.
    pub(crate) fn knows_types_of(&self, sql: &str) -> bool {
        self.remembers().is_typed(sql)
    }

    /// Notes that a statement was answered, and so has types that sqlx knows.
    pub(crate) fn note_types_of(&mut self, sql: &str) {
        self.memory().add_typed(sql);
    }

    /// Forgets whose types are known: one of them has others by now.
    pub(crate) fn doubt_types(&mut self) {
        self.memory().typed.clear();
    }

    /// sqlx keeps statements, and types by their names, for a connection. In another schema they mean something else, and
    /// behind a pooler that keeps none they are gone after a transaction.
    async fn look_names_up_anew(&mut self, entry: Option<&Entry>) -> sqlx::Result<()> {
        let names = entry
            .map(Entry::names)
            .filter(|_| !cfg!(biplane_mutant = "names_are_kept_across_schemas"));
        let elsewhere = match (self.remembers().names, names) {
            (Some(kept), Some(names)) => kept != names,
            _ => false,
        };
        let lent = self.lends_names()
            && self.connection().cached_statements_size() > 0
            && !cfg!(biplane_mutant = "names_collide_behind_poolers");
        if !elsewhere && !lent {
            return Ok(());
        }
        if elsewhere {
            self.doubt_types();
        }
        if let Err(error) = self.connection().clear_cached_statements().await {
            self.fail(&error);
            return Err(error);
        }
        if elsewhere {
            self.memory().names = None;
        }
        Ok(())
    }

    fn entered<T>(&mut self, entered: sqlx::Result<T>, entry: Option<&Entry>) -> sqlx::Result<T> {
        let entered = self.judge(entered);
        match (&entered, entry) {
            (Ok(_), Some(entry)) => {
                let memory = self.memory();
                memory.tenant = Some(entry.tenant);
                memory.names = Some(entry.names());
            }
            // Whatever the session was left with that keeps it from being entered goes with it.
            (Err(error @ sqlx::Error::Database(_)), Some(_))
                if !is_refusal(error) && !cfg!(biplane_mutant = "spoilt_sessions_are_kept") =>
            {
                self.distrust();
            }
            _ => {}
        }
        entered
    }
}

/// Whether the database answered that this tenant, epoch or database is not what it holds.
fn is_refusal(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refused)
        if matches!(refused.code().as_deref(), Some("BP001" | "BP002" | "BP003")))
}

/// Whether the session holds nothing ready of the name that was to be executed.
fn is_not_prepared(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refused) if refused.code().as_deref() == Some("26000"))
}

/// Whether a session that entered so need not enter so again.
fn still_holds(entered: &Entry, wanted: &Entry) -> bool {
    if cfg!(biplane_mutant = "sessions_outlive_their_epoch") {
        return entered.tenant == wanted.tenant;
    }
    entered == wanted
}
