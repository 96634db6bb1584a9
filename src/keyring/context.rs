//! What a sealed value is for.

use std::fmt;

use uuid::Uuid;

use crate::tenant::{DataSourceId, Role};

use super::{KeyringError, envelope::HEADER_LEN};

/// What a value is for: a purpose, the immutable id of its owner, and a field. A value opens only in the context in
/// which it was sealed, so that a row that is swapped for another's, or a value that is copied to another column, does
/// not open.
///
/// Bind ids that never change and logical names, not names of tables. What was moved on purpose is sealed anew by
/// [`Keyring::rebind`](super::Keyring::rebind).
#[derive(Clone, Copy)]
pub struct Context<'a> {
    purpose: &'a str,
    owner: Owner<'a>,
    field: &'a str,
}

#[derive(Clone, Copy)]
enum Owner<'a> {
    Text(&'a str),
    Uuid([u8; 36]),
}

impl<'a> Context<'a> {
    /// A context of these three parts. Each part's length is bound with it, so that `ab`, `c` and `a`, `bc` are
    /// different contexts.
    ///
    /// # Errors
    /// [`KeyringError::TooLarge`] when a part is longer than 65,535 bytes.
    pub fn new(purpose: &'a str, owner: &'a str, field: &'a str) -> Result<Self, KeyringError> {
        Self::checked(purpose, Owner::Text(owner), field)
    }

    /// A context whose owner is a UUID, such as a tenant's; it is bound in the hyphenated lower-case form.
    ///
    /// # Errors
    /// [`KeyringError::TooLarge`] when a part is longer than 65,535 bytes.
    pub fn of_uuid(purpose: &'a str, owner: &Uuid, field: &'a str) -> Result<Self, KeyringError> {
        Self::checked(purpose, Owner::from(owner), field)
    }

    fn checked(purpose: &'a str, owner: Owner<'a>, field: &'a str) -> Result<Self, KeyringError> {
        let context = Self {
            purpose,
            owner,
            field,
        };
        if context
            .parts()
            .iter()
            .any(|part| u16::try_from(part.len()).is_err())
        {
            return Err(KeyringError::TooLarge);
        }
        Ok(context)
    }

    /// The purpose.
    #[must_use]
    pub const fn purpose(&self) -> &'a str {
        self.purpose
    }

    /// The owner's id.
    #[must_use]
    pub fn owner(&self) -> &str {
        match &self.owner {
            Owner::Text(text) => text,
            Owner::Uuid(text) => std::str::from_utf8(text).expect("a UUID is written in ASCII"),
        }
    }

    /// The field.
    #[must_use]
    pub const fn field(&self) -> &'a str {
        self.field
    }

    fn parts(&self) -> [&str; 3] {
        [self.purpose, self.owner(), self.field]
    }

    /// Calls `use_it` with the additional data that binds an envelope to this context.
    pub(super) fn with_aad<R>(&self, header: &[u8; HEADER_LEN], use_it: impl FnOnce(&[u8]) -> R) -> R {
        const DOMAIN: &str = "biplane.keyring.v1";
        // Ids and names fit in here, so that opening allocates nothing but its result.
        const USUAL: usize = 256;
        let parts = self.parts();
        let length = 2 + DOMAIN.len() + HEADER_LEN + parts.iter().map(|part| 2 + part.len()).sum::<usize>();
        let mut inline = [0; USUAL];
        let mut heap;
        let aad = if length <= USUAL {
            &mut inline[..length]
        } else {
            heap = vec![0; length];
            &mut heap[..]
        };

        let mut rest = &mut *aad;
        put_prefixed(&mut rest, DOMAIN);
        put(&mut rest, header);
        for part in parts {
            put_prefixed(&mut rest, part);
        }
        use_it(aad)
    }
}

impl Context<'static> {
    /// The context of a database login: purpose `credential`, the data source's id, and the name of the role.
    #[must_use]
    pub fn credential(source: DataSourceId, role: Role) -> Self {
        Self {
            purpose: "credential",
            owner: Owner::from(source.as_uuid()),
            field: role.as_str(),
        }
    }
}

impl From<&Uuid> for Owner<'_> {
    fn from(id: &Uuid) -> Self {
        let mut text = [0; 36];
        id.hyphenated().encode_lower(&mut text);
        Self::Uuid(text)
    }
}

fn put_prefixed(rest: &mut &mut [u8], part: &str) {
    let length = u16::try_from(part.len()).expect("no part of a context is longer than 65,535 bytes");
    if !cfg!(biplane_mutant = "parts_run_together") {
        put(rest, &length.to_be_bytes());
    }
    put(rest, part.as_bytes());
}

fn put(rest: &mut &mut [u8], bytes: &[u8]) {
    rest.split_off_mut(..bytes.len())
        .expect("the room for it was counted before")
        .copy_from_slice(bytes);
}

impl PartialEq for Context<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Context<'_> {}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("purpose", &self.purpose)
            .field("owner", &self.owner())
            .field("field", &self.field)
            .finish()
    }
}
