//! What a statement may leave behind in its session.

/// How a statement goes to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// As text, which may hold several statements.
    Simple,
    /// With parameters, one statement alone.
    Extended,
}

/// Statements that change rows and tables at most: those live in the database, not in the session.
const PLAIN: [&str; 19] = [
    "select",
    "insert",
    "update",
    "delete",
    "with",
    "values",
    "table",
    "merge",
    "truncate",
    "explain",
    "show",
    "notify",
    "lock",
    "savepoint",
    "release",
    "analyze",
    "comment",
    "refresh",
    "vacuum",
];

/// What in a plain statement lets it change the session nevertheless.
const SUSPECT: [&str; 6] = [
    "set_config",
    "pg_advisory",
    "pg_try_advisory",
    "temp",
    "dblink_connect",
    "setseed",
];

/// Whether a statement may leave the session other than it found it. Plain queries do not; whatever is not known to be
/// one is taken to. What a function that a query calls does by itself is not seen here.
pub(super) fn may_alter(sql: &str, protocol: Protocol) -> bool {
    let text = without_preamble(sql);
    let end = text
        .find(|c: char| !c.is_ascii_alphabetic() && c != '_')
        .unwrap_or(text.len());
    let plain = PLAIN.iter().any(|word| text[..end].eq_ignore_ascii_case(word));
    let several = || protocol == Protocol::Simple && text.trim_end().trim_end_matches(';').contains(';');
    let unseen = cfg!(biplane_mutant = "sessions_are_never_altered");
    !unseen && (!plain || several() || SUSPECT.iter().any(|word| contains_ignoring_case(text, word)))
}

/// The statement without the blanks, comments and parentheses before its first word.
fn without_preamble(sql: &str) -> &str {
    let mut text = sql;
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        let rest = if let Some(comment) = text.strip_prefix("--") {
            comment.split_once('\n').map(|(_, rest)| rest)
        } else if let Some(comment) = text.strip_prefix("/*") {
            // A comment inside the comment ends the search early, on something that is no word: suspect.
            comment.split_once("*/").map(|(_, rest)| rest)
        } else {
            return text;
        };
        match rest {
            Some(rest) => text = rest,
            None => return "",
        }
    }
}

fn contains_ignoring_case(text: &str, word: &str) -> bool {
    let (first, rest) = word.as_bytes().split_first().expect("no suspect word is empty");
    let text = text.as_bytes();
    let last = text.len().saturating_sub(rest.len());
    text[..last]
        .iter()
        .enumerate()
        .filter(|(_, byte)| byte.eq_ignore_ascii_case(first))
        .any(|(at, _)| text[at + 1..at + word.len()].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_queries_leave_the_session_alone() {
        for sql in [
            "select 1",
            "select",
            " SELECT 1 ;",
            "with a as (select 1) table a",
            "insert into t values (1)",
            "values(1)",
            "(select 1) union (select 2)",
            "/* hint */ select 1",
            "-- who asks\n  select 1",
            "savepoint a",
        ] {
            assert!(!may_alter(sql, Protocol::Simple), "{sql}");
        }
    }

    #[test]
    fn whatever_else_is_suspect() {
        for sql in [
            "set search_path = x",
            "select set_config('a', 'b', false)",
            "select PG_ADVISORY_LOCK(1)",
            "select 1 into temp t",
            "select 1; set role x",
            "begin",
            "listen x",
            "selectx",
            "select_x",
            "",
            "-- select 1",
            "/* select 1",
            "/* /* */ set x = 1 */ select 1",
            "create temp table t ()",
            "temp",
        ] {
            assert!(may_alter(sql, Protocol::Simple), "{sql}");
        }
    }

    #[test]
    fn a_statement_with_parameters_is_one_alone() {
        assert!(!may_alter("select split_part($1, ';', 1)", Protocol::Extended));
    }

    proptest! {
        #[test]
        fn any_text_can_be_looked_at(sql in "\\PC*") {
            may_alter(&sql, Protocol::Simple);
        }

        #[test]
        fn a_suspect_word_is_found_wherever_it_stands(before in "[ -~é]*", after in "[ -~é]*", upper: bool) {
            for word in SUSPECT {
                let word = if upper { word.to_ascii_uppercase() } else { word.to_owned() };
                let sql = format!("select {before}{word}{after}");
                prop_assert!(may_alter(&sql, Protocol::Extended), "{sql}");
            }
        }
    }
}
