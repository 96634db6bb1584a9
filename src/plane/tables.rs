//! Tables that are readable where they should not be.

use super::{Db, Plane};
use crate::error::Error;

const READABLE: &str = "
    select wanted.name
    from pg_catalog.unnest($1::text[]) with ordinality as wanted (name, position)
    where exists (
        select
        from pg_catalog.pg_class as class
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where class.relkind in ('r', 'p', 'v', 'm', 'f')
            and namespace.nspname not in ('pg_catalog', 'information_schema')
            and wanted.name in (class.relname, namespace.nspname || '.' || class.relname)
            and pg_catalog.has_schema_privilege(namespace.oid, 'USAGE')
            and (
                pg_catalog.has_table_privilege(class.oid, 'SELECT')
                or pg_catalog.has_any_column_privilege(class.oid, 'SELECT')
            )
    )
    order by wanted.position";

impl<P: Plane> Db<P> {
    /// Of these tables, the ones that can be read through this handle. Name the tables of the *other* plane: whatever
    /// comes back is misplaced, and code that forgot to change planes would go on using it without noticing.
    ///
    /// A name is `table`, in whatever schema, or `schema.table`, written as in the catalogue. Qualify a name that the
    /// control plane has, too, such as `tenant`, or its table there is reported.
    ///
    /// # Errors
    /// Whatever keeps the database from being asked.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn misplaced_tables(&self, names: &[&str]) -> Result<Vec<String>, Error> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Ok(sqlx::query_scalar(READABLE).bind(names).fetch_all(self).await?)
    }
}
