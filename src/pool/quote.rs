//! Names and strings in the text of a statement, for where no parameter can stand.

/// A name as an identifier, case and all.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string that means the same whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_ends_where_it_is_meant_to_end() {
        assert_eq!(identifier(r#"odd "name"#), r#""odd ""name""#);
        assert_eq!(literal(r"it's \ odd"), r"E'it''s \\ odd'");
    }
}
