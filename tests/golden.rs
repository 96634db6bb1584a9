//! The sealed format in other languages: programs that were written from the formulas alone recompute the golden
//! envelopes, open what this crate seals, and seal what it opens.
//!
//! Node is needed, or these tests fail. The same in Python needs its package `cryptography`, which is not everywhere:
//! those tests are ignored here, and `tests/run` runs them where they can run and says so where they cannot.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use std::{
    env,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring, Sealed};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

struct Language {
    script: &'static str,
    program: &'static str,
    variable: &'static str,
    install: &'static str,
}

const NODE: Language = Language {
    script: "envelope.mjs",
    program: "node",
    variable: "BIPLANE_NODE",
    install: "Node.js 16 or later (Debian, Ubuntu: apt-get install nodejs; Fedora: dnf install nodejs; macOS: brew \
              install node)",
};

const PYTHON: Language = Language {
    script: "envelope.py",
    program: "python3",
    variable: "BIPLANE_PYTHON",
    install: "Python 3 with its package cryptography (Debian, Ubuntu: apt-get install python3-cryptography; elsewhere: \
              pip install cryptography)",
};

impl Language {
    /// What the script prints for this command and input.
    fn run(&self, command: &str, input: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = env::var_os(self.variable).unwrap_or_else(|| self.program.into());
        let mut child = Command::new(&program)
            .arg(root.join("tests/golden").join(self.script))
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{program:?} cannot be started ({error}); install {}, or set {} to the program",
                    self.install, self.variable
                )
            });
        // The scripts read all of their input before they write, so that neither side waits for the other.
        let mut stdin = child.stdin.take().unwrap();
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && written.is_ok(),
            "{program:?} failed; it needs {}: {}",
            self.install,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn answers(&self, command: &str, requests: &[Value]) -> Vec<Value> {
        let answers = self.run(command, &serde_json::to_string(requests).unwrap());
        let answers: Vec<Value> = serde_json::from_str(&answers).unwrap();
        assert_eq!(answers.len(), requests.len());
        answers
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Purpose, owner and field.
fn contexts() -> [[String; 3]; 5] {
    let texts = |parts: [&str; 3]| parts.map(String::from);
    [
        texts(["credential", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "app"]),
        texts(["", "", ""]),
        texts(["назначение", "テナント-🔑", "clé"]),
        texts(["quote\"", "back\\slash", "nul\0, newline\n, \u{2028}"]),
        ["p".repeat(65_535), "é".repeat(1_000), "f".repeat(256)],
    ]
}

fn plaintexts() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [0, 1, 2, 15, 16, 17, 47, 48, 49, 1_000, 64 * 1024]
        .map(|length| (0..length).map(|i| (i % 251) as u8).collect())
        .into();
    all.push("пароль-密码-🔑".into());
    all.push(vec![0xff; 3]);
    all
}

fn keyring(key: &KeyMaterial) -> Keyring {
    let key = KeyMaterial::from_hex(key.to_hex().expose_secret()).unwrap();
    Keyring::builder().key(key, KeyState::Primary).build().unwrap()
}

fn context(parts: &[String; 3]) -> Context<'_> {
    Context::new(&parts[0], &parts[1], &parts[2]).unwrap()
}

/// Every key, context and plaintext once.
fn for_each_case(mut with: impl FnMut(&KeyMaterial, &[String; 3], &[u8])) {
    for _ in 0..3 {
        let key = KeyMaterial::generate().unwrap();
        for parts in contexts() {
            for plaintext in plaintexts() {
                with(&key, &parts, &plaintext);
            }
        }
    }
}

fn recomputes_the_golden_envelopes(language: &Language) {
    assert_eq!(language.run("check", ""), "20 golden envelopes, 0 mismatches\n");
}

/// The page's own example, so that what it shows is what a stranger's program makes, too.
fn makes_the_pages_worked_example(language: &Language) {
    let page = include_str!("../src/manual/keyring_format.md");
    let (_, section) = page.split_once("## Worked example").unwrap();
    let value = |name: &str| -> String {
        let (_, rest) = section.split_once(&format!("\n{name}  ")).unwrap();
        let mut lines = rest.lines();
        let first = lines.next().unwrap().trim();
        let more = lines.take_while(|line| line.starts_with(' ')).map(str::trim);
        std::iter::once(first).chain(more).collect()
    };
    let request = json!({
        "key": value("key K"), "nonce": value("nonce N"),
        "purpose": value("purpose"), "owner": value("owner id"), "field": value("field"),
        "plaintext": value("plaintext"),
    });
    let expected = json!({"envelope": value("envelope"), "text": value("text")});
    assert_eq!(language.answers("seal", &[request]), [expected]);
}

fn opens_what_the_crate_seals(language: &Language) {
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for_each_case(|key, parts, plaintext| {
        let sealed = keyring(key).seal(&context(parts), plaintext).unwrap();
        let key = key.to_hex();
        let [purpose, owner, field] = parts;
        let base = json!({"key": key.expose_secret(), "purpose": purpose, "owner": owner, "field": field});
        for (form, value) in [
            ("text", sealed.to_text().as_str().to_owned()),
            ("envelope", hex(sealed.as_bytes())),
        ] {
            let mut request = base.clone();
            request[form] = value.into();
            requests.push(request);
            expected.push(json!({"plaintext": hex(plaintext)}));
        }
    });
    assert_eq!(requests.len(), 3 * 5 * 13 * 2);
    for (answer, expected) in language.answers("open", &requests).iter().zip(&expected) {
        assert!(answer == expected, "another plaintext: {}", shortened(answer));
    }
}

/// Without this, a decoder that checks nothing would do.
fn refuses_what_the_crate_refuses(language: &Language) {
    let key = KeyMaterial::generate().unwrap();
    let [parts, ..] = contexts();
    let sealed = keyring(&key).seal(&context(&parts), b"secret").unwrap();
    let [purpose, owner, field] = &parts;
    let hex_key = key.to_hex();
    let base = json!({"key": hex_key.expose_secret(), "purpose": purpose, "owner": owner, "field": field});
    let with = |name: &str, value: String| {
        let mut request = base.clone();
        request["text"] = sealed.to_text().as_str().into();
        if name == "envelope" {
            request.as_object_mut().unwrap().remove("text");
        }
        request[name] = value.into();
        request
    };
    let mut requests = vec![
        with("purpose", "setting".into()),
        with("owner", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e58".into()),
        with("field", "service".into()),
        with(
            "key",
            KeyMaterial::generate().unwrap().to_hex().expose_secret().into(),
        ),
        with("text", format!("{}=", sealed.to_text().as_str())),
        with("text", format!("{}\n", sealed.to_text().as_str())),
        with("text", sealed.to_text().as_str().replacen("bp1.", "bp2.", 1)),
    ];
    for at in 0..sealed.as_bytes().len() {
        let mut bytes = sealed.as_bytes().to_vec();
        bytes[at] ^= 1 << (at % 8);
        requests.push(with("envelope", hex(&bytes)));
        requests.push(with("envelope", hex(&sealed.as_bytes()[..at])));
    }
    for (request, answer) in requests.iter().zip(language.answers("open", &requests)) {
        assert!(answer["refused"].is_string(), "{request} was opened");
    }
}

fn seals_what_the_crate_opens(language: &Language) {
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for_each_case(|key, parts, plaintext| {
        let [purpose, owner, field] = parts;
        requests.push(json!({
            "key": key.to_hex().expose_secret(), "nonce": hex(&random::<24>()),
            "purpose": purpose, "owner": owner, "field": field, "plaintext": hex(plaintext),
        }));
        expected.push((keyring(key), parts.clone(), plaintext.to_vec()));
    });
    for (answer, (keyring, parts, plaintext)) in language.answers("seal", &requests).iter().zip(&expected) {
        let sealed = Sealed::parse(answer["text"].as_str().unwrap()).unwrap();
        assert_eq!(answer["envelope"], hex(sealed.as_bytes()));
        let opened = keyring.open(&context(parts), &sealed).unwrap();
        assert!(opened.expose_secret() == plaintext, "another plaintext");
    }
}

fn shortened(answer: &Value) -> String {
    answer.to_string().chars().take(200).collect()
}

/// One `#[test]` for each behaviour, with this attribute.
macro_rules! behaviours {
    (@ $behaviour:ident $language:ident $($attribute:meta)?) => {
        #[test]
        $(#[$attribute])?
        fn $behaviour() {
            super::$behaviour(&super::$language);
        }
    };
    ($language:ident $(, $attribute:meta)?) => {
        behaviours!(@ recomputes_the_golden_envelopes $language $($attribute)?);
        behaviours!(@ makes_the_pages_worked_example $language $($attribute)?);
        behaviours!(@ opens_what_the_crate_seals $language $($attribute)?);
        behaviours!(@ refuses_what_the_crate_refuses $language $($attribute)?);
        behaviours!(@ seals_what_the_crate_opens $language $($attribute)?);
    };
}

mod node {
    behaviours!(NODE);
}

mod python {
    behaviours!(
        PYTHON,
        ignore = "needs Python's package cryptography: cargo test --test golden -- --ignored"
    );
}
