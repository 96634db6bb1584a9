//! What is looked for in texts, and in which guises.

use std::{
    error::Error,
    fmt::{Debug, Display},
};

use serde::Serialize;

/// A password, a plaintext, a setting: whatever a caller has in text and keeps to himself.
pub(crate) const SECRET: &str = "kQ7vXw9mZt2bLr5y";

/// A key.
pub(crate) const KEY: [u8; 32] = [
    0xd3, 0x1f, 0x86, 0xea, 0x59, 0xb4, 0x02, 0x7d, 0xc8, 0x63, 0x9e, 0xf1, 0x2a, 0x75, 0xbd, 0x40, 0x97,
    0xe6, 0x3c, 0xab, 0x14, 0x8f, 0xd0, 0x6b, 0xf9, 0x22, 0x5e, 0xc1, 0x88, 0x37, 0xaf, 0x04,
];

/// The bytes in a row that give a secret away.
const PIECE: usize = 6;

/// In which guise a text holds a piece of a secret, if it does.
pub(crate) fn given_away(text: &str) -> Option<String> {
    // `{:#?}` puts every element of a list on a line of its own.
    let packed: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let lower = packed.to_lowercase();
    [SECRET.as_bytes(), &KEY].into_iter().find_map(|secret| {
        secret.windows(PIECE).find_map(|piece| {
            let plain = std::str::from_utf8(piece).ok();
            let decimal: Vec<String> = piece.iter().map(u8::to_string).collect();
            let mut guises = vec![("in hex", lower.contains(&hex(piece)))];
            guises.push((
                "plain",
                plain.is_some_and(|plain| lower.contains(&plain.to_lowercase())),
            ));
            guises.push(("as numbers", packed.contains(&decimal.join(","))));
            for base64 in base64(piece) {
                let url = base64.replace('+', "-").replace('/', "_");
                guises.push(("in base64", packed.contains(&base64) || packed.contains(&url)));
            }
            guises
                .into_iter()
                .find(|(_, found)| *found)
                .map(|(guise, _)| format!("a piece of {secret:02x?}, {guise}"))
        })
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is the same in the base64 of any text that holds these bytes, for each place that they can have in a group.
fn base64(piece: &[u8]) -> [String; 3] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    [0, 1, 2].map(|before| {
        let bits: Vec<bool> = piece
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
            .skip((6 - 8 * before % 6) % 6)
            .collect();
        bits.as_chunks::<6>()
            .0
            .iter()
            .map(|bits| bits.iter().fold(0, |value, bit| value << 1 | usize::from(*bit)))
            .map(|value| char::from(ALPHABET[value]))
            .collect()
    })
}

/// What a type lets others see.
#[derive(Default)]
pub(crate) struct Shown {
    pub(crate) by: Vec<&'static str>,
    pub(crate) texts: Vec<String>,
}

impl Shown {
    pub(crate) fn debug(&mut self, value: &(impl Debug + ?Sized)) -> &mut Self {
        self.add("Debug", [format!("{value:?}"), format!("{value:#?}")])
    }

    pub(crate) fn display(&mut self, value: &(impl Display + ?Sized)) -> &mut Self {
        self.add("Display", [value.to_string(), format!("{value:#}")])
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) -> &mut Self {
        let text = serde_json::to_string(value).expect("it can be written as JSON");
        self.add("Serialize", [text, String::new()])
    }

    /// The error and its causes.
    pub(crate) fn error(&mut self, error: &(dyn Error + 'static)) -> &mut Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.debug(error).display(error);
            next = error.source();
        }
        self.by.push("Error");
        self
    }

    fn add(&mut self, by: &'static str, texts: [String; 2]) -> &mut Self {
        self.by.push(by);
        self.texts.extend(texts);
        self
    }
}

#[test]
fn every_guise_of_a_secret_is_seen_and_nothing_else() {
    for secret in [SECRET.as_bytes(), &KEY] {
        // As the middle of something longer, in each place of a group of base64.
        for before in 0..3 {
            let mut longer = vec![b'.'; before];
            longer.extend(secret);
            longer.extend(b"..");
            let seen = |text: String| assert!(given_away(&text).is_some(), "{text}");
            seen(format!("at {} here", hex(&longer)));
            seen(hex(&longer).to_uppercase());
            seen(format!("{longer:?}"));
            seen(format!("{longer:#?}"));
            seen(base64ct_of(&longer));
            seen(base64ct_of(&longer).replace('+', "-").replace('/', "_"));
            seen(String::from_utf8_lossy(&longer[..before + 6]).into_owned() + SECRET);
        }
    }
    assert!(given_away(&format!("user:{SECRET}@host")).is_some());
    for harmless in [
        "",
        "Credential(…)",
        "db.example:5432/crm",
        &hex(&[7; 40]),
        &format!("{:?}", [0; 40]),
    ] {
        assert_eq!(given_away(harmless), None);
    }
}

#[cfg(test)]
fn base64ct_of(bytes: &[u8]) -> String {
    use base64ct::Encoding;
    base64ct::Base64::encode_string(bytes)
}
