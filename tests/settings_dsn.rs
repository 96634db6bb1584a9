//! Database URLs: what they become, what is refused, and that nothing of them leaks.

use std::{error::Error, fmt::Write as _, path::Path, time::Duration};

use biplane::{
    settings::{Dsn, DsnError, Parameter, UrlPart, WithoutPassword},
    tenant::{CaCertificate, DataSourceId, Endpoint, Location, PoolSettings, Pooler, TlsMode},
};
use secrecy::ExposeSecret;

fn parse(text: &str) -> Dsn {
    Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> DsnError {
    Dsn::parse(text)
        .map(|dsn| panic!("{text} became {dsn}"))
        .unwrap_err()
}

fn with(query: &str) -> String {
    format!("postgres://app:pw@db.example/crm?{query}")
}

fn endpoints(dsn: &Dsn) -> Vec<String> {
    dsn.server().endpoints.iter().map(ToString::to_string).collect()
}

fn password(dsn: &Dsn) -> Option<&str> {
    dsn.credential().password().map(ExposeSecret::expose_secret)
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

#[test]
fn a_plain_url_becomes_fields_with_our_defaults() {
    let dsn = parse("postgres://app:pw@db.example/crm");
    assert_eq!(endpoints(&dsn), ["db.example:5432"]);
    assert_eq!(&*dsn.server().cluster, "db.example:5432");
    assert_eq!(&*dsn.server().database, "crm");
    assert_eq!(dsn.server().tls.mode, TlsMode::Prefer);
    assert_eq!(dsn.server().tls.ca, None);
    assert_eq!(dsn.server().pooler, Pooler::Direct);
    assert_eq!(dsn.credential().username(), "app");
    assert_eq!(password(&dsn), Some("pw"));
    assert_eq!(dsn.pool(), PoolSettings::default());
    assert_eq!(dsn.schema(), None);
    assert_eq!(dsn.application_name(), None);
    assert_eq!((dsn.connect_timeout(), dsn.pool_timeout()), (None, None));
}

#[test]
fn the_url_of_a_pooled_service_becomes_settings() {
    let dsn = parse(&with("pgbouncer=true&connection_limit=15&sslmode=require"));
    assert_eq!(
        dsn.server().pooler,
        Pooler::Transaction {
            max_prepared_statements: 0
        }
    );
    assert_eq!((dsn.pool().min(), dsn.pool().max().get()), (0, 15));
    assert_eq!(dsn.server().tls.mode, TlsMode::Require);
}

#[test]
fn every_parameter_has_its_place() {
    let dsn = parse(&with(
        "sslmode=verify-full&sslrootcert=/etc/ssl/pg%20ca.pem&pgbouncer=false&connection_limit=3&connect_timeout=5\
         &pool_timeout=20&application_name=crm%2Fweb+1&schema=Crm",
    ));
    assert_eq!(dsn.server().tls.mode, TlsMode::VerifyFull);
    assert_eq!(
        dsn.server().tls.ca,
        Some(CaCertificate::File(Path::new("/etc/ssl/pg ca.pem").into()))
    );
    assert_eq!(dsn.server().pooler, Pooler::Direct);
    assert_eq!(dsn.pool().max().get(), 3);
    assert_eq!(dsn.connect_timeout(), Some(Duration::from_secs(5)));
    assert_eq!(dsn.pool_timeout(), Some(Duration::from_secs(20)));
    assert_eq!(dsn.application_name(), Some("crm/web+1"));
    assert_eq!(dsn.schema(), Some("Crm"));
    assert_eq!(parse(&with("search_path=crm")).schema(), Some("crm"));
}

#[test]
fn every_tls_mode_but_allow_is_known() {
    for mode in ["disable", "prefer", "require", "verify-ca", "verify-full"] {
        let dsn = parse(&with(&format!("sslmode={mode}")));
        assert_eq!(dsn.server().tls.mode.as_str(), mode);
    }
    assert_eq!(refusal(&with("sslmode=allow")), DsnError::SslModeAllow);
    assert!(DsnError::SslModeAllow.to_string().contains("sslmode=allow"));
}

#[test]
fn an_authority_is_refused_where_no_mode_would_ask_it() {
    for query in [
        "sslrootcert=/ca.pem",
        "sslrootcert=/ca.pem&sslmode=prefer",
        "sslmode=require&sslrootcert=/ca.pem",
        "sslmode=disable&sslrootcert=/ca.pem",
    ] {
        assert_eq!(refusal(&with(query)), DsnError::UnusedCa, "{query}");
    }
}

#[test]
fn the_authorities_of_the_system_imply_full_verification() {
    for query in ["sslrootcert=system", "sslmode=verify-full&sslrootcert=system"] {
        let dsn = parse(&with(query));
        assert_eq!(dsn.server().tls.mode, TlsMode::VerifyFull);
        assert_eq!(dsn.server().tls.ca, None);
    }
    for mode in ["disable", "prefer", "require", "verify-ca"] {
        let query = format!("sslrootcert=system&sslmode={mode}");
        assert_eq!(refusal(&with(&query)), DsnError::SystemCa, "{query}");
    }
}

#[test]
fn the_scheme_has_two_names_and_no_case() {
    for scheme in ["postgres", "postgresql", "POSTGRES", "PostgreSQL"] {
        parse(&format!("{scheme}://app:pw@db.example/crm"));
    }
}

#[test]
fn one_trailing_newline_is_dropped() {
    for end in ["\n", "\r\n"] {
        let dsn = parse(&format!("postgres://app:pw@db.example/crm{end}"));
        assert_eq!(&*dsn.server().database, "crm");
    }
    assert_eq!(
        refusal("postgres://app:pw@db.example/crm\n\n"),
        DsnError::RawCharacter
    );
}

#[test]
fn a_password_may_hold_what_nobody_can_misread() {
    for raw in [
        "}|<",
        "pa:ss:wd",
        "p@ss@word",
        "a,b;c=d&e",
        "[::1]",
        "$x^`{\"'\\",
        "two words",
        "пароль",
        "+",
        "a:5432",
        "-",
    ] {
        let dsn = parse(&format!("postgres://app:{raw}@db.example/crm"));
        assert_eq!(password(&dsn), Some(raw));
        assert_eq!(dsn.credential().username(), "app");
        assert_eq!(endpoints(&dsn), ["db.example:5432"]);
    }
}

#[test]
fn a_user_may_hold_an_at_sign() {
    let dsn = parse("postgres://app@crm:pw@db.example/crm");
    assert_eq!(dsn.credential().username(), "app@crm");
    assert_eq!(password(&dsn), Some("pw"));
}

#[test]
fn encoded_parts_are_decoded_once() {
    let dsn = parse("postgres://a%70p%3A:%2Fp%2540%3f%23%25@db.example/c%2fr%20m");
    assert_eq!(dsn.credential().username(), "app:");
    assert_eq!(password(&dsn), Some("/p%40?#%"));
    assert_eq!(&*dsn.server().database, "c/r m");
}

#[test]
fn an_ambiguous_password_is_never_guessed_at() {
    for raw in [
        "pa/ss",
        "pa?ss",
        "pa#ss",
        "/",
        "p@ss/word",
        "p@db.example/x",
        "pw@evil.example/x?sslmode=require&y=",
    ] {
        let text = format!("postgres://app:{raw}@db.example/crm");
        assert_eq!(refusal(&text), DsnError::Ambiguous, "{text}");
    }
    assert_eq!(
        refusal("postgres://app:pw@db.example/crm#frag"),
        DsnError::Ambiguous
    );
    assert_eq!(refusal("postgres://app:pw@db.example/c@m"), DsnError::Ambiguous);
    let text = DsnError::Ambiguous.to_string();
    assert!(
        text.contains("%2F") && text.contains("%3F") && text.contains("%23"),
        "{text}"
    );
}

#[test]
fn encoding_is_strict_in_every_part() {
    for broken in [
        "%",
        "%2",
        "%zz",
        "%+1",
        "%2%35",
        "a%F",
        "%ff",
        "%c3%28",
        "%00",
        "%ED%A0%80",
    ] {
        for (text, part) in [
            (format!("postgres://{broken}:pw@h/crm"), UrlPart::User),
            (format!("postgres://app:{broken}@h/crm"), UrlPart::Password),
            (format!("postgres://app:pw@{broken}/crm"), UrlPart::Host),
            (format!("postgres://app:pw@h/{broken}"), UrlPart::Database),
            (
                with(&format!("application_name={broken}")),
                UrlPart::Parameter(Parameter::ApplicationName),
            ),
            (
                with(&format!("connection_limit={broken}")),
                UrlPart::Parameter(Parameter::ConnectionLimit),
            ),
        ] {
            assert_eq!(refusal(&text), DsnError::Encoding(part), "{text}");
        }
    }
    assert!(
        DsnError::Encoding(UrlPart::Password)
            .to_string()
            .starts_with("the password holds")
    );
}

#[test]
fn hosts_of_every_kind_become_endpoints() {
    for (hosts, expected) in [
        ("db.example:6432", &["db.example:6432"][..]),
        ("DB.Example", &["db.example:5432"]),
        ("localhost", &["localhost:5432"]),
        ("my_db-1", &["my_db-1:5432"]),
        ("db.example.:65535", &["db.example.:65535"]),
        ("10.0.0.7:1", &["10.0.0.7:1"]),
        ("[::1]", &["[::1]:5432"]),
        ("[2001:DB8:0:0::1]:5433", &["[2001:db8::1]:5433"]),
        ("h1:5432,h2:5433", &["h1:5432", "h2:5433"]),
        ("h1,[::1]:5433,h3", &["h1:5432", "[::1]:5433", "h3:5432"]),
        ("%2Fvar%2Frun%2Fpostgresql", &["/var/run/postgresql:5432"]),
        ("%2Ftmp%2FPg:5433", &["/tmp/Pg:5433"]),
    ] {
        let dsn = parse(&format!("postgres://app:pw@{hosts}/crm"));
        assert_eq!(endpoints(&dsn), expected, "{hosts}");
        assert_eq!(*dsn.server().cluster, *expected[0]);
    }
}

#[test]
fn hosts_that_are_none_are_refused() {
    for (hosts, error) in [
        ("", DsnError::MissingHost),
        (":5432", DsnError::MissingHost),
        ("h1,", DsnError::MissingHost),
        (",h1", DsnError::MissingHost),
        (":1,h1", DsnError::MissingHost),
        ("::1", DsnError::Host),
        ("2001:db8::1", DsnError::Host),
        ("[::1", DsnError::Host),
        ("[::1]x:5432", DsnError::Host),
        ("[::1]5432", DsnError::Host),
        ("[10.0.0.1]", DsnError::Host),
        ("[fe80::1%25eth0]", DsnError::Host),
        ("db..example", DsnError::Host),
        (".", DsnError::Host),
        ("bücher.example", DsnError::Host),
        ("db|x", DsnError::Host),
        ("%2Ftmp%0A", DsnError::Host),
        ("db%3A5432", DsnError::Host),
        (&*"a".repeat(64), DsnError::Host),
        (&*format!("{}a", "a.".repeat(127)), DsnError::Host),
        ("h x", DsnError::RawCharacter),
        ("h:0", DsnError::Port),
        ("h:65536", DsnError::Port),
        ("h:", DsnError::Port),
        ("h:+1", DsnError::Port),
        ("h:-1", DsnError::Port),
        ("h:54x", DsnError::Port),
        ("h:99999999999999999999", DsnError::Port),
        ("h1:1,h2:0", DsnError::Port),
    ] {
        assert_eq!(
            refusal(&format!("postgres://app:pw@{hosts}/crm")),
            error,
            "{hosts}"
        );
    }
}

#[test]
fn a_socket_may_be_named_by_the_parameter_host() {
    for (hosts, port) in [
        ("", 5432),
        (":5433", 5433),
        ("localhost", 5432),
        ("LOCALHOST:5433", 5433),
    ] {
        let dsn = parse(&format!("postgres://app:pw@{hosts}/crm?host=/cloudsql/p:r:i"));
        assert_eq!(
            dsn.server().endpoints,
            [Endpoint::new("/cloudsql/p:r:i", port)],
            "{hosts}"
        );
        assert_eq!(dsn.server().tls.mode, TlsMode::Disable);
    }
    assert_eq!(
        endpoints(&parse("postgres://app:pw@/crm?host=db.example")),
        ["db.example:5432"]
    );
}

#[test]
fn two_hosts_in_two_places_are_a_contradiction() {
    for text in [
        "postgres://app:pw@db.example/crm?host=/tmp",
        "postgres://app:pw@localhost/crm?host=db.example",
        "postgres://app:pw@localhost,h2/crm?host=/tmp",
        "postgres://app:pw@db.example/crm?host=db.example",
    ] {
        assert_eq!(refusal(text), DsnError::HostTwice, "{text}");
    }
    for host in ["a%20b", "%0A", "a,b", "a:5432", "%40abstract", "/tmp%0A"] {
        let error = refusal(&format!("postgres://app:pw@/crm?host={host}"));
        assert_eq!(error, DsnError::Value(Parameter::Host), "{host}");
    }
}

#[test]
fn encryption_is_not_demanded_of_a_socket() {
    for mode in ["require", "verify-ca", "verify-full"] {
        for hosts in ["%2Ftmp", "h1,%2Ftmp"] {
            let text = format!("postgres://app:pw@{hosts}/crm?sslmode={mode}");
            assert_eq!(refusal(&text), DsnError::TlsOverSocket, "{text}");
        }
    }
    assert_eq!(
        parse("postgres://app:pw@h1,%2Ftmp/crm").server().tls.mode,
        TlsMode::Prefer
    );
}

#[test]
fn nothing_that_is_missing_is_guessed() {
    for (text, error) in [
        ("postgres://db.example/crm", DsnError::MissingUser),
        ("postgres://@db.example/crm", DsnError::MissingUser),
        ("postgres://:pw@db.example/crm", DsnError::MissingUser),
        ("postgres://", DsnError::MissingUser),
        ("postgres://app@db.example/crm", DsnError::MissingPassword),
        ("postgres://app:@db.example/crm", DsnError::MissingPassword),
        ("postgres://app:pw@db.example", DsnError::MissingDatabase),
        ("postgres://app:pw@db.example/", DsnError::MissingDatabase),
        (
            "postgres://app:pw@db.example?sslmode=require",
            DsnError::MissingDatabase,
        ),
        (
            "postgres://app:pw@db.example/?sslmode=require",
            DsnError::MissingDatabase,
        ),
        ("postgres://app:pw@/crm", DsnError::MissingHost),
    ] {
        assert_eq!(refusal(text), error, "{text}");
    }
}

#[test]
fn a_missing_password_is_fine_where_somebody_says_so() {
    let said = parse("postgres://app@db.example/crm?require_auth=none");
    assert_eq!(password(&said), None);
    let accept = |text| Dsn::parse_with(text, WithoutPassword::Accept).unwrap();
    assert_eq!(password(&accept("postgres://app@db.example/crm")), None);
    assert_eq!(password(&accept("postgres://app:@db.example/crm")), None);
    assert_eq!(password(&accept("postgres://app:pw@db.example/crm")), Some("pw"));
    assert_eq!(refusal(&with("require_auth=none")), DsnError::UnexpectedPassword);
    for method in ["scram-sha-256", "None", "!none"] {
        let error = refusal(&with(&format!("require_auth={method}")));
        assert_eq!(error, DsnError::Value(Parameter::RequireAuth));
    }
}

#[test]
fn the_name_of_a_database_is_whole() {
    let name = "d".repeat(63);
    assert_eq!(
        &*parse(&format!("postgres://app:pw@h/{name}")).server().database,
        name
    );
    assert_eq!(
        refusal(&format!("postgres://app:pw@h/{name}d")),
        DsnError::Database
    );
    assert_eq!(refusal("postgres://app:pw@h/crm/extra"), DsnError::Database);
    assert_eq!(refusal("postgres://app:pw@h/crm/"), DsnError::Database);
    assert_eq!(refusal("postgres://app:pw@h/c m"), DsnError::RawCharacter);
}

#[test]
fn other_addresses_are_told_what_is_wanted() {
    for text in [
        "https://abc.supabase.example",
        "HTTP://api.example/v1",
        "https://app:pw@db.example/crm",
    ] {
        assert_eq!(refusal(text), DsnError::ApiAddress, "{text}");
    }
    let text = DsnError::ApiAddress.to_string();
    assert!(
        text.contains("postgres://user:password@host:5432/database"),
        "{text}"
    );
    for text in [
        "",
        "\n",
        "crm",
        "host=h dbname=crm",
        "mysql://a:b@h/c",
        "jdbc:postgresql://h/c",
        "prisma+postgres://h/c",
        "postgres:/app:pw@h/c",
        "postgres:app",
        " postgres://a:b@h/c",
        "\"postgres://a:b@h/c\"",
        "://a:b@h/c",
    ] {
        assert_eq!(refusal(text), DsnError::Scheme, "{text}");
    }
}

#[test]
fn too_much_is_refused_before_it_is_read() {
    let text = format!("postgres://app:{}@h/crm", "p".repeat(Dsn::MAX_LEN));
    assert_eq!(refusal(&text), DsnError::TooLong);
    let fits = "p".repeat(Dsn::MAX_LEN - "postgres://app:@h/crm".len());
    assert_eq!(
        password(&parse(&format!("postgres://app:{fits}@h/crm"))),
        Some(&*fits)
    );
    assert!(DsnError::TooLong.to_string().contains(&Dsn::MAX_LEN.to_string()));
}

#[test]
fn raw_control_characters_and_spaces_are_refused() {
    for text in [
        "postgres://app:p\0w@h/crm",
        "postgres://app:p\tw@h/crm",
        "postgres://app:pw@h/crm\u{85}",
        "postgres://app:pw@h/crm ",
        "postgres://app:pw@h/crm\u{a0}",
        "postgres://app:pw@h/crm?application_name=a b",
    ] {
        assert_eq!(refusal(text), DsnError::RawCharacter, "{text:?}");
    }
}

#[test]
fn values_out_of_range_name_the_parameter() {
    for (name, parameter, values) in [
        (
            "sslmode",
            Parameter::SslMode,
            &["", "on", "Require", "no-verify"][..],
        ),
        ("sslrootcert", Parameter::SslRootCert, &[""]),
        ("pgbouncer", Parameter::PgBouncer, &["", "1", "TRUE", "yes"]),
        (
            "connection_limit",
            Parameter::ConnectionLimit,
            &["", "0", "-1", "+5", "1e3", "4294967296", "00", "1%20"],
        ),
        (
            "connect_timeout",
            Parameter::ConnectTimeout,
            &["", "0", "5s", "1.5"],
        ),
        ("pool_timeout", Parameter::PoolTimeout, &["", "0", "-1"]),
        ("application_name", Parameter::ApplicationName, &[""]),
        (
            "schema",
            Parameter::Schema,
            &[
                "", "a,b", "a%22b", "$user", "%24user", "pg_temp", "a%20b", "a;b", "%0A",
            ],
        ),
        ("search_path", Parameter::Schema, &["", "public,crm"]),
    ] {
        for value in values {
            let error = refusal(&with(&format!("{name}={value}")));
            assert_eq!(error, DsnError::Value(parameter), "{name}={value}");
            assert!(error.to_string().contains(parameter.as_str()));
        }
        assert_eq!(refusal(&with(name)), DsnError::Value(parameter));
    }
    assert_eq!(
        refusal(&with(&format!("schema={}", "s".repeat(64)))),
        DsnError::Value(Parameter::Schema)
    );
    assert!(
        refusal(&with("connection_limit=0"))
            .to_string()
            .contains("1 or more")
    );
}

#[test]
fn a_parameter_is_given_once() {
    for parameter in Parameter::ALL {
        let name = parameter.as_str();
        for query in [
            format!("{name}=a&{name}=a"),
            format!("{name}&pgbouncer=true&{name}=b"),
        ] {
            let expected = if query.contains("pgbouncer&") {
                Parameter::PgBouncer
            } else {
                parameter
            };
            assert_eq!(refusal(&with(&query)), DsnError::Duplicate(expected), "{query}");
        }
    }
    assert_eq!(
        refusal(&with("schema=a&search_path=a")),
        DsnError::Duplicate(Parameter::Schema)
    );
    parse(&with("&pgbouncer=true&&connection_limit=2&"));
}

#[test]
fn all_unknown_parameters_are_named_at_once_and_without_values() {
    let query = "sslmode=zzz&channel_binding=c4n4ry1&statement_cache_size=c4n4ry2&sslmode=zzz&SSLMODE=c4n4ry3\
                 &statement_cache_size=c4n4ry4";
    let error = refusal(&with(query));
    let DsnError::UnknownParameters(unknown) = &error else {
        panic!("{error:?}");
    };
    let names: Vec<&str> = unknown.names().collect();
    assert_eq!(names, ["channel_binding", "statement_cache_size", "SSLMODE"]);
    assert_eq!(unknown.unnamed(), 0);
    let text = error.to_string();
    assert!(
        text.contains("channel_binding, statement_cache_size, SSLMODE;"),
        "{text}"
    );
    assert!(
        text.contains("connection_limit"),
        "it says what is supported: {text}"
    );
    assert!(!shown(&error).contains("c4n4ry"));
}

#[test]
fn parameters_of_a_text_of_another_shape_are_not_named() {
    // What follows the `?` may be the rest of a password in each of these.
    for (text, error) in [
        ("postgres://app:pa?c4n4ry=x", DsnError::MissingUser),
        ("postgres://:pa@h/d?c4n4ry=x", DsnError::MissingUser),
        ("postgres://app@corp:pa/ss?c4n4ry=x", DsnError::Port),
        ("postgres://app:p@ss}w/rd?c4n4ry=x", DsnError::Host),
        ("postgres://app:p@ss?c4n4ry=x", DsnError::MissingDatabase),
        ("postgres://app:p@ss/w/rd?c4n4ry=x", DsnError::Database),
    ] {
        assert_eq!(refusal(text), error, "{text}");
    }
}

#[test]
fn what_does_not_look_like_a_name_is_counted() {
    let long = "n".repeat(41);
    let error = refusal(&with(&format!(
        "c4n4ry&=c4n4ry&c4n4ry.x=1&c%344n4ry=1&{long}=1&ok-{}=1",
        "n".repeat(37)
    )));
    let DsnError::UnknownParameters(unknown) = &error else {
        panic!("{error:?}");
    };
    assert_eq!((unknown.names().count(), unknown.unnamed()), (1, 5));
    let text = shown(&error);
    assert!(
        text.contains("5 unnamed parameters") && !text.contains("c4n4ry"),
        "{text}"
    );
    assert!(!text.contains(&long));
    assert!(
        refusal(&with("a%20b=1"))
            .to_string()
            .contains("an unnamed parameter")
    );
}

#[test]
fn what_follows_a_secret_parameter_may_be_a_piece_of_it() {
    let error = refusal("postgres://app@db.example/crm?user=x&password=c4n4ry&tail_c4n4ry=z");
    let text = shown(&error);
    assert!(text.contains("user, password and an unnamed parameter"), "{text}");
    assert!(!text.contains("c4n4ry"), "{text}");
}

#[test]
fn a_source_keeps_address_and_limits_and_the_credential_goes_beside_it() {
    let id = DataSourceId::new();
    let dsn = parse(&with("pgbouncer=true&connection_limit=15&sslmode=require"));
    let server = dsn.server().clone();
    let (source, credential) = dsn.into_source(id, "crm-eu");
    assert_eq!((source.id, &*source.name), (id, "crm-eu"));
    assert_eq!(source.location, Location::Server(server));
    assert_eq!(source.pool.max().get(), 15);
    assert!(source.credentials.is_empty());
    assert_eq!(credential.username(), "app");
    assert_eq!(credential.password().map(ExposeSecret::expose_secret), Some("pw"));
}

#[test]
fn only_address_and_database_are_shown() {
    let dsn = parse(
        "postgres://us3r-canary:p4ss-canary@h1:6432,[::1]/c%0Arm?application_name=app-canary&schema=schema-canary\
         &sslmode=verify-ca&sslrootcert=/ca-canary.pem",
    );
    assert_eq!(dsn.to_string(), "h1:6432,[::1]:5432/c\\nrm");
    assert_eq!(format!("{dsn:?}"), "Dsn(h1:6432,[::1]:5432/c\\nrm)");
    assert!(!format!("{dsn:#?}").contains("canary"));
}
