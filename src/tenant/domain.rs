//! Custom domains.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A custom domain in its ASCII form (IDNA 2008 by UTS 46), lower case, without port and trailing dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// Why a text is not a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// Nothing there.
    #[error("a domain has at least one character")]
    Empty,
    /// More than 253 characters in ASCII form.
    #[error("a domain has at most 253 characters in its ASCII form")]
    TooLong,
    /// What follows the colon is not a port.
    #[error("what follows the colon of a domain is a port from 1 to 65535")]
    Port,
    /// Only one label, such as `localhost`.
    #[error("a domain has at least two labels, such as shop.example")]
    SingleLabel,
    /// An IP address.
    #[error("a domain is a name, not an IP address")]
    IpAddress,
    /// A label that is empty, over 63 characters, or has a character or hyphen where none may be.
    #[error("each label of a domain has 1 to 63 letters, digits and inner hyphens")]
    Label,
    /// Not a valid internationalised name.
    #[error("the domain is not a valid internationalised name (IDNA)")]
    Idna,
}

impl Domain {
    /// Parses a domain, or the `Host` header that names one: folds case, converts to ASCII, and drops a port and
    /// one trailing dot.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        let host = without_port(text)?;
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() {
            return Err(DomainError::Empty);
        }
        let ascii = idna::domain_to_ascii_strict(host).map_err(|_| DomainError::Idna)?;
        if ascii.len() > 253 {
            return Err(DomainError::TooLong);
        }
        let mut labels = 0;
        for label in ascii.split('.') {
            check_label(label)?;
            labels += 1;
        }
        if labels < 2 {
            return Err(DomainError::SingleLabel);
        }
        if ascii
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(DomainError::IpAddress);
        }
        Ok(Self(ascii.into()))
    }

    /// The text in ASCII form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn without_port(text: &str) -> Result<&str, DomainError> {
    let Some((host, port)) = text.split_once(':') else {
        return Ok(text);
    };
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(host),
        _ => Err(DomainError::Port),
    }
}

fn check_label(label: &str) -> Result<(), DomainError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ok = (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-');
    if ok { Ok(()) } else { Err(DomainError::Label) }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        Self::parse(text)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.0)
    }
}

impl Serialize for Domain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}
