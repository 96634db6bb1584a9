//! Slugs: short names in the form of a DNS label.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A tenant's short name: a DNS label (RFC 1123), 1 to 63 of `a`–`z`, `0`–`9` and `-`, with no `-` at either end.
///
/// It is inline and `Copy`, so that a lookup by slug never allocates. Upper case is folded when parsing. A name that is
/// known when the program is written can be checked then:
///
/// ```
/// use biplane::tenant::Slug;
///
/// const ACME: Slug = match Slug::parse("acme") {
///     Ok(slug) => slug,
///     Err(_) => panic!("acme is a slug"),
/// };
/// assert_eq!(ACME.as_str(), "acme");
/// ```
#[derive(Clone, Copy)]
pub struct Slug {
    /// The text, zeros, and in the last place the length.
    bytes: [u8; Slug::MAX_LEN + 1],
}

/// Why a text is not a slug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlugError {
    /// Nothing there.
    #[error("a slug has at least one character")]
    Empty,
    /// More than [`Slug::MAX_LEN`] characters.
    #[error("a slug has at most 63 characters")]
    TooLong,
    /// A character other than a letter, a digit or a hyphen.
    #[error("a slug holds only the letters a to z, digits and hyphens")]
    Character,
    /// A hyphen at the start or the end.
    #[error("a slug neither starts nor ends with a hyphen")]
    Hyphen,
}

impl Slug {
    /// The longest slug, in bytes.
    pub const MAX_LEN: usize = 63;

    /// Parses a slug, folding upper case.
    ///
    /// # Errors
    /// The rule that was broken.
    pub const fn parse(text: &str) -> Result<Self, SlugError> {
        let input = text.as_bytes();
        if input.is_empty() {
            return Err(SlugError::Empty);
        }
        let mut bytes = [0; Self::MAX_LEN + 1];
        let mut i = 0;
        // Characters come before the length, so that a short name in another script is not called too long for the
        // bytes of its encoding.
        while i < input.len() && i < Self::MAX_LEN {
            let byte = input[i].to_ascii_lowercase();
            if !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-') {
                return Err(SlugError::Character);
            }
            bytes[i] = byte;
            i += 1;
        }
        if i < input.len() {
            return Err(SlugError::TooLong);
        }
        if bytes[0] == b'-' || bytes[i - 1] == b'-' {
            return Err(SlugError::Hyphen);
        }
        bytes[Self::MAX_LEN] = i as u8;
        Ok(Self { bytes })
    }

    /// The text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("parse admits ASCII only")
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.bytes[Self::MAX_LEN])]
    }
}

impl PartialEq for Slug {
    /// In whole words and without a branch, because each lookup of a tenant compares once.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let (own, _) = self.bytes.as_chunks();
        let (others, _) = other.bytes.as_chunks();
        let differences = own
            .iter()
            .zip(others)
            .map(|(own, other)| u128::from_ne_bytes(*own) ^ u128::from_ne_bytes(*other));
        differences.fold(0, |all, difference| all | difference) == 0
    }
}

impl Eq for Slug {}

impl Hash for Slug {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl PartialOrd for Slug {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slug {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl FromStr for Slug {
    type Err = SlugError;

    fn from_str(text: &str) -> Result<Self, SlugError> {
        Self::parse(text)
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slug({})", self.as_str())
    }
}

impl Serialize for Slug {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Slug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}
