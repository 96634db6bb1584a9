//! Passwords: in URLs, in the environment, in credentials.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    pin::pin,
    task::{Context, Poll, Waker},
};

use biplane::{
    keyring::Fingerprints,
    repository::{CredentialSource, Login, MemoryCredentials},
    secret::{Credential, CredentialError, SecretBytes},
    settings::{Dsn, DsnError, Settings, SettingsError, WithoutPassword},
    tenant::{DataSource, DataSourceId, Location, Role},
};
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::{
    Report,
    canary::{BYTES, PASSWORD, PASSWORD_IN_URL, PASSWORD_TAIL},
    keys::{set, unset},
};

pub(crate) fn settings(report: &mut Report) {
    let url = |user: &str, database: &str| {
        format!("postgres://{user}:{PASSWORD_IN_URL}@db.example:5432/{database}?connection_limit=7")
    };
    let (control, data) = (url("control", "biplane"), url("app", "crm"));
    report.of("a URL with a password", || {
        let dsn = Dsn::parse(&control).unwrap();
        assert_eq!(dsn.credential().password().unwrap().expose_secret(), PASSWORD);
        drop(format!("{dsn} {dsn:?}"));
        drop(dsn.clone().into_source(DataSourceId::new(), "east"));
    });
    for (what, text, expected) in [
        (
            "a wrong parameter",
            format!("{control}&sslmode=perhaps"),
            Some(DsnError::Value(biplane::settings::Parameter::SslMode)),
        ),
        (
            "an unused authority",
            format!("{control}&sslrootcert=/ca.pem"),
            Some(DsnError::UnusedCa),
        ),
        (
            "no authentication",
            format!("{control}&require_auth=none"),
            Some(DsnError::UnexpectedPassword),
        ),
        (
            "the wrong scheme",
            control.replace("postgres://", "mysql://"),
            Some(DsnError::Scheme),
        ),
        (
            "bad encoding",
            control.replace("%25Gn4", "%25Gn4%2"),
            Some(DsnError::Encoding(biplane::settings::UrlPart::Password)),
        ),
        (
            "a raw # in the password",
            control.replace("%23", "#"),
            Some(DsnError::Ambiguous),
        ),
        (
            "a password in its parameters",
            format!("{control}&password={PASSWORD_TAIL}&{PASSWORD_TAIL}&{PASSWORD_TAIL}=1"),
            None,
        ),
    ] {
        report.of(&format!("refused: a URL with {what}"), || {
            let error = Dsn::parse(&text).unwrap_err();
            assert!(expected.is_none_or(|expected| expected == error), "{error}");
            drop(Dsn::parse_with(&text, WithoutPassword::Accept).unwrap_err());
            drop(format!("{error} {error:?}"));
        });
    }

    set("BIPLANE_CONTROL_URL", &control);
    set("BIPLANE_DATA_URL", &data);
    report.of("settings from the environment", || {
        let settings = Settings::from_env().unwrap();
        drop(settings.default_source().unwrap());
        drop(format!("{settings:?}"));
    });
    report.of("settings from a table", || {
        let value = |name: &str| match name {
            "BIPLANE_CONTROL_URL" => Some(control.clone()),
            "BIPLANE_DATA_URL" => Some(data.clone()),
            _ => None,
        };
        drop(Settings::from_lookup(value).unwrap());
    });
    set("CONTROL_DB_URL", &data);
    refuse(report, "two variables that disagree");
    set(
        "CONTROL_DB_URL",
        OsStr::from_bytes(&[control.as_bytes(), b"\xff"].concat()),
    );
    refuse(report, "a variable that is not UTF-8");
    unset("CONTROL_DB_URL");
    set("BIPLANE_DATA_URL", &control);
    refuse(report, "one database in split mode");
    set("BIPLANE_DATA_URL", format!("{data}&sslmode=perhaps"));
    refuse(report, "a wrong URL after a good one");
    set("BIPLANE_DATA_URL", format!("{data}&schema=biplane_control"));
    refuse(report, "a reserved schema");
    set("BIPLANE_DATA_URL", &data);
    set("BIPLANE_MODE", "single");
    refuse(report, "two databases in single mode");
    for name in ["BIPLANE_CONTROL_URL", "BIPLANE_DATA_URL", "BIPLANE_MODE"] {
        unset(name);
    }
}

fn refuse(report: &mut Report, what: &str) {
    report.of(&format!("refused: settings with {what}"), || {
        let error: SettingsError = Settings::from_env().unwrap_err();
        drop(format!("{error} {error:?}"));
    });
}

pub(crate) fn credentials(report: &mut Report) {
    report.of("the fingerprint of a credential", || {
        let fingerprints = Fingerprints::new().unwrap();
        assert_eq!(fingerprints.of(&login()), fingerprints.of(&login()));
    });
    report.of("a credential, to plaintext and back", || {
        let credential = login();
        let plaintext: SecretBytes = SecretBox::new(
            // As opening leaves it: in an allocation of its size.
            std::mem::take(&mut *credential.to_plaintext()),
        );
        let back = Credential::from_plaintext(&plaintext).unwrap();
        assert_eq!(back.password().unwrap().expose_secret(), PASSWORD);
        drop(format!("{back:?}"));
    });
    report.of("refused: credentials", || {
        let error = Credential::new("app\0", SecretString::from(PASSWORD)).unwrap_err();
        assert_eq!(error, CredentialError::Nul);
        let error = Credential::new("", SecretString::from(PASSWORD)).unwrap_err();
        assert_eq!(error, CredentialError::NoUser);
        let bytes: SecretBytes = SecretBox::new(BYTES.to_vec().into_boxed_slice());
        let error = Credential::from_plaintext(&bytes).unwrap_err();
        assert_eq!(error, CredentialError::NotUtf8);
    });
    report.of("a login", || {
        let login = Login::new(login());
        drop(format!("{:?}", login.clone()));
    });
    report.of("credentials in memory", || {
        let known = MemoryCredentials::new();
        let source = DataSource::new(DataSourceId::new(), "east", Location::Memory);
        for role in Role::ALL {
            known.set(source.id, role, login());
            known.set(source.id, role, login());
        }
        known.set(source.id, Role::App, Credential::without_password("app").unwrap());
        let opened = at_once(known.login(&source, Role::Service)).unwrap();
        assert_eq!(opened.credential.password().unwrap().expose_secret(), PASSWORD);
        drop(format!("{known:?}"));
    });
}

fn login() -> Credential {
    Credential::new("app", SecretString::from(PASSWORD)).unwrap()
}

/// The output of a future that waits for nothing.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}
