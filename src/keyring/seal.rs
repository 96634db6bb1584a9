//! Sealing and opening.

use secrecy::{SecretBox, SecretString};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    secret::{Credential, CredentialError, SecretBytes},
    tenant::{DataSourceId, Role, SealedText},
};

use super::{
    Context, Keyring, KeyringError, Sealed,
    cipher::{COMMITMENT_LEN, NONCE_LEN, TAG_LEN},
    envelope::{self, HEADER_LEN, Text},
    ring::ReadyKey,
};

impl Keyring {
    /// Seals bytes for one context, under the primary key and a fresh random nonce: sealing the same twice gives two
    /// values.
    ///
    /// The length shows; pad what must hide it.
    ///
    /// # Errors
    /// [`KeyringError::TooLarge`] and [`KeyringError::Rng`].
    pub fn seal(&self, context: &Context<'_>, plaintext: &[u8]) -> Result<Sealed, KeyringError> {
        self.seal_with(context, plaintext, |nonce| {
            getrandom::fill(nonce).map_err(|_| KeyringError::Rng)
        })
    }

    /// Opens a sealed value in the context in which it was sealed.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`] when the keyring lacks the key that the value names,
    /// [`KeyringError::KeyDisabled`] or [`KeyringError::KeyDestroyed`] when that key opens no more,
    /// [`KeyringError::Authentication`] when the value was changed or sealed for another context, and
    /// [`KeyringError::TooLarge`] when it is over the keyring's limit.
    pub fn open(&self, context: &Context<'_>, sealed: &Sealed) -> Result<SecretBytes, KeyringError> {
        self.open_sealed(context, sealed).map(SecretBox::new)
    }

    /// Opens a sealed value in text form.
    ///
    /// # Errors
    /// Those of [`Sealed::parse`] and [`Keyring::open`].
    pub fn open_text(&self, context: &Context<'_>, text: &str) -> Result<SecretBytes, KeyringError> {
        let text = Text::parse(text)?;
        let key = self.opening_key(text.id)?;
        self.check_length(text.ciphertext_len)?;
        let mut decoded = text.decode()?;
        key.open(
            context,
            &decoded.nonce,
            &mut decoded.ciphertext,
            &decoded.tag,
            &decoded.commitment,
        )?;
        Ok(SecretBox::new(decoded.ciphertext))
    }

    /// Opens a sealed value that holds text.
    ///
    /// # Errors
    /// Those of [`Keyring::open`], and [`KeyringError::NotUtf8`].
    pub fn open_string(&self, context: &Context<'_>, sealed: &Sealed) -> Result<SecretString, KeyringError> {
        into_secret_string(self.open_sealed(context, sealed)?)
    }

    /// Seals anew, under the primary key, what was sealed for one context and is meant for another: the explicit way
    /// to move a value. With the same context twice it brings a value under the primary key.
    ///
    /// # Errors
    /// Those of [`Keyring::open`] and [`Keyring::seal`].
    pub fn rebind(
        &self,
        from: &Context<'_>,
        to: &Context<'_>,
        sealed: &Sealed,
    ) -> Result<Sealed, KeyringError> {
        let plaintext = Zeroizing::new(self.open_sealed(from, sealed)?);
        self.seal(to, &plaintext)
    }

    /// Seals a database login for one data source and role.
    ///
    /// # Errors
    /// Those of [`Keyring::seal`].
    pub fn seal_credential(
        &self,
        source: DataSourceId,
        role: Role,
        credential: &Credential,
    ) -> Result<SealedText, KeyringError> {
        let sealed = self.seal(&Context::credential(source, role), &credential.to_plaintext())?;
        Ok(sealed.to_text())
    }

    /// Opens the database login of one data source and role.
    ///
    /// # Errors
    /// Those of [`Keyring::open_text`]; [`KeyringError::NotUtf8`] and [`KeyringError::Malformed`] when what was sealed
    /// is no login.
    pub fn open_credential(
        &self,
        source: DataSourceId,
        role: Role,
        sealed: &SealedText,
    ) -> Result<Credential, KeyringError> {
        let plaintext = self.open_text(&Context::credential(source, role), sealed.as_str())?;
        Credential::from_plaintext(&plaintext).map_err(|error| match error {
            CredentialError::NotUtf8 => KeyringError::NotUtf8,
            CredentialError::NoUser => KeyringError::Malformed("the sealed credential names no user"),
            CredentialError::Nul => {
                KeyringError::Malformed("the sealed credential holds a second NUL character")
            }
        })
    }

    /// Seals with the nonce that `draw` gives: the operating system's, and in tests one that is known.
    pub(super) fn seal_with(
        &self,
        context: &Context<'_>,
        plaintext: &[u8],
        draw: impl FnOnce(&mut [u8; NONCE_LEN]) -> Result<(), KeyringError>,
    ) -> Result<Sealed, KeyringError> {
        self.check_length(plaintext.len())?;
        let key = self.sealing_key();
        let mut nonce = [0; NONCE_LEN];
        draw(&mut nonce)?;
        let message = key.cipher.message(&nonce);

        let header = envelope::header_of(key.id());
        let mut bytes = vec![0; Sealed::OVERHEAD + plaintext.len()].into_boxed_slice();
        let mut rest = &mut bytes[..];
        let mut take = |length| {
            rest.split_off_mut(..length)
                .expect("the length was counted above")
        };
        take(HEADER_LEN).copy_from_slice(&header);
        take(NONCE_LEN).copy_from_slice(&nonce);
        let text = take(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = context.with_aad(&header, |aad| message.seal(aad, text));
        take(TAG_LEN).copy_from_slice(&tag);
        take(COMMITMENT_LEN).copy_from_slice(message.commitment());
        key.count_seal();
        Ok(Sealed::from_sealing(bytes))
    }

    fn open_sealed(&self, context: &Context<'_>, sealed: &Sealed) -> Result<Box<[u8]>, KeyringError> {
        let parts = sealed.parts();
        let key = self.opening_key(parts.id)?;
        self.check_length(parts.ciphertext.len())?;
        // Decrypted where it is: a copy would be one more place to wipe.
        let mut text: Box<[u8]> = parts.ciphertext.into();
        key.open(context, parts.nonce, &mut text, parts.tag, parts.commitment)?;
        Ok(text)
    }

    fn check_length(&self, length: usize) -> Result<(), KeyringError> {
        if length > self.max_plaintext() {
            return Err(KeyringError::TooLarge);
        }
        Ok(())
    }
}

impl ReadyKey<'_> {
    fn open(
        &self,
        context: &Context<'_>,
        nonce: &[u8; NONCE_LEN],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
        commitment: &[u8; COMMITMENT_LEN],
    ) -> Result<(), KeyringError> {
        let id = self.id();
        let message = self.cipher.message(nonce);
        context
            .with_aad(&envelope::header_of(id), |aad| {
                message.open(aad, text, tag, commitment)
            })
            .map_err(|_| KeyringError::Authentication(id))?;
        self.count_open();
        Ok(())
    }
}

/// Turns opened bytes into text in the allocation where they are, and wipes them if they are none.
pub(super) fn into_secret_string(bytes: Box<[u8]>) -> Result<SecretString, KeyringError> {
    match String::from_utf8(bytes.into_vec()) {
        Ok(text) => Ok(SecretString::from(text)),
        Err(error) => {
            let mut bytes = error.into_bytes();
            if !cfg!(biplane_mutant = "refused_bytes_are_left") {
                bytes.zeroize();
            }
            Err(KeyringError::NotUtf8)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::keyring::{KeyMaterial, KeyState};

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        key: String,
        nonce: String,
        purpose: String,
        owner: String,
        field: String,
        plaintext: String,
        text: String,
    }

    fn unhex(text: &str) -> Vec<u8> {
        let mut bytes = vec![0; text.len() / 2];
        crate::keyring::encoding::hex(text.as_bytes(), &mut bytes).unwrap();
        bytes
    }

    fn keyring(key: &str) -> Keyring {
        let key = KeyMaterial::from_hex(key).unwrap();
        Keyring::builder().key(key, KeyState::Primary).build().unwrap()
    }

    /// The other direction of the golden envelopes: given their nonces, the very same bytes come out.
    #[test]
    fn sealing_gives_the_golden_envelopes() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/vectors/envelope-v1.json")).unwrap();
        assert_eq!(golden.cases.len(), 20);
        for case in golden.cases {
            let context = Context::new(&case.purpose, &case.owner, &case.field).unwrap();
            let sealed = keyring(&case.key)
                .seal_with(&context, &unhex(&case.plaintext), |nonce| {
                    nonce.copy_from_slice(&unhex(&case.nonce));
                    Ok(())
                })
                .unwrap();
            assert_eq!(sealed.to_text().as_str(), case.text);
        }
    }

    #[test]
    fn without_random_bytes_nothing_is_sealed() {
        let keyring = keyring("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
        let context = Context::new("p", "o", "f").unwrap();
        let refused = keyring.seal_with(&context, b"x", |_| Err(KeyringError::Rng));
        assert_eq!(refused.unwrap_err(), KeyringError::Rng);
    }
}
