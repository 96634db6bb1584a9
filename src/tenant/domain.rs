//! Custom domains.

use std::{fmt, net::Ipv6Addr, str::FromStr, sync::Arc};

use idna::{
    AsciiDenyList,
    uts46::{DnsLength, Hyphens, Uts46},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A custom domain in its ASCII form (UTS 46, non-transitional), lower case, without port and trailing dot.
///
/// Two spellings of one name become one value, so that a lookup needs no further folding. Hyphens in the third and
/// fourth place are let through outside `xn--` labels, because hosts in use have them; underscores are not, because
/// no host name may have them (RFC 1123).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// Why a text is not a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// Nothing there.
    #[error("a domain has at least one character")]
    Empty,
    /// More than [`Domain::MAX_LEN`] characters in ASCII form.
    #[error("a domain has at most 253 characters in its ASCII form")]
    TooLong,
    /// What follows the colon is not a port.
    #[error("what follows the colon of a domain is a port from 1 to 65535")]
    Port,
    /// Only one label, such as `localhost`.
    #[error("a domain has at least two labels, such as shop.example")]
    SingleLabel,
    /// An IP address, in any form that a browser would take for one.
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
    /// The longest domain in ASCII form, in characters (RFC 1035, written without the trailing dot).
    pub const MAX_LEN: usize = 253;

    /// Parses a domain, or the `Host` header that names one: folds case, converts to ASCII, and drops a port and
    /// one trailing dot.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        if text.len() > MAX_INPUT {
            return Err(DomainError::TooLong);
        }
        let host = without_port(text)?;
        let ascii = Uts46::new()
            .to_ascii(
                host.as_bytes(),
                AsciiDenyList::STD3,
                Hyphens::CheckFirstLast,
                // Lengths are checked below, where each has an error of its own.
                DnsLength::Ignore,
            )
            .map_err(|_| broken_rule(host))?;
        // The dot goes after the conversion, which turns the full stops of other scripts into dots.
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(DomainError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(DomainError::TooLong);
        }
        if !name.split('.').all(is_label) {
            return Err(DomainError::Label);
        }
        let (_, last) = name.rsplit_once('.').unwrap_or(("", name));
        if is_number(last) {
            return Err(DomainError::IpAddress);
        }
        if last.len() == name.len() {
            return Err(DomainError::SingleLabel);
        }
        Ok(Self(name.into()))
    }

    /// The text in ASCII form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is longer in UTF-8 is not converted at all: the longest domain takes four bytes a character, a dot and a port,
/// and the conversion of a label takes time that grows faster than its length.
const MAX_INPUT: usize = 4 * Domain::MAX_LEN + 1 + ":65535".len();

fn without_port(text: &str) -> Result<&str, DomainError> {
    if text.starts_with('[') {
        return Err(DomainError::IpAddress);
    }
    let Some((host, port)) = text.split_once(':') else {
        return Ok(text);
    };
    let address = text.split('%').next().unwrap_or(text);
    if port.contains(':') && address.parse::<Ipv6Addr>().is_ok() {
        return Err(DomainError::IpAddress);
    }
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(host),
        _ => Err(DomainError::Port),
    }
}

/// Tells, for a host that the conversion refused, whether a plain rule was broken or one of IDNA's.
fn broken_rule(host: &str) -> DomainError {
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || !c.is_ascii();
    let well_formed = |label: &str| {
        !label.is_empty() && label.chars().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    if host.split('.').all(well_formed) {
        DomainError::Idna
    } else {
        DomainError::Label
    }
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether a last label makes the whole an IPv4 address to a browser (WHATWG URL, "ends in a number"). No top-level
/// domain is a number.
fn is_number(label: &str) -> bool {
    label.bytes().all(|b| b.is_ascii_digit())
        || label
            .strip_prefix("0x")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
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
