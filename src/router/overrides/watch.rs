//! Looks whether the file has changed, puts in force what it says, and goes on saying so.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{runtime::Handle, sync::OnceCell, task::AbortHandle, time::timeout};

use super::{
    InForce, OverrideHealth, Overrides,
    file::{self, Found, Rights},
};
use crate::{
    error::{Error, ErrorKind},
    router::core::Core,
    tenant::DataSource,
};

/// How often it is said that overrides are in force, or that the file is refused: in milliseconds of the router's clock.
const SAID_EVERY: u64 = 60_000;

/// An override file, and what became of it.
pub(in crate::router) struct Watch {
    path: Arc<Path>,
    interval: Duration,
    /// Whether anybody has looked yet. Nobody is routed before.
    looked: OnceCell<()>,
    /// One look at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    task: Option<AbortHandle>,
    stopped: bool,
    /// What was judged last, whatever the judgement.
    judged: Option<(String, Rights)>,
    in_force: Option<Said>,
    refused: Option<Refused>,
    said_at: u64,
}

struct Said {
    by: Arc<str>,
    reason: Arc<str>,
    tenants: usize,
    since: u64,
    force: Arc<InForce>,
}

struct Refused {
    error: Error,
    since: u64,
}

impl Watch {
    pub(in crate::router) fn new(path: PathBuf, interval: Duration) -> Self {
        Self {
            path: path.into(),
            interval,
            looked: OnceCell::new(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Starts the task that looks from time to time, unless it runs or the router has ended.
    pub(in crate::router) fn start<H: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        core: &Arc<Core<H>>,
        runtime: &Handle,
    ) {
        let mut state = self.state();
        let runs = state.task.as_ref().is_some_and(|task| !task.is_finished());
        if !runs && !state.stopped {
            let (watch, core) = (Arc::clone(self), Arc::clone(core));
            let task = runtime.spawn(async move {
                watch.first_look(&core).await;
                loop {
                    tokio::time::sleep(watch.interval).await;
                    watch.look(&core).await;
                }
            });
            state.task = Some(task.abort_handle());
        }
    }

    /// Ends the task, for good.
    pub(in crate::router) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        if let Some(task) = state.task.take() {
            task.abort();
        }
    }

    /// Looks, if nobody has yet.
    pub(in crate::router) async fn first_look<H: Clone + Send + Sync + 'static>(&self, core: &Core<H>) {
        self.looked.get_or_init(|| self.look(core)).await;
    }

    pub(in crate::router) fn health(&self, now: u64) -> OverrideHealth {
        let state = self.state();
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        let said = state.in_force.as_ref();
        OverrideHealth {
            file: Some(Arc::clone(&self.path)),
            tenants: said.map_or(0, |said| said.tenants),
            in_force_for: said.map(|said| since(said.since)),
            by: said.map(|said| Arc::clone(&said.by)),
            reason: said.map(|said| Arc::clone(&said.reason)),
            refused_for: state.refused.as_ref().map(|refused| since(refused.since)),
            refused: state.refused.as_ref().map(|refused| refused.error.kind()),
        }
    }

    /// How many tenants are overridden.
    pub(in crate::router) fn tenants(&self) -> usize {
        self.state().in_force.as_ref().map_or(0, |said| said.tenants)
    }

    async fn look<H: Clone + Send + Sync + 'static>(&self, core: &Core<H>) {
        let _turn = self.turn.lock().await;
        let path = Arc::clone(&self.path);
        let read = tokio::task::spawn_blocking(move || file::read(&path)).await;
        let read =
            read.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal).detail("reading the override file")));
        match read {
            Ok(Found::Nothing) => self.is_gone(core),
            Ok(Found::Text(text, rights)) if self.is_news(core, &text, rights) => {
                let judged = judge(core, &text, rights).await.and_then(|(file, force)| {
                    core.known.put_in_force(&force, core.now())?;
                    Ok((file, force))
                });
                match judged {
                    Ok((file, force)) => self.follows((text, rights), &file, force, core.now()),
                    Err(error) => self.refuse(core, Some((text, rights)), error),
                }
            }
            Ok(Found::Text(..)) => {}
            Err(error) => self.refuse(core, None, error),
        }
        self.go_on_saying(core.now());
    }

    /// Whether a text has not been judged yet, or may be judged otherwise now.
    fn is_news<H: Clone + Send + Sync + 'static>(&self, core: &Core<H>, text: &str, rights: Rights) -> bool {
        let state = self.state();
        let could_not_ask = |refused: &Refused| refused.error.kind() != ErrorKind::InvalidConfiguration;
        state
            .judged
            .as_ref()
            .is_none_or(|(judged, then)| judged != text || *then != rights)
            || state.refused.as_ref().is_some_and(could_not_ask)
            || state
                .in_force
                .as_ref()
                .is_some_and(|said| core.known.would_override_otherwise(&said.force))
    }

    fn is_gone<H: Clone + Send + Sync + 'static>(&self, core: &Core<H>) {
        let had = {
            let mut state = self.state();
            state.judged = None;
            state.refused = None;
            state.in_force.take()
        };
        if had.is_some() {
            let nothing = core.known.put_in_force(&Arc::new(InForce::default()), core.now());
            debug_assert!(nothing.is_ok(), "nothing contradicts nothing");
            tracing::warn!(file = %self.path.display(), "the override file is gone, and the control plane counts again");
        }
    }

    fn follows(&self, text: (String, Rights), file: &Overrides, force: Arc<InForce>, now: u64) {
        let mut state = self.state();
        let same_text = state.judged.as_ref() == Some(&text);
        state.judged = Some(text);
        state.refused = None;
        let since = state.in_force.as_ref().map_or(now, |said| said.since);
        let tenants = force.tenants.len();
        let said = Said {
            by: Arc::clone(&file.by),
            reason: Arc::clone(&file.reason),
            tenants,
            since,
            force,
        };
        if !same_text || state.in_force.is_none() {
            say(&self.path, &said);
            state.said_at = now;
        }
        state.in_force = (tenants > 0).then_some(said);
    }

    /// What was in force stays so.
    fn refuse<H: Clone + Send + Sync + 'static>(
        &self,
        core: &Core<H>,
        text: Option<(String, Rights)>,
        error: Error,
    ) {
        let now = core.now();
        if cfg!(biplane_mutant = "bad_overrides_end_good_ones") {
            let _ = core.known.put_in_force(&Arc::new(InForce::default()), now);
        }
        let mut state = self.state();
        let before = state.refused.as_ref();
        let since = before.map_or(now, |before| before.since);
        let said = before.is_some_and(|before| before.error.to_string() == error.to_string());
        if state.judged != text || !said {
            let stays = state.in_force.as_ref().map_or(0, |said| said.tenants);
            tracing::error!(file = %self.path.display(), %error, overridden = stays,
                "the override file is refused; what was in force before stays");
            state.said_at = now;
        }
        state.judged = text;
        state.refused = Some(Refused { error, since });
    }

    fn go_on_saying(&self, now: u64) {
        let mut state = self.state();
        if now.saturating_sub(state.said_at) < SAID_EVERY || cfg!(biplane_mutant = "overrides_are_quiet") {
            return;
        }
        if let Some(said) = &state.in_force {
            say(&self.path, said);
        }
        if let Some(Refused { error, .. }) = &state.refused {
            tracing::error!(file = %self.path.display(), %error, "the override file is still refused");
        }
        state.said_at = now;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(path: &Path, said: &Said) {
    let Said {
        by, reason, tenants, ..
    } = said;
    tracing::warn!(file = %path.display(), tenants, by = %by, reason = %reason,
        "a file overrides where tenants are; remove it when the control plane can be trusted");
}

async fn judge<H: Clone + Send + Sync + 'static>(
    core: &Core<H>,
    text: &str,
    rights: Rights,
) -> Result<(Overrides, Arc<InForce>), Error> {
    let file = Overrides::parse(text)?;
    rights.check_readers(&file)?;
    // First: what is heard from here on may be news to what is found.
    let heard = core.known.heard_of_sources();
    // All at once, for whoever comes first waits for it.
    let found = file
        .elsewhere()
        .into_iter()
        .map(async |name| Ok::<_, Error>((find(core, &name).await?, name)));
    let found = try_join_all(found).await?;
    let known: HashMap<_, _> = found
        .into_iter()
        .filter_map(|(source, name)| Some((name, source?)))
        .collect();
    let force = Arc::new(InForce::new(&file, &known, heard)?);
    Ok((file, force))
}

/// A data source by its name or id: as the control plane has it, or as a cached tenant has it if nobody can be asked.
async fn find<H: Clone + Send + Sync + 'static>(
    core: &Core<H>,
    name: &str,
) -> Result<Option<Arc<DataSource>>, Error> {
    let asked = timeout(core.load_timeout, core.repository.find_source(name)).await;
    let asked = asked.unwrap_or_else(|_| Err(ErrorKind::ControlPlaneUnavailable.into()));
    match (asked, core.known.source(name)) {
        (Ok(Some(source)), _) => Ok(Some(Arc::new(source))),
        (_, Some(source)) => Ok(Some(source)),
        (Ok(None), None) => Ok(None),
        (Err(error), None) => Err(Error::new(error.kind())
            .detail(
                "override file: it names a data source that is not in it, and the control plane cannot be asked for it; \
                 put it into the file's sources",
            )
            .caused_by(error)),
    }
}
