//! Random lives of a router, held against the history of its control plane.
//!
//! The test decides when each query reads and when it answers, if it does; what every caller is told must be explained
//! by a moment of the history that the contract still allows at that point. Time is tokio's, paused, and the router's
//! clock moves with it.

use std::time::Duration;

use biplane::{
    error::{Error, ErrorKind},
    repository::{ChangeHint, ChangeSource, MemoryControl, NewTenant, TenantAdmin},
    router::CacheOptions,
    tenant::{Access, DataSourceId, Domain, Isolation, Slug, Tenant, TenantId, TenantName, TenantStatus},
};
use proptest::prelude::*;
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};

use crate::support::{
    Call, Gated, LogGate, Look, Record, Steps, Whisper, by, domain, gated, gated_over, settle, slug,
};

const TENANTS: usize = 3;
const SLUGS: usize = 4;
const DOMAINS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize),
    Rename(usize, usize),
    MoveDomain(usize, usize),
    Status(usize, TenantStatus),
    Touch(usize),
    Invalidate(usize),
    Ask(usize),
    Read(usize),
    Answer(usize),
    Fail(usize),
    Pass(u64),
    /// The feed is told to look. It reads at once, and waits to be answered.
    Look,
    AnswerLook,
    FailLook,
    Freeze,
    Thaw,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..150)
}

/// The same, with routing frozen from time to time.
fn steps_and_frosts() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => step(),
        1 => Just(Step::Freeze),
        2 => Just(Step::Thaw),
    ];
    prop::collection::vec(step, 1..150)
}

fn step() -> impl Strategy<Value = Step> {
    let (tenant, which) = (0..TENANTS, 0..2_usize);
    let status = prop_oneof![
        3 => Just(TenantStatus::Active),
        3 => Just(TenantStatus::Suspended),
        2 => Just(TenantStatus::ReadOnly),
        1 => Just(TenantStatus::Archived),
        1 => Just(TenantStatus::Deleted),
    ];
    prop_oneof![
        1 => (tenant.clone(), 0..SLUGS).prop_map(|(tenant, slug)| Step::Create(tenant, slug)),
        3 => (tenant.clone(), 0..SLUGS).prop_map(|(tenant, slug)| Step::Rename(tenant, slug)),
        2 => (tenant.clone(), 0..DOMAINS).prop_map(|(tenant, domain)| Step::MoveDomain(tenant, domain)),
        4 => (tenant.clone(), status).prop_map(|(tenant, status)| Step::Status(tenant, status)),
        3 => tenant.clone().prop_map(Step::Touch),
        6 => tenant.prop_map(Step::Invalidate),
        14 => (0..TENANTS + SLUGS + DOMAINS).prop_map(Step::Ask),
        9 => which.clone().prop_map(Step::Read),
        12 => which.clone().prop_map(Step::Answer),
        2 => which.prop_map(Step::Fail),
        3 => prop_oneof![
            6 => 1..1_500_u64,
            1 => 2_000..4_000_u64,
            3 => 29_000..31_000_u64,
            1 => 299_000..301_000_u64,
        ].prop_map(Step::Pass),
        8 => Just(Step::Look),
        8 => Just(Step::AnswerLook),
        1 => Just(Step::FailLook),
    ]
}

/// The control plane from one moment until the next.
struct Moment {
    since: u64,
    tenants: Vec<Tenant>,
}

impl Moment {
    fn owner(&self, name: &TenantName) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| match name {
            TenantName::Id(id) => tenant.id == *id,
            TenantName::Slug(slug) => tenant.slug == *slug,
            TenantName::Domain(domain) => tenant.domains.contains(domain),
            _ => false,
        })
    }
}

/// What a question may not go back behind.
#[derive(Clone)]
struct Asked {
    at: u64,
    failures: u64,
    /// For each tenant, the moment at which it was last announced, and how often it had been.
    announced: [(usize, u64); TENANTS],
    last_announced: usize,
    /// Up to which moment the feed has applied all changes, and how often it has.
    applied: (usize, u64),
    /// The highest version of each tenant that was served from the cache.
    served: [u64; TENANTS],
    /// Whether routing is frozen, and how often it has been.
    frozen: (bool, u64),
}

/// Who asked for what, at which moment, and waits for the answer.
type Waiting = (TenantName, Asked, JoinHandle<Result<Record, Error>>);

struct Model {
    world: Gated,
    options: CacheOptions,
    ids: [TenantId; TENANTS],
    names: Vec<TenantName>,
    history: Vec<Moment>,
    now: Asked,
    last_failure: Option<u64>,
    air: Vec<Under>,
    callers: Vec<Waiting>,
    feed: Option<Feed>,
}

/// What the router hears of changes.
struct Feed {
    whisper: Whisper,
    looks: UnboundedReceiver<Look>,
    /// A look that has read, and at which moment.
    under_way: Option<(Look, usize)>,
}

/// A query under way.
struct Under {
    call: Call,
    begun_after: Asked,
    read_at: Option<usize>,
}

impl Model {
    async fn with_feed() -> Self {
        let control = MemoryControl::new();
        let (log, looks) = LogGate::new(control.clone());
        let whisper = Whisper::default();
        let changes = ChangeSource::pushed(log, whisper.clone());
        let mut model = Self::over(gated_over(control, Some(changes)));
        model.feed = Some(Feed {
            whisper,
            looks,
            under_way: None,
        });
        // What the position is taken by, and what follows the beginning of push.
        model.pass(Duration::from_millis(100)).await;
        model.look().await;
        model.answer_look().await;
        model.pass(Duration::from_millis(100)).await;
        model.look().await;
        model.answer_look().await;
        model
    }

    fn without_feed() -> Self {
        Self::over(gated())
    }

    fn over(world: Gated) -> Self {
        let ids = [(); TENANTS].map(|()| TenantId::new());
        let mut names: Vec<_> = ids.into_iter().map(TenantName::Id).collect();
        names.extend((0..SLUGS).map(|n| TenantName::Slug(nth_slug(n))));
        names.extend((0..DOMAINS).map(|n| TenantName::Domain(nth_domain(n))));
        Self {
            world,
            options: CacheOptions::default(),
            ids,
            names,
            history: vec![Moment {
                since: 0,
                tenants: Vec::new(),
            }],
            now: Asked {
                at: 0,
                failures: 0,
                announced: [(0, 0); TENANTS],
                last_announced: 0,
                applied: (0, 0),
                served: [0; TENANTS],
                frozen: (false, 0),
            },
            last_failure: None,
            air: Vec::new(),
            callers: Vec::new(),
            feed: None,
        }
    }

    async fn run(&mut self, steps: &[Step]) {
        // The last tenant is yet to come.
        for n in 0..TENANTS - 1 {
            self.step(&Step::Create(n, n)).await;
            self.step(&Step::Status(n, TenantStatus::Active)).await;
            self.step(&Step::MoveDomain(n, n)).await;
        }
        for step in steps {
            self.step(step).await;
            settle().await;
            self.look().await;
        }
        self.step(&Step::Thaw).await;
        // What was held is asked for now, before anything else happens.
        settle().await;
        self.look().await;
        // Whatever is still under way is answered, and nobody is left waiting.
        while !self.air.is_empty() || !self.callers.is_empty() {
            assert!(!self.air.is_empty(), "callers wait, and no query is under way");
            self.answer(0).await;
            settle().await;
            self.look().await;
        }
        if self.feed.is_some() {
            // Once the feed has looked, everybody is told how things are, however fresh what was known is.
            self.pass(self.options.retry_after).await;
            self.answer_look().await;
            self.tell_to_look().await;
            self.look().await;
            self.answer_look().await;
            self.everybody_is_told_the_truth().await;
        }
        // And once nothing is fresh any more.
        self.pass(self.options.refresh_for).await;
        self.everybody_is_told_the_truth().await;
    }

    async fn everybody_is_told_the_truth(&mut self) {
        // What the feed has asked for.
        self.look().await;
        while !self.air.is_empty() {
            self.answer(0).await;
            settle().await;
            self.look().await;
        }
        for name in self.names.clone() {
            let told = self.world.route(&name).await;
            let truth = self.history.last().expect("there is a moment").owner(&name);
            match (told, truth) {
                (Ok(record), Some(tenant)) => assert_eq!(*record.0, *tenant),
                (Err(error), Some(tenant)) => {
                    let status = tenant.status;
                    assert_eq!(error.kind(), ErrorKind::Inactive { status });
                }
                (Err(error), None) => assert_eq!(error.kind(), ErrorKind::UnknownTenant),
                (Ok(record), None) => panic!("{name} leads to {record:?}, and is nobody's"),
            }
        }
    }

    async fn step(&mut self, step: &Step) {
        let current = self.history.last().expect("there is a moment");
        let control = self.world.control.clone();
        let tenant = |n: usize| current.owner(&TenantName::Id(self.ids[n])).cloned();
        match *step {
            Step::Create(n, slug) if tenant(n).is_none() => {
                let mut new = NewTenant::new(nth_slug(slug), DataSourceId::DEFAULT);
                (new.id, new.isolation) = (self.ids[n], Isolation::Row);
                let _ = control.create(&by(), new).await;
            }
            Step::Rename(n, slug) => {
                if let Some(Tenant { id, version, .. }) = tenant(n) {
                    let _ = control.rename(&by(), id, version, nth_slug(slug)).await;
                }
            }
            Step::MoveDomain(n, which) => {
                let which = nth_domain(which);
                if let Some(old) = current.owner(&TenantName::Domain(which.clone())) {
                    let (id, version) = (old.id, old.version);
                    let _ = control.remove_domain(&by(), id, version, &which).await;
                }
                self.remember().await;
                let current = self.history.last().expect("there is a moment");
                if let Some(new) = current.owner(&TenantName::Id(self.ids[n])) {
                    let (id, version) = (new.id, new.version);
                    let _ = control.add_domain(&by(), id, version, which).await;
                }
            }
            Step::Status(n, status) => {
                if let Some(Tenant { id, version, .. }) = tenant(n) {
                    let _ = control.set_status(&by(), id, version, status).await;
                }
            }
            Step::Touch(n) => {
                if let Some(tenant) = tenant(n).filter(|tenant| tenant.status != TenantStatus::Deleted) {
                    control.touch(tenant.id).await;
                }
            }
            Step::Invalidate(n) => {
                self.world.biplane.invalidate(self.ids[n]).await;
                let moment = self.history.len() - 1;
                self.now.announced[n] = (moment, self.now.announced[n].1 + 1);
                self.now.last_announced = moment;
            }
            Step::Ask(name) => {
                let name = self.names[name].clone();
                let asked = self.now.clone();
                let caller = self.world.caller(&name).await;
                self.callers.push((name, asked, caller));
            }
            Step::Read(n) if !self.air.is_empty() => {
                let n = n % self.air.len();
                self.air[n].call.read().await;
                self.air[n].read_at = Some(self.history.len() - 1);
            }
            Step::Answer(n) if !self.air.is_empty() => self.answer(n % self.air.len()).await,
            Step::Fail(n) if !self.air.is_empty() => {
                let under = self.air.swap_remove(n % self.air.len());
                under.call.fail();
                self.failed();
            }
            Step::Pass(millis) => self.pass(Duration::from_millis(millis)).await,
            Step::Look => self.tell_to_look().await,
            Step::AnswerLook => self.answer_look().await,
            Step::FailLook => {
                if let Some(feed) = &mut self.feed {
                    feed.under_way = None;
                }
            }
            Step::Freeze => {
                self.world.biplane.freeze().await;
                self.now.frozen = (true, self.now.frozen.1 + 1);
            }
            Step::Thaw => {
                self.world.biplane.thaw().await;
                self.now.frozen.0 = false;
            }
            Step::Create(..) | Step::Read(_) | Step::Answer(_) | Step::Fail(_) => {}
        }
        self.remember().await;
    }

    async fn answer(&mut self, n: usize) {
        let under = self.air.swap_remove(n);
        under.call.answer();
        // What was read before the latest change may be older than what is known, which counts as a failure.
        if under.read_at.is_some_and(|read| read + 1 < self.history.len()) {
            self.failed();
        }
    }

    async fn tell_to_look(&mut self) {
        if let Some(feed) = &self.feed {
            feed.whisper.say(ChangeHint::Look);
            // So much lies between two looks.
            self.pass(Duration::from_millis(21)).await;
        }
    }

    async fn answer_look(&mut self) {
        let Some((look, read_at)) = self.feed.as_mut().and_then(|feed| feed.under_way.take()) else {
            return;
        };
        if look.answer().await {
            self.now.applied = (read_at, self.now.applied.1 + 1);
        }
    }

    async fn pass(&mut self, time: Duration) {
        self.world.clock.advance(time);
        self.now.at += u64::try_from(time.as_millis()).expect("it is short");
        tokio::time::advance(time).await;
        settle().await;
    }

    fn failed(&mut self) {
        self.now.failures += 1;
        self.last_failure = Some(self.now.at);
    }

    async fn remember(&mut self) {
        let mut tenants = Vec::new();
        for id in self.ids {
            use biplane::{repository::TenantRepository, tenant::TenantRef};
            let mut found = self
                .world
                .control
                .find(&[TenantRef::Id(id)])
                .await
                .expect("memory answers");
            let resolved = found.pop().expect("one outcome").expect("it is well-formed");
            tenants.extend(resolved.map(|resolved| resolved.record.tenant.clone()));
        }
        if self.history.last().expect("there is a moment").tenants != tenants {
            let since = self.now.at;
            self.history.push(Moment { since, tenants });
        }
    }

    /// Looks at everything that can be seen from outside, and holds it against the history.
    async fn look(&mut self) {
        let read_at = self.history.len() - 1;
        if let Some(feed) = &mut self.feed
            && let Ok(look) = feed.looks.try_recv()
        {
            feed.under_way = Some((look, read_at));
        }
        let ran_out: Vec<_> = self.air.extract_if(.., |under| under.call.is_over()).collect();
        ran_out.iter().for_each(|_| self.failed());
        while let Some(call) = self.world.gate.call_now() {
            for other in &self.air {
                let since = self.now.last_announced > other.begun_after.last_announced
                    || self.now.announced != other.begun_after.announced
                    || self.now.applied != other.begun_after.applied;
                let same = call.names.iter().any(|name| other.call.names.contains(name));
                assert!(
                    !same || since,
                    "two queries at once for one name: {:?}",
                    call.names
                );
            }
            self.air.push(Under {
                call,
                begun_after: self.now.clone(),
                read_at: None,
            });
        }
        assert!(self.air.len() <= 2, "{} queries at once", self.air.len());

        let mut waiting = Vec::new();
        for (name, asked, caller) in std::mem::take(&mut self.callers) {
            if caller.is_finished() {
                let told = caller.await.expect("it does not panic");
                self.check(&name, &asked, &told);
            } else {
                waiting.push((name, asked, caller));
            }
        }
        self.callers = waiting;
        for name in self.names.clone() {
            if let Some(record) = self.world.biplane.cached(&name) {
                let asked = self.now.clone();
                let version = record.0.version.value();
                let n = self.place(record.0.id);
                self.check(&name, &asked, &Ok(record));
                self.now.served[n] = self.now.served[n].max(version);
            }
        }
    }

    fn check(&self, name: &TenantName, asked: &Asked, told: &Result<Record, Error>) {
        let told = match told {
            Ok(record) => Ok(&*record.0),
            Err(error) => Err(error.kind()),
        };
        let options = &self.options;
        let millis = |time: Duration| u64::try_from(time.as_millis()).expect("it is short");
        let retry_after = millis(options.retry_after);
        let failing = self
            .last_failure
            .is_some_and(|failed| failed + retry_after >= asked.at);
        let back_to = match told {
            Err(ErrorKind::UnknownTenant) => asked.at.saturating_sub(millis(options.unknown_for)),
            Ok(_) if failing => asked.at.saturating_sub(millis(options.stale_for)),
            Ok(_) => asked.at.saturating_sub(millis(options.refresh_for)),
            _ => asked.at.saturating_sub(millis(options.fresh_for)),
        };
        let explained = (0..self.history.len()).any(|k| {
            let until = self.history.get(k + 1).map_or(u64::MAX, |next| next.since);
            let owner = self.history[k].owner(name);
            let not_before = match (owner, name) {
                (Some(tenant), _) => asked.announced[self.place(tenant.id)].0,
                (None, TenantName::Id(id)) => asked.announced[self.place(*id)].0,
                (None, _) => asked.last_announced,
            };
            // A tenant that could not be read since it changed is served as it was.
            let not_before = match told {
                Ok(_) if failing => not_before,
                _ => not_before.max(asked.applied.0),
            };
            k >= not_before
                && until >= back_to
                && match (told, owner) {
                    (Ok(told), Some(tenant)) => told == tenant && tenant.status.access() != Access::Refused,
                    (Err(ErrorKind::Inactive { status }), Some(tenant)) => {
                        status == tenant.status && status.access() == Access::Refused
                    }
                    (Err(ErrorKind::UnknownTenant), None) => true,
                    _ => false,
                }
        });
        // Or routing was frozen, and the tenant is as it was, by whatever name it was led to.
        let frozen = asked.frozen.0 || self.now.frozen.1 > asked.frozen.1;
        let held = told.is_ok_and(|told| {
            let not_before = asked.announced[self.place(told.id)].0;
            let stale = asked.at.saturating_sub(millis(options.stale_for));
            let was = |(k, moment): (usize, &Moment)| {
                let until = self.history.get(k + 1).map_or(u64::MAX, |next| next.since);
                let owner = moment.owner(&TenantName::Id(told.id));
                k >= not_before && until >= stale && owner == Some(told)
            };
            let led = |moment: &Moment| moment.owner(name).is_some_and(|owner| owner.id == told.id);
            let open = told.status.access() != Access::Refused;
            frozen && open && self.history.iter().any(led) && self.history.iter().enumerate().any(was)
        });
        // Or it could not be asked shortly before, and is left alone.
        let unavailable = told == Err(ErrorKind::ControlPlaneUnavailable)
            && (failing || self.now.failures > asked.failures);
        assert!(
            explained || held || unavailable,
            "{name}, asked for at {}: nothing explains {told:?}",
            asked.at
        );
        if let Ok(tenant) = told {
            let n = self.place(tenant.id);
            let announced_since = self.now.announced[n].1 > asked.announced[n].1;
            assert!(
                announced_since || tenant.version.value() >= asked.served[n],
                "{name}: version {} after {} had been served",
                tenant.version,
                asked.served[n]
            );
        }
    }

    fn place(&self, id: TenantId) -> usize {
        self.ids
            .iter()
            .position(|other| *other == id)
            .expect("there are no others")
    }
}

fn nth_slug(n: usize) -> Slug {
    slug(&format!("slug-{n}"))
}

fn nth_domain(n: usize) -> Domain {
    domain(&format!("domain-{n}.example"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_happens_each_answer_is_explained_by_the_history(steps in steps()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(async { Model::without_feed().run(&steps).await });
    }

    #[test]
    fn and_so_it_is_while_the_feed_looks_and_fails_to(steps in steps()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(async { Model::with_feed().await.run(&steps).await });
    }

    #[test]
    fn and_so_it_is_while_routing_is_frozen_and_thawed(steps in steps_and_frosts()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(async { Model::with_feed().await.run(&steps).await });
    }
}
