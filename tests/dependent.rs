//! A crate that depends on biplane, as a user's would: what it may not do does not compile, and it builds whatever else
//! it turns on in sqlx.
#![cfg(feature = "postgres")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dependent/Cargo.toml")
}

fn check(arguments: &[&str]) -> Output {
    // The outer build's directory, so that what both need is built once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it has a parent");
    Command::new(env!("CARGO"))
        .args(["check", "--quiet", "--manifest-path"])
        .arg(manifest())
        .arg("--target-dir")
        .arg(target)
        .args(arguments)
        .output()
        .expect("cargo runs")
}

/// The errors that the compiler reported for each binary.
static ERRORS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let output = check(&["--bins", "--keep-going", "--message-format=json"]);
    let mut errors: BTreeMap<String, String> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).expect("cargo prints JSON");
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        if message["reason"] == "compiler-message" && message["message"]["level"] == "error" {
            let text = message["message"]["rendered"].as_str().unwrap_or_default();
            errors.entry(target).or_default().push_str(text);
        }
    }
    assert!(!errors.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    errors
});

/// The binaries whose name begins so, without that beginning, and their text.
fn binaries(beginning: &str) -> BTreeMap<String, String> {
    let folder = manifest().with_file_name("src/bin");
    let mut found = BTreeMap::new();
    for file in fs::read_dir(folder).expect("the folder is there") {
        let path = file.expect("it can be listed").path();
        let name = path
            .file_stem()
            .expect("files have names")
            .to_string_lossy()
            .into_owned();
        if let Some(rest) = name.strip_prefix(beginning) {
            found.insert(
                rest.to_owned(),
                fs::read_to_string(&path).expect("it can be read"),
            );
        }
    }
    found
}

#[test]
fn mixing_up_the_planes_does_not_compile_and_says_why() {
    let misuses = binaries("misuse_");
    assert!(misuses.len() >= 13, "only {} misuses are tested", misuses.len());
    for (name, source) in &misuses {
        let first = source.lines().next().unwrap_or_default();
        let expected = first
            .strip_prefix("//! Refused: ")
            .expect("a misuse begins with the message it expects");
        let said = ERRORS
            .get(&format!("misuse_{name}"))
            .map(String::as_str)
            .unwrap_or_default();
        // The compiler writes a path out when it is not in scope.
        let said = said.replace("biplane::plane::", "").replace("sqlx::Pool", "Pool");
        assert!(
            said.contains(expected),
            "misuse_{name} should be refused with: {expected}\nand was with:\n{said}"
        );
    }
}

#[test]
fn every_misuse_has_a_twin_that_compiles() {
    let misuses: BTreeSet<String> = binaries("misuse_").into_keys().collect();
    let twins: BTreeSet<String> = binaries("use_").into_keys().collect();
    assert_eq!(misuses, twins);
    for name in twins {
        let said = ERRORS.get(&format!("use_{name}"));
        assert!(
            said.is_none(),
            "use_{name} should compile:\n{}",
            said.expect("it is some")
        );
    }
}

#[test]
fn it_builds_with_and_without_the_macros_of_sqlx() {
    for features in ["", "macros"] {
        let output = check(&["--lib", "--features", features]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "features {features:?}:\n{said}");
    }
}
