//! Pages of the manual keep up with the code: the page of errors names every kind, once and in the order of the enum, and
//! every test that a page names is there.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, fs, path::Path};

/// The variants as the source has them, in order.
fn kinds() -> Vec<String> {
    let file = syn::parse_file(include_str!("../src/error.rs")).unwrap();
    let kinds = file.items.into_iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == "ErrorKind" => Some(item.variants),
        _ => None,
    });
    kinds
        .unwrap()
        .iter()
        .map(|variant| variant.ident.to_string())
        .collect()
}

/// The rows of the table, cell by cell.
fn rows() -> Vec<Vec<&'static str>> {
    include_str!("../src/manual/errors.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

#[test]
fn every_kind_has_its_row() {
    let named: Vec<String> = rows()
        .iter()
        .map(|row| row[0].trim_matches('`').to_owned())
        .collect();
    assert_eq!(named, kinds());
}

#[test]
fn every_row_says_what_to_answer_and_what_to_do() {
    for row in rows() {
        assert_eq!(row.len(), 5, "{row:?}");
        let [kind, http, grpc, means, next] = row[..] else {
            unreachable!("it has five cells");
        };
        let status = http.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        assert!(
            http == "at start" || (400..600).contains(&status.parse().unwrap()),
            "{kind}: {http}"
        );
        assert!(grpc == "at start" || grpc.starts_with('`'), "{kind}: {grpc}");
        assert!(means.len() > 10 && !next.is_empty(), "{kind}");
    }
}

/// Whatever could not be told is no 404: a client that is told so stops coming.
#[test]
fn only_what_the_control_plane_has_said_is_not_found() {
    let not_found: Vec<&str> = rows()
        .iter()
        .filter(|row| row[1].starts_with("404"))
        .map(|row| row[0].trim_matches('`'))
        .collect();
    assert_eq!(not_found, ["UnknownTenant", "InvalidName", "Inactive"]);
}

/// The names of all functions under a directory.
fn functions(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.split_once("fn ")?.1.split('(').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_page_of_failures_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    functions(&root.join("tests"), &mut tests);
    functions(&root.join("src"), &mut tests);
    let page = include_str!("../src/manual/what_happens_when.md");
    // Settings have short names; those of tests are sentences.
    let named: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.matches('_').count() >= 4)
        .collect();
    assert!(named.len() > 40, "{}", named.len());
    for name in named {
        assert!(
            tests.contains(name),
            "the page names {name}, and there is no such test"
        );
    }
}
