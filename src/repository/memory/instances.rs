//! Who lives, as a control plane in memory has heard.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    keyring::KeyId,
    repository::{Beat, Instance, InstanceKey, KeyReport},
    tenant::{InstanceId, Seq},
};

const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3_600);
const STEADY_GAP: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Presence {
    heard: BTreeMap<InstanceId, Heard>,
}

struct Heard {
    service: Arc<str>,
    started_at: SystemTime,
    seen_at: SystemTime,
    steady_since: SystemTime,
    applied: Seq,
    keys: BTreeMap<KeyId, Used>,
}

struct Used {
    report: KeyReport,
    at: SystemTime,
}

impl Presence {
    pub(super) fn beat(&mut self, now: SystemTime, beat: &Beat) {
        let before = self.heard.remove(&beat.id);
        let used_at = |report: &KeyReport| {
            let known = before.as_ref()?.keys.get(&report.id)?;
            let same = (known.report.opens, known.report.refused) == (report.opens, report.refused);
            same.then_some(known.at)
        };
        let keys = beat.keys.iter().map(|report| {
            let at = used_at(report).unwrap_or(now);
            (report.id, Used { report: *report, at })
        });
        let heard = Heard {
            service: Arc::clone(&beat.service),
            started_at: before.as_ref().map_or(now, |before| before.started_at),
            seen_at: now,
            steady_since: before
                .as_ref()
                .filter(|before| since(now, before.seen_at) <= STEADY_GAP)
                .map_or(now, |before| before.steady_since),
            applied: beat.applied,
            keys: keys.collect(),
        };
        self.heard.insert(beat.id, heard);
        self.heard
            .retain(|_, heard| since(now, heard.seen_at) <= FORGOTTEN_AFTER);
    }

    pub(super) fn leave(&mut self, instance: InstanceId) {
        self.heard.remove(&instance);
    }

    pub(super) fn list(&self, now: SystemTime) -> Vec<Instance> {
        let instances = self.heard.iter().map(|(id, heard)| {
            let mut instance = Instance::new(*id, Arc::clone(&heard.service), heard.started_at);
            instance.seen_at = heard.seen_at;
            instance.silent = since(now, heard.seen_at);
            instance.steady = since(heard.seen_at, heard.steady_since);
            instance.applied = heard.applied;
            let keys = heard.keys.values();
            instance.keys = keys
                .map(|used| InstanceKey::new(used.report, since(now, used.at)))
                .collect();
            instance
        });
        instances.collect()
    }
}

/// Nothing, when the clock of the machine was put back in between.
fn since(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}
