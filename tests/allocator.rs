//! A program with an allocator that looks at every block that is freed, and finds no secret in any.
#![cfg(unix)]

use std::{env, path::Path, process::Command};

/// `tests/allocator` is a package of its own, as its manifest says. Built without optimisation, as copies are then made
/// that an optimiser might leave out, and hardly any that it might add.
#[test]
fn no_block_is_freed_with_a_secret_in_it() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/allocator/Cargo.toml");
    // The outer build's directory, so that what both need is built once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it has a parent");
    let mut program = Command::new(env!("CARGO"));
    program
        .args(["run", "--quiet", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target);
    let output = program.output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    let summary = said.lines().last().expect("it says what it scanned");
    #[expect(clippy::print_stdout, reason = "how much was scanned is part of the result")]
    {
        println!("{summary}");
    }
    // A program that skipped its work would find nothing either.
    let deeds = said.lines().filter(|line| line.ends_with(" bytes")).count();
    assert!(deeds >= 90, "only {deeds} deeds were done:\n{said}");
    assert!(summary.ends_with(": 0 leaks"), "{said}");
}
