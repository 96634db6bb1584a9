//! Routing many tenants before anybody asks for them.

use futures_util::future::join_all;

use super::Biplane;
use crate::{
    error::Error,
    tenant::{TenantName, TenantRef},
};

/// How many are asked for at a time, which is several queries' worth and bounds what waits.
const AT_A_TIME: usize = 2_000;

/// What became of a [`Biplane::warm_up`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "some may have failed"]
pub struct WarmUp {
    /// How many names lead to a handle now.
    pub routed: usize,
    /// Those that do not, each with the reason.
    pub failed: Vec<(TenantName, Error)>,
}

impl<H: Clone + Send + Sync + 'static> Biplane<H> {
    /// Routes these names, so that whoever asks for them next need not wait: for a process that starts, before it takes
    /// requests. The control plane is asked for hundreds in one query. Connections are not made.
    ///
    /// Names that fail keep no other from being routed; a tenant that is not open is one of them.
    ///
    /// # Cancel safety
    /// Safe: what was asked for by then is routed all the same.
    pub async fn warm_up(&self, names: &[TenantRef<'_>]) -> WarmUp {
        let mut done = WarmUp::default();
        for names in names.chunks(AT_A_TIME) {
            let outcomes = join_all(names.iter().map(|name| self.route(*name))).await;
            for (name, outcome) in names.iter().zip(outcomes) {
                match outcome {
                    Ok(_) => done.routed += 1,
                    Err(error) => done.failed.push((name.to_name(), error)),
                }
            }
        }
        done
    }
}
