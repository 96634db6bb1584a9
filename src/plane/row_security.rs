//! Row-level security: SQL for policies, and whether a handle's tables are behind them.

use std::fmt;

use sqlx::Row;

use super::{DataPlane, Db};
use crate::{
    error::Error,
    pool::{identifier, literal},
};

/// The setting that holds the tenant of a transaction, unless the schema `biplane` of a database names another one.
pub const TENANT_SETTING: &str = "app.tenant_id";

/// A policy that lets each tenant see and write its own rows of one table, as SQL for whoever owns the table.
///
/// ```
/// use biplane::plane::{KeyType, RowPolicy};
///
/// let sql = RowPolicy::new("public", "note", "tenant_id").key_type(KeyType::Uuid).sql();
/// assert!(sql.contains("force row level security"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPolicy<'a> {
    schema: &'a str,
    table: &'a str,
    column: &'a str,
    key_type: KeyType,
    setting: &'a str,
}

/// The type of the column that says whose a row is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyType {
    /// The tenant's id.
    #[default]
    Uuid,
    /// A key of your own, as the residence has it.
    Text,
    /// The same, as a number.
    BigInt,
}

impl<'a> RowPolicy<'a> {
    /// For this table, whose rows carry the tenant's id in this column. Names are as in the catalogue.
    #[must_use]
    pub const fn new(schema: &'a str, table: &'a str, column: &'a str) -> Self {
        Self {
            schema,
            table,
            column,
            key_type: KeyType::Uuid,
            setting: TENANT_SETTING,
        }
    }

    /// The column has this type.
    #[must_use]
    pub const fn key_type(mut self, key_type: KeyType) -> Self {
        self.key_type = key_type;
        self
    }

    /// The tenant is in this setting.
    #[must_use]
    pub const fn setting(mut self, name: &'a str) -> Self {
        self.setting = name;
        self
    }

    /// The SQL: row-level security enabled, and forced, so that it holds for the table's owner too; one policy for reads
    /// and writes, called `biplane_tenant`; the tenant as the column's default. It can be run again.
    ///
    /// Outside of a tenant's transaction the setting is missing or empty, and then no row is seen and none can be written.
    #[must_use]
    pub fn sql(&self) -> String {
        let table = format!("{}.{}", identifier(self.schema), identifier(self.table));
        let column = identifier(self.column);
        let cast = match self.key_type {
            KeyType::Uuid => "::uuid",
            KeyType::Text => "",
            KeyType::BigInt => "::bigint",
        };
        // A setting that was set in a transaction before reads '' and not null.
        let tenant = format!(
            "nullif(current_setting({}, true), ''){cast}",
            literal(self.setting)
        );
        format!(
            "alter table {table} enable row level security;\n\
             alter table {table} force row level security;\n\
             alter table {table} alter column {column} set default {tenant};\n\
             drop policy if exists biplane_tenant on {table};\n\
             create policy biplane_tenant on {table}\n    \
             using ({column} = (select {tenant}))\n    \
             with check ({column} = (select {tenant}));\n"
        )
    }
}

/// What keeps tenants that share tables apart, or does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowSecurityReport {
    /// The database role that was asked about: the one that the handle's statements run as.
    pub role: String,
    /// What does not hold. Empty when each of the tables shows each tenant its own rows alone.
    pub gaps: Vec<RowSecurityGap>,
    /// Tables that were not named, which this role can use and which are not behind row-level security: every tenant sees
    /// all of their rows. Right for what tenants have in common.
    pub open_to_all: Vec<String>,
}

/// Why a tenant could see or change the rows of another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowSecurityGap {
    /// The role is a superuser or has `BYPASSRLS`: no policy holds for it.
    RoleBypasses,
    /// There is no such table on the search path.
    Missing {
        /// As it was named.
        table: String,
    },
    /// It is a materialized view, a foreign table, or a view that reads as its owner: no policy of the reader holds.
    NotATable {
        /// As it was named.
        table: String,
    },
    /// Row-level security is not enabled.
    NotEnabled {
        /// As it was named.
        table: String,
    },
    /// It is not forced: for the owner it does not hold.
    NotForced {
        /// As it was named.
        table: String,
    },
    /// No policy lets anybody see a row. Nothing leaks, and nothing works.
    NoPolicy {
        /// As it was named.
        table: String,
    },
    /// A policy shows or takes rows without regard to the tenant; those of one table add up.
    PolicyIgnoresTenant {
        /// As it was named.
        table: String,
        /// The policy.
        policy: String,
    },
    /// The role may truncate it, which no policy restrains.
    MayTruncate {
        /// As it was named.
        table: String,
    },
}

impl RowSecurityReport {
    /// Whether there is no gap.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.gaps.is_empty()
    }
}

impl fmt::Display for RowSecurityGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoleBypasses => f.write_str("the role is a superuser or has BYPASSRLS; connect as another"),
            Self::Missing { table } => write!(f, "{table}: there is no such table on the search path"),
            Self::NotATable { table } => {
                write!(
                    f,
                    "{table}: policies do not hold for what it shows; make it a view with security_invoker"
                )
            }
            Self::NotEnabled { table } => write!(f, "{table}: row-level security is not enabled"),
            Self::NotForced { table } => write!(f, "{table}: row-level security is not forced on its owner"),
            Self::NoPolicy { table } => write!(f, "{table}: no policy shows anybody a row"),
            Self::PolicyIgnoresTenant { table, policy } => {
                write!(f, "{table}: the policy {policy} does not look at the tenant")
            }
            Self::MayTruncate { table } => {
                write!(
                    f,
                    "{table}: the role may truncate it, whosever rows it holds; revoke that"
                )
            }
        }
    }
}

/// One row for each gap, and one for each table that is open to all. As the policies are asked: `false` and nothing
/// named stand for what the command does not use.
const ASK: &str = "
    with setting as materialized (
        select tenant_setting as name from biplane.database
    ), wanted as materialized (
        select named.name, named.position, pg_catalog.to_regclass(named.name)::pg_catalog.oid as oid
        from pg_catalog.unnest($1::text[]) with ordinality as named (name, position)
    ), known as materialized (
        select wanted.name, wanted.position, class.*
        from wanted join pg_catalog.pg_class as class on class.oid = wanted.oid
    ), gap (position, kind, name, policy) as (
        select 0, 'role', '', ''
        from pg_catalog.pg_roles as role
        where role.rolname in (current_user, session_user) and (role.rolsuper or role.rolbypassrls)
        union
        select position, 'missing', name, '' from wanted where oid is null
        union
        select position, 'not a table', name, '' from known
        where relkind not in ('r', 'p') and not (relkind = 'v' and exists (
            select from pg_catalog.unnest(reloptions) as option
            where option in ('security_invoker=true', 'security_invoker=on', 'security_invoker=1')))
        union
        select position, 'not enabled', name, '' from known where relkind in ('r', 'p') and not relrowsecurity
        union
        select position, 'not forced', name, '' from known
        where relkind in ('r', 'p') and relrowsecurity and not relforcerowsecurity
        union
        select position, 'no policy', name, '' from known
        where relkind in ('r', 'p') and not exists (
            select from pg_catalog.pg_policy where polrelid = known.oid and polpermissive)
        union
        select known.position, 'policy', known.name, policy.polname::text
        from known
        join pg_catalog.pg_policy as policy on policy.polrelid = known.oid and policy.polpermissive
        cross join setting
        where (policy.polqual is not null
                and pg_catalog.strpos(pg_catalog.pg_get_expr(policy.polqual, known.oid), setting.name) = 0)
            or (policy.polwithcheck is not null
                and pg_catalog.strpos(pg_catalog.pg_get_expr(policy.polwithcheck, known.oid), setting.name) = 0)
        union
        select position, 'truncate', name, '' from known
        where relkind in ('r', 'p') and pg_catalog.has_table_privilege(oid, 'TRUNCATE')
        union
        select 9223372036854775807, 'open', pg_catalog.concat(namespace.nspname, '.', class.relname), ''
        from pg_catalog.pg_class as class
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where class.relkind in ('r', 'p', 'm', 'f') and not class.relrowsecurity
            and namespace.nspname = any (pg_catalog.current_schemas(false))
            and class.oid not in (select oid from known)
            and pg_catalog.has_schema_privilege(namespace.oid, 'USAGE')
            and pg_catalog.has_table_privilege(class.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
    )
    select current_user::text as role, gap.kind, gap.name, gap.policy
    from (values (true)) as always (one)
    left join gap on true
    order by gap.position, gap.kind, gap.name, gap.policy";

impl Db<DataPlane> {
    /// Whether row-level security keeps the tenants of these tables apart, as far as the catalogue tells: enabled and
    /// forced, with policies that look at the tenant, and a role that they hold for. Ask once per data source and role, at
    /// start or in a test of a deployment, through the handle of any tenant there.
    ///
    /// A name is `table` or `schema.table`, quoted where SQL needs it. What functions that run as their owner
    /// (`SECURITY DEFINER`) give away, and what a policy's condition says beyond naming the tenant's setting, is not seen.
    ///
    /// # Errors
    /// Whatever keeps the database from being asked; [`Database`](crate::error::ErrorKind::Database) for a data source
    /// without the schema `biplane`, and for a name that SQL cannot read.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn row_security_report(&self, tables: &[&str]) -> Result<RowSecurityReport, Error> {
        let tables: Vec<String> = tables.iter().map(ToString::to_string).collect();
        let mut report = RowSecurityReport::default();
        for row in sqlx::query(ASK).bind(tables).fetch_all(self).await? {
            report.role = row.try_get("role")?;
            let kind: Option<String> = row.try_get("kind")?;
            let Some(kind) = kind else { continue };
            let table: String = row.try_get("name")?;
            report.gaps.push(match kind.as_str() {
                "role" if !cfg!(biplane_mutant = "bypassing_roles_pass") => RowSecurityGap::RoleBypasses,
                "missing" => RowSecurityGap::Missing { table },
                "not a table" => RowSecurityGap::NotATable { table },
                "not enabled" if !cfg!(biplane_mutant = "unprotected_tables_pass") => {
                    RowSecurityGap::NotEnabled { table }
                }
                "not forced" if !cfg!(biplane_mutant = "unforced_tables_pass") => {
                    RowSecurityGap::NotForced { table }
                }
                "no policy" if !cfg!(biplane_mutant = "tables_without_policies_pass") => {
                    RowSecurityGap::NoPolicy { table }
                }
                "policy" => RowSecurityGap::PolicyIgnoresTenant {
                    table,
                    policy: row.try_get("policy")?,
                },
                "truncate" => RowSecurityGap::MayTruncate { table },
                _ => {
                    report.open_to_all.push(table);
                    continue;
                }
            });
        }
        Ok(report)
    }
}
