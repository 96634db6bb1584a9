//! Sealed values in the columns of a table.

mod catalog;
mod failure;
mod sql;

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row, postgres::PgRow};
use tokio::sync::OnceCell;

use crate::{
    error::{Error, ErrorKind},
    plane::{Db, IsolationLevel, Plane, Tx, TxOptions},
};

use self::{catalog::Checked, failure::Place, sql::Statements};
use super::{
    Census, Decide, Decision, Mode, SealedStore, StoredValue, Visit, Visited, Wanted, store::Cursor,
};

/// The sealed values of a table of yours, in the control plane or in a tenant's database.
///
/// A row has a key and one sealed value or more, each in a text column. A value is sealed for a [purpose](Self::purpose),
/// an owner, which is the row's key as text unless said otherwise, and a field, which is the logical name given with the
/// column.
///
/// Before the first page the catalogue is asked: the table must exist, the key must be not null and unique by itself (of
/// any type that has an order), the values text, the privileges there, and no row-level security in between, which would
/// hide rows that are then left behind. Names may hold any character; they are quoted.
///
/// Needs `select` on the columns that it reads and, except for looking, `update` on those that it writes. Each page is a
/// transaction of its own at READ COMMITTED.
pub struct PgColumns<P: Plane> {
    db: Db<P>,
    name: Arc<str>,
    purpose: Box<str>,
    table: Table,
    owner_of: Option<OwnerOf>,
    checked: OnceCell<Checked>,
}

type OwnerOf = Box<dyn Fn(&str) -> String + Send + Sync>;

/// The names, as they stand in the catalogue.
#[derive(Clone, Debug)]
struct Table {
    schema: Box<str>,
    name: Box<str>,
    key: Box<str>,
    owner: Option<Box<str>>,
    values: Vec<Column>,
}

#[derive(Clone, Debug)]
struct Column {
    /// Where the sealed value is.
    sealed: Box<str>,
    /// Where the older system's value is, if that is another column.
    legacy: Option<Box<str>>,
    field: Box<str>,
}

impl<P: Plane> PgColumns<P> {
    /// Values in this table. Say besides what they were sealed for, by [`purpose`](Self::purpose) and one
    /// [`column`](Self::column) or more; nothing is asked before the first use.
    #[must_use]
    pub fn new(db: Db<P>, schema: &str, table: &str) -> Self {
        Self {
            db,
            name: format!("{schema}.{table}").into(),
            purpose: Box::default(),
            table: Table {
                schema: schema.into(),
                name: table.into(),
                key: "id".into(),
                owner: None,
                values: Vec::new(),
            },
            owner_of: None,
            checked: OnceCell::new(),
        }
    }

    /// What the values were sealed for.
    #[must_use]
    pub fn purpose(mut self, purpose: &str) -> Self {
        self.purpose = purpose.into();
        self
    }

    /// The column that tells rows apart: `id` by default, because most tables have it.
    #[must_use]
    pub fn key(mut self, column: &str) -> Self {
        self.table.key = column.into();
        self
    }

    /// A column with sealed values, and the field that they were sealed for.
    #[must_use]
    pub fn column(mut self, column: &str, field: &str) -> Self {
        self.table.values.push(Column {
            sealed: column.into(),
            legacy: None,
            field: field.into(),
        });
        self
    }

    /// A column with sealed values, into which an import brings those of another column. Only null is filled in, and the
    /// other column is left as it is.
    #[must_use]
    pub fn column_from(mut self, legacy: &str, column: &str, field: &str) -> Self {
        self.table.values.push(Column {
            sealed: column.into(),
            legacy: Some(legacy.into()),
            field: field.into(),
        });
        self
    }

    /// The column that says whose the values of a row are; the key by default. It must be not null.
    #[must_use]
    pub fn owner_column(mut self, column: &str) -> Self {
        self.table.owner = Some(column.into());
        self
    }

    /// How the owner is made of that column's text, when it is not that text itself.
    #[must_use]
    pub fn owner_from(mut self, owner: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.owner_of = Some(Box::new(owner));
        self
    }

    /// What reports call it: `schema.table` by default. Give each tenant's table a name of its own.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    async fn statements(&self) -> Result<Statements<'_>, Error> {
        let checked = self
            .checked
            .get_or_try_init(|| catalog::check(&self.db, &self.table, &self.purpose, self.place()))
            .await?;
        Ok(Statements::new(&self.table, checked))
    }

    fn place(&self) -> Place<'_> {
        Place { store: &self.name }
    }

    async fn begin(&self, mode: Mode) -> Result<Tx<P>, Error> {
        // A page shows each row as it is now, and must see what others have committed meanwhile.
        let options = TxOptions::new().isolation(IsolationLevel::ReadCommitted);
        let options = match mode {
            Mode::Look => options.read_only(),
            Mode::Change => options,
        };
        self.db.begin_with(options).await.map_err(self.place().failed())
    }

    async fn rows(
        &self,
        tx: &mut Tx<P>,
        sql: String,
        after: Option<&Cursor>,
        limit: Option<i64>,
    ) -> Result<Vec<PgRow>, Error> {
        // Reviewed: names quoted by `sql::quoted`, a type's name from the catalogue, key ids.
        let mut query = sqlx::query(AssertSqlSafe(sql));
        if let Some(limit) = limit {
            query = query.bind(limit);
        }
        if let Some(after) = after {
            query = query.bind(after.as_str());
        }
        query.fetch_all(tx).await.map_err(self.place().failed())
    }
}

impl<P: Plane> Debug for PgColumns<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgColumns")
            .field("name", &self.name)
            .field("purpose", &self.purpose)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<P: Plane> SealedStore for PgColumns<P> {
    fn name(&self) -> &str {
        &self.name
    }

    async fn census(&self) -> Result<Census, Error> {
        let statements = self.statements().await?;
        let mut tx = self.begin(Mode::Look).await?;
        let rows = self.rows(&mut tx, statements.census(), None, None).await?;
        let mut census = Census::default();
        for row in rows {
            let key: Option<&str> = row.try_get("key").map_err(self.place().failed())?;
            let values: i64 = row.try_get("values").map_err(self.place().failed())?;
            census.add(key.and_then(|key| key.parse().ok()), values.unsigned_abs());
        }
        Ok(census)
    }

    async fn count(&self, wanted: Wanted) -> Result<u64, Error> {
        let statements = self.statements().await?;
        let mut tx = self.begin(Mode::Look).await?;
        let rows = self.rows(&mut tx, statements.count(wanted), None, None).await?;
        let count = rows.first().map_or(Ok(0_i64), |row| row.try_get("values"));
        Ok(count.map_err(self.place().failed())?.unsigned_abs())
    }

    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error> {
        let statements = self.statements().await?;
        if page.mode == Mode::Change {
            statements.may_write(self.place())?;
        }
        let mut tx = self.begin(page.mode).await?;
        let sql = statements.page(page.wanted, page.mode, page.after.is_some());
        let limit = i64::from(page.limit.get());
        let rows = self.rows(&mut tx, sql, page.after, Some(limit)).await?;
        let full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit);

        let mut changes: Vec<Changes> = self.table.values.iter().map(|_| Changes::default()).collect();
        let mut last = None;
        let mut shown = rows.len();
        if cfg!(biplane_mutant = "last_rows_of_pages_are_lost") && full {
            shown -= 1;
        }
        for row in &rows[..shown] {
            self.show(row, decide, &mut changes)
                .map_err(self.place().failed())?;
        }
        if full && let Some(row) = rows.last() {
            let key: &str = row.try_get("key").map_err(self.place().failed())?;
            last = Some(Cursor::new(key));
        }
        if page.mode == Mode::Look {
            return Ok(Visited::new(0, last));
        }
        let mut written = 0;
        for (index, changes) in changes.into_iter().enumerate() {
            if changes.keys.is_empty() {
                continue;
            }
            let sql = statements.update(index, page.wanted);
            let done = sqlx::query(AssertSqlSafe(sql))
                .bind(changes.keys)
                .bind(changes.old)
                .bind(changes.new)
                .execute(&mut tx)
                .await
                .map_err(self.place().failed())?;
            written += done.rows_affected();
        }
        tx.commit().await.map_err(self.place().failed())?;
        Ok(Visited::new(written, last))
    }
}

impl<P: Plane> PgColumns<P> {
    /// Shows the values of a row, and notes what is to be written.
    fn show(&self, row: &PgRow, decide: &mut Decide<'_>, changes: &mut [Changes]) -> sqlx::Result<()> {
        let key: &str = row.try_get("key")?;
        let owner: &str = row.try_get("owner")?;
        let made = self.owner_of.as_ref().map(|owner_of| owner_of(owner));
        let owner = made.as_deref().unwrap_or(owner);
        for (index, (column, changes)) in self.table.values.iter().zip(changes).enumerate() {
            let text: Option<&str> = row.try_get(&*sql::value_name(index))?;
            let Some(text) = text else { continue };
            let value = StoredValue::new(&self.purpose, owner, &column.field, text);
            if let Decision::Replace(sealed) = decide(&value) {
                changes.keys.push(key.to_owned());
                changes.old.push(text.to_owned());
                changes.new.push(sealed.as_str().to_owned());
            }
        }
        Ok(())
    }
}

/// What is to be written to one column. What was read is in here only if it opened, so it is sealed.
#[derive(Default)]
struct Changes {
    keys: Vec<String>,
    old: Vec<String>,
    new: Vec<String>,
}

fn misconfigured(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfiguration).detail(detail)
}
