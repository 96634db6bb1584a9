//! Which tenants live in a database.

use super::{Fence, number};
use crate::{
    error::{Error, ErrorKind},
    plane::{RoleName, data_schema::failed},
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
    /// The schema that unqualified names are looked up in, which [`Isolation::Schema`] needs and shares with nobody. Of
    /// [`Isolation::Row`] it is the same for all tenants of a database. Without one, a session's `search_path` stays.
    pub schema: Option<String>,
    /// What the tenant setting, by default `app.tenant_id`, is set to. Without one, the tenant's id.
    pub row_key: Option<String>,
    /// The role that its transactions take on, where it shares the database: with one for each tenant, names of other
    /// tenants' tables lead nowhere even if they are qualified. Without one, statements run as the login's own.
    ///
    /// Roles are a server's: a move to another server finds it there, or is refused.
    pub role: Option<RoleName>,
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
    Option<String>,
    uuid::Uuid,
    bool,
);

/// A residence, and what only a reconciliation asks.
pub(super) struct Known {
    pub(super) residence: Residence,
    /// The database that it was written for.
    pub(super) written_for: DatabaseId,
    /// Whether its transactions can take on its role, if it has one.
    pub(super) role_fits: bool,
}

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
            role: None,
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

    /// With transactions that take on this role.
    #[must_use]
    pub fn role(mut self, role: RoleName) -> Self {
        self.role = Some(role);
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
    /// changes. Any number of tenants may be placed at a time; they wait for each other.
    ///
    /// A role must exist, be neither a superuser nor `BYPASSRLS`, be granted to every login or group that may enter, and
    /// have USAGE on the schema of the residence, if that exists already. What it may do with the tables there is not looked
    /// at.
    ///
    /// # Errors
    /// [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is here already with other facts, open, or at this
    /// epoch or a later one; [`InvalidInput`](ErrorKind::InvalidInput) for facts that contradict each other, or another
    /// tenant's: a schema of its own without a name or that somebody else has, a second tenant in a database that belongs to
    /// one, another schema than that of those with whom it shares tables; and for a role that
    /// is not fit, with what is missing; [`WrongDatabase`](ErrorKind::WrongDatabase) in a copy that was not stamped;
    /// [`TransactionConflict`](ErrorKind::TransactionConflict) when a change by hand was in the way: call it again.
    ///
    /// # Cancel safety
    /// Whether it took effect is not known; calling it again does no harm.
    pub async fn place(&mut self, residence: &Residence) -> Result<(), Error> {
        let role = match cfg!(biplane_mutant = "roles_are_left_behind") {
            true => None,
            false => residence.role.as_ref(),
        };
        let change = sqlx::query("select biplane.place_v1($1, $2, $3, $4, $5, $6, $7)::text")
            .bind(*residence.tenant.as_uuid())
            .bind(number(residence.epoch))
            .bind(residence.isolation.as_str())
            .bind(residence.state.as_str())
            .bind(residence.schema.as_deref())
            .bind(residence.row_key.as_deref())
            .bind(role.map(RoleName::as_str));
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
        Ok(known.into_iter().map(|known| known.residence).collect())
    }

    pub(super) async fn known(&mut self) -> Result<Vec<Known>, Error> {
        let rows: Vec<Row> = sqlx::query_as(
            "select tenant_id, epoch, state, isolation, schema_name::text, row_key, role_name::text, database_id,
                 biplane.role_gap_v1(role_name, schema_name) is null
             from biplane.residence order by tenant_id",
        )
        .fetch_all(&mut *self.connection)
        .await
        .map_err(failed)?;
        rows.into_iter().map(read).collect()
    }
}

fn read(row: Row) -> Result<Known, Error> {
    let (tenant, epoch, state, isolation, schema, row_key, role, database, role_fits) = row;
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
        role: role
            .map(|role| RoleName::parse(&role))
            .transpose()
            .map_err(|_| unknown())?,
    };
    Ok(Known {
        residence,
        written_for: DatabaseId::from_uuid(database),
        role_fits,
    })
}
