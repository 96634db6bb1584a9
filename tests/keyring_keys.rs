//! Loading keys: what is accepted, and that everything else is refused with an error of its own.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use std::{
    env,
    process::{Command, Output},
};

use biplane::keyring::{
    Context, KeyId, KeyMaterial, KeySource, KeyState, Keyring, KeyringError, LegacyKey, SourceError,
    WrapperError,
};
use proptest::prelude::*;
use secrecy::ExposeSecret;

const HEX: &str = "aaba130bc6c7a4e4368453f204d7f62a01806c649c3f3295c8baa80545a92fc0";
const BASE64: &str = "qroTC8bHpOQ2hFPyBNf2KgGAbGScPzKVyLqoBUWpL8A=";
const ID: &str = "5de9045636c871ca";
const HEX_2: &str = "11a0b12e6691be09bbd51925efa72961017825ef1fcf2ee47769ca044de80f3d";
const ID_2: &str = "573872e5341f1dd0";

const STATES: [KeyState; 5] = [
    KeyState::Pending,
    KeyState::Primary,
    KeyState::DecryptOnly,
    KeyState::Disabled,
    KeyState::Destroyed,
];

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn states(keyring: &Keyring) -> Vec<(String, KeyState)> {
    keyring
        .states()
        .map(|(id, state)| (id.to_string(), state))
        .collect()
}

fn malformed(error: &KeyringError) -> bool {
    matches!(error, KeyringError::MalformedKey { .. })
}

fn weak(error: &KeyringError) -> bool {
    matches!(error, KeyringError::WeakKey { .. })
}

#[test]
fn a_key_is_the_same_in_every_spelling() {
    let bytes: Vec<u8> = (0..64)
        .step_by(2)
        .map(|i| u8::from_str_radix(&HEX[i..i + 2], 16).unwrap())
        .collect();
    let url = BASE64.replace('+', "-").replace('/', "_");
    let keys = [
        KeyMaterial::from_bytes(&bytes),
        KeyMaterial::from_hex(HEX),
        KeyMaterial::from_hex(&HEX.to_uppercase()),
        KeyMaterial::from_base64(BASE64),
        KeyMaterial::from_base64(&url),
        KeyMaterial::from_base64(BASE64.trim_end_matches('=')),
        KeyMaterial::parse(HEX),
        KeyMaterial::parse(BASE64),
        KeyMaterial::parse(BASE64.trim_end_matches('=')),
        KeyMaterial::parse(&format!("{HEX}\n")),
        KeyMaterial::parse(&format!("{BASE64}\r\n")),
    ];
    for key in keys {
        let key = key.unwrap();
        assert_eq!(key.id(), id(ID));
        assert_eq!(key.to_hex().expose_secret(), HEX);
    }
}

/// 64 hexadecimal digits are also valid base64, for 48 wrong bytes; and 44 characters are no hex.
#[test]
fn length_alone_tells_hex_from_base64() {
    assert_eq!(KeyMaterial::parse(HEX).unwrap().id(), id(ID));
    let base64_of_48 = "q".repeat(64);
    assert!(malformed(&KeyMaterial::parse(&base64_of_48).unwrap_err()));
    for length in (0..100).filter(|length| ![43, 44, 64].contains(length)) {
        let text: String = HEX.chars().cycle().take(length).collect();
        assert!(malformed(&KeyMaterial::parse(&text).unwrap_err()), "{length}");
    }
}

#[test]
fn a_key_that_is_almost_right_is_refused() {
    let almost = [
        format!("{HEX}\n\n"),
        format!(" {HEX}"),
        format!("{HEX} "),
        format!("g{}", &HEX[1..]),
        format!("0x{}", &HEX[2..]),
        format!("{}\n", &BASE64[..42]),
        format!("{}==", &BASE64[..42]),
        BASE64.replace('=', "A"),
        BASE64.replace("L8A=", "L8B="),
        BASE64.replace("L8A=", "L8A*"),
        format!("-{}/{}", &BASE64[1..20], &BASE64[21..]),
        "é".repeat(32),
    ];
    for text in almost {
        assert!(malformed(&KeyMaterial::parse(&text).unwrap_err()), "{text:?}");
    }
    for length in [0, 31, 33] {
        assert!(malformed(&KeyMaterial::from_bytes(&vec![9; length]).unwrap_err()));
    }
}

#[test]
fn weak_keys_are_refused_in_every_spelling() {
    let printable = *b"correct horse battery staple 123";
    for bytes in [[0; 32], [0x41; 32], [0xff; 32], printable] {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(weak(&KeyMaterial::from_bytes(&bytes).unwrap_err()));
        assert!(weak(&KeyMaterial::parse(&hex).unwrap_err()));
        assert!(weak(&Keyring::parse(&hex).unwrap_err()));
    }
    // Both ends of what is printable, and just beyond them.
    for (edge, refused) in [(b' ', true), (b'~', true), (0x1f, false), (0x7f, false)] {
        let mut bytes = printable;
        bytes[31] = edge;
        match KeyMaterial::from_bytes(&bytes) {
            Err(error) => assert!(refused && weak(&error), "{edge}: {error}"),
            Ok(_) => assert!(!refused, "{edge}"),
        }
    }
    let mut almost = [0; 32];
    almost[31] = 1;
    assert!(KeyMaterial::from_bytes(&almost).is_ok());
}

#[test]
fn generated_keys_differ_and_survive_being_written_down() {
    let (one, two) = (KeyMaterial::generate().unwrap(), KeyMaterial::generate().unwrap());
    assert_ne!(one.id(), two.id());
    let back = KeyMaterial::parse(one.to_hex().expose_secret()).unwrap();
    assert_eq!(back.id(), one.id());
}

#[test]
fn key_ids_have_one_spelling() {
    assert_eq!(id(ID).to_string(), ID);
    assert_eq!(KeyId::from_bytes(*id(ID).as_bytes()), id(ID));
    for text in [
        "",
        "5DE9045636C871CA",
        "5de9045636c871c",
        "5de9045636c871ca0",
        "5de9045636c871cg",
        " 5de9045636c871ca",
    ] {
        assert!(text.parse::<KeyId>().is_err(), "{text}");
    }
}

#[test]
fn key_states_have_one_spelling() {
    for state in STATES {
        assert_eq!(state.to_string().parse(), Ok(state));
    }
    for text in ["", "Primary", "decrypt_only", "decryptonly", "primary "] {
        assert!(text.parse::<KeyState>().is_err(), "{text}");
    }
}

#[test]
fn one_bare_key_is_the_primary_one() {
    for text in [
        HEX.to_owned(),
        BASE64.to_owned(),
        format!("{HEX}\n"),
        format!("# the first key\n\n{HEX}\n"),
    ] {
        let keyring = Keyring::parse(&text).unwrap();
        assert_eq!(states(&keyring), [(ID.to_owned(), KeyState::Primary)]);
    }
}

#[test]
fn order_separators_comments_and_spaces_mean_nothing() {
    let texts = [
        format!("primary:{HEX},decrypt-only:{HEX_2}"),
        format!("decrypt-only:{HEX_2},primary:{HEX}"),
        format!("decrypt-only:{HEX_2}\nprimary:{HEX}\n"),
        format!(
            "# old, still needed\n  decrypt-only:{ID_2}:{HEX_2} \r\n\n # new\r\nprimary:{ID}:{BASE64},\r\n"
        ),
    ];
    for text in texts {
        let keyring = Keyring::parse(&text).unwrap();
        assert_eq!(
            states(&keyring),
            [
                (ID_2.to_owned(), KeyState::DecryptOnly),
                (ID.to_owned(), KeyState::Primary)
            ],
            "{text}"
        );
        assert_eq!(keyring.primary(), id(ID));
        assert_eq!(keyring.key_ids().collect::<Vec<_>>(), [id(ID_2), id(ID)]);
    }
}

#[test]
fn the_right_id_with_another_keys_bytes_is_found_when_keys_load() {
    let error = Keyring::parse(&format!("primary:{ID}:{HEX_2}")).unwrap_err();
    assert_eq!(error, KeyringError::WrongKeyMaterial(id(ID)));
    let built = Keyring::builder()
        .key_with_id(id(ID), KeyMaterial::from_hex(HEX_2).unwrap(), KeyState::Primary)
        .build();
    assert_eq!(built.unwrap_err(), KeyringError::WrongKeyMaterial(id(ID)));
}

#[test]
fn exactly_one_key_is_primary() {
    assert_eq!(
        Keyring::parse(&format!("pending:{HEX}")).unwrap_err(),
        KeyringError::NoPrimary
    );
    assert_eq!(Keyring::parse("").unwrap_err(), KeyringError::NoPrimary);
    assert_eq!(
        Keyring::parse("# nothing\n").unwrap_err(),
        KeyringError::NoPrimary
    );
    assert_eq!(
        Keyring::parse(&format!("primary:{HEX},primary:{HEX_2}")).unwrap_err(),
        KeyringError::SeveralPrimaries
    );
    assert_eq!(Keyring::builder().build().unwrap_err(), KeyringError::NoPrimary);
}

#[test]
fn one_key_in_two_entries_is_refused_whatever_the_states() {
    for (one, two) in [
        ("primary", "primary"),
        ("primary", "decrypt-only"),
        ("pending", "primary"),
    ] {
        let error = Keyring::parse(&format!("{one}:{HEX},{two}:{BASE64}")).unwrap_err();
        assert_eq!(error, KeyringError::DuplicateKey(id(ID)));
    }
}

#[test]
fn an_entry_that_is_wrong_is_named_by_its_number() {
    let wrong = [
        HEX_2.to_owned(),
        format!("Primary:{HEX_2}"),
        format!("retired:{HEX_2}"),
        format!("destroyed:{HEX_2}"),
        format!("destroyed:{ID_2}:{HEX_2}"),
        format!("pending:{}:{HEX_2}", ID_2.to_uppercase()),
        format!("pending:{ID_2}:{HEX_2}:"),
        format!("pending:{}", &HEX_2[1..]),
        "pending:".to_owned(),
        ":".to_owned(),
    ];
    for entry in wrong {
        let error = Keyring::parse(&format!("# comment\nprimary:{HEX},{entry}")).unwrap_err();
        assert!(
            matches!(error, KeyringError::MalformedKey { entry: Some(2), .. }),
            "{entry}: {error}"
        );
        assert!(
            error
                .to_string()
                .starts_with("entry 2 of the keyring is malformed: ")
        );
    }
    let error = Keyring::parse(&format!("primary:{HEX},pending:{}", "00".repeat(32))).unwrap_err();
    assert!(matches!(error, KeyringError::WeakKey { entry: Some(2), .. }));
}

#[test]
fn debug_prints_ids_and_states_alone() {
    let keyring = Keyring::parse(&format!("primary:{HEX},pending:{HEX_2}")).unwrap();
    assert_eq!(
        format!("{keyring:?}"),
        format!("{{{ID_2}: pending, {ID}: primary}}")
    );
    let builder = Keyring::builder().key(KeyMaterial::from_hex(HEX).unwrap(), KeyState::Primary);
    let printed = format!("{builder:?} {:?}", LegacyKey::from_hex(HEX).unwrap());
    for secret in [HEX, BASE64, HEX_2] {
        for at in 0..secret.len() - 6 {
            assert!(!printed.contains(&secret[at..at + 6]), "{printed}");
        }
    }
    assert!(printed.contains(ID));
}

#[test]
fn a_snapshot_is_shared_by_its_clones_and_between_threads() {
    let keyring = Keyring::parse(HEX).unwrap();
    let context = Context::new("p", "o", "f").unwrap();
    let sealed = keyring.seal(&context, b"x").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let keyring = keyring.clone();
            let (context, sealed) = (&context, &sealed);
            scope.spawn(move || assert!(keyring.open(context, sealed).is_ok()));
        }
    });
}

#[test]
fn every_error_has_a_hint_and_keeps_it_from_clients() {
    let errors = [
        KeyringError::Malformed("x"),
        KeyringError::UnsupportedVersion,
        KeyringError::UnsupportedSuite,
        KeyringError::UnknownKey(id(ID)),
        KeyringError::KeyDisabled(id(ID)),
        KeyringError::KeyDestroyed(id(ID)),
        KeyringError::WrongKeyMaterial(id(ID)),
        KeyringError::Authentication(id(ID)),
        KeyringError::LegacyForbidden,
        KeyringError::TooLarge,
        KeyringError::NotUtf8,
        KeyringError::Rng,
        KeyringError::NoPrimary,
        KeyringError::SeveralPrimaries,
        KeyringError::MalformedFile {
            line: Some(3),
            what: "x",
        },
        KeyringError::ForbiddenKeyState {
            key: id(ID),
            from: KeyState::Pending,
            to: KeyState::Destroyed,
        },
        KeyringError::Unconfirmed(id(ID)),
        KeyringError::NoKeyService(id(ID)),
        KeyringError::NotUnwrapped {
            key: id(ID),
            failure: WrapperError::TimedOut,
        },
        KeyringError::KeyVanished(id(ID)),
        KeyringError::DuplicateKey(id(ID)),
        KeyringError::Source(SourceError::Exposed),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            !text.ends_with('.') && text.starts_with(char::is_lowercase),
            "{text}"
        );
        assert!(error.hint().len() > 10);
        assert_eq!(text.contains(ID), error.key_id().is_some());
    }
    assert!(!KeyringError::PUBLIC_TEXT.contains("key"));
}

/// Says what the variables of this process lead to. The tests below run it in a process of its own, because a process
/// cannot safely change its own environment.
#[test]
#[ignore = "the tests of variables run it, in a process of its own"]
fn child() {
    let result = match env::var("KEYRING_TEST_CALL").unwrap().as_str() {
        "env" => Keyring::from_env(Keyring::VARIABLE),
        "legacy" => LegacyKey::from_env("LEGACY_KEY").map(|_| Keyring::parse(HEX).unwrap()),
        "credential" => {
            let source = KeySource::systemd_credential(env::var("KEYRING_TEST_NAME").unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.unwrap().block_on(source.load())
        }
        _ => Keyring::from_env_or_file(Keyring::VARIABLE, Keyring::FILE_VARIABLE),
    };
    let line = match result {
        Ok(keyring) => format!("{keyring:?}"),
        Err(error) => format!("{error:?}"),
    };
    // Written to a file: the harness prints to standard output as it likes.
    std::fs::write(env::var_os("KEYRING_TEST_OUT").unwrap(), line).unwrap();
}

fn in_child(call: &str, variables: &[(&str, &std::ffi::OsStr)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let Output { status, stderr, .. } = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env_remove(Keyring::VARIABLE)
        .env_remove(Keyring::FILE_VARIABLE)
        .env_remove("CREDENTIALS_DIRECTORY")
        .env("KEYRING_TEST_CALL", call)
        .env("KEYRING_TEST_OUT", &out)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    std::fs::read_to_string(out).unwrap()
}

fn source(error: SourceError) -> String {
    format!("{:?}", KeyringError::Source(error))
}

#[test]
fn a_variable_holds_a_keyring() {
    let found = format!("{{{ID}: primary}}");
    assert_eq!(in_child("env", &[("BIPLANE_KEYRING", HEX.as_ref())]), found);
    let text = format!("primary:{BASE64}\n");
    assert_eq!(in_child("either", &[("BIPLANE_KEYRING", text.as_ref())]), found);
    assert_eq!(in_child("legacy", &[("LEGACY_KEY", HEX.as_ref())]), found);
}

#[test]
fn a_missing_or_empty_variable_is_an_error_that_names_it() {
    let unset = source(SourceError::Unset("BIPLANE_KEYRING".into()));
    assert_eq!(in_child("env", &[]), unset);
    assert_eq!(in_child("either", &[]), unset);
    assert_eq!(
        in_child("env", &[("BIPLANE_KEYRING", "".as_ref())]),
        source(SourceError::Empty("BIPLANE_KEYRING".into()))
    );
    assert_eq!(
        in_child("either", &[("BIPLANE_KEYRING_FILE", "".as_ref())]),
        source(SourceError::Empty("BIPLANE_KEYRING_FILE".into()))
    );
    assert_eq!(
        in_child("legacy", &[]),
        source(SourceError::Unset("LEGACY_KEY".into()))
    );
}

#[test]
fn a_variable_and_a_file_at_once_are_a_contradiction() {
    assert_eq!(
        in_child(
            "either",
            &[
                ("BIPLANE_KEYRING", HEX.as_ref()),
                ("BIPLANE_KEYRING_FILE", "/etc/keyring".as_ref())
            ]
        ),
        source(SourceError::Ambiguous(
            "BIPLANE_KEYRING".into(),
            "BIPLANE_KEYRING_FILE".into()
        ))
    );
}

#[test]
fn a_name_that_no_variable_can_have_is_unset() {
    for name in ["", "a=b", "a\0b"] {
        let error = Keyring::from_env(name).unwrap_err();
        assert_eq!(error, KeyringError::Source(SourceError::Unset(name.into())));
    }
}

#[cfg(unix)]
mod files {
    use std::{
        ffi::OsStr,
        fs::{self, Permissions},
        io::ErrorKind,
        os::unix::{ffi::OsStrExt, fs::PermissionsExt},
        path::{Path, PathBuf},
    };

    use super::*;

    struct KeyFile {
        directory: tempfile::TempDir,
    }

    impl KeyFile {
        fn new(content: impl AsRef<[u8]>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("keyring"), content).unwrap();
            Self { directory }.mode(0o600)
        }

        fn mode(self, mode: u32) -> Self {
            fs::set_permissions(self.path(), Permissions::from_mode(mode)).unwrap();
            self
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("keyring")
        }
    }

    fn credential(directory: Option<&Path>, name: &str) -> String {
        let mut variables: Vec<(&str, &OsStr)> = vec![("KEYRING_TEST_NAME", name.as_ref())];
        variables.extend(directory.map(|directory| ("CREDENTIALS_DIRECTORY", directory.as_os_str())));
        in_child("credential", &variables)
    }

    #[test]
    fn a_credential_of_systemd_holds_a_keyring() {
        let file = KeyFile::new(format!("primary:{HEX}")).mode(0o400);
        let directory = file.directory.path();
        let found = format!("{{{ID}: primary}}");
        assert_eq!(credential(Some(directory), "keyring"), found);
        assert_eq!(
            credential(None, "keyring"),
            source(SourceError::NoCredentialsDirectory)
        );
        assert_eq!(
            credential(Some("".as_ref()), "keyring"),
            source(SourceError::NoCredentialsDirectory)
        );
        assert_eq!(
            credential(Some(directory), "other"),
            source(SourceError::Io(ErrorKind::NotFound))
        );
        // A list of systemd's shows as a right of the group, on a file of root's own group alone.
        let (owner, group) = {
            use std::os::unix::fs::MetadataExt;
            let metadata = fs::metadata(file.path()).unwrap();
            (metadata.uid(), metadata.gid())
        };
        let file = file.mode(0o440);
        let expected = match (owner, group) {
            (0, 0) => found,
            _ => source(SourceError::Exposed),
        };
        assert_eq!(credential(Some(file.directory.path()), "keyring"), expected);
        let file = file.mode(0o444);
        let exposed = source(SourceError::Exposed);
        assert_eq!(credential(Some(file.directory.path()), "keyring"), exposed);
    }

    #[test]
    fn the_name_of_a_credential_leads_nowhere_else() {
        let file = KeyFile::new(HEX);
        for name in ["", ".", "..", "../keyring", "a/b", "/etc/passwd"] {
            let answer = credential(Some(file.directory.path()), name);
            assert_eq!(answer, source(SourceError::NotACredentialName), "{name}");
        }
    }

    fn refused(path: impl AsRef<Path>) -> SourceError {
        match Keyring::from_file(path).unwrap_err() {
            KeyringError::Source(error) => error,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_file_of_ones_own_holds_a_keyring() {
        let text = format!("# production\nprimary:{ID}:{HEX}\ndecrypt-only:{ID_2}:{HEX_2}\n");
        for mode in [0o600, 0o400] {
            let file = KeyFile::new(&text).mode(mode);
            assert_eq!(Keyring::from_file(file.path()).unwrap().primary(), id(ID));
        }
        let file = KeyFile::new(&text);
        assert_eq!(
            in_child("either", &[("BIPLANE_KEYRING_FILE", file.path().as_os_str())]),
            format!("{{{ID_2}: decrypt-only, {ID}: primary}}")
        );
    }

    #[test]
    fn symbolic_links_are_followed_to_the_file_that_is_checked() {
        let file = KeyFile::new(HEX);
        let link = file.directory.path().join("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        assert!(Keyring::from_file(&link).is_ok());
        let file = file.mode(0o644);
        assert_eq!(refused(file.directory.path().join("link")), SourceError::Exposed);
    }

    #[test]
    fn a_file_that_others_can_touch_is_refused() {
        for bit in 0..6 {
            let file = KeyFile::new(HEX).mode(0o600 | 1 << bit);
            assert_eq!(refused(file.path()), SourceError::Exposed);
        }
    }

    /// Only root can give a file away; an ordinary user meets the rule through the unit test of the check.
    #[test]
    fn a_file_of_somebody_else_is_refused() {
        let file = KeyFile::new(HEX);
        match std::os::unix::fs::chown(file.path(), Some(12_345), None) {
            Ok(()) => assert_eq!(refused(file.path()), SourceError::ForeignOwner),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied);
                assert!(Keyring::from_file(file.path()).is_ok());
            }
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(refused(directory.path()), SourceError::NotAFile);
        assert_eq!(refused("/dev/null"), SourceError::NotAFile);
        let pipe = directory.path().join("pipe");
        let made = Command::new("mkfifo")
            .args(["-m", "600"])
            .arg(&pipe)
            .status()
            .unwrap();
        assert!(made.success());
        assert_eq!(refused(&pipe), SourceError::NotAFile);
    }

    #[test]
    fn a_file_that_is_missing_says_so() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            refused(directory.path().join("none")),
            SourceError::Io(ErrorKind::NotFound)
        );
    }

    #[test]
    fn a_file_has_at_most_64_kib() {
        let padded = |length: usize| {
            let comment = "#".repeat(length - HEX.len() - 1);
            KeyFile::new(format!("{HEX}\n{comment}"))
        };
        assert!(Keyring::from_file(padded(64 * 1024).path()).is_ok());
        assert_eq!(refused(padded(64 * 1024 + 1).path()), SourceError::FileTooLarge);
    }

    #[test]
    fn raw_bytes_are_refused_from_a_file_and_from_a_variable() {
        let file = KeyFile::new([0xff; 32]);
        assert_eq!(refused(file.path()), SourceError::FileNotUtf8);
        assert_eq!(
            in_child("env", &[("BIPLANE_KEYRING", OsStr::from_bytes(&[0xff; 32]))]),
            source(SourceError::VariableNotUtf8("BIPLANE_KEYRING".into()))
        );
    }

    #[test]
    fn an_empty_file_is_no_keyring() {
        assert_eq!(
            Keyring::from_file(KeyFile::new("").path()).unwrap_err(),
            KeyringError::NoPrimary
        );
    }
}

fn texts(error: &KeyringError) -> String {
    let text = format!("{error} {error:?} {}", error.hint());
    match error.key_id() {
        Some(id) => text.replace(&id.to_string(), ""),
        None => text,
    }
}

fn shows(error: &KeyringError, input: &str) -> bool {
    let text = texts(error);
    // The names of the states are ours, not the input's.
    let input = ["pending", "primary", "decrypt-only"]
        .into_iter()
        .fold(input.to_owned(), |input, state| input.replace(state, "\0"));
    input
        .as_bytes()
        .windows(6)
        .any(|piece| text.as_bytes().windows(6).any(|window| window == piece))
}

proptest! {
    #[test]
    fn arbitrary_key_text_never_panics_and_never_shows(
        text in "\\PC{0,80}|[0-9a-f]{62,66}|[A-Za-z0-9+/=_-]{42,45}"
    ) {
        if let Err(error) = KeyMaterial::parse(&text) {
            prop_assert!(!shows(&error, &text), "{}", error);
        }
        if let Err(error) = LegacyKey::parse(&text) {
            prop_assert!(!shows(&error, &text), "{}", error);
        }
    }

    #[test]
    fn arbitrary_keyrings_never_panic_and_never_show(
        text in "(((pending|primary|decrypt-only|x)?:)?([0-9a-f]{16}:)?([0-9a-f]{62,66}|[A-Za-z0-9+/=]{42,45})[,\n]){0,4}|\\PC{0,200}"
    ) {
        match Keyring::parse(&text) {
            Ok(keyring) => prop_assert!(keyring.key_ids().any(|id| id == keyring.primary())),
            // An id that is given beside a key may be shown; a key of 64 digits may not.
            Err(error) => prop_assert!(!shows(&error, &text), "{}", error),
        }
    }

    #[test]
    fn any_order_gives_the_same_keyring(seeds in prop::collection::hash_set(1_u8.., 1..6), turn: prop::sample::Index) {
        let seeds: Vec<_> = seeds.into_iter().collect();
        let given: Vec<_> = seeds
            .iter()
            .enumerate()
            .map(|(i, seed)| {
                let key: String = (0..32_u8).map(|n| format!("{:02x}", n.wrapping_mul(*seed) ^ 0x80)).collect();
                format!("{}:{key}", if i == 0 { "primary" } else { "decrypt-only" })
            })
            .collect();
        let mut turned = given.clone();
        turned.rotate_left(turn.index(given.len()));
        let (one, two) = (Keyring::parse(&given.join(",")), Keyring::parse(&turned.join("\n")));
        match (one, two) {
            (Ok(one), Ok(two)) => {
                prop_assert_eq!(states(&one), states(&two));
                prop_assert_eq!(one.primary(), two.primary());
            }
            (one, two) => prop_assert_eq!(one.err(), two.err()),
        }
    }
}
