//! Reading tenants and following changes.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use sqlx::{FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    failure::{not_read, rows_hidden},
    rows::{parse_source, parse_tenant},
};
use crate::{
    error::{Error, ErrorKind},
    plane::ControlDb,
    repository::{
        Change, ChangeHead, ChangeKind, ChangeLog, ChangeSource, Changes, Found, Page, PageItem, Subject,
        TenantRepository,
    },
    tenant::{
        DataSource, DataSourceId, Incarnation, Resolved, Seq, TenantId, TenantRecord, TenantRef, Version,
    },
};

const FIND: &str = concat!(
    include_str!("sql/find.sql"),
    include_str!("sql/joined.sql"),
    include_str!("sql/hidden.sql")
);
const LIST: &str = concat!(
    include_str!("sql/list.sql"),
    include_str!("sql/joined.sql"),
    include_str!("sql/hidden.sql")
);
const SOURCE: &str = concat!(
    include_str!("sql/source.sql"),
    "where source.name = $1 or source.id = $2"
);
const HIDDEN: &str = concat!("select ", include_str!("sql/hidden.sql"));
/// Not known where rows are hidden from this role.
const UNFENCED: &str = "
    select case when not pg_catalog.row_security_active('biplane_control.data_source'::regclass)
            and not pg_catalog.row_security_active('biplane_control.tenant'::regclass)
        then pg_catalog.count(*) end
    from biplane_control.data_source as source
    where source.database_id is null and source.location <> 'memory' and exists (
        select from biplane_control.tenant as tenant
        where tenant.data_source_id = source.id and tenant.status <> 'deleted')";
const CHANGES: &str = "
    select meta.incarnation, meta.pruned_through, meta.released_through, meta.frozen,
        greatest((select max(newest.seq) from biplane_control.change as newest), meta.pruned_through) as head,
        pg_catalog.row_security_active('biplane_control.change'::regclass) as hidden,
        change.seq, change.tenant_id, change.data_source_id, change.kind,
        (extract(epoch from change.at) * 1000000)::bigint as at
    from biplane_control.meta
    left join lateral (
        select * from biplane_control.change where seq > $1 order by seq limit $2
    ) as change on true
    order by change.seq";

/// Tenants and changes in the schema [`biplane_control`](super::ControlSchema). With the grants of a router it reads, and
/// says that its process lives ([`Instances`](crate::repository::Instances)).
///
/// Each reading call is one query, so what it answers is of one moment, however many names it has. Rows are taken apart here: one
/// that cannot be understood is an error of its own names alone.
#[derive(Clone, Debug)]
pub struct PgTenants {
    pub(super) control: ControlDb,
}

impl PgTenants {
    /// Reads through this handle. Nothing connects before the first call.
    #[must_use]
    pub const fn new(control: ControlDb) -> Self {
        Self { control }
    }

    pub(super) const fn control(&self) -> &ControlDb {
        &self.control
    }
}

#[async_trait]
impl TenantRepository for PgTenants {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let asked = Asked::of(names);
        let rows: Vec<Row> = sqlx::query_as(FIND)
            .bind(asked.id_places)
            .bind(asked.ids)
            .bind(asked.name_places)
            .bind(asked.kinds)
            .bind(asked.names)
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        let mut found: Vec<Found> = names.iter().map(|_| Ok(None)).collect();
        let records = records(&rows)?;
        for row in rows.iter().filter(|row| row.part == "hit") {
            let place = row.ord.and_then(|ord| found.get_mut(usize::try_from(ord).ok()?));
            if let (Some(place), Some(record)) = (place, records.get(&row.id)) {
                *place = record.clone().map(|record| {
                    Some(match row.name_version {
                        Some(version) => Resolved::by_name(record, Version::new(version.unsigned_abs())),
                        None => Resolved::by_id(record),
                    })
                });
            }
        }
        Ok(found)
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        let rows: Vec<Row> = sqlx::query_as(LIST)
            .bind(after.map(|id| *id.as_uuid()))
            .bind(i64::from(limit.get()) + 1)
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        let mut items: Vec<PageItem> = records(&rows)?
            .into_iter()
            .map(|(id, record)| PageItem::new(TenantId::from_uuid(id), record))
            .collect();
        items.sort_unstable_by_key(|item| item.id);
        let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().map(|item| item.id).filter(|_| more);
        Ok(Page::new(items, next))
    }

    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        if name.contains('\0') {
            return Ok(None);
        }
        let row: Option<String> = sqlx::query_scalar(SOURCE)
            .bind(name)
            .bind(Uuid::parse_str(name).ok())
            .fetch_optional(&self.control)
            .await
            .map_err(not_read)?;
        match row {
            Some(row) => read_source(&row).map(Some),
            None if sqlx::query_scalar(HIDDEN)
                .fetch_one(&self.control)
                .await
                .map_err(not_read)? =>
            {
                Err(rows_hidden())
            }
            None => Ok(None),
        }
    }

    async fn unfenced_sources(&self) -> Result<Option<u64>, Error> {
        let number: Option<i64> = sqlx::query_scalar(UNFENCED)
            .fetch_one(&self.control)
            .await
            .map_err(not_read)?;
        Ok(number.map(i64::unsigned_abs))
    }

    /// The change log, with push unless the control plane is declared to be behind a transaction pooler.
    fn change_source(&self) -> Option<ChangeSource> {
        Some(match self.control.may_listen() {
            true => ChangeSource::pushed(self.clone(), self.clone()),
            false => ChangeSource::polled(self.clone()),
        })
    }
}

#[async_trait]
impl ChangeLog for PgTenants {
    async fn head(&self) -> Result<ChangeHead, Error> {
        let changes = self.changes(i64::MAX, 0).await?;
        Ok(changes.head)
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        let position = i64::try_from(after.value()).unwrap_or(i64::MAX);
        self.changes(position, i64::from(limit.get())).await
    }
}

impl PgTenants {
    async fn changes(&self, after: i64, limit: i64) -> Result<Changes, Error> {
        let rows: Vec<LogRow> = sqlx::query_as(CHANGES)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        let first = rows
            .first()
            .ok_or_else(|| Error::new(ErrorKind::SchemaMismatch).detail("biplane_control.meta has no row"))?;
        if first.hidden {
            return Err(rows_hidden());
        }
        let mut head = ChangeHead::new(Incarnation::from_uuid(first.incarnation), position(first.head));
        head.released = position(first.released_through);
        head.frozen = first.frozen;
        let truncated = after < first.pruned_through;
        let changes: Result<Vec<_>, _> = rows.iter().filter_map(LogRow::change).collect();
        let mut changes = Changes::new(head, changes?);
        changes.truncated = truncated;
        Ok(changes)
    }
}

/// Reads the data source of this name or id in JSON, credentials included.
pub(super) fn read_source(body: &str) -> Result<DataSource, Error> {
    parse_source(&json(body)?)
}

/// Reads a tenant in JSON.
pub(super) fn read_tenant(body: &str) -> Result<crate::tenant::Tenant, Error> {
    parse_tenant(&json(body)?)
}

/// A moment that Postgres gave in microseconds since 1970.
pub(super) fn moment(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    let moment = if micros < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moment.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A row of the joined query: the hit of a name, a tenant, a data source that tenants share, or the news that rows are
/// hidden.
struct Row {
    part: String,
    id: Uuid,
    ord: Option<i32>,
    name_version: Option<i64>,
    body: Option<String>,
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            part: row.try_get("part")?,
            id: row.try_get("id")?,
            ord: row.try_get("ord")?,
            name_version: row.try_get("name_version")?,
            body: row.try_get("body")?,
        })
    }
}

struct LogRow {
    incarnation: Uuid,
    pruned_through: i64,
    released_through: i64,
    frozen: bool,
    head: i64,
    hidden: bool,
    seq: Option<i64>,
    tenant_id: Option<Uuid>,
    data_source_id: Option<Uuid>,
    kind: Option<String>,
    at: Option<i64>,
}

impl FromRow<'_, PgRow> for LogRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            incarnation: row.try_get("incarnation")?,
            pruned_through: row.try_get("pruned_through")?,
            released_through: row.try_get("released_through")?,
            frozen: row.try_get("frozen")?,
            head: row.try_get("head")?,
            hidden: row.try_get("hidden")?,
            seq: row.try_get("seq")?,
            tenant_id: row.try_get("tenant_id")?,
            data_source_id: row.try_get("data_source_id")?,
            kind: row.try_get("kind")?,
            at: row.try_get("at")?,
        })
    }
}

impl LogRow {
    /// `None` when there is no change after the position that was asked for.
    fn change(&self) -> Option<Result<Change, Error>> {
        let seq = position(self.seq?);
        let subject = match (self.tenant_id, self.data_source_id) {
            (Some(tenant), _) => Subject::Tenant(TenantId::from_uuid(tenant)),
            (None, Some(source)) => Subject::Source(DataSourceId::from_uuid(source)),
            (None, None) => Subject::Routing,
        };
        // A schema one version newer may log what this release has no word for, and its readers have to go on.
        let kind = self.kind.as_deref().unwrap_or_default().parse();
        let at = moment(self.at.unwrap_or_default());
        Some(Ok(Change::new(
            seq,
            subject,
            kind.unwrap_or(ChangeKind::Other),
            at,
        )))
    }
}

/// Names by kind, each with its place in the answer.
#[derive(Default)]
struct Asked {
    id_places: Vec<i32>,
    ids: Vec<Uuid>,
    name_places: Vec<i32>,
    kinds: Vec<&'static str>,
    names: Vec<String>,
}

impl Asked {
    fn of(names: &[TenantRef<'_>]) -> Self {
        let mut asked = Self::default();
        for (name, place) in names.iter().zip(0..) {
            let (kind, text) = match *name {
                TenantRef::Id(id) => {
                    asked.id_places.push(place);
                    asked.ids.push(*id.as_uuid());
                    continue;
                }
                TenantRef::Slug(slug) => ("slug", slug.as_str()),
                TenantRef::Domain(domain) => ("domain", domain.as_str()),
            };
            asked.name_places.push(place);
            asked.kinds.push(kind);
            asked.names.push(text.to_owned());
        }
        asked
    }
}

/// The records of a joined query by tenant, each data source parsed once and shared.
fn records(rows: &[Row]) -> Result<HashMap<Uuid, Result<Arc<TenantRecord>, Error>>, Error> {
    if rows.iter().any(|row| row.part == "hidden") {
        return Err(rows_hidden());
    }
    let parts = |part: &'static str| {
        rows.iter()
            .filter(move |row| row.part == part)
            .map(|row| (row.id, row.body.as_deref().unwrap_or_default()))
    };
    let sources: HashMap<Uuid, Result<Arc<DataSource>, Error>> = parts("source")
        .map(|(id, body)| (id, read_source(body).map(Arc::new)))
        .collect();
    let tenants = parts("tenant");
    Ok(tenants
        .map(|(id, body)| {
            let record = read_tenant(body).and_then(|tenant| {
                let source = sources.get(tenant.placement.source.as_uuid());
                let source = source
                    .cloned()
                    .unwrap_or_else(|| Err(ErrorKind::MalformedRecord.into()))?;
                Ok(Arc::new(TenantRecord::new(tenant, source)))
            });
            (id, record)
        })
        .collect())
}

fn json(body: &str) -> Result<serde_json::Value, Error> {
    // What serde_json says may quote the row.
    serde_json::from_str(body)
        .map_err(|_| Error::new(ErrorKind::MalformedRecord).detail("a number out of range"))
}

fn position(seq: i64) -> Seq {
    Seq::new(u64::try_from(seq).unwrap_or_default())
}
