//! Sealed values, as text and as bytes. The seeds are golden envelopes; nothing opens but those, each in its context.

use std::{collections::HashMap, num::NonZeroU32, sync::LazyLock};

use biplane::keyring::{Context, KeyId, KeyMaterial, KeyState, Keyring, KeyringError, Sealed};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{Alphabet, base64, hex, refused, shown, to_hex};

const GOLDEN: &str = include_str!("../../vectors/envelope-v1.json");
/// So that one of the golden envelopes is too large.
const LIMIT: u32 = 200;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    key_id: String,
    purpose: String,
    owner: String,
    field: String,
    plaintext: String,
    envelope: String,
}

struct World {
    /// One key in each state.
    keyring: Keyring,
    states: HashMap<String, KeyState>,
    contexts: Vec<[String; 3]>,
    /// By the envelope in hex: the context, and what was sealed.
    genuine: HashMap<String, ([String; 3], Vec<u8>)>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let golden: Golden = serde_json::from_str(GOLDEN).expect("the vectors are JSON");
    let mut keys: Vec<(&str, &str)> = golden
        .cases
        .iter()
        .map(|case| (&*case.key_id, &*case.key))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let states = [
        KeyState::Primary,
        KeyState::Pending,
        KeyState::DecryptOnly,
        KeyState::Disabled,
        KeyState::Destroyed,
    ];
    assert_eq!(keys.len(), states.len());
    let mut builder = Keyring::builder().max_plaintext(NonZeroU32::new(LIMIT).expect("it is not zero"));
    for ((id, key), state) in keys.iter().zip(states) {
        let id: KeyId = id.parse().expect("the vectors have ids");
        builder = match state {
            KeyState::Destroyed => builder.destroyed(id),
            _ => builder.key(KeyMaterial::from_hex(key).expect("the vectors have keys"), state),
        };
    }
    let mut contexts: Vec<[String; 3]> = golden.cases.iter().map(context_of).collect();
    contexts.sort_unstable();
    contexts.dedup();
    World {
        keyring: builder.build().expect("one key is primary"),
        states: keys.iter().map(|(id, _)| (*id).to_owned()).zip(states).collect(),
        contexts,
        genuine: golden
            .cases
            .iter()
            .map(|case| {
                let plaintext = hex(&case.plaintext).expect("the vectors are hex");
                (case.envelope.clone(), (context_of(case), plaintext))
            })
            .collect(),
    }
});

fn context_of(case: &Case) -> [String; 3] {
    [case.purpose.clone(), case.owner.clone(), case.field.clone()]
}

pub(crate) fn text(input: &[u8]) -> Vec<&'static str> {
    let text = String::from_utf8_lossy(input);
    let shape = shape_of_text(&text);
    let parsed = Sealed::parse(&text);
    match (&parsed, &shape) {
        (Ok(sealed), Ok(shape)) => {
            assert_eq!(sealed.to_text().as_str(), text);
            assert_eq!(Some(to_hex(sealed.as_bytes())), shape.envelope);
            read(sealed, text.as_bytes());
        }
        (Err(error), Ok(shape)) => {
            assert!(shape.envelope.is_none(), "refused: {error}");
            assert_eq!(refused(error, text.as_bytes()), "Malformed");
        }
        (Err(error), Err(expected)) => assert_eq!(refused(error, text.as_bytes()), *expected),
        (Ok(_), Err(expected)) => panic!("read, and should be {expected}"),
    }
    open_everywhere(
        &shape,
        text.as_bytes(),
        |context| opened(WORLD.keyring.open_text(context, &text)),
        parsed.ok().as_ref(),
    )
}

pub(crate) fn binary(input: &[u8]) -> Vec<&'static str> {
    let shape = shape_of_bytes(input);
    match (Sealed::from_bytes(input), &shape) {
        (Ok(sealed), Ok(_)) => {
            assert_eq!(sealed.as_bytes(), input);
            assert_eq!(Sealed::parse(sealed.to_text().as_str()), Ok(sealed.clone()));
            read(&sealed, input);
            let open =
                |context: &Context<'_>| opened(WORLD.keyring.open_text(context, sealed.to_text().as_str()));
            open_everywhere(&shape, input, open, Some(&sealed))
        }
        (Err(error), Err(expected)) => {
            assert_eq!(refused(&error, input), *expected);
            vec![expected]
        }
        (Ok(_), Err(expected)) => panic!("read, and should be {expected}"),
        (Err(error), Ok(_)) => panic!("refused: {error}"),
    }
}

/// What the page of the format says of an envelope that was not opened yet.
struct Shape {
    id: String,
    plaintext_len: usize,
    /// In hex; none when the base64 is not canonical, which is found out after the key is looked up.
    envelope: Option<String>,
}

fn shape_of_text(text: &str) -> Result<Shape, &'static str> {
    let Some(rest) = text.strip_prefix("bp1.") else {
        let version = text.strip_prefix("bp").and_then(|rest| rest.split_once('.'));
        let later = version.is_some_and(|(number, _)| {
            (1..=4).contains(&number.len())
                && !number.starts_with('0')
                && number.chars().all(|digit| digit.is_ascii_digit())
        });
        return Err(if later { "UnsupportedVersion" } else { "Malformed" });
    };
    let (id, body) = rest.split_once('.').ok_or("Malformed")?;
    let is_digit = |digit: char| digit.is_ascii_digit() || ('a'..='f').contains(&digit);
    if id.len() != 16 || !id.chars().all(is_digit) || body.len() % 4 == 1 {
        return Err("Malformed");
    }
    let plaintext_len = (body.len() * 3 / 4).checked_sub(72).ok_or("Malformed")?;
    Ok(Shape {
        id: id.to_owned(),
        plaintext_len,
        envelope: base64(body, Alphabet::Url).map(|body| format!("0101{id}{}", to_hex(&body))),
    })
}

fn shape_of_bytes(bytes: &[u8]) -> Result<Shape, &'static str> {
    match bytes {
        [1, 1, ..] if bytes.len() >= 82 => Ok(Shape {
            id: to_hex(&bytes[2..10]),
            plaintext_len: bytes.len() - 82,
            envelope: Some(to_hex(bytes)),
        }),
        [] | [1] | [1, 1, ..] => Err("Malformed"),
        [1, ..] => Err("UnsupportedSuite"),
        _ => Err("UnsupportedVersion"),
    }
}

/// What should come of opening this in this context.
fn expected<'a>(
    shape: &Result<Shape, &'static str>,
    context: &[String; 3],
) -> Result<&'a [u8], &'static str> {
    let shape = shape.as_ref().map_err(|refused| *refused)?;
    match WORLD.states.get(&shape.id) {
        None => return Err("UnknownKey"),
        Some(KeyState::Disabled) => return Err("KeyDisabled"),
        Some(KeyState::Destroyed) => return Err("KeyDestroyed"),
        Some(_) => {}
    }
    if shape.plaintext_len > LIMIT as usize {
        return Err("TooLarge");
    }
    match WORLD.genuine.get(shape.envelope.as_ref().ok_or("Malformed")?) {
        Some((own, plaintext)) if own == context => Ok(plaintext),
        _ => Err("Authentication"),
    }
}

fn open_everywhere(
    shape: &Result<Shape, &'static str>,
    input: &[u8],
    open: impl Fn(&Context<'_>) -> Result<Vec<u8>, KeyringError>,
    sealed: Option<&Sealed>,
) -> Vec<&'static str> {
    let mut met = Vec::new();
    for parts in &WORLD.contexts {
        let [purpose, owner, field] = parts;
        let context = Context::new(purpose, owner, field).expect("the parts are short enough");
        let result = open(&context);
        if let Some(sealed) = sealed {
            assert_eq!(opened(WORLD.keyring.open(&context, sealed)), result);
        }
        let name = match (&result, expected(shape, parts)) {
            (Ok(opened), Ok(expected)) => {
                assert_eq!(opened, expected);
                "Opened"
            }
            (Err(error), Err(expected)) => {
                assert_eq!(refused(error, input), expected);
                expected
            }
            (Ok(_), Err(expected)) => panic!("opened, and should be {expected}"),
            (Err(error), Ok(_)) => panic!("refused: {error}"),
        };
        met.push(name);
        if !matches!(name, "Opened" | "Authentication") {
            // No context makes a difference to any other error.
            break;
        }
    }
    met
}

fn opened(result: Result<biplane::secret::SecretBytes, KeyringError>) -> Result<Vec<u8>, KeyringError> {
    result.map(|secret| secret.expose_secret().to_vec())
}

/// What is read shows its key and its length, and no more.
fn read(sealed: &Sealed, input: &[u8]) {
    let printed = format!("{sealed:?} {:?}", sealed.to_text()).replace(&sealed.key_id().to_string(), "");
    assert_eq!(shown(&printed, input), None);
}
