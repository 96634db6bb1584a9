//! Whether two credentials are the same, without keeping either.

use std::fmt;

use aes::{Aes256Enc, cipher::KeyInit};
use cmac::{Cmac, Mac};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};
use subtle::ConstantTimeEq;

use crate::secret::Credential;

use super::{
    KeyringError,
    cipher::{KEY_LEN, on_wiped_stack},
};

/// Tells whether a credential has changed, by a fingerprint under a key of its own.
///
/// Comparing passwords would keep the old one in memory, and in a time that tells how much of them agrees; a plain hash
/// of a password can be found by guessing. A fingerprint is a MAC under a key that is drawn here, never leaves this value
/// and is wiped with it, so that a fingerprint alone, in a dump or a log, says nothing.
///
/// Only fingerprints of the same `Fingerprints` can be compared; those of two processes, or of two values in one, differ
/// for the same credential.
///
/// ```
/// use biplane::{keyring::Fingerprints, secret::Credential};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fingerprints = Fingerprints::new()?;
/// let before = fingerprints.of(&Credential::new("app", "correct horse".into())?);
///
/// assert_eq!(before, fingerprints.of(&Credential::new("app", "correct horse".into())?));
/// assert_ne!(before, fingerprints.of(&Credential::new("app", "battery staple".into())?));
/// # Ok(())
/// # }
/// ```
pub struct Fingerprints(SecretBox<[u8; KEY_LEN]>);

/// What a credential is recognised by; see [`Fingerprints`].
///
/// Two are compared in constant time. `Debug` prints a placeholder.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 16]);

impl Fingerprints {
    /// Fingerprints under a new key from the operating system's random numbers.
    ///
    /// # Errors
    /// [`KeyringError::Rng`].
    pub fn new() -> Result<Self, KeyringError> {
        let mut key = SecretBox::new(Box::new([0; KEY_LEN]));
        getrandom::fill(key.expose_secret_mut()).map_err(|_| KeyringError::Rng)?;
        Ok(Self(key))
    }

    /// The fingerprint of user and password.
    #[must_use]
    pub fn of(&self, credential: &Credential) -> Fingerprint {
        // The sealed form tells every two credentials apart: NUL separates user and password and occurs in neither, and
        // without a password there is none.
        let text = credential.to_plaintext();
        let text = match cfg!(biplane_mutant = "fingerprints_ignore_passwords") {
            true => credential.username().as_bytes(),
            false => &text,
        };
        on_wiped_stack(|| {
            let mut mac = <Cmac<Aes256Enc> as KeyInit>::new(self.0.expose_secret().into());
            mac.update(text);
            Fingerprint(mac.finalize().into_bytes().into())
        })
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints(…)")
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Fingerprint {}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::SecretString;

    use super::*;

    /// User, and password if there is one.
    fn login() -> impl Strategy<Value = (String, Option<String>)> {
        ("[ab:@]{1,3}", prop::option::of("[ab:@]{0,3}"))
    }

    fn credential((user, password): &(String, Option<String>)) -> Credential {
        match password {
            Some(password) => Credential::new(user, SecretString::from(password.as_str())),
            None => Credential::without_password(user),
        }
        .unwrap()
    }

    proptest! {
        #[test]
        fn fingerprints_agree_exactly_if_user_and_password_do(one in login(), other in login()) {
            let fingerprints = Fingerprints::new().unwrap();
            let same = fingerprints.of(&credential(&one)) == fingerprints.of(&credential(&other));
            prop_assert_eq!(same, one == other);
            prop_assert_eq!(fingerprints.of(&credential(&one)), fingerprints.of(&credential(&one)));
        }
    }

    #[test]
    fn what_separates_user_and_password_cannot_be_moved() {
        let fingerprints = Fingerprints::new().unwrap();
        let of = |user: &str, password: Option<&str>| {
            fingerprints.of(&credential(&(user.to_owned(), password.map(str::to_owned))))
        };
        assert_ne!(of("ab", Some("c")), of("a", Some("bc")));
        assert_ne!(of("ab", Some("")), of("ab", None));
    }

    #[test]
    fn others_fingerprints_are_other_ones() {
        let credential = Credential::new("app", SecretString::from("secret")).unwrap();
        let [one, other] = [(); 2].map(|()| Fingerprints::new().unwrap());
        assert_ne!(one.of(&credential), other.of(&credential));
    }
}
