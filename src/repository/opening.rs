//! Opening one credential, for a person, and on the record.

use super::{Actor, CredentialPlace, CredentialStore, logins::unreadable};
use crate::{error::Error, keyring::Keyring, secret::Credential};

/// Opens one stored credential for a person who has the keys, such as whoever is on call and must log in where a service
/// does.
///
/// It exists so that nobody has a reason to do it unseen: the audit says who, why, and which version under which key, and
/// says so for good before the plaintext is there. No entry, no credential. An attempt that fails to open has its entry
/// too. Nothing else takes notice: the change log gets no entry, and no router hears of it.
///
/// ```
/// # use biplane::{error::{Error, ErrorKind}, keyring::Keyring, repository::*, tenant::Role};
/// # async fn open(control: &MemoryControl, keyring: &Keyring) -> Result<(), Error> {
/// let source = control.source("acme").await?.ok_or(ErrorKind::UnknownDataSource)?;
/// let place = CredentialPlace::new(source.id, Role::App, CredentialSlot::Current);
/// let by = Actor::new("ann", "INC-1234: the server rejects a login, and nobody knows which");
/// let login = open_credential(control, &by, place, keyring).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`CredentialStore::record_opening`], and
/// [`CredentialUnreadable`](crate::error::ErrorKind::CredentialUnreadable) when the keys do not open it, with the id of the
/// key that does.
///
/// # Cancel safety
/// A cancelled call gives nothing; the audit may say that it was made.
pub async fn open_credential(
    store: &dyn CredentialStore,
    by: &Actor,
    place: CredentialPlace,
    keyring: &Keyring,
) -> Result<Credential, Error> {
    let recorded = store.record_opening(by, place).await?;
    keyring
        .open_credential(place.source, place.role, &recorded.sealed)
        .map_err(|error| unreadable(&recorded.source_name, place.role, error))
}
