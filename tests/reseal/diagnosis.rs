//! What the doctor finds.

use biplane::{
    keyring::{KeyState, KeyringError},
    rotation::doctor,
};

use crate::{
    control,
    sealed::{Keys, columns, seal, settings},
};

#[tokio::test]
async fn a_healthy_table_is_counted_whole() {
    let keys = Keys::new();
    let (_base, store) = settings(&keys, 1_203).await;
    let diagnosis = doctor(&keys.after, &[&store]).await.unwrap();
    assert!(diagnosis.is_healthy());
    let found = &diagnosis.stores[0];
    assert_eq!(
        (found.values, found.opened, found.failed, found.unsealed),
        (1_203, 1_203, 0, 0)
    );
    assert_eq!(found.keys[&keys.old].values, 1_203);
    assert_eq!(found.keys[&keys.old].state, Some(KeyState::DecryptOnly));
    assert_eq!(
        diagnosis.to_string(),
        format!(
            "app.setting: 1203 values, 1203 open, 0 do not\n  key {} (decrypt-only): 1203 values\n",
            keys.old
        )
    );
}

#[tokio::test]
async fn what_does_not_open_is_named_with_its_owner_and_cause() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 10).await;
    let stranger = Keys::new();
    let unknown = seal(&stranger.before, "4", "token", "x");
    base.sql(&format!(
        "with two as (select id, token from app.setting where id in (1, 2))
             update app.setting set token = two.token from two where setting.id = 3 - two.id;
         update app.setting set token = 'canary-password' where id = 3;
         update app.setting set token = '{unknown}' where id = 4;
         update app.setting set token = null where id = 5"
    ))
    .await;
    let diagnosis = doctor(&keys.after, &[&store]).await.unwrap();
    assert!(!diagnosis.is_healthy());
    let found = &diagnosis.stores[0];
    assert_eq!(
        (found.values, found.opened, found.failed, found.unsealed),
        (9, 5, 4, 1)
    );
    let causes: Vec<_> = found
        .failures
        .iter()
        .map(|failure| (&*failure.owner, failure.error.clone()))
        .collect();
    assert_eq!(causes[0], ("1", KeyringError::Authentication(keys.old)));
    assert_eq!(causes[1], ("2", KeyringError::Authentication(keys.old)));
    assert!(matches!(causes[2], ("3", KeyringError::Malformed(_))));
    assert_eq!(causes[3], ("4", KeyringError::UnknownKey(stranger.old)));
    assert_eq!(found.keys[&keys.old].failed, 2);
    assert_eq!(found.keys[&stranger.old].state, None);
    assert_eq!(diagnosis.missing_keys().collect::<Vec<_>>(), [stranger.old]);

    let printed = format!("{diagnosis} {diagnosis:?}");
    for secret in ["canary", "token of", &unknown[..40]] {
        assert!(!printed.contains(secret), "{printed}");
    }
    assert!(printed.contains("owner \"2\", field token"), "{printed}");
}

#[tokio::test]
async fn keys_that_may_not_open_are_told_with_their_rows() {
    let keys = Keys::new();
    let (_base, store) = settings(&keys, 3).await;
    let disabled = keys.with_old(KeyState::Disabled);
    let diagnosis = doctor(&disabled, &[&store]).await.unwrap();
    let found = &diagnosis.stores[0];
    assert_eq!((found.failed, found.keys[&keys.old].failed), (3, 3));
    assert_eq!(found.keys[&keys.old].state, Some(KeyState::Disabled));
    assert_eq!(found.failures[0].error, KeyringError::KeyDisabled(keys.old));
    assert!(
        diagnosis
            .to_string()
            .contains("(disabled): 3 values, of which 3 do not open")
    );
}

#[tokio::test]
async fn it_looks_with_the_right_to_read_alone_and_past_what_others_hold() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 4).await;
    base.sql(&format!(
        "grant usage on schema app to {0}; grant select on app.setting to {0}",
        control::ROUTER
    ))
    .await;
    base.sql("begin; select from app.setting for update").await;
    let reader = control::handle(&base.database, control::login(control::ROUTER)).await;
    let diagnosis = doctor(&keys.after, &[&columns(&reader)]).await.unwrap();
    assert_eq!(diagnosis.stores[0].opened, 4);
}
