//! What wipes keys inside the crates that biplane is built on is turned on in its manifest, and stays so.

/// Of the dependencies: the line of each, which is where cargo reads them from.
fn dependency(name: &str) -> &'static str {
    let manifest = include_str!("../Cargo.toml");
    let (_, rest) = manifest
        .split_once("[dependencies]\n")
        .expect("there are dependencies");
    rest.lines()
        .take_while(|line| !line.starts_with('['))
        .find(|line| line.starts_with(&format!("{name} = ")))
        .unwrap_or_else(|| panic!("{name} is no dependency"))
}

/// The scan of `tests/allocator.rs` would not miss that of cmac, whose state never leaves the stack.
#[test]
fn ciphers_wipe_themselves() {
    for name in ["aes-gcm", "aes", "cmac"] {
        assert!(
            dependency(name).contains("\"zeroize\""),
            "{name} is built without zeroize"
        );
    }
}

/// Before 1.9.1 `Zeroizing` derived a `Debug` that prints what it holds.
#[test]
fn zeroizing_prints_nothing() {
    let version = dependency("zeroize")
        .split('"')
        .nth(1)
        .expect("a version is in quotation marks");
    let numbers: Vec<u32> = version
        .split('.')
        .map(|part| part.parse().expect("a number"))
        .collect();
    assert!(numbers >= vec![1, 9, 1], "zeroize {version} may be too old");
}
