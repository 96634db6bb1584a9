//! Properties of the parser of database URLs, over arbitrary text.

use std::{error::Error, fmt::Write as _};

use biplane::settings::{Dsn, DsnError, UrlPart, WithoutPassword};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use secrecy::ExposeSecret;

fn endpoints(dsn: &Dsn) -> Vec<String> {
    dsn.server().endpoints.iter().map(ToString::to_string).collect()
}

/// All that a log could show of an error: both texts of it and of its causes.
fn shown(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        write!(text, "{error} {error:?} ").expect("a string takes any text");
        next = error.source();
    }
    text
}

/// Encodes what has to be, and nothing else.
fn sparingly(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '%' | '/' | '?' | '#' => format!("%{:02X}", u32::from(c)),
            c if c.is_control() => {
                utf8_percent_encode(c.encode_utf8(&mut [0; 4]), NON_ALPHANUMERIC).to_string()
            }
            c => c.to_string(),
        })
        .collect()
}

fn shape() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "postgres://{}",
        "postgres://{}@h/d",
        "postgres://u:{}",
        "postgres://u:{}@h",
        "postgres://u:{}@h/d",
        "postgres://u:{}@h:1/d?x=1",
        "postgres://u:{}@h/d?sslmode=bad",
        "postgres://u:{}@h/d#",
        "https://u:{}@h/d",
        "{}",
        "{}://u:p@h/d",
        "postgres://u@{}/d",
        "postgres://u:p@h:{}/d",
        "postgres://u:p@[{}]/d",
        "postgres://u:p@h/{}/x",
        "postgres://u:p@h/d?sslmode={}",
        "postgres://u:p@h/d?connection_limit={}",
        "postgres://u:p@h/d?schema={}",
        "postgres://u:p@h/d?host={}",
        "postgres://u@h/d?password={}&a=b",
        "postgres://u:p@h/d?{}",
        "postgres://u:p@h/d?sslmode=require&options={}",
        "postgres://u:{}%zz@h/d",
        "postgres://u:p@h/d?sslrootcert={}",
        "postgres://u@h/d?require_auth={}",
        "postgres://u:{}\n@h/d",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_login_and_database_come_back(
        user in "[^\0]{1,20}", password in "[^\0]{1,40}", database in "[^\0]{1,15}", name in "[^\0]{1,15}"
    ) {
        let [u, p, d, n] = [&user, &password, &database, &name].map(|t| utf8_percent_encode(t, NON_ALPHANUMERIC));
        let text = format!("postgres://{u}:{p}@db.example:6432/{d}?application_name={n}");
        let dsn = Dsn::parse(&text).unwrap();
        prop_assert_eq!(dsn.credential().username(), &user);
        prop_assert_eq!(dsn.credential().password().unwrap().expose_secret(), &password);
        prop_assert_eq!(&*dsn.server().database, &database);
        prop_assert_eq!(dsn.application_name(), Some(&*name));
        prop_assert_eq!(endpoints(&dsn), ["db.example:6432"]);
    }

    #[test]
    fn any_password_comes_back_when_four_characters_are_encoded(password in "[^\0]{1,40}") {
        let dsn = Dsn::parse(&format!("postgres://app:{}@h/crm", sparingly(&password))).unwrap();
        prop_assert_eq!(dsn.credential().password().unwrap().expose_secret(), &password);
        prop_assert_eq!(endpoints(&dsn), ["h:5432"]);
    }

    #[test]
    fn a_raw_password_is_taken_whole_or_refused(password in "[ -~]{1,12}") {
        match Dsn::parse(&format!("postgres://app:{password}@h/crm")) {
            Ok(dsn) => {
                let decoded = percent_encoding::percent_decode_str(&password).decode_utf8().unwrap();
                prop_assert_eq!(dsn.credential().password().unwrap().expose_secret(), &*decoded);
                prop_assert_eq!(endpoints(&dsn), ["h:5432"]);
            }
            Err(DsnError::Ambiguous) => prop_assert!(password.contains(['/', '?', '#'])),
            Err(DsnError::Encoding(UrlPart::Password)) => prop_assert!(password.contains('%')),
            Err(error) => prop_assert!(false, "{}: {}", password, error),
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(
        text in prop_oneof![any::<String>(), "postgres://[ -~é\0\n]{0,40}", "(postgres://)?([a-z0-9:@/?#&=%,.\\[\\]]|%2F){0,40}"]
    ) {
        let _ = Dsn::parse(&text);
        let _ = Dsn::parse_with(&text, WithoutPassword::Accept);
    }

    /// The alphabet has no six bytes in common with our own words.
    #[test]
    fn no_error_holds_a_piece_of_the_input(
        shape in shape(), secret in "[QZXJ7%@/?#:&,.\\[\\]é]{6,24}", plain in "[QZXJ7%@/?#:&=]{6,24}"
    ) {
        for secret in [&secret, &plain] {
            // Among the parameters, what stands between `&` and `=` is a name, and names are shown by design; what
            // follows a parameter that seems to hold a secret is not.
            let in_query = shape.contains("?{}") || shape.contains("={}") && !shape.contains("password");
            prop_assume!(!(in_query && secret.contains('=')));
            if let Err(error) = Dsn::parse(&shape.replace("{}", secret)) {
                let shown = shown(&error);
                for piece in secret.as_bytes().windows(6) {
                    let found = shown.as_bytes().windows(6).any(|window| window == piece);
                    prop_assert!(!found, "{shape} with {secret}: {shown}");
                }
            }
        }
    }
}
