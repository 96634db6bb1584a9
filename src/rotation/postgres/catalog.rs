//! What the catalogue says about a table, before anything is read from it.

use std::collections::{BTreeSet, HashMap};

use sqlx::{FromRow, Row as _, postgres::PgRow};

use super::{Table, failure::Place, misconfigured, sql::quoted};
use crate::{
    error::{Error, ErrorKind},
    plane::{Db, Plane},
};

const TABLE: &str = "
    select class.oid as oid,
        class.relkind in ('r', 'p') as is_table,
        pg_catalog.has_schema_privilege(namespace.oid, 'USAGE') as usable,
        pg_catalog.row_security_active(class.oid) as hides_rows
    from pg_catalog.pg_namespace as namespace
    left join pg_catalog.pg_class as class on class.relnamespace = namespace.oid and class.relname = $2
    where namespace.nspname = $1";
/// A type modifier of -1 gives the name of a type whose values are cast to it whole: plain `character` is one character.
const COLUMNS: &str = "
    select attribute.attname as name,
        pg_catalog.format_type(attribute.atttypid, -1) as type,
        coalesce(nullif(type.typbasetype, 0), type.oid)
            in ('pg_catalog.text'::pg_catalog.regtype, 'pg_catalog.varchar'::pg_catalog.regtype) as is_text,
        attribute.attnotnull as not_null,
        attribute.attgenerated <> '' as generated,
        exists (
            select from pg_catalog.pg_index as index
            where index.indrelid = attribute.attrelid and index.indisunique and index.indisvalid
                and index.indpred is null and index.indnkeyatts = 1 and index.indkey[0] = attribute.attnum
        ) as is_unique,
        pg_catalog.has_column_privilege(attribute.attrelid, attribute.attnum, 'SELECT') as readable,
        pg_catalog.has_column_privilege(attribute.attrelid, attribute.attnum, 'UPDATE') as writable
    from pg_catalog.pg_attribute as attribute
    join pg_catalog.pg_type as type on type.oid = attribute.atttypid
    where attribute.attrelid = $1 and attribute.attnum > 0 and not attribute.attisdropped
        and attribute.attname = any ($2)";

/// A table that can be worked on.
#[derive(Debug)]
pub(super) struct Checked {
    /// The type of the key, as SQL writes it.
    pub(super) key_type: String,
    /// The columns that may not be written, of those that would have to be.
    pub(super) not_writable: Vec<String>,
}

struct Found {
    name: String,
    type_name: String,
    is_text: bool,
    not_null: bool,
    generated: bool,
    is_unique: bool,
    readable: bool,
    writable: bool,
}

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            name: row.try_get("name")?,
            type_name: row.try_get("type")?,
            is_text: row.try_get("is_text")?,
            not_null: row.try_get("not_null")?,
            generated: row.try_get("generated")?,
            is_unique: row.try_get("is_unique")?,
            readable: row.try_get("readable")?,
            writable: row.try_get("writable")?,
        })
    }
}

pub(super) async fn check<P: Plane>(
    db: &Db<P>,
    table: &Table,
    purpose: &str,
    place: Place<'_>,
) -> Result<Checked, Error> {
    check_names(table, purpose)?;
    let oid = find_table(db, table, place).await?;
    let names: Vec<String> = columns(table).into_iter().map(str::to_owned).collect();
    let found: Vec<Found> = sqlx::query_as(COLUMNS)
        .bind(oid)
        .bind(&names)
        .fetch_all(db)
        .await
        .map_err(place.failed())?;
    let found: HashMap<&str, &Found> = found.iter().map(|column| (&*column.name, column)).collect();
    let column = |name: &str| {
        let column = found.get(name).copied();
        column.ok_or_else(|| missing(format!("table {} has no column {name:?}", place.store)))
    };
    for name in &names {
        if !column(name)?.readable {
            return Err(forbidden(format!("SELECT on column {name:?} of {}", place.store)));
        }
    }
    let key = column(&table.key)?;
    if !(key.is_unique && key.not_null) {
        return Err(misconfigured(format!(
            "column {:?} of {} must be not null and have a unique index of its own to tell rows apart",
            table.key, place.store
        )));
    }
    if let Some(owner) = &table.owner
        && !column(owner)?.not_null
    {
        return Err(misconfigured(format!(
            "column {owner:?} of {} must be not null to say whose the values are",
            place.store
        )));
    }
    let mut not_writable = Vec::new();
    for value in &table.values {
        for name in [Some(&value.sealed), value.legacy.as_ref()].into_iter().flatten() {
            let column = column(name)?;
            if !column.is_text {
                return Err(misconfigured(format!(
                    "column {name:?} of {} is of type {}, and values are kept in text or varchar",
                    place.store, column.type_name
                )));
            }
        }
        let sealed = column(&value.sealed)?;
        if sealed.generated {
            return Err(misconfigured(format!(
                "column {:?} of {} is generated and cannot be written",
                value.sealed, place.store
            )));
        }
        if !sealed.writable {
            not_writable.push(value.sealed.to_string());
        }
    }
    Ok(Checked {
        key_type: key.type_name.clone(),
        not_writable,
    })
}

pub(super) fn forbidden(privilege: String) -> Error {
    Error::new(ErrorKind::MissingPrivilege).detail(privilege)
}

fn missing(detail: String) -> Error {
    Error::new(ErrorKind::SchemaMismatch).detail(detail)
}

/// What is wrong without asking anybody.
fn check_names(table: &Table, purpose: &str) -> Result<(), Error> {
    for name in [&*table.schema, &*table.name].into_iter().chain(columns(table)) {
        quoted(name)?;
    }
    if table.values.is_empty() {
        return Err(misconfigured("say which columns hold sealed values"));
    }
    if purpose.is_empty() {
        return Err(misconfigured("say which purpose the values were sealed for"));
    }
    let mut seen = BTreeSet::from([&*table.key]);
    match table.values.iter().find(|value| !seen.insert(&value.sealed)) {
        Some(twice) => Err(misconfigured(format!(
            "column {:?} is named twice, or is the key",
            twice.sealed
        ))),
        None => Ok(()),
    }
}

async fn find_table<P: Plane>(
    db: &Db<P>,
    table: &Table,
    place: Place<'_>,
) -> Result<sqlx::postgres::types::Oid, Error> {
    let row = sqlx::query(TABLE)
        .bind(&*table.schema)
        .bind(&*table.name)
        .fetch_optional(db)
        .await
        .map_err(place.failed())?
        .ok_or_else(|| missing(format!("there is no schema {:?} in this database", table.schema)))?;
    let is = |name: &str| {
        row.try_get::<Option<bool>, _>(name)
            .map(Option::unwrap_or_default)
    };
    let oid: Option<sqlx::postgres::types::Oid> = row.try_get("oid").map_err(place.failed())?;
    let Some(oid) = oid else {
        return Err(missing(format!(
            "there is no table {:?} in schema {:?}",
            table.name, table.schema
        )));
    };
    if !is("is_table").map_err(place.failed())? {
        return Err(misconfigured(format!(
            "{} is a view or foreign table, whose rows cannot be locked; name the table",
            place.store
        )));
    }
    if !is("usable").map_err(place.failed())? {
        return Err(forbidden(format!("USAGE on schema {:?}", table.schema)));
    }
    if is("hides_rows").map_err(place.failed())? {
        return Err(forbidden(format!(
            "row-level security of {} hides rows from this role, which would be left behind; use one that it does not \
             apply to",
            place.store
        )));
    }
    Ok(oid)
}

fn columns(table: &Table) -> BTreeSet<&str> {
    let values = table.values.iter();
    let values = values.flat_map(|value| [Some(&*value.sealed), value.legacy.as_deref()]);
    [Some(&*table.key), table.owner.as_deref()]
        .into_iter()
        .chain(values)
        .flatten()
        .collect()
}
