//! Fuzzing of whatever reads text or bytes that somebody else wrote: sealed values, legacy values, keys and key files.
//!
//! Each target (`targets/`) takes any bytes. It holds the code to a second opinion, written from the documentation: what
//! is read, what is refused, and with which error; that what is read is written back the same; that nothing opens but
//! what was sealed; and that no text of an error holds six bytes of the input in a row. A target panics when that fails.
//!
//! - `cargo test --test fuzz`, and so `tests/run`, runs every target on the seeds (`seeds/`, a directory for each target)
//!   and on mutations of them: the same ones each time, 10 s for each target at most.
//! - `tests/fuzz/long TARGET SECONDS` runs one for long: under libFuzzer, which is led by coverage, where `cargo fuzz` and
//!   a nightly toolchain are; otherwise with the mutations of this file.
//! - `BIPLANE_FUZZ_INPUT=<hex> cargo test --test fuzz TARGET` runs one input, such as the one that a failure prints.
//!
//! An input that has found a mistake is put among the seeds.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

mod mutate;
mod targets;

use std::{
    collections::BTreeSet,
    env, fs, panic,
    path::Path,
    time::{Duration, Instant},
};

use mutate::Mutator;
use targets::{Target, keys, legacy, sealed};

/// Enough for each target to meet every error, and little enough for each run of the tests.
const INPUTS: u64 = 40_000;
const AT_MOST: Duration = Duration::from_secs(10);
/// Far fewer than those are done in 10 s on any machine; so a slow one tests less, and still something.
const AT_LEAST: u64 = 2_000;

struct Plan {
    target: Target,
    seeds: &'static str,
    /// Words of the format, for mutations to put in.
    words: &'static [&'static str],
    /// What must have been met, or the mutations do not reach what they are for.
    meets: &'static [&'static str],
}

impl Plan {
    fn run(&self) {
        let seeds = seeds(self.seeds);
        let random = variable("BIPLANE_FUZZ_SEED").unwrap_or(1);
        let seconds = variable("BIPLANE_FUZZ_SECONDS").map(Duration::from_secs);
        let mut mutator = Mutator::new(random, self.words, seeds.clone());
        let mut met = BTreeSet::new();
        for seed in &seeds {
            met.extend(self.feed("a seed", seed));
        }
        if let Ok(input) = env::var("BIPLANE_FUZZ_INPUT") {
            self.feed(
                "the given input",
                &targets::hex(&input).expect("BIPLANE_FUZZ_INPUT is in hex"),
            );
            return;
        }
        let began = Instant::now();
        for number in 0_u64.. {
            let elapsed = began.elapsed();
            let enough = match seconds {
                Some(seconds) => elapsed >= seconds,
                None => number >= INPUTS || number >= AT_LEAST && elapsed >= AT_MOST,
            };
            if enough {
                break;
            }
            let input = mutator.next_input();
            let outcome = self.feed(&format!("input {number} of BIPLANE_FUZZ_SEED={random}"), &input);
            // What leads to something new is worth mutating further.
            if outcome.iter().any(|new| !met.contains(new)) {
                met.extend(outcome);
                mutator.add(input);
            }
        }
        for expected in self.meets {
            assert!(met.contains(expected), "never met {expected}, only {met:?}");
        }
    }

    fn feed(&self, which: &str, input: &[u8]) -> Vec<&'static str> {
        panic::catch_unwind(|| (self.target)(input)).unwrap_or_else(|_| {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!(
                "the target fails on {which}: {:?}\nagain: BIPLANE_FUZZ_INPUT={hex} cargo test --test fuzz {}",
                String::from_utf8_lossy(input),
                self.seeds
            );
        })
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// In the order of their names, so that every machine makes the same mutations.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/seeds")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn text() {
    Plan {
        target: sealed::text,
        seeds: "text",
        words: &[
            "bp1.", "bp2.", "bp10.", "bp", ".", "=", "==", "-", "_", "+", "/", "\n", " ", "\0", "é",
        ],
        meets: &[
            "Opened",
            "Malformed",
            "UnsupportedVersion",
            "UnknownKey",
            "KeyDisabled",
            "KeyDestroyed",
            "TooLarge",
            "Authentication",
        ],
    }
    .run();
}

#[test]
fn binary() {
    Plan {
        target: sealed::binary,
        seeds: "binary",
        words: &["\x01\x01", "\x01", "\x02", "\0", "XCMT"],
        meets: &[
            "Opened",
            "Malformed",
            "UnsupportedVersion",
            "UnsupportedSuite",
            "UnknownKey",
            "KeyDisabled",
            "KeyDestroyed",
            "TooLarge",
            "Authentication",
        ],
    }
    .run();
}

#[test]
fn legacy_value() {
    Plan {
        target: legacy::value,
        seeds: "legacy_value",
        words: &[
            ":", "::", "=", "==", "+", "/", "-", "_", "0", "00", "ab", "AB", "zz", "\n", " ", "é",
        ],
        meets: &[
            "Opened",
            "Malformed",
            "LegacyEncoding",
            "LegacyForbidden",
            "Authentication",
        ],
    }
    .run();
}

#[test]
fn key_input() {
    Plan {
        target: keys::input,
        seeds: "key_input",
        words: &[
            "primary:",
            "pending:",
            "decrypt-only:",
            "disabled:",
            "destroyed:",
            ":",
            ",",
            "\n",
            "\r\n",
            "#",
            " ",
            "=",
            "00000000",
            "AAAAAAAA",
            "aaaaaaaa",
            "+",
            "/",
            "-",
            "_",
            "é",
            "\u{2028}",
            "\u{85}",
        ],
        meets: &[
            "Key",
            "Keyring",
            "MalformedKey",
            "WeakKey",
            "WrongKeyMaterial",
            "DuplicateKey",
            "NoPrimary",
            "SeveralPrimaries",
        ],
    }
    .run();
}

#[test]
fn key_file() {
    Plan {
        target: keys::file,
        seeds: "key_file",
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\n",
            "{}",
            "[]",
            "null",
            "true",
            "1",
            "2",
            "1.0",
            "-1",
            "1e9",
            "\"id\":",
            "\"state\":",
            "\"material\":",
            "\"wrapped\":",
            "\"note\":",
            "\"keys\":",
            "\"biplane_keyring\":",
            "\"primary\"",
            "\"pending\"",
            "\"decrypt-only\"",
            "\"disabled\"",
            "\"destroyed\"",
            "\"note\": \"x\",",
            "\u{feff}",
            "\u{7f}",
            "é",
        ],
        meets: &[
            "Keyring",
            "NoKeyService",
            "MalformedFile",
            "MalformedKey",
            "WeakKey",
            "WrongKeyMaterial",
            "DuplicateKey",
            "NoPrimary",
            "SeveralPrimaries",
        ],
    }
    .run();
}

#[test]
fn a_piece_of_the_input_in_a_text_is_seen_and_our_own_words_are_not() {
    let shown = |text: &str, input: &str| targets::shown(text, input.as_bytes());
    let told = "the value is malformed: it begins with hunter2";
    assert_eq!(shown(told, "password=hunter2").as_deref(), Some("hunter"));
    assert_eq!(
        shown("the value is malformed: it does not begin with bp1.", "malformed"),
        None
    );
    assert_eq!(shown("no key is primary", "primary:0123"), None);
    assert_eq!(shown("short", "short"), None);
}
