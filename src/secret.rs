//! Secrets in memory: types that print nothing and wipe themselves.
//!
//! # What is shown to hold
//! `tests/allocator.rs` runs a program whose allocator looks at every block when it is freed or moved. After keys were
//! loaded from text, variables, files and key services, and values sealed, opened, rebound and imported, and after each
//! of the ways in which these and the parsing of URLs fail, no block holds eight bytes in a row of a key (as bytes, in hex
//! or in base64), of what it is expanded or derived into, of a plaintext or of a password. The program first leaves each
//! of them behind on purpose, and stops if that is not seen.
//!
//! `tests/redaction` looks for the same in what every public type shows (`Debug`, `Display`, errors with their causes,
//! JSON) and in every event of tracing's.
//!
//! # What is out of reach
//! - **sqlx.** To log in, a password is copied into sqlx's connection options, which are dropped when the connection stands
//!   or has failed, and by its handshake into hashes and messages; sqlx wipes none of them. Where a server asks for the
//!   password itself rather than for SCRAM, it also stays in the connection's write buffer until that is overwritten. The
//!   next connection opens the credential anew. Keys and other plaintexts never get there.
//! - **The stack, and registers.** A moved value leaves its bytes where it was, and what is boxed later may take pieces of
//!   them along in its padding. What expanding a key leaves on the stack is wiped when keys are loaded; what opening one
//!   value leaves there, its message key among it, waits to be overwritten.
//! - **What you hand in and take out.** The text that a key or URL was parsed from is yours to wipe, and the environment
//!   of a process stays as it is.
//! - **Memory as a whole.** Pages are not locked: swap, core dumps and debuggers show what is in use.

use std::fmt;

use secrecy::{ExposeSecret, SecretBox, SecretString};
use zeroize::Zeroizing;

/// Bytes that print nothing and are wiped when dropped. The allocation has exactly their size.
pub type SecretBytes = SecretBox<[u8]>;

/// A database login: a user and a password, or no password where the server asks for none.
///
/// It is kept as fields and never rebuilt into a URL, so any character may occur in either. Only NUL cannot, which
/// Postgres cannot carry; it separates the two in the sealed form.
#[derive(Clone)]
pub struct Credential {
    username: Box<str>,
    password: Option<SecretString>,
}

/// The text cannot be a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// No user name.
    #[error("a credential needs a user name")]
    NoUser,
    /// A NUL character, which Postgres cannot carry.
    #[error("neither user name nor password may hold a NUL character")]
    Nul,
    /// The sealed form is not UTF-8.
    #[error("the sealed credential does not hold UTF-8 text")]
    NotUtf8,
}

impl Credential {
    /// A user with a password.
    ///
    /// # Errors
    /// When the user is empty or either holds a NUL character.
    pub fn new(username: &str, password: SecretString) -> Result<Self, CredentialError> {
        if password.expose_secret().contains('\0') {
            return Err(CredentialError::Nul);
        }
        Ok(Self {
            password: Some(password),
            ..Self::without_password(username)?
        })
    }

    /// A user who logs in without a password (`trust`, `peer` or `cert` in `pg_hba.conf`). Said explicitly, because a
    /// password that is merely missing is an error.
    ///
    /// # Errors
    /// When the user is empty or holds a NUL character.
    pub fn without_password(username: &str) -> Result<Self, CredentialError> {
        if username.is_empty() {
            return Err(CredentialError::NoUser);
        }
        if username.contains('\0') {
            return Err(CredentialError::Nul);
        }
        Ok(Self {
            username: username.into(),
            password: None,
        })
    }

    /// The user name.
    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password, if there is one.
    #[must_use]
    pub fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    /// The form that is sealed: the user name, and if there is a password a NUL character and the password.
    #[must_use]
    pub fn to_plaintext(&self) -> Zeroizing<Box<[u8]>> {
        let password = self
            .password
            .as_ref()
            .map(|password| password.expose_secret().as_bytes());
        let mut bytes = Vec::with_capacity(self.username.len() + password.map_or(0, |p| p.len() + 1));
        bytes.extend_from_slice(self.username.as_bytes());
        if let Some(password) = password {
            bytes.push(0);
            bytes.extend_from_slice(password);
        }
        Zeroizing::new(bytes.into_boxed_slice())
    }

    /// Reads the form that [`Credential::to_plaintext`] makes.
    ///
    /// # Errors
    /// When it is not UTF-8, names no user or holds a second NUL character.
    pub fn from_plaintext(plaintext: &SecretBytes) -> Result<Self, CredentialError> {
        let text = std::str::from_utf8(plaintext.expose_secret()).map_err(|_| CredentialError::NotUtf8)?;
        match text.split_once('\0') {
            Some((username, password)) => Self::new(username, SecretString::from(Box::<str>::from(password))),
            None => Self::without_password(text),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed_form(credential: &Credential) -> SecretBytes {
        SecretBox::new(credential.to_plaintext().to_vec().into_boxed_slice())
    }

    #[test]
    fn any_password_survives_the_sealed_form() {
        for password in ["", "}|<?", "pa:ss@w/ord%20", "пароль"] {
            let credential = Credential::new("app", SecretString::from(password)).unwrap();
            let back = Credential::from_plaintext(&sealed_form(&credential)).unwrap();
            assert_eq!(back.username(), "app");
            assert_eq!(back.password().unwrap().expose_secret(), password);
        }
    }

    #[test]
    fn no_password_stays_no_password() {
        let credential = Credential::without_password("peer_user").unwrap();
        assert!(
            Credential::from_plaintext(&sealed_form(&credential))
                .unwrap()
                .password()
                .is_none()
        );
    }

    #[test]
    fn a_nul_or_no_user_is_refused() {
        assert_eq!(
            Credential::without_password("").unwrap_err(),
            CredentialError::NoUser
        );
        assert_eq!(
            Credential::new("a", SecretString::from("b\0c")).unwrap_err(),
            CredentialError::Nul
        );
        let two = SecretBox::new(b"a\0b\0c".to_vec().into_boxed_slice());
        assert_eq!(
            Credential::from_plaintext(&two).unwrap_err(),
            CredentialError::Nul
        );
    }

    #[test]
    fn debug_prints_nothing() {
        let credential = Credential::new("canary-user", SecretString::from("canary-pass")).unwrap();
        assert!(!format!("{credential:?}").contains("canary"));
    }
}
