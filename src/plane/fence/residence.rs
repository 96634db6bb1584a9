//! Which tenants live in a database.

use super::{Fence, number};
use crate::{
    error::{Error, ErrorKind},
    plane::data_schema::failed,
    tenant::{DatabaseId, Epoch, Isolation, TenantId},
};

/// A tenant's place in a data-plane database, as that database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Residence {
    /// Who.
    pub tenant: TenantId,
    /// Since which epoch. No other can enter.
    pub epoch: Epoch,
    /// Whether it can be entered.
    pub state: ResidenceState,
    /// What keeps its rows apart.
    pub isolation: Isolation,
    /// The schema that unqualified names are looked up in, which [`Isolation::Schema`] needs. Without one, a session's
    /// `search_path` stays.
    pub schema: Option<String>,
    /// What the tenant setting, by default `app.tenant_id`, is set to. Without one, the tenant's id.
    pub row_key: Option<String>,
}

/// Whether a residence can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResidenceState {
    /// It can.
    Open,
    /// A mover has fenced it.
    Fenced,
    /// The database is a copy, or was restored, and the residence waits for [`Fence::reconcile`].
    Restored,
}

type Row = (
    uuid::Uuid,
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    uuid::Uuid,
);

impl Residence {
    /// An open residence.
    #[must_use]
    pub const fn new(tenant: TenantId, epoch: Epoch, isolation: Isolation) -> Self {
        Self {
            tenant,
            epoch,
            state: ResidenceState::Open,
            isolation,
            schema: None,
            row_key: None,
        }
    }

    /// Fenced from the beginning, for a tenant whose rows are still on their way.
    #[must_use]
    pub const fn fenced(mut self) -> Self {
        self.state = ResidenceState::Fenced;
        self
    }

    /// With its tables in this schema.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// With rows that carry this instead of the tenant's id.
    #[must_use]
    pub fn row_key(mut self, key: impl Into<String>) -> Self {
        self.row_key = Some(key.into());
        self
    }
}

impl ResidenceState {
    /// The name used in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Fenced => "fenced",
            Self::Restored => "restored",
        }
    }
}

impl Fence<'_> {
    /// Says that a tenant lives here. An epoch only rises, and only of a tenant that is fenced; told the same again, nothing
    /// changes.
    ///
    /// # Errors
    /// [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is here already with other facts, open, or at this
    /// epoch or a later one; [`InvalidInput`](ErrorKind::InvalidInput) for facts that contradict each other, or another tenant's: a
    /// schema of its own without a name, a second tenant in a database that belongs to one;
    /// [`WrongDatabase`](ErrorKind::WrongDatabase) in a copy that was not stamped.
    ///
    /// # Cancel safety
    /// Whether it took effect is not known; calling it again does no harm.
    pub async fn place(&mut self, residence: &Residence) -> Result<(), Error> {
        let change = sqlx::query("select biplane.place_v1($1, $2, $3, $4, $5, $6)::text")
            .bind(*residence.tenant.as_uuid())
            .bind(number(residence.epoch))
            .bind(residence.isolation.as_str())
            .bind(residence.state.as_str())
            .bind(residence.schema.as_deref())
            .bind(residence.row_key.as_deref());
        self.commit_query(change).await.map(drop)
    }

    /// Every tenant that this database knows, by id.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn residences(&mut self) -> Result<Vec<Residence>, Error> {
        let known = self.known().await?;
        Ok(known.into_iter().map(|(residence, _)| residence).collect())
    }

    /// Each residence with the database that it was written for.
    pub(super) async fn known(&mut self) -> Result<Vec<(Residence, DatabaseId)>, Error> {
        let rows: Vec<Row> = sqlx::query_as(
            "select tenant_id, epoch, state, isolation, schema_name::text, row_key, database_id
             from biplane.residence order by tenant_id",
        )
        .fetch_all(&mut *self.connection)
        .await
        .map_err(failed)?;
        rows.into_iter().map(read).collect()
    }
}

fn read(row: Row) -> Result<(Residence, DatabaseId), Error> {
    let (tenant, epoch, state, isolation, schema, row_key, database) = row;
    let unknown = || {
        Error::new(ErrorKind::SchemaMismatch)
            .detail("a residence is in a state that this version does not know")
    };
    let residence = Residence {
        tenant: TenantId::from_uuid(tenant),
        epoch: Epoch::new(u64::try_from(epoch).unwrap_or_default()),
        state: match state.as_str() {
            "open" => ResidenceState::Open,
            "fenced" => ResidenceState::Fenced,
            "restored" => ResidenceState::Restored,
            _ => return Err(unknown()),
        },
        isolation: isolation.parse().map_err(|_| unknown())?,
        schema,
        row_key,
    };
    Ok((residence, DatabaseId::from_uuid(database)))
}
