//! The statements of a page.

use std::borrow::Cow;

use super::{
    Column, Table,
    catalog::{Checked, forbidden},
    failure::Place,
    misconfigured,
};
use crate::{
    error::Error,
    rotation::{Mode, Wanted, store::SEALED},
};

/// The longest name in a Postgres of the usual build; it would cut a longer one short, and mean another.
const LONGEST_NAME: usize = 63;

/// Writes the statements for a table that was checked.
pub(super) struct Statements<'a> {
    table: &'a Table,
    checked: &'a Checked,
}

impl<'a> Statements<'a> {
    pub(super) const fn new(table: &'a Table, checked: &'a Checked) -> Self {
        Self { table, checked }
    }

    pub(super) fn may_write(&self, place: Place<'_>) -> Result<(), Error> {
        match self.checked.not_writable.first() {
            Some(column) => Err(forbidden(format!(
                "UPDATE on column {column:?} of {}",
                place.store
            ))),
            None => Ok(()),
        }
    }

    /// A page: `$1` is its size, `$2` the key of the row before it.
    pub(super) fn page(&self, wanted: Wanted, mode: Mode, continues: bool) -> String {
        let key = of_row(&self.table.key);
        let owner = of_row(self.table.owner.as_deref().unwrap_or(&self.table.key));
        let values: String = (self.table.values.iter().enumerate())
            .map(|(index, column)| {
                let (condition, text) = (condition(column, wanted), text(source(column, wanted)));
                format!(", case when {condition} then {text} end as {}", value_name(index))
            })
            .collect();
        let any = self.any(wanted);
        let after = match continues {
            true => format!(" and {key} > ($2::pg_catalog.text)::{}", self.checked.key_type),
            false => String::new(),
        };
        // Not `for update`: nobody's foreign key refers to a sealed value.
        let lock = match mode {
            Mode::Change if !cfg!(biplane_mutant = "writes_compare_nothing") => {
                " for no key update skip locked"
            }
            _ => "",
        };
        format!(
            "select {key}::pg_catalog.text as key, {owner}::pg_catalog.text as owner{values} \
             from {table} as item where ({any}){after} order by {key} limit $1{lock}",
            table = self.table_name(),
        )
    }

    /// Compare and set, for the keys `$1`, the values `$2` that were read, and those to be written, `$3`.
    pub(super) fn update(&self, index: usize, wanted: Wanted) -> String {
        let column = &self.table.values[index];
        let unchanged = format!("{} = change.old", text(source(column, wanted)));
        let unchanged = match (&column.legacy, wanted) {
            (Some(_), Wanted::ToImport) => format!("{unchanged} and {} is null", of_row(&column.sealed)),
            _ => unchanged,
        };
        let unchanged = match cfg!(biplane_mutant = "writes_compare_nothing") {
            true => "true".to_owned(),
            false => unchanged,
        };
        format!(
            "update {table} as item set {value} = change.new \
             from rows from ( \
                 pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]), \
                 pg_catalog.unnest($3::pg_catalog.text[]) \
             ) as change (key, old, new) \
             where {key} = change.key::{key_type} and {unchanged}",
            table = self.table_name(),
            value = name(&column.sealed),
            key = of_row(&self.table.key),
            key_type = self.checked.key_type,
        )
    }

    pub(super) fn count(&self, wanted: Wanted) -> String {
        let counts: Vec<String> = (self.table.values.iter())
            .map(|column| format!("count(*) filter (where {})", condition(column, wanted)))
            .collect();
        format!(
            "select {} as values from {} as item",
            counts.join(" + "),
            self.table_name()
        )
    }

    pub(super) fn census(&self) -> String {
        let values: Vec<String> = (self.table.values.iter())
            .map(|column| format!("({})", text(&column.sealed)))
            .collect();
        format!(
            "select case when value.text ~ '^bp1\\.[0-9a-f]{{16}}\\.' then pg_catalog.substr(value.text, 5, 16) end as key, \
                 count(*) as values \
             from {table} as item cross join lateral (values {values}) as value (text) \
             where value.text is not null group by 1",
            table = self.table_name(),
            values = values.join(", "),
        )
    }

    fn any(&self, wanted: Wanted) -> String {
        let conditions: Vec<String> = (self.table.values.iter())
            .map(|column| format!("({})", condition(column, wanted)))
            .collect();
        conditions.join(" or ")
    }

    fn table_name(&self) -> String {
        format!("{}.{}", name(&self.table.schema), name(&self.table.name))
    }
}

/// What a page calls the value of this column.
pub(super) fn value_name(index: usize) -> Cow<'static, str> {
    match index {
        0 => Cow::Borrowed("value_0"),
        _ => Cow::Owned(format!("value_{index}")),
    }
}

/// A name as an identifier.
///
/// # Errors
/// When no name of that kind exists in Postgres.
pub(super) fn quoted(name: &str) -> Result<String, Error> {
    if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
        return Err(misconfigured(format!(
            "{name:?} is no name in Postgres, where names have 1 to {LONGEST_NAME} bytes"
        )));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

fn name(name: &str) -> String {
    quoted(name).expect("the names were checked with the table")
}

/// A column of the row, which no other name in a statement can be taken for.
fn of_row(column: &str) -> String {
    format!("item.{}", name(column))
}

/// A column as bytes would compare: equal means the same, whatever the collation of the column.
fn text(column: &str) -> String {
    format!("({}::pg_catalog.text collate pg_catalog.\"C\")", of_row(column))
}

/// Where the value is read.
fn source(column: &Column, wanted: Wanted) -> &str {
    match (&column.legacy, wanted) {
        (Some(legacy), Wanted::ToImport) => legacy,
        _ => &column.sealed,
    }
}

/// Which rows have such a value in this column.
fn condition(column: &Column, wanted: Wanted) -> String {
    let sealed = of_row(&column.sealed);
    let under = |prefix: String| format!("not pg_catalog.starts_with({}, '{prefix}')", text(&column.sealed));
    match (wanted, &column.legacy) {
        (Wanted::All, _) => format!("{sealed} is not null"),
        (Wanted::NotUnder(key), _) => under(format!("{SEALED}{key}.")),
        (Wanted::ToImport, None) => under(SEALED.to_owned()),
        (Wanted::ToImport, Some(legacy)) => format!("{} is not null and {sealed} is null", of_row(legacy)),
    }
}
