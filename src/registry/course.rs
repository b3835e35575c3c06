//! How the entry is kept true: it is applied, watched, and applied again when it drifts. Whoever
//! holds one of our fields is named and keeps it; the other fields stay true.

mod outcome;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::direct::{Direct, RegisterError, is_with_machine};
use super::record::Record;
use super::rival::{self, Answer, Rival};
use super::tenant::{self, Tenant};
use super::{fields, object};
use crate::base::backoff::Backoff;
use crate::base::tasks::busy;
use crate::base::trouble::Trouble;
use crate::kube::{FieldConflict, KubeError, Object, Version, Watch, WatchEvent};
use crate::workload::{Address, Workload};

/// One run of a hand on an entry.
pub(super) struct Course<'a> {
    pub(super) direct: &'a Direct,
    pub(super) workload: watch::Receiver<Arc<Workload>>,
    /// Of tries that failed.
    failures: Backoff,
    /// Why the last try failed, which is logged once.
    failure: Option<String>,
    /// Of repairs: somebody may do the opposite of what we do.
    repairs: Backoff,
    repaired: Option<Instant>,
    /// Of watches that broke.
    breaks: Backoff,
    /// The entry that stood last.
    pub(super) uid: Option<String>,
    /// Which of the machines with our ID we are.
    pub(super) instance: String,
    /// Whether another of them has taken, or kept, the entry from us.
    pub(super) was_taken: bool,
    /// The other one, which asks for the entry.
    pub(super) rival: Option<Rival>,
    /// The address of the other one that was logged last.
    pub(super) told_of: Option<String>,
    /// The entry of the last run, until the API server has answered.
    recalled: Option<Record>,
    /// False once the API server has refused a watch.
    may_watch: bool,
    /// The addresses at the last look.
    addresses: (Address, Vec<IpAddr>),
}

/// Why the entry has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another machine with our ID asks for the entry, or has taken it.
    Challenge,
    /// It is not as it should be.
    Drift,
    /// The watch is over, and something may have been missed.
    Lost,
    /// It is time.
    Time,
    /// The workload has changed.
    Workload,
}

/// The entry as it is after a look.
pub(super) struct Look {
    pub(super) live: Value,
    /// What of it is ours to keep.
    pub(super) kept: Value,
    /// Whether there is nothing to wait for but changes.
    pub(super) settled: bool,
}

impl<'a> Course<'a> {
    pub(super) fn new(direct: &'a Direct) -> Self {
        let workload = direct.workload.clone();
        let addresses = addresses(&workload.borrow());
        let instance = direct.config.machine.instance();
        Self {
            direct,
            workload,
            addresses,
            failures: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            failure: None,
            repairs: Backoff::new(FIRST_REPAIR, LONGEST_REPAIR),
            repaired: None,
            breaks: Backoff::new(FIRST_PAUSE, LOOK),
            uid: None,
            instance: instance.map_or_else(rival::new_instance, str::to_owned),
            was_taken: false,
            rival: None,
            told_of: None,
            recalled: direct.recalled(),
            may_watch: true,
        }
    }

    /// Keeps the entry until `stop`. An apply that is under way then is waited for: the server may
    /// carry it out, and make an entry anew that is being removed.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let look = {
                let mut look = pin!(self.first_look());
                tokio::select! {
                    look = &mut look => look,
                    () = stop.cancelled() => return drop(timeout(LAST_LOOK, look).await),
                }
            };
            tokio::select! {
                () = self.after(look) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Waits until the entry has to be looked at again.
    async fn after(&mut self, look: Result<Look, RegisterError>) {
        match look {
            Ok(look) => {
                self.failures.reset();
                self.failure = None;
                self.show_rival();
                if self.follow(look).await == Cause::Drift {
                    self.pace().await;
                }
            }
            Err(error) => {
                let pause = self.failures.delay_for(error.retry());
                self.failed(&error);
                tokio::select! {
                    () = sleep(pause) => {}
                    Ok(()) = self.workload.changed() => {}
                }
            }
        }
    }

    /// A look; where the entry of the last run is known, an API server that does not answer soon
    /// holds up nothing.
    async fn first_look(&mut self) -> Result<Look, RegisterError> {
        if self.recalled.is_none() {
            return self.look().await;
        }
        let direct = self.direct;
        let workload = Arc::clone(&self.workload.borrow());
        let uid = self.recalled.as_ref().and_then(|record| record.uid.clone());
        let outcome = {
            let mut look = pin!(self.look());
            tokio::select! {
                outcome = &mut look => outcome,
                () = sleep(HEAD_START) => {
                    direct.assume(workload, uid);
                    look.await
                }
            }
        };
        if outcome.is_ok() {
            self.recalled = None;
        }
        outcome
    }

    /// Applies the entry.
    async fn look(&mut self) -> Result<Look, RegisterError> {
        let _busy = busy("applying the WorkloadEntry", PATIENCE);
        let Direct { client, config, .. } = self.direct;
        let workload = Arc::clone(&self.workload.borrow_and_update());
        let addresses = addresses(&workload);
        if std::mem::replace(&mut self.addresses, addresses.clone()) != addresses {
            client.reconnect();
        }
        let (object, wanted) = (object(&workload), self.wanted(&workload));
        let mut body = wanted.clone();
        if self.uid.is_none() {
            match self.ask_holder(&object, &workload).await? {
                Answer::Held(look) => return Ok(look),
                Answer::Free(revision) => fields::at_revision(&mut body, revision),
            }
        }
        let manager = config.machine.field_manager();
        let error = match client.apply(&object, &body, &manager, false).await {
            Ok(live) => return Ok(self.stands(live, wanted, &workload)),
            Err(error) if error.conflicts().is_empty() => return Err(error.into()),
            Err(error) => error,
        };
        if error.conflicts().iter().any(is_with_machine) {
            return self.meet(&object, wanted, &workload).await;
        }
        if config.force {
            let live = client.apply(&object, &wanted, &manager, true).await?;
            tracing::warn!(entry = object.name, %error, "Took over fields that others held.");
            return Ok(self.stands(live, wanted, &workload));
        }
        self.yield_to(&object, wanted, &workload, error.conflicts()).await
    }

    /// Another machine's agent has made this entry: it keeps it while it is there.
    async fn meet(
        &mut self,
        object: &Object,
        wanted: Value,
        workload: &Arc<Workload>,
    ) -> Result<Look, RegisterError> {
        let Direct { client, config, clock, .. } = self.direct;
        let live = client.get(object).await?;
        let (now, grace) = (clock.now(), config.take_over_after);
        // The times are istiod's and the API server's: a clock of ours that is ahead steals no name.
        let ago = match tenant::tenant(&live, client.server_time(), grace) {
            Tenant::Alive(how) => {
                let address = live.pointer("/spec/address").and_then(Value::as_str);
                let error = taken(object, address.unwrap_or("an unknown address"), how);
                let trouble = Trouble::new(&error, error.hint(), error.retry(), now);
                self.lost(trouble);
                return Ok(Look { kept: live.clone(), live, settled: false });
            }
            Tenant::Gone(ago) => ago,
        };
        // The version makes sure that it has not come back in this moment.
        let mut body = wanted.clone();
        fields::at_revision(&mut body, Version::of(&live).map(|version| version.revision));
        let manager = config.machine.field_manager();
        let live = client.apply(object, &body, &manager, true).await?;
        tracing::warn!(
            entry = object.name,
            seconds = ago.as_secs(),
            "Took over the WorkloadEntry of another machine, which has been gone for this long."
        );
        Ok(self.stands(live, wanted, workload))
    }

    /// Applies what nobody else holds, and says who holds the rest. Nothing is applied to an entry
    /// that is not ours and whose address or account somebody else decides.
    async fn yield_to(
        &mut self,
        object: &Object,
        wanted: Value,
        workload: &Arc<Workload>,
        conflicts: &[FieldConflict],
    ) -> Result<Look, RegisterError> {
        let Direct { client, config, clock, .. } = self.direct;
        let entry = format!("{}/{}", object.namespace, object.name);
        let error = RegisterError::Contested { entry, fields: conflicts.to_vec() };
        let is_vital = |one: &FieldConflict| VITAL.contains(&one.field.as_str());
        if self.uid.is_none() && conflicts.iter().any(is_vital) {
            // It may be ours from before the agent was started anew.
            let live = client.get(object).await?;
            if tenant::machine(&live) != Some(config.machine.hash()) {
                return Err(error);
            }
        }
        let theirs: Vec<&str> = conflicts.iter().map(|one| one.field.as_str()).collect();
        let kept = fields::without(&wanted, &theirs);
        let manager = config.machine.field_manager();
        let live = client.apply(object, &kept, &manager, false).await?;
        let mut look = self.stands(live, kept, workload);
        look.settled = false;
        let trouble = Trouble::new(&error, error.hint(), error.retry(), clock.now());
        self.direct.state.send_modify(|state| {
            let known = state.trouble.as_ref().is_some_and(|old| old.what == trouble.what);
            state.contested = conflicts.iter().map(|one| one.field.clone()).collect();
            if !known {
                tracing::warn!(%trouble, "The WorkloadEntry is not as it should be.");
                state.conflicts = state.conflicts.saturating_add(1);
                state.failed(trouble);
            }
        });
        Ok(look)
    }

    /// Waits until the entry has to be looked at.
    async fn follow(&mut self, look: Look) -> Cause {
        let mut revision = fields::revision(&look.live);
        let end = Instant::now() + jittered(LOOK);
        let limit = (!look.settled || self.rival.is_some()).then_some(end);
        loop {
            let cause = match self.watch(&revision).await {
                Ok(watch) => {
                    self.watching(true);
                    self.events(watch, &look, &mut revision, limit).await
                }
                Err(error) if error.code() == Some(403) => {
                    self.watching(false);
                    return self.wait(end).await.unwrap_or(Cause::Time);
                }
                Err(error) => {
                    tracing::debug!(%error, "The WorkloadEntry cannot be watched.");
                    Some(Cause::Lost)
                }
            };
            match cause {
                Some(Cause::Lost) => {
                    self.watching(false);
                    let pause = Instant::now() + self.breaks.next_delay();
                    return self.wait(pause).await.unwrap_or(Cause::Lost);
                }
                Some(cause) => return cause,
                // The server ends a watch after some minutes.
                None => {
                    let pause = Instant::now() + self.breaks.next_delay();
                    if let Some(cause) = self.wait(pause).await {
                        return cause;
                    }
                }
            }
        }
    }

    /// Waits, unless the workload changes before.
    async fn wait(&mut self, end: Instant) -> Option<Cause> {
        tokio::select! {
            () = tokio::time::sleep_until(end) => None,
            Ok(()) = self.workload.changed() => Some(Cause::Workload),
        }
    }

    async fn watch(&mut self, revision: &str) -> Result<Watch, KubeError> {
        let object = object(&self.workload.borrow());
        let watch = self.direct.client.watch(&object, revision).await;
        let may = watch.as_ref().err().and_then(KubeError::code) != Some(403);
        if !may && std::mem::replace(&mut self.may_watch, may) {
            tracing::warn!(
                entry = object.name,
                "This account may not watch its WorkloadEntry (verb watch): drift is found once a \
                 minute."
            );
        }
        self.may_watch = may;
        watch
    }

    /// Takes events until one is a cause; `None` at the watch's end.
    async fn events(
        &mut self,
        mut watch: Watch,
        look: &Look,
        revision: &mut String,
        end: Option<Instant>,
    ) -> Option<Cause> {
        let time = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(time);
        let since = Instant::now();
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                Ok(()) = self.workload.changed() => return Some(Cause::Workload),
                () = &mut time => return Some(Cause::Time),
            };
            if matches!(event, Some(Ok(_))) || since.elapsed() >= LOOK {
                self.breaks.reset();
            }
            match event? {
                Ok(WatchEvent::Bookmark(newer)) => *revision = newer,
                Ok(WatchEvent::Deleted(_)) => {
                    self.drifted("it was deleted");
                    return Some(Cause::Drift);
                }
                Ok(WatchEvent::Present(live)) => {
                    *revision = fields::revision(&live);
                    if let Some(cause) = self.rivalry(&live, look) {
                        return Some(cause);
                    }
                    if let Some(what) = self.judge(&live, look) {
                        self.drifted(&what);
                        return Some(Cause::Drift);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "The watch of the WorkloadEntry broke.");
                    return Some(Cause::Lost);
                }
            }
        }
    }

    /// What is wrong with the entry since the look; `None` when nothing is.
    fn judge(&self, live: &Value, look: &Look) -> Option<String> {
        let uid = |object: &Value| object.pointer("/metadata/uid").cloned();
        if self.uid.is_some() && uid(live) != uid(&look.live) {
            return Some("it was made anew".to_owned());
        }
        if self.uid.is_none() {
            // Another machine's: whatever changed may mean that it is free.
            let is_other = tenant::machine(live) != tenant::machine(&look.live)
                || rival::holder(live) != rival::holder(&look.live);
            return is_other.then(|| "its machine is another one".to_owned());
        }
        let mut drifted = fields::drifted(live, &look.kept);
        // A field that others hold, and have changed since: they may have let go of it.
        let wanted = self.wanted(&self.workload.borrow());
        let theirs = fields::drifted(&look.live, &wanted);
        let moved = fields::drifted(live, &look.live);
        drifted.extend(theirs.into_iter().filter(|field| moved.contains(field)));
        (!drifted.is_empty()).then(|| drifted.join(", "))
    }

    fn drifted(&self, what: &str) {
        if self.uid.is_none() {
            return;
        }
        let entry = &self.workload.borrow().name;
        tracing::warn!(entry, what, "The WorkloadEntry has drifted; it is applied again.");
        let count =
            |state: &mut super::RegistrationState| state.drift = state.drift.saturating_add(1);
        self.direct.state.send_modify(count);
    }

    fn watching(&self, now: bool) {
        self.direct
            .state
            .send_if_modified(|state| std::mem::replace(&mut state.watching, now) != now);
    }

    /// The first repair comes at once; of somebody who undoes all of them we do not tire.
    async fn pace(&mut self) {
        if self.repaired.is_none_or(|last| last.elapsed() > QUIET) {
            self.repairs.reset();
        }
        let pause = Instant::now() + self.repairs.next_delay();
        self.wait(pause).await;
        self.repaired = Some(Instant::now());
    }
}

pub(super) fn taken(object: &Object, address: &str, how: String) -> RegisterError {
    let Object { namespace, name, .. } = object;
    RegisterError::Taken {
        entry: format!("{namespace}/{name}"),
        address: address.to_owned(),
        how,
        removal: format!("kubectl -n {namespace} delete workloadentry {name}"),
    }
}

fn addresses(workload: &Workload) -> (Address, Vec<IpAddr>) {
    (workload.address.clone(), workload.instance_ips.clone())
}

/// Many machines shall not look in the same moment.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.75..=1.0))
}

/// How long an apply that is under way may take when the agent stops.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// How long an API server may take to answer an agent that starts and knows its entry: an answer
/// can say that another machine has taken the entry over, to which this one must not connect.
const HEAD_START: Duration = Duration::from_secs(1);
/// Fields without which an entry is not this machine's.
pub(super) const VITAL: [&str; 2] = [".spec.address", ".spec.serviceAccount"];
/// For some calls, and a plugin that has the credential for them (two minutes).
const PATIENCE: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// One moment for what belongs together, such as a deletion and what replaces it.
const FIRST_REPAIR: Duration = Duration::from_millis(20);
const LONGEST_REPAIR: Duration = Duration::from_secs(30);
/// After a quiet time nobody is fighting any more.
const QUIET: Duration = Duration::from_secs(60);
/// How often an entry is looked at that cannot be watched, or that somebody else holds.
const LOOK: Duration = Duration::from_secs(60);
