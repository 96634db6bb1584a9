//! The proofs: direct connections, past everything that biplane does, and a look at every row of every table.

use std::fmt;

use biplane::{
    Biplane,
    error::ErrorKind,
    plane::{ControlDb, DataSchema},
    repository::TenantAdmin,
    tenant::{Location, Slug},
};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{Result, Written, import::Importer, older::OlderSystems, servers::Servers};

/// Statements about this run, each true or false.
#[derive(Default)]
pub(crate) struct Proofs(Vec<(bool, String)>);

impl Proofs {
    /// Whether all of them are true.
    pub(crate) fn hold(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(holds, _)| *holds)
    }

    pub(crate) async fn every_name_leads_to_its_tenant(
        &mut self,
        biplane: &Biplane,
        written: &[Written],
    ) -> Result {
        let (mut names, mut right) = (0, 0);
        for Written { tenant, .. } in written {
            let mut reached = vec![
                biplane.route(&tenant.slug).await?.tenant(),
                biplane.route(tenant.id).await?.tenant(),
            ];
            for domain in &tenant.domains {
                reached.push(biplane.route(domain).await?.tenant());
            }
            names += reached.len();
            right += reached.iter().filter(|reached| **reached == tenant.id).count();
        }
        self.add(
            names == right && written.len() == 6,
            format!(
                "{} tenants are reached by {names} names: slug, id and custom domain",
                written.len()
            ),
        );
        let refused = biplane.route(&Slug::parse("initech")?).await;
        let unknown = refused.is_err_and(|error| error.kind() == ErrorKind::UnknownTenant);
        self.add(
            unknown,
            "initech, whose row held the address of an API, was not half imported: no such tenant",
        );
        Ok(())
    }

    /// Each row is once in its own database, and in no other that there is.
    pub(crate) async fn rows_are_in_their_own_database_alone(
        &mut self,
        servers: &Servers,
        older: &OlderSystems,
        control: &str,
        written: &[Written],
    ) -> Result {
        let mut databases: Vec<_> = older
            .homes
            .iter()
            .map(|(place, database)| (&servers.data[*place], database.as_str()))
            .collect();
        for database in [control, &older.crm, &older.cities] {
            databases.push((&servers.control, database));
        }
        let mut places = vec![Vec::new(); written.len()];
        for (server, database) in &databases {
            let rows = every_row(&mut server.connect(database).await?).await?;
            for (places, Written { text, .. }) in places.iter_mut().zip(written) {
                let here = rows.iter().filter(|row| row.contains(text.as_str())).count();
                places.extend(std::iter::repeat_n(*database, here));
            }
        }
        for (places, Written { tenant, .. }) in places.iter().zip(written) {
            let home = servers.name(tenant.slug.as_str());
            self.add(
                *places == [home.as_str()],
                format!(
                    "{}'s row is in {home}, once, and in none of {} other databases",
                    tenant.slug,
                    databases.len() - 1
                ),
            );
        }
        Ok(())
    }

    /// Databases say which ones they are, and the control plane means the same; pool settings and regions were kept.
    pub(crate) async fn data_sources_are_as_they_were(
        &mut self,
        importer: &Importer<'_>,
        servers: &Servers,
        older: &OlderSystems,
        written: &[Written],
    ) -> Result {
        let (mut agreed, mut kept) = (0, Vec::new());
        for Written { tenant, .. } in written {
            let source = importer.admin.source(tenant.slug.as_str()).await?;
            let source = source.ok_or("the data source was created by the import")?;
            let Location::Server(server) = &source.location else {
                continue;
            };
            let mut owner = servers.data_server(server)?.connect(&server.database).await?;
            let said = DataSchema::read(&mut owner).await?;
            agreed += usize::from(said.is_some() && said == source.database_id);
            let region = server.region.as_deref().unwrap_or_default();
            kept.push(format!(
                "{} {}-{} {region}",
                source.name,
                source.pool.min(),
                source.pool.max()
            ));
        }
        self.add(
            agreed == written.len(),
            format!("{agreed} databases say that they are the ones which the control plane means"),
        );
        // By the database's own means, so that the import does not vouch for itself.
        let before: Vec<String> = sqlx::query_scalar(
            "select format('%s %s-%s %s', slug, pool_settings ->> 'min', pool_settings ->> 'max', region) from tenants
             where slug <> 'initech'",
        )
        .fetch_all(&mut servers.control.connect(&older.crm).await?)
        .await?;
        let shelbyville = "shelbyville 0-15 ".to_owned();
        self.add(
            before.len() == 3
                && before
                    .iter()
                    .chain([&shelbyville])
                    .all(|before| kept.contains(before)),
            "pool settings and regions of the CRM, and a city's connection_limit, are those of before",
        );
        Ok(())
    }

    /// Neither a password, nor a URL, nor an old value, nor the old key is anywhere in the control database.
    pub(crate) async fn control_plane_holds_nothing_readable(
        &mut self,
        servers: &Servers,
        older: &OlderSystems,
        control: &str,
    ) -> Result {
        let rows = every_row(&mut servers.control.connect(control).await?).await?;
        let sealed = rows.iter().filter(|row| row.contains("bp1.")).count();
        let found = occurrences(&rows, &older.secrets);
        self.add(
            found == 0 && sealed == 9,
            format!(
                "in {} rows of the control database none of {} secrets is readable; {sealed} logins are sealed",
                rows.len(),
                older.secrets.len()
            ),
        );
        // A search that finds nothing proves something only if it finds what is there.
        let before = every_row(&mut servers.control.connect(&older.cities).await?).await?;
        let found = occurrences(&before, &older.plain);
        self.add(
            found == older.plain.len(),
            format!("the same search finds all {found} passwords that the old table of cities held"),
        );
        Ok(())
    }

    /// The role of the router reads routes, and cannot change anything or read the audit.
    pub(crate) async fn router_can_only_read(&mut self, router: &ControlDb) -> Result {
        let tenants: i64 = sqlx::query_scalar("select count(*) from biplane_control.tenant")
            .fetch_one(router)
            .await?;
        let mut refused = 0;
        let forbidden = [
            "update biplane_control.tenant set status = 'suspended'",
            "update biplane_control.credential set sealed = null",
            "insert into biplane_control.change (tenant_id) values (null)",
            "select * from biplane_control.audit",
            "create table biplane_control.mine (id int)",
        ];
        for statement in forbidden {
            let outcome = sqlx::query(statement).execute(router).await;
            let code = outcome.err().and_then(|error| {
                let code = error.as_database_error()?.code()?;
                Some(code.into_owned())
            });
            refused += usize::from(code.as_deref() == Some("42501"));
        }
        self.add(
            tenants == 6 && refused == forbidden.len(),
            format!("the router's role reads {tenants} tenants, and was refused {refused} other things"),
        );
        Ok(())
    }

    fn add(&mut self, holds: bool, what: impl Into<String>) {
        self.0.push((holds, what.into()));
    }
}

impl fmt::Display for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (holds, what) in &self.0 {
            writeln!(f, "  {}  {what}", if *holds { "ok    " } else { "FAILED" })?;
        }
        Ok(())
    }
}

/// Every row of every table in every schema that is not Postgres' own, as text.
async fn every_row(connection: &mut PgConnection) -> Result<Vec<String>> {
    let queries: Vec<String> = sqlx::query_scalar(
        "select format('select t::text from %I.%I as t', namespace.nspname, class.relname)
         from pg_class as class
         join pg_namespace as namespace on namespace.oid = class.relnamespace
         where class.relkind in ('r', 'm')
             and namespace.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut rows = Vec::new();
    for query in queries {
        let more: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_all(&mut *connection)
            .await?;
        rows.extend(more);
    }
    Ok(rows)
}

/// How many of these texts occur in the rows.
fn occurrences(rows: &[String], texts: &[String]) -> usize {
    texts
        .iter()
        .filter(|text| rows.iter().any(|row| row.contains(text.as_str())))
        .count()
}
