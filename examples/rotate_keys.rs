//! A rotation of keys, from the first key to the destruction of the old one, while three services go on serving.
//!
//! ```text
//! cargo run --all-features --example rotate_keys
//! ```
//!
//! It starts a throwaway Postgres server and leaves nothing behind. Each "service" stands for a process: it has a copy of
//! the keyring file of its own, as on another host, a heartbeat, and requests that open and write sealed values all the
//! time. None of them may fail.
//!
//! To read: this file is the operator's part, step by step; `rotate_keys/service.rs` is what a service has to do for it,
//! and `rotate_keys/setup.rs` makes the planes.
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

#[path = "rotate_keys/service.rs"]
mod service;
#[path = "rotate_keys/setup.rs"]
mod setup;

use std::{error::Error as StdError, process::ExitCode, sync::Arc, time::Duration};

use biplane::{
    keyring::{Context, KeyId, KeyMaterial, KeyringError, KeyringFile, Unused},
    presence::{self, PRESUMED_DEAD},
    repository::Actor,
    rotation::{PgColumns, Reseal, RotationError, SealedStore, StoredCredentials, doctor, unused},
    testing::wait,
};

use service::Service;
use setup::{FIELD, PURPOSE, Planes, SETTINGS};

/// The example needs no errors of its own.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// How long nobody may have opened anything under the old key before it counts as out of use. In earnest this is
/// [`QUIET_FOR`](biplane::rotation::QUIET_FOR), five minutes; the services of this example are never behind by more than
/// their refresh, which is told to them.
const QUIET_FOR: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    match story().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe example came to an end: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                println!("   because {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn story() -> Result {
    println!("1. The first key, two planes, and three services with a copy of the key each");
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("operator.json");
    KeyringFile::create(&file, &KeyringFile::new(KeyMaterial::generate()?))?;
    let old = KeyringFile::load(&file)?.primary();
    let planes = Planes::set_up(KeyringFile::load(&file)?.into_keyring()?).await?;
    let mut services = Vec::new();
    for name in ["web", "worker", "billing"] {
        services.push(Service::start(name, directory.path(), &file, &planes).await?);
    }
    println!("   every value is sealed under {old}");

    println!("\n2. A new key, as pending: it opens, and seals nothing yet");
    let new = KeyringFile::edit(&file, |keys| keys.add(KeyMaterial::generate()?))?;
    KeyringFile::edit(&file, |keys| keys.annotate(new, "rotation of this example"))?;
    println!("   {new}");

    println!("\n3. It goes to two of the three hosts, and promotion is refused");
    for service in &services[..2] {
        service.deliver(&file).await?;
    }
    let refused = presence::missing(&planes.instances(), new, PRESUMED_DEAD)
        .await?
        .evidence();
    match refused {
        Ok(_) => return Err("the key was taken for distributed".into()),
        Err(refused) => println!("   {refused}"),
    }

    println!("\n4. It goes to the third, and is promoted");
    services[2].deliver(&file).await?;
    let everywhere = presence::missing(&planes.instances(), new, PRESUMED_DEAD)
        .await?
        .evidence()?;
    KeyringFile::edit(&file, |keys| keys.promote(everywhere))?;
    // One after the other: meanwhile some seal under the new key and some under the old one, and all open both.
    for service in &services {
        service.deliver(&file).await?;
    }

    println!("\n5. Everything is sealed anew, by two workers at once, while the services write");
    // Shared, because both workers and the checks below look at the same places.
    let settings = Arc::new(
        PgColumns::new(planes.operator.clone(), "public", SETTINGS)
            .purpose(PURPOSE)
            .column("smtp_password", FIELD),
    );
    let by = Actor::new("rotate_keys", "a rotation");
    let credentials = Arc::new(StoredCredentials::new(planes.admin(), by));
    let keyring = KeyringFile::load(&file)?.into_keyring()?;
    let job = || {
        Reseal::new(keyring.clone())
            .store(Arc::clone(&settings))
            .store(Arc::clone(&credentials))
    };
    let (mut first, mut second) = (job(), job());
    let (one, other) = tokio::join!(first.run(), second.run());
    println!("{}", indented(&one?));
    println!("{}", indented(&other?));

    println!("\n6. The doctor opens every value, and counts by key");
    let stores: [&dyn SealedStore; 2] = [&settings, &credentials];
    let diagnosis = doctor(&keyring, &stores).await?;
    println!("{}", indented(&diagnosis));
    if !diagnosis.is_healthy() {
        return Err("there are values that do not open".into());
    }

    println!(
        "\n7. The old key is disabled, as soon as nobody has opened anything under it for {QUIET_FOR:?}"
    );
    let unused = evidence(old, &stores, &planes).await?;
    KeyringFile::edit(&file, |keys| keys.disable(unused))?;
    for service in &services {
        service.deliver(&file).await?;
    }
    println!("   {:?}", KeyringFile::load(&file)?);

    println!("\n8. It is destroyed, by who repeats its id; what a backup holds under it is gone with it");
    let refused = KeyringFile::edit(&file, |keys| keys.destroy(old, "yes"));
    println!(
        "   \"yes\": {}",
        refused.err().map_or_else(String::new, |error| error.to_string())
    );
    KeyringFile::edit(&file, |keys| keys.destroy(old, &old.to_string()))?;
    for service in &services {
        service.deliver(&file).await?;
    }
    let owner = planes.from_backup.owner.to_string();
    let keyring = KeyringFile::load(&file)?.into_keyring()?;
    let opened = keyring.open_text(&Context::new(PURPOSE, &owner, FIELD)?, &planes.from_backup.sealed);
    match opened {
        Err(error @ KeyringError::KeyDestroyed(_)) => println!("   a value from a backup: {error}"),
        _ => return Err("a value opened under a key that is destroyed".into()),
    }

    println!("\n9. What the services have seen of it");
    for service in services {
        println!("   {}", service.stop().await?);
    }
    Ok(())
}

/// Asks until nothing stands in the way any more, and says once what did.
async fn evidence(old: KeyId, stores: &[&dyn SealedStore], planes: &Planes) -> Result<Unused> {
    let instances = planes.instances();
    let mut told = false;
    let proof = wait::until_some(
        "the old key is out of use",
        Duration::from_secs(60),
        async || match unused(old, stores, Some(&instances), QUIET_FOR).await {
            Err(RotationError::StillUsed(still)) => {
                if !std::mem::replace(&mut told, true) {
                    println!("   not yet:\n{}", indented(&still));
                }
                None
            }
            answer => Some(answer),
        },
    );
    Ok(proof.await??)
}

fn indented(report: &impl std::fmt::Display) -> String {
    let lines: Vec<String> = report
        .to_string()
        .lines()
        .map(|line| format!("   {line}"))
        .collect();
    lines.join("\n")
}
