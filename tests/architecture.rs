//! Holds the code against the tables of ARCHITECTURE.md: who may use whom, and which crate may appear where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Rules = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The words in backticks of two columns of a table, the first of which may hold several.
fn table(name: &str, key_column: usize, value_column: usize) -> Rules {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page is there");
    let begin = format!("<!-- {name}: begin -->");
    let end = format!("<!-- {name}: end -->");
    let (_, rest) = text.split_once(&begin).expect("the table begins");
    let (table, _) = rest.split_once(&end).expect("the table ends");
    let mut rules = Rules::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        for key in words(cells[key_column]) {
            rules.entry(key).or_default().extend(words(cells[value_column]));
        }
    }
    rules
}

fn words(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// Every source file, with its path below `src`.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let folder = root().join("src");
    let mut paths = Vec::new();
    walk(&folder, &mut paths);
    let name = |path: &Path| {
        path.strip_prefix(&folder)
            .expect("it is below")
            .to_string_lossy()
            .replace('\\', "/")
    };
    paths
        .iter()
        .map(|path| {
            (
                name(path),
                without_comments(&fs::read_to_string(path).expect("it is text")),
            )
        })
        .collect()
}

/// Documentation may speak of anything.
fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

fn room(file: &str) -> &str {
    file.split('/')
        .next()
        .expect("a path has parts")
        .trim_end_matches(".rs")
}

/// The rooms that `crate::room` and `use crate::{room::…, room::…}` name.
fn rooms_used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let whole_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        if !whole_word {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(heads(group)),
            None => used.extend(identifier(rest)),
        }
    }
    used
}

/// The first word of each item of a group of imports, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut heads) = (0_usize, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && depth == 0 && !c.is_whitespace() => {
                heads.extend(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn rooms_use_only_the_rooms_that_the_table_allows() {
    let rules = table("rooms", 0, 2);
    let rooms: BTreeSet<&str> = rules.keys().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let own = room(&file);
        if own == "lib" {
            continue;
        }
        let allowed = rules
            .get(own)
            .unwrap_or_else(|| panic!("the table has no row for {own}"));
        for used in rooms_used(&text) {
            if used != own && rooms.contains(used.as_str()) && !allowed.contains(&used) {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_is_in_the_table_and_the_table_has_no_loop() {
    let rules = table("rooms", 0, 2);
    let rooms: BTreeSet<String> = sources().iter().map(|(file, _)| room(file).to_owned()).collect();
    let listed: BTreeSet<String> = rules.keys().cloned().chain(["lib".to_owned()]).collect();
    assert_eq!(rooms, listed);

    let order: Vec<String> = {
        let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page is there");
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.filter_map(|row| words(row.split('|').nth(1)?).into_iter().next())
            .collect()
    };
    for (name, uses) in &rules {
        let own = order.iter().position(|other| other == name);
        for used in uses {
            let below = order.iter().position(|other| other == used);
            assert!(below < own, "{name} is listed above {used}, which it uses");
        }
    }
}

#[test]
fn nothing_climbs_out_of_its_room_by_super() {
    for (file, text) in sources() {
        let depth = file.matches('/').count();
        let is_module_root = file.ends_with("mod.rs");
        // How many `super::` lead from this file to the root of its room.
        let most = if is_module_root {
            depth.saturating_sub(1)
        } else {
            depth
        };
        let longest = (1..=4)
            .rev()
            .find(|n| text.contains(&"super::".repeat(*n)))
            .unwrap_or(0);
        // One more than `most` is legitimate inside an inline module, such as the tests at the end of a file.
        let inline = usize::from(text.contains("mod tests {") || text.contains("mod sealed {"));
        assert!(
            longest <= most + inline,
            "{file} climbs {longest} levels with super::"
        );
    }
}

#[test]
fn crates_appear_only_where_the_table_allows() {
    let rules = table("crates", 0, 1);
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (name, places) in &rules {
            let mentioned = text
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            let allowed = places.iter().any(|place| file.starts_with(place.as_str()));
            if mentioned && !allowed {
                wrong.push(format!("{file} uses the crate {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_imports_sees_through_groups() {
    let text = "use crate::{\n    error::{Error, ErrorKind},\n    tenant::Slug,\n};\nfn f() { crate::pool::go(); $crate::x::y }";
    let expected: BTreeSet<String> = ["error", "tenant", "pool"].map(String::from).into();
    assert_eq!(rooms_used(text), expected);
}
