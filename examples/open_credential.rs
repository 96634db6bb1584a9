//! Opens one stored credential, on the record: for whoever is on call and must log in where a service does.
//!
//! ```text
//! BIPLANE_CONTROL_URL=… BIPLANE_KEYRING=/etc/notes/keys.json \
//!     cargo run --example open_credential -- --by ann --reason 'INC-1234: …' acme app
//! ```
//!
//! The control plane's URL names an administrator, and the keys are those of the services. Before the credential is
//! opened, the audit says who opens which, and why; if that cannot be written, there is nothing to see. On the standard output
//! are the user and the password, a line each, and nothing else. Exit codes: 0 opened; 2 the arguments or settings are
//! wrong; 3 there is no such data source or credential; 4 the keys do not open it, though the audit says that it was tried;
//! 1 anything else.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::{env, error::Error as StdError, process::ExitCode};

use biplane::{
    error::{Error, ErrorKind},
    keyring::KeySource,
    plane::{ControlDb, ControlOptions},
    repository::{Actor, CredentialPlace, CredentialSlot, PgTenantAdmin, TenantAdmin, open_credential},
    settings::Settings,
    tenant::Role,
};
use secrecy::ExposeSecret;

const USAGE: &str = "usage: open_credential --by NAME --reason TEXT SOURCE ROLE [current|next]
  SOURCE is the name of a data source; ROLE is app, service or read_only";

/// What is wrong, in words, and the exit code that says so.
struct Failure(u8, String);

struct Wanted {
    by: Actor,
    source: String,
    role: Role,
    slot: CredentialSlot,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match open().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, text)) => {
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

async fn open() -> Result<(), Failure> {
    let wanted = wanted(env::args().skip(1))?;
    let settings = Settings::from_env().map_err(|error| Failure(2, error.to_string()))?;
    let file = env::var_os("BIPLANE_KEYRING")
        .ok_or_else(|| Failure(2, "BIPLANE_KEYRING must name the file with the keys".into()))?;
    let keyring = KeySource::file(&file)
        .load()
        .await
        .map_err(|error| Failure(2, format!("the keys cannot be read: {error}")))?;
    let control = ControlDb::connect(ControlOptions::from_settings(&settings)).map_err(failed)?;
    let admin = PgTenantAdmin::new(control);
    let source = admin.source(&wanted.source).await.map_err(failed)?;
    let source = source.ok_or_else(|| failed(ErrorKind::UnknownDataSource.into()))?;
    let place = CredentialPlace::new(source.id, wanted.role, wanted.slot);
    let login = open_credential(&admin, &wanted.by, place, &keyring)
        .await
        .map_err(failed)?;
    println!("{}", login.username());
    if let Some(password) = login.password() {
        println!("{}", password.expose_secret());
    }
    Ok(())
}

fn wanted(arguments: impl Iterator<Item = String>) -> Result<Wanted, Failure> {
    let usage = |what: &str| Failure(2, format!("{what}\n{USAGE}"));
    let (mut by, mut reason, mut words) = (None, None, Vec::new());
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--by" => by = arguments.next(),
            "--reason" => reason = arguments.next(),
            option if option.starts_with('-') => return Err(usage("there is no such option")),
            _ => words.push(argument),
        }
    }
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let by = given(by).ok_or_else(|| usage("say who you are with --by"))?;
    let reason = given(reason).ok_or_else(|| usage("say why with --reason; the audit keeps it"))?;
    let (source, role, slot) = match &words[..] {
        [source, role] => (source, role, "current"),
        [source, role, slot] => (source, role, &**slot),
        _ => return Err(usage("name a data source and a role")),
    };
    Ok(Wanted {
        by: Actor::new(by, reason),
        source: source.clone(),
        role: role.parse().map_err(|_| usage("there is no such role"))?,
        slot: match slot {
            "current" => CredentialSlot::Current,
            "next" => CredentialSlot::Next,
            _ => return Err(usage("a slot is current or next")),
        },
    })
}

fn failed(error: Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::UnknownDataSource | ErrorKind::MissingCredential { .. } => 3,
        ErrorKind::CredentialUnreadable { .. } => 4,
        _ => 1,
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Failure(code, text)
}
