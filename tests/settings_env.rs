//! Single and split mode by environment alone, and what contradicts itself.

use std::{env, error::Error, ffi::OsStr, fmt::Write as _, process::Command};

use biplane::{
    settings::{DsnError, Mode, Settings, SettingsError, VariableNames, forbidden_environment},
    tenant::{DataSourceId, Endpoint, Location},
};
use proptest::prelude::*;
use secrecy::ExposeSecret;

const CONTROL: &str = "postgres://biplane_control:pw1@control.example/biplane";
const DATA: &str = "postgres://app:pw2@data.example/crm?schema=crm&connection_limit=15";
const SHARED_CONTROL: &str = "postgres://biplane_control:pw1@one.example/crm";
const SHARED_DATA: &str = "postgres://app:pw2@one.example/crm";

/// Reads settings from a table, as if it were the environment.
fn settings(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    settings_with(&VariableNames::default(), variables)
}

fn settings_with(names: &VariableNames, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::from_lookup_with(names, |name| {
        let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
        Some((*value).to_owned())
    })
}

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
fn the_control_plane_alone_is_split_mode() {
    let settings = settings(&[("BIPLANE_CONTROL_URL", CONTROL)]).unwrap();
    assert_eq!(settings.mode(), Mode::Split);
    assert_eq!(settings.control().to_string(), "control.example:5432/biplane");
    assert_eq!(settings.control().credential().username(), "biplane_control");
    assert!(settings.data().is_none());
    assert!(settings.default_source().is_none());
    assert_eq!(settings.data_search_path(), "public");
}

#[test]
fn the_data_url_becomes_the_data_source_named_default() {
    let settings = settings(&[("BIPLANE_CONTROL_URL", CONTROL), ("BIPLANE_DATA_URL", DATA)]).unwrap();
    let (source, credential) = settings.default_source().unwrap();
    assert_eq!(source.id, DataSourceId::DEFAULT);
    assert_eq!(&*source.name, "default");
    assert_eq!(source.pool.max().get(), 15);
    let Location::Server(server) = &source.location else {
        panic!("{source:?}");
    };
    assert_eq!(server.endpoints, [Endpoint::new("data.example", 5432)]);
    assert_eq!(&*server.database, "crm");
    assert_eq!(credential.username(), "app");
    assert_eq!(credential.password().unwrap().expose_secret(), "pw2");
}

#[test]
fn only_the_environment_changes_between_the_modes() {
    for (mode, control, data) in [
        (Mode::Single, SHARED_CONTROL, SHARED_DATA),
        (Mode::Split, CONTROL, DATA),
    ] {
        let settings = settings(&[
            ("BIPLANE_CONTROL_URL", control),
            ("BIPLANE_DATA_URL", data),
            ("BIPLANE_MODE", mode.as_str()),
        ])
        .unwrap();
        assert_eq!(settings.mode(), mode);
        assert_eq!(settings.control().credential().username(), "biplane_control");
        assert_eq!(settings.data().unwrap().credential().username(), "app");
    }
}

#[test]
fn each_plane_has_a_search_path_of_its_own() {
    for (data, path) in [
        (SHARED_DATA.to_owned(), "public"),
        (format!("{SHARED_DATA}?schema=Crm"), "Crm"),
    ] {
        let settings = settings(&[
            ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
            ("BIPLANE_DATA_URL", &data),
            ("BIPLANE_MODE", "single"),
        ])
        .unwrap();
        assert_eq!(settings.control_search_path(), "biplane_control");
        assert_eq!(settings.data_search_path(), path);
    }
}

#[test]
fn a_url_must_not_undo_the_search_paths() {
    let control = format!("{CONTROL}?schema=public");
    assert_eq!(
        settings(&[("CONTROL_DB_URL", &control)]).unwrap_err(),
        SettingsError::ControlSchema {
            variable: "CONTROL_DB_URL".into()
        }
    );
    let control = format!("{CONTROL}?schema=biplane_control");
    assert!(settings(&[("CONTROL_DB_URL", &control)]).is_ok());
    for schema in ["biplane_control", "biplane"] {
        let data = format!("{SHARED_DATA}?schema={schema}");
        for (mode, control) in [("single", SHARED_CONTROL), ("split", CONTROL)] {
            let error = settings(&[
                ("BIPLANE_CONTROL_URL", control),
                ("BIPLANE_DATA_URL", &data),
                ("BIPLANE_MODE", mode),
            ])
            .unwrap_err();
            assert_eq!(
                error,
                SettingsError::ReservedSchema {
                    variable: "BIPLANE_DATA_URL".into()
                }
            );
        }
    }
}

#[test]
fn the_names_of_earlier_systems_are_read() {
    for control in ["BIPLANE_CONTROL_URL", "CONTROL_DB_URL", "PRIMARY_DATABASE_URL"] {
        for data in ["BIPLANE_DATA_URL", "DATA_DATABASE_URL"] {
            let split = settings(&[(control, CONTROL), (data, DATA), ("SPLIT_DB_MODE", "true")]).unwrap();
            assert_eq!(split.mode(), Mode::Split);
            assert_eq!(split.control().to_string(), "control.example:5432/biplane");
            assert_eq!(split.data().unwrap().to_string(), "data.example:5432/crm");
            let single = settings(&[
                (control, SHARED_CONTROL),
                (data, SHARED_DATA),
                ("SPLIT_DB_MODE", "false"),
            ])
            .unwrap();
            assert_eq!(single.mode(), Mode::Single);
        }
    }
}

#[test]
fn other_names_replace_the_usual_ones_and_their_alternatives() {
    let names = VariableNames::default()
        .control("CRM_CONTROL")
        .data(String::from("CRM_DATA"))
        .mode("CRM_MODE");
    let settings = settings_with(
        &names,
        &[
            ("CRM_CONTROL", SHARED_CONTROL),
            ("CRM_DATA", SHARED_DATA),
            ("CRM_MODE", "single"),
            // Somebody else's, and not to be looked at.
            ("BIPLANE_CONTROL_URL", ""),
            ("PRIMARY_DATABASE_URL", "mysql://else.example"),
            ("DATA_DATABASE_URL", "mysql://else.example"),
            ("SPLIT_DB_MODE", "perhaps"),
        ],
    )
    .unwrap();
    assert_eq!(settings.mode(), Mode::Single);
    let error = settings_with(&names, &[("BIPLANE_CONTROL_URL", CONTROL)]).unwrap_err();
    assert_eq!(
        error,
        SettingsError::Missing {
            variable: "CRM_CONTROL".into()
        }
    );
}

#[test]
fn a_missing_control_plane_is_named() {
    let error = settings(&[("BIPLANE_DATA_URL", DATA)]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("BIPLANE_CONTROL_URL is not set; set it to postgres://"),
        "{error}"
    );
}

#[test]
fn a_variable_set_to_nothing_is_an_error() {
    for name in [
        "BIPLANE_CONTROL_URL",
        "CONTROL_DB_URL",
        "PRIMARY_DATABASE_URL",
        "BIPLANE_DATA_URL",
        "DATA_DATABASE_URL",
        "BIPLANE_MODE",
        "SPLIT_DB_MODE",
    ] {
        for value in ["", " ", "\n"] {
            // The variable under test comes first and hides the good one of the same name.
            let error = settings(&[(name, value), ("BIPLANE_CONTROL_URL", CONTROL)]).unwrap_err();
            assert_eq!(
                error,
                SettingsError::Empty {
                    variable: name.into()
                }
            );
        }
    }
}

#[test]
fn two_variables_for_one_setting_must_agree() {
    for (first, second, one, other) in [
        ("BIPLANE_CONTROL_URL", "CONTROL_DB_URL", CONTROL, SHARED_CONTROL),
        (
            "BIPLANE_CONTROL_URL",
            "PRIMARY_DATABASE_URL",
            CONTROL,
            SHARED_CONTROL,
        ),
        ("CONTROL_DB_URL", "PRIMARY_DATABASE_URL", CONTROL, SHARED_CONTROL),
        ("BIPLANE_DATA_URL", "DATA_DATABASE_URL", DATA, SHARED_DATA),
        ("BIPLANE_MODE", "SPLIT_DB_MODE", "single", "true"),
        ("BIPLANE_MODE", "SPLIT_DB_MODE", "split", "false"),
    ] {
        let mut variables = vec![(first, one), (second, other)];
        if one != CONTROL {
            variables.push(("BIPLANE_CONTROL_URL", CONTROL));
        }
        let error = settings(&variables).unwrap_err();
        assert_eq!(
            error,
            SettingsError::Contradiction {
                first: first.into(),
                second: second.into()
            }
        );
        let text = error.to_string();
        assert!(text.contains(first) && text.contains(second), "{text}");
    }
    let settings = settings(&[
        ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
        ("CONTROL_DB_URL", SHARED_CONTROL),
        ("BIPLANE_DATA_URL", SHARED_DATA),
        ("DATA_DATABASE_URL", SHARED_DATA),
        ("BIPLANE_MODE", "single"),
        ("SPLIT_DB_MODE", "false"),
    ]);
    assert_eq!(settings.unwrap().mode(), Mode::Single);
}

#[test]
fn a_mode_that_is_none_is_named_with_what_it_takes() {
    for (name, value, expected) in [
        ("BIPLANE_MODE", "Single", "BIPLANE_MODE has to be single or split"),
        ("BIPLANE_MODE", "true", "BIPLANE_MODE has to be single or split"),
        ("SPLIT_DB_MODE", "split", "SPLIT_DB_MODE has to be false or true"),
        ("SPLIT_DB_MODE", "1", "SPLIT_DB_MODE has to be false or true"),
    ] {
        let error = settings(&[("BIPLANE_CONTROL_URL", CONTROL), (name, value)]).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn single_mode_needs_both_urls() {
    let error = settings(&[("BIPLANE_CONTROL_URL", CONTROL), ("BIPLANE_MODE", "single")]).unwrap_err();
    assert!(
        error.to_string().contains("single mode needs BIPLANE_DATA_URL"),
        "{error}"
    );
}

#[test]
fn single_mode_needs_one_database() {
    for data in [
        "postgres://app:pw2@one.example/crm2",
        "postgres://app:pw2@two.example/crm",
        "postgres://app:pw2@one.example:5433/crm",
        "postgres://app:pw2@one.example/CRM",
    ] {
        let error = settings(&[
            ("PRIMARY_DATABASE_URL", SHARED_CONTROL),
            ("DATA_DATABASE_URL", data),
            ("SPLIT_DB_MODE", "false"),
        ])
        .unwrap_err();
        assert_eq!(
            error,
            SettingsError::SingleOnTwoDatabases {
                control: "PRIMARY_DATABASE_URL".into(),
                data: "DATA_DATABASE_URL".into()
            },
            "{data}"
        );
    }
}

#[test]
fn single_mode_knows_one_database_by_any_spelling() {
    for data in [
        "postgresql://app:pw2@ONE.example:5432/crm?sslmode=require",
        "postgres://app:pw2@two.example,one.example/%63rm",
        // A pooler in front of it has an address of its own.
        "postgres://app:pw2@pooler.example:6432/crm?pgbouncer=true",
    ] {
        let settings = settings(&[
            ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
            ("BIPLANE_DATA_URL", data),
            ("BIPLANE_MODE", "single"),
        ]);
        assert_eq!(settings.unwrap().mode(), Mode::Single, "{data}");
    }
    let error = settings(&[
        ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
        (
            "BIPLANE_DATA_URL",
            "postgres://app:pw2@pooler.example:6432/crm2?pgbouncer=true",
        ),
        ("BIPLANE_MODE", "single"),
    ])
    .unwrap_err();
    assert!(
        matches!(error, SettingsError::SingleOnTwoDatabases { .. }),
        "{error}"
    );
}

#[test]
fn single_mode_needs_a_role_for_each_plane() {
    let data = "postgres://biplane%5Fcontrol:other@one.example/crm";
    let error = settings(&[
        ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
        ("BIPLANE_DATA_URL", data),
        ("BIPLANE_MODE", "single"),
    ])
    .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SettingsError::SingleWithOneUser { .. }), "{text}");
    assert!(
        text.contains("BIPLANE_DATA_URL") && text.contains("BIPLANE_CONTROL_URL"),
        "{text}"
    );
}

#[test]
fn split_mode_on_one_database_is_told_how_to_become_single_mode() {
    for (mode, advice) in [
        (None, "set BIPLANE_MODE=single"),
        (Some(("BIPLANE_MODE", "split")), "set BIPLANE_MODE=single"),
        (Some(("SPLIT_DB_MODE", "true")), "set SPLIT_DB_MODE=false"),
    ] {
        let mut variables = vec![
            ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
            ("BIPLANE_DATA_URL", SHARED_DATA),
        ];
        variables.extend(mode);
        let text = settings(&variables).unwrap_err().to_string();
        assert!(text.contains(advice), "{text}");
        assert!(
            text.contains("BIPLANE_CONTROL_URL and BIPLANE_DATA_URL"),
            "{text}"
        );
    }
    let other_database = "postgres://app:pw2@one.example/crm2";
    let variables = [
        ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
        ("BIPLANE_DATA_URL", other_database),
    ];
    assert_eq!(settings(&variables).unwrap().mode(), Mode::Split);
}

#[test]
fn a_bad_url_names_its_variable_and_the_source_says_why() {
    for (name, url, rule) in [
        (
            "PRIMARY_DATABASE_URL",
            "https://abc.supabase.example",
            DsnError::ApiAddress,
        ),
        (
            "DATA_DATABASE_URL",
            "postgres://app@data.example/crm",
            DsnError::MissingPassword,
        ),
        (
            "BIPLANE_DATA_URL",
            "postgres://app:p/w@data.example/crm",
            DsnError::Ambiguous,
        ),
    ] {
        let mut variables = vec![(name, url)];
        if name != "PRIMARY_DATABASE_URL" {
            variables.push(("BIPLANE_CONTROL_URL", CONTROL));
        }
        let error = settings(&variables).unwrap_err();
        assert_eq!(error.to_string(), format!("{name} holds no usable database URL"));
        let source = error
            .source()
            .and_then(|source| source.downcast_ref::<DsnError>());
        assert_eq!(source, Some(&rule));
    }
}

/// Runs a test once more, in a process of its own with these variables, because changing the environment of this one
/// is a data race. Tells whether it is that process.
fn is_child_with(test: &str, variables: &[(&str, &OsStr)]) -> bool {
    const MARKER: &str = "BIPLANE_TEST_CHILD";
    if env::var_os(MARKER).is_some() {
        return true;
    }
    let output = Command::new(env::current_exe().expect("a test knows its program"))
        .args(["--exact", test])
        .envs(variables.iter().copied())
        .env(MARKER, "1")
        .output()
        .expect("the program that runs can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn the_environment_of_the_process_is_read() {
    let variables = [
        ("BIPLANE_CONTROL_URL", SHARED_CONTROL),
        ("DATA_DATABASE_URL", SHARED_DATA),
        ("SPLIT_DB_MODE", "false"),
    ];
    let variables = variables.map(|(name, value)| (name, OsStr::new(value)));
    if is_child_with("the_environment_of_the_process_is_read", &variables) {
        let settings = Settings::from_env().unwrap();
        assert_eq!(settings.mode(), Mode::Single);
        assert_eq!(settings.data().unwrap().to_string(), "one.example:5432/crm");
        let error = Settings::from_env_with(&VariableNames::default().control("CRM_CONTROL")).unwrap_err();
        assert!(error.to_string().starts_with("CRM_CONTROL is not set"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_not_taken_for_an_unset_one() {
    use std::os::unix::ffi::OsStrExt as _;

    let url = b"postgres://app:c4n4ry\xff@data.example/crm";
    let variables = [
        ("BIPLANE_CONTROL_URL", OsStr::new(CONTROL)),
        ("BIPLANE_DATA_URL", OsStr::from_bytes(url)),
    ];
    if is_child_with(
        "a_variable_that_is_not_text_is_not_taken_for_an_unset_one",
        &variables,
    ) {
        let error = Settings::from_env().unwrap_err();
        assert_eq!(error.to_string(), "BIPLANE_DATA_URL does not hold UTF-8 text");
        assert!(!shown(&error).contains("c4n4ry"));
    }
}

#[test]
fn settings_show_addresses_alone() {
    let settings = settings(&[
        (
            "BIPLANE_CONTROL_URL",
            "postgres://us3r-canary:p4ss-canary@control.example/biplane",
        ),
        (
            "BIPLANE_DATA_URL",
            "postgres://us3r-canary:p4ss-canary@data.example/crm?application_name=canary",
        ),
    ])
    .unwrap();
    let text = format!("{settings:?} {settings:#?} {:?}", settings.default_source());
    assert!(!text.contains("canary"), "{text}");
    assert!(text.contains("control.example:5432/biplane"), "{text}");
}

#[test]
fn variables_that_no_option_can_take_back_are_refused() {
    let all = ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"];
    for name in all {
        for value in ["c4n4ry", ""] {
            let error = forbidden_environment(|n| (n == name).then(|| value.to_owned())).unwrap_err();
            let text = shown(&error);
            assert!(
                text.contains(&format!("{name} would change")) && !text.contains("c4n4ry"),
                "{text}"
            );
        }
    }
    let error = forbidden_environment(|_| Some(String::new())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("PGOPTIONS, PGSSLCERT, PGSSLKEY, PGSSLROOTCERT "),
        "{error}"
    );
    let harmless = [
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "PGAPPNAME",
        "PGSSLMODE",
    ];
    assert_eq!(
        forbidden_environment(|name| harmless.contains(&name).then(|| "x".to_owned())),
        Ok(())
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The alphabet of the secret has no six bytes in common with our own words.
    #[test]
    fn no_environment_makes_it_panic_and_no_error_holds_a_value(
        secret in "[QZXJ7%@/:,]{6,16}",
        shapes in prop::collection::vec(
            prop::sample::select(vec![
                None, Some(""), Some("{}"), Some("single"), Some("false"), Some("postgres://{}:{}@h/d"),
                Some("postgres://b:{}@h/d"), Some("postgres://c:p@h/d?schema=biplane"), Some("https://{}"),
                Some("postgres://c:p@g/d?schema={}"),
            ]),
            7,
        ),
    ) {
        let names = [
            "BIPLANE_CONTROL_URL", "CONTROL_DB_URL", "PRIMARY_DATABASE_URL", "BIPLANE_DATA_URL", "DATA_DATABASE_URL",
            "BIPLANE_MODE", "SPLIT_DB_MODE",
        ];
        let result = Settings::from_lookup(|name| {
            let i = names.iter().position(|known| *known == name)?;
            shapes[i].map(|shape| shape.replace("{}", &secret))
        });
        if let Err(error) = result {
            let shown = shown(&error);
            for piece in secret.as_bytes().windows(6) {
                prop_assert!(!shown.as_bytes().windows(6).any(|window| window == piece), "{secret}: {shown}");
            }
        }
    }
}
