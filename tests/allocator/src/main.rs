//! Runs what biplane does with secrets, and fails if a block was freed that still held one.
//!
//! Each line of output is one thing that is done, how many blocks and bytes it freed, and what was found in them. Before
//! that the program leaks every canary on purpose, and stops if the scanner misses one.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

mod canary;
mod files;
mod inputs;
mod keys;
mod passwords;
mod scan;
mod values;

use std::{hint::black_box, process::ExitCode};

use aes::{Aes256Enc, cipher::KeyInit};
use aes_gcm::Aes256Gcm;
use canary::{Canaries, KEY, OLD_KEY};
use inputs::Inputs;
use scan::Scanning;
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: Scanning = Scanning;

/// What was done, and how much of it left something behind.
pub(crate) struct Report {
    canaries: Canaries,
    done: usize,
    blocks: usize,
    bytes: usize,
    leaks: usize,
}

impl Report {
    /// Does one thing, and says what was in the blocks that it freed.
    pub(crate) fn of(&mut self, what: &str, work: impl FnOnce()) {
        let freed = scan::freed_by(work);
        self.done += 1;
        self.blocks += freed.blocks;
        self.bytes += freed.bytes;
        println!("{what}: {} blocks, {} bytes", freed.blocks, freed.bytes);
        for (number, times) in freed.found {
            self.leaks += times;
            println!("    LEAKED {}, {times} times", self.canaries.name(number));
        }
    }
}

fn main() -> ExitCode {
    let mut canaries = Canaries::all();
    let inputs = Inputs::new();
    for (name, nonce) in inputs.nonces() {
        canaries.message(name, &nonce);
    }
    every_leak_is_seen(&canaries);
    unwiped_ciphers_are_seen(&canaries);

    let mut report = Report {
        canaries,
        done: 0,
        blocks: 0,
        bytes: 0,
        leaks: 0,
    };
    keys::material(&mut report);
    keys::keyrings(&mut report, &inputs);
    keys::refused(&mut report, &inputs);
    values::sealed(&mut report, &inputs);
    values::refused(&mut report, &inputs);
    values::legacy(&mut report, &inputs);
    passwords::settings(&mut report);
    passwords::credentials(&mut report);
    files::json(&mut report, &inputs);
    files::refreshed(&mut report, &inputs);

    println!(
        "scanned {} blocks of {} bytes, freed by {} deeds, for {} canaries: {} leaks",
        report.blocks,
        report.bytes,
        report.done,
        report.canaries.iter().count(),
        report.leaks
    );
    if report.leaks == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Each canary, collected in a buffer that grows, as `Vec` and `String` do, and once more in one that is wiped.
fn every_leak_is_seen(canaries: &Canaries) {
    for (name, bytes) in canaries.iter() {
        let leaked = scan::freed_by(|| {
            let mut grown = Vec::new();
            for byte in bytes {
                grown.push(*byte);
            }
            let wiped = Zeroizing::new(grown);
            drop(wiped);
        });
        assert!(!leaked.found.is_empty(), "{name} was left behind, and nobody saw");
        let wiped = scan::freed_by(|| {
            let mut exact = Zeroizing::new(Vec::with_capacity(bytes.len()));
            exact.extend_from_slice(bytes);
        });
        assert!(wiped.found.is_empty(), "{name} was wiped, and yet seen");
    }
    println!(
        "{} canaries, each seen when it is left behind",
        canaries.iter().count()
    );
}

/// The keys that ciphers expand are looked for in the form that this processor's instructions take them. In another one
/// (the portable implementations slice their bits) nothing would be found, so the program says what it can see.
fn unwiped_ciphers_are_seen(canaries: &Canaries) {
    use std::mem::ManuallyDrop;

    let seen = |left: scan::Freed, part: &str| {
        let numbers = canaries.numbers(part);
        assert!(!numbers.is_empty());
        left.found.iter().any(|(number, _)| numbers.contains(number))
    };
    let aes = scan::freed_by(|| {
        drop(black_box(Box::new(ManuallyDrop::new(Aes256Enc::new(
            &KEY.into(),
        )))));
    });
    let gcm = || {
        scan::freed_by(|| {
            drop(black_box(Box::new(ManuallyDrop::new(Aes256Gcm::new(
                &OLD_KEY.into(),
            )))));
        })
    };
    let round_keys = seen(aes, "primary key: round keys") && seen(gcm(), "old key: round keys");
    let hash_keys = seen(gcm(), "old key: POLYVAL key");
    println!("expanded keys that are left behind are seen: AES {round_keys}, GHASH {hash_keys}");
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        assert!(
            round_keys && hash_keys,
            "the form of expanded keys is another one"
        );
    }
}
