//! A process says that it lives and which keys it has, whatever becomes of the control plane, and who lacks a key is found.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use biplane::{
    error::{Error, ErrorKind},
    keyring::{KeyId, KeyMaterial, KeyState, Keyring, LiveKeyring},
    presence::{Distribution, Heartbeat, PRESUMED_DEAD, WaitError, missing, wait_applied},
    repository::{Beat, Instance, Instances, KeyReport, MemoryControl},
    tenant::{InstanceId, Seq},
    testing::faulty::{Fault, FaultyRepository},
};
use tokio::time::Instant;
use tracing_subscriber::layer::SubscriberExt;

const HOUR: Duration = Duration::from_secs(3_600);

type Faulty = FaultyRepository<MemoryControl>;

fn faulty() -> Faulty {
    FaultyRepository::new(MemoryControl::new())
}

fn key(n: u8) -> KeyId {
    KeyId::from_bytes([n; 8])
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What the control plane itself lists, whatever the wrapper says.
async fn listed(faulty: &Faulty) -> Vec<Instance> {
    faulty.inner().instances().await.unwrap()
}

#[track_caller]
fn kind(result: Result<(), Error>, kind: ErrorKind) {
    assert_eq!(result.unwrap_err().kind(), kind);
}

#[tokio::test(start_paused = true)]
async fn a_process_is_listed_with_its_keys_until_it_closes() {
    let faulty = faulty();
    let material = KeyMaterial::generate().unwrap();
    let primary = material.id();
    let keyring = Keyring::builder()
        .key(material, KeyState::Primary)
        .build()
        .unwrap();
    let id = InstanceId::new();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes")
        .id(id)
        .keyring(LiveKeyring::new(keyring))
        .applied(|| Seq::new(7))
        .start()
        .unwrap();
    assert_eq!((heartbeat.id(), heartbeat.silent()), (id, None));
    faulty.reached(1).await;
    tokio::time::sleep(seconds(1)).await;
    let listed_now = listed(&faulty).await;
    assert_eq!(listed_now.len(), 1);
    let instance = &listed_now[0];
    assert_eq!(
        (instance.id, &*instance.service, instance.applied),
        (id, "notes", Seq::new(7))
    );
    let reports: Vec<_> = instance.keys.iter().map(|key| key.report).collect();
    assert_eq!(reports, [KeyReport::new(primary, KeyState::Primary)]);
    assert_eq!(heartbeat.silent(), Some(seconds(1)));

    heartbeat.close(seconds(5)).await.unwrap();
    assert_eq!(listed(&faulty).await, []);
    let calls = faulty.calls();
    tokio::time::sleep(HOUR).await;
    assert_eq!(faulty.calls(), calls, "it has stopped");
    kind(heartbeat.beat_now().await, ErrorKind::Closed);
    kind(heartbeat.close(seconds(5)).await, ErrorKind::Closed);
}

type Moments = Arc<Mutex<Vec<Instant>>>;

/// The moments of its beats, by the clock of the test.
fn recorded(heartbeats: usize) -> (Vec<Heartbeat>, Vec<Moments>) {
    let control = MemoryControl::new();
    let one = |_| {
        let moments = Moments::default();
        let seen = Arc::clone(&moments);
        let note = move || {
            seen.lock().unwrap().push(Instant::now());
            Vec::new()
        };
        let heartbeat = Heartbeat::builder(control.clone(), "notes").keys(note).start();
        (heartbeat.unwrap(), moments)
    };
    (0..heartbeats).map(one).unzip()
}

#[tokio::test(start_paused = true)]
async fn it_beats_every_ten_seconds_and_not_in_step_with_others() {
    let began = Instant::now();
    let (_beating, moments) = recorded(2);
    tokio::time::sleep(HOUR).await;
    let moments: Vec<Vec<Instant>> = moments
        .iter()
        .map(|moments| moments.lock().unwrap().clone())
        .collect();
    for moments in &moments {
        assert!(moments[0] - began < seconds(1), "the first one comes at once");
        assert!((330..=390).contains(&moments.len()), "{}", moments.len());
        let gaps: Vec<Duration> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for gap in &gaps {
            assert!(
                *gap >= seconds(8) && *gap <= seconds(12) + Duration::from_millis(5),
                "{gap:?}"
            );
        }
        let (shortest, longest) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!(*longest - *shortest > seconds(2), "{shortest:?} {longest:?}");
    }
    let moment = Duration::from_millis(50);
    let beside = |one: &Instant, other: &Instant| {
        one.saturating_duration_since(*other)
            .max(other.saturating_duration_since(*one))
            < moment
    };
    let in_step = |one: &&Instant| moments[1].iter().any(|other| beside(one, other));
    let together = moments[0].iter().filter(in_step).count();
    assert!(together < 30, "{together} of {} in step", moments[0].len());
}

#[tokio::test(start_paused = true)]
async fn what_changed_is_known_once_beat_now_returns() {
    let faulty = faulty();
    let keys: Arc<Mutex<Vec<KeyReport>>> = Arc::default();
    let shared = Arc::clone(&keys);
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes")
        .keys(move || shared.lock().unwrap().clone())
        .start()
        .unwrap();
    let began = Instant::now();
    for n in 1..=3 {
        let report = KeyReport::new(key(n), KeyState::Pending);
        keys.lock().unwrap().push(report);
        heartbeat.beat_now().await.unwrap();
        let listed = listed(&faulty).await;
        assert_eq!(listed[0].keys.last().unwrap().report, report);
    }
    // Also while a beat is under way that began before the change.
    faulty.set(Fault::HoldAnswer);
    let calls = faulty.calls();
    let (under_way, change) = (heartbeat.beat_now(), async {
        faulty.reached(calls + 1).await;
        keys.lock().unwrap().clear();
        let changed = heartbeat.beat_now();
        let release = async { faulty.set(Fault::None) };
        tokio::join!(changed, release).0.unwrap();
        assert_eq!(listed(&faulty).await[0].keys, []);
    });
    tokio::join!(under_way, change).0.unwrap();
    assert!(began.elapsed() < seconds(5));
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_share_a_beat() {
    let faulty = faulty();
    let heartbeat = Arc::new(Heartbeat::builder(faulty.clone(), "notes").start().unwrap());
    heartbeat.beat_now().await.unwrap();
    let calls = faulty.calls();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let heartbeat = Arc::clone(&heartbeat);
        asking.spawn(async move { heartbeat.beat_now().await });
    }
    for outcome in asking.join_all().await {
        outcome.unwrap();
    }
    let made = faulty.calls() - calls;
    assert!(made < 50, "{made} beats for 200 who asked");
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_trying_while_the_control_plane_is_gone() {
    let faulty = faulty();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes").start().unwrap();
    heartbeat.beat_now().await.unwrap();
    for fault in [Fault::Unreachable, Fault::Hang] {
        faulty.set(fault);
        let began = Instant::now();
        kind(heartbeat.beat_now().await, ErrorKind::ControlPlaneUnavailable);
        assert!(
            began.elapsed() <= Heartbeat::TIMEOUT + seconds(1),
            "a hanging beat is given up"
        );
        let calls = faulty.calls();
        tokio::time::sleep(HOUR).await;
        assert!(faulty.calls() > calls + 200, "{fault:?}");
        let silent = heartbeat.silent().unwrap();
        assert!(silent >= HOUR, "{silent:?}");
        faulty.set(Fault::None);
        tokio::time::sleep(seconds(20)).await;
        assert!(heartbeat.silent().unwrap() <= seconds(12), "nobody had to ask");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_two_lines_in_the_log() {
    // For the whole process: whether anybody listens is remembered for each place that logs, by whichever test comes first.
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let subscriber = tracing_subscriber::registry().with(Lines(Arc::clone(&lines)));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    tracing::callsite::rebuild_interest_cache();
    let faulty = faulty();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes").start().unwrap();
    let id = heartbeat.id().to_string();
    let ours = || {
        let mut lines = lines.lock().unwrap().clone();
        lines.retain(|line| line.contains(&id));
        lines
    };
    heartbeat.beat_now().await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(ours(), Vec::<String>::new(), "no news is not logged");
    for _ in 0..2 {
        faulty.set(Fault::Unreachable);
        tokio::time::sleep(HOUR).await;
        faulty.set(Fault::None);
        tokio::time::sleep(HOUR).await;
    }
    let lines = ours();
    let levels: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(levels, ["WARN", "INFO", "WARN", "INFO"], "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("notes")), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_control_plane_that_is_gone() {
    let faulty = faulty();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes").start().unwrap();
    heartbeat.beat_now().await.unwrap();
    faulty.set(Fault::Hang);
    let began = Instant::now();
    kind(
        heartbeat.close(seconds(2)).await,
        ErrorKind::ControlPlaneUnavailable,
    );
    assert_eq!(began.elapsed(), seconds(2));
    faulty.set(Fault::None);
    let calls = faulty.calls();
    tokio::time::sleep(HOUR).await;
    assert_eq!(faulty.calls(), calls, "it has stopped all the same");
    assert_eq!(listed(&faulty).await.len(), 1, "its silence will be noticed");
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_is_under_way_does_not_bring_back_who_left() {
    let faulty = faulty();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes").start().unwrap();
    heartbeat.beat_now().await.unwrap();
    faulty.set(Fault::Hang);
    let calls = faulty.calls();
    let beat = heartbeat.beat_now();
    let close = async {
        faulty.reached(calls + 1).await;
        let release = async { faulty.set(Fault::None) };
        tokio::join!(heartbeat.close(seconds(60)), release).0
    };
    let (beat, close) = tokio::join!(beat, close);
    beat.unwrap();
    close.unwrap();
    assert_eq!(listed(&faulty).await, []);
}

#[tokio::test(start_paused = true)]
async fn dropped_it_stops_and_stays_listed() {
    let faulty = faulty();
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes").start().unwrap();
    heartbeat.beat_now().await.unwrap();
    drop(heartbeat);
    tokio::task::yield_now().await;
    let calls = faulty.calls();
    tokio::time::sleep(HOUR).await;
    assert_eq!(faulty.calls(), calls);
    assert_eq!(listed(&faulty).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_what_reports_the_keys_does_not_end_it() {
    let faulty = faulty();
    let poisoned = Arc::new(Mutex::new(true));
    let shared = Arc::clone(&poisoned);
    let heartbeat = Heartbeat::builder(faulty.clone(), "notes")
        .keys(move || {
            assert!(
                !*shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
                "on purpose"
            );
            vec![KeyReport::new(key(1), KeyState::Primary)]
        })
        .start()
        .unwrap();
    kind(heartbeat.beat_now().await, ErrorKind::Internal);
    *poisoned.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = false;
    tokio::time::sleep(seconds(13)).await;
    assert_eq!(listed(&faulty).await[0].keys.len(), 1);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let builder = || Heartbeat::builder(MemoryControl::new(), "notes");
    for refused in [
        Heartbeat::builder(MemoryControl::new(), " ").start(),
        builder().interval(Duration::ZERO).start(),
        builder().interval(seconds(31)).start(),
        builder().timeout(Duration::ZERO).start(),
        std::thread::spawn(move || builder().start()).join().unwrap(),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidConfiguration);
    }
}

/// Instances of which a test says what they report, on a control plane whose clock it moves.
struct Fleet {
    control: MemoryControl,
    ids: Vec<InstanceId>,
}

impl Fleet {
    fn of(instances: usize) -> Self {
        Self {
            control: MemoryControl::new(),
            ids: (0..instances).map(|_| InstanceId::new()).collect(),
        }
    }

    async fn beat(&self, n: usize, state: Option<KeyState>) {
        let old = KeyReport::new(key(9), KeyState::DecryptOnly);
        let keys = state
            .map(|state| KeyReport::new(key(1), state))
            .into_iter()
            .chain([old]);
        let beat = Beat::new(self.ids[n], format!("service-{n}")).keys(keys.collect());
        self.control.beat(&beat).await.unwrap();
    }

    /// Lets time pass in which these beat every half minute.
    async fn live(&self, alive: &[(usize, Option<KeyState>)], time: Duration) {
        let step = seconds(30);
        for _ in 0..time.as_secs() / step.as_secs() {
            self.control.advance(step);
            for (n, state) in alive {
                self.beat(*n, *state).await;
            }
        }
    }

    async fn ask(&self) -> Distribution {
        missing(&self.control, key(1), PRESUMED_DEAD).await.unwrap()
    }

    /// The places of the instances in each group: ready, lacking, presumed dead.
    async fn groups(&self) -> [Vec<usize>; 3] {
        let distribution = self.ask().await;
        [
            &distribution.ready,
            &distribution.lacking,
            &distribution.presumed_dead,
        ]
        .map(|group| {
            let place = |id| self.ids.iter().position(|other| *other == id).unwrap();
            group.iter().map(|holder| place(holder.id)).collect()
        })
    }
}

const PENDING: Option<KeyState> = Some(KeyState::Pending);

#[tokio::test]
async fn who_has_a_key_that_opens_is_ready_and_who_has_not_is_named() {
    let fleet = Fleet::of(7);
    let states = [
        PENDING,
        Some(KeyState::Primary),
        Some(KeyState::DecryptOnly),
        Some(KeyState::Disabled),
        Some(KeyState::Destroyed),
        None,
    ];
    for (n, state) in states.into_iter().enumerate() {
        fleet.beat(n, state).await;
    }
    let none = Beat::new(fleet.ids[6], "without keys");
    fleet.control.beat(&none).await.unwrap();
    assert_eq!(fleet.groups().await, [vec![0, 1, 2], vec![3, 4, 5, 6], vec![]]);
    let asked = fleet.ask().await;
    assert!(!asked.is_everywhere());
    assert_eq!(asked.key, key(1));
    let named: Vec<_> = asked
        .lacking
        .iter()
        .map(|holder| (&*holder.service, holder.state))
        .collect();
    assert_eq!(
        named,
        [
            ("service-3", Some(KeyState::Disabled)),
            ("service-4", Some(KeyState::Destroyed)),
            ("service-5", None),
            ("without keys", None),
        ]
    );
    for n in 3..6 {
        fleet.beat(n, PENDING).await;
    }
    fleet.control.leave(fleet.ids[6]).await.unwrap();
    assert!(fleet.ask().await.is_everywhere());
}

/// Promotion asks for it, and gets the names of those that are in the way instead.
#[tokio::test]
async fn evidence_is_given_only_of_a_key_that_is_everywhere() {
    let fleet = Fleet::of(9);
    let nobody = fleet.ask().await.evidence().unwrap_err();
    assert!(nobody.to_string().contains("by hand"), "{nobody}");
    fleet.beat(0, PENDING).await;
    fleet.beat(1, Some(KeyState::Disabled)).await;
    for n in 2..9 {
        fleet.beat(n, None).await;
    }
    let asked = fleet.ask().await;
    let refused = asked.clone().evidence().unwrap_err();
    assert_eq!(*refused.distribution(), asked);
    let said = refused.to_string();
    for part in [
        "missing in 8 of 9",
        &key(1).to_string(),
        "service-1",
        "has it disabled",
        &fleet.ids[2].to_string(),
        "and 3 more",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    for n in 1..9 {
        fleet.beat(n, PENDING).await;
    }
    assert_eq!(fleet.ask().await.evidence().unwrap().key(), key(1));
}

#[tokio::test]
async fn where_nobody_is_known_a_key_is_not_everywhere() {
    let fleet = Fleet::of(2);
    assert!(!fleet.ask().await.is_everywhere(), "nothing is known");
    fleet.beat(0, None).await;
    fleet.live(&[(0, None)], PRESUMED_DEAD).await;
    fleet.control.leave(fleet.ids[0]).await.unwrap();
    assert!(!fleet.ask().await.is_everywhere());
}

#[tokio::test]
async fn a_short_silence_changes_nothing() {
    let fleet = Fleet::of(3);
    for (n, state) in [(0, PENDING), (1, PENDING), (2, None)] {
        fleet.beat(n, state).await;
    }
    let alive = [(0, PENDING)];
    fleet.live(&alive, PRESUMED_DEAD - seconds(30)).await;
    assert_eq!(fleet.groups().await, [vec![0, 1], vec![2], vec![]]);
    let silent = fleet.ask().await.lacking[0].silent;
    assert!(silent >= PRESUMED_DEAD - seconds(30), "{silent:?}");
}

/// Whatever it had: nobody can tell whether it has it now.
#[tokio::test]
async fn a_long_silence_while_others_are_heard_is_presumed_death() {
    let fleet = Fleet::of(3);
    for (n, state) in [(0, PENDING), (1, PENDING), (2, None)] {
        fleet.beat(n, state).await;
    }
    fleet.live(&[(0, PENDING)], PRESUMED_DEAD + seconds(30)).await;
    assert_eq!(fleet.groups().await, [vec![0], vec![], vec![1, 2]]);
    assert!(fleet.ask().await.is_everywhere(), "the dead open nothing");
    fleet.beat(2, None).await;
    assert_eq!(fleet.groups().await, [vec![0], vec![2], vec![1]]);
    assert!(!fleet.ask().await.is_everywhere(), "it lived after all");
}

/// Nobody could beat: that the first one is heard again says nothing about the others.
#[tokio::test]
async fn an_outage_of_the_control_plane_is_nobodys_death() {
    let fleet = Fleet::of(3);
    let all = [(0, PENDING), (1, PENDING), (2, None)];
    for (n, state) in all {
        fleet.beat(n, state).await;
    }
    fleet.live(&all, PRESUMED_DEAD * 2).await;
    fleet.control.advance(HOUR);
    assert_eq!(fleet.groups().await, [vec![], vec![0, 1, 2], vec![]]);
    fleet.beat(0, PENDING).await;
    assert_eq!(fleet.groups().await, [vec![0], vec![1, 2], vec![]]);
    assert!(!fleet.ask().await.is_everywhere());
    fleet.live(&[(0, PENDING)], PRESUMED_DEAD - seconds(30)).await;
    assert_eq!(fleet.groups().await, [vec![0], vec![1, 2], vec![]]);
    fleet.live(&[(0, PENDING)], seconds(60)).await;
    assert_eq!(fleet.groups().await, [vec![0], vec![], vec![1, 2]]);
}

/// New processes replace old ones that were killed: the old ones hold a rotation up for no longer than silence takes.
#[tokio::test]
async fn what_a_deployment_replaced_is_presumed_dead_in_time() {
    let fleet = Fleet::of(2);
    fleet.beat(0, None).await;
    fleet.live(&[(0, None)], HOUR).await;
    fleet.control.advance(seconds(20));
    fleet.beat(1, PENDING).await;
    assert_eq!(fleet.groups().await, [vec![1], vec![0], vec![]]);
    fleet.live(&[(1, PENDING)], PRESUMED_DEAD).await;
    assert_eq!(fleet.groups().await, [vec![1], vec![], vec![0]]);
}

/// Collects what is logged, a line each.
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut line = event.metadata().level().to_string();
        event.record(&mut |field: &tracing::field::Field, value: &dyn fmt::Debug| {
            line.push_str(&format!(" {field}={value:?}"));
        });
        self.0.lock().unwrap().push(line);
    }
}

/// A fleet that has applied so much of the change log.
async fn applied(fleet: &Fleet, instance: usize, seq: u64) {
    let beat = Beat::new(fleet.ids[instance], format!("service-{instance}")).applied(Seq::new(seq));
    fleet.control.beat(&beat).await.unwrap();
}

async fn wait(fleet: &Fleet, seq: u64, timeout: Duration) -> Result<(), WaitError> {
    wait_applied(&fleet.control, Seq::new(seq), PRESUMED_DEAD, timeout).await
}

#[tokio::test]
async fn a_change_is_applied_when_every_live_instance_has_it() {
    let fleet = Fleet::of(3);
    for (instance, seq) in [(0, 7), (1, 6), (2, 9)] {
        applied(&fleet, instance, seq).await;
    }
    wait(&fleet, 6, Duration::ZERO).await.unwrap();
    let refused = wait(&fleet, 8, Duration::ZERO).await.unwrap_err();
    let WaitError::NotApplied(refused) = &refused else {
        panic!("{refused}");
    };
    let lagging: Vec<_> = refused
        .lagging
        .iter()
        .map(|one| (&*one.service, one.applied))
        .collect();
    assert_eq!(lagging, [("service-0", Seq::new(7)), ("service-1", Seq::new(6))]);
    let text = refused.to_string();
    assert!(
        text.starts_with("change 8 is not applied by 2 instances: service-0 "),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_when_the_last_one_has_it() {
    let fleet = Fleet::of(2);
    applied(&fleet, 0, 5).await;
    applied(&fleet, 1, 4).await;
    let last = async {
        tokio::time::sleep(seconds(20)).await;
        applied(&fleet, 1, 5).await;
    };
    let (outcome, ()) = tokio::join!(wait(&fleet, 5, seconds(60)), last);
    outcome.unwrap();
}

#[tokio::test]
async fn with_nobody_known_nothing_is_applied_and_the_dead_hold_nobody_up() {
    let fleet = Fleet::of(2);
    let refused = wait(&fleet, 1, Duration::ZERO).await.unwrap_err();
    assert!(refused.to_string().starts_with("no live instance"), "{refused}");

    applied(&fleet, 0, 1).await;
    for _ in 0..11 {
        fleet.control.advance(seconds(30));
        applied(&fleet, 1, 3).await;
    }
    wait(&fleet, 3, Duration::ZERO).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_cannot_be_asked_is_said_so_at_the_deadline() {
    let faulty = FaultyRepository::new(MemoryControl::new());
    faulty.set(Fault::Unreachable);
    let refused = wait_applied(&faulty, Seq::new(1), PRESUMED_DEAD, seconds(3))
        .await
        .unwrap_err();
    assert!(matches!(refused, WaitError::Presence(_)), "{refused}");
}
