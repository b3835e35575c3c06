//! What istiod hears of the machine, and when: Envoy's node is said anew when the machine has
//! changed, after its entry has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::entry_name;
use crate::base::trouble::chain;
use crate::kube::Client;
use crate::registry::{Mode, Standing, Told};
use crate::workload::Workload;
use crate::xds::{Claims, Opening, Phase, UpstreamState};

/// Where the claims of a start come from, and where they go.
pub(super) struct Claimant {
    /// The workload that Envoy's bootstrap was made of.
    pub(super) bootstrap: Arc<Workload>,
    pub(super) claims: watch::Sender<Claims>,
}

impl Claimant {
    /// Claims of this workload.
    fn say(&self, workload: &Arc<Workload>, opening: Opening) {
        let same = node_parts(workload) == node_parts(&self.bootstrap);
        let workload = (!same).then(|| Arc::clone(workload));
        self.claims.send_replace(Claims { workload, opening });
    }

    /// Follows a workload that istiod is told of as it is.
    pub(super) async fn follow(self, mut workload: watch::Receiver<Arc<Workload>>) {
        let mut told = Arc::clone(&self.bootstrap);
        loop {
            let now = Arc::clone(&workload.borrow_and_update());
            if node_parts(&now) != node_parts(&told) {
                self.say(&now, Opening::Now);
            }
            told = now;
            if workload.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Follows our own entry: istiod is told what it shows. An entry that was made anew has to be
    /// connected anew, and one that is another machine's must not be.
    pub(super) async fn follow_entry(self, mut entry: watch::Receiver<Option<Standing>>) {
        let mut last: Option<Standing> = None;
        loop {
            let now = entry.borrow_and_update().clone();
            match (&last, &now) {
                (Some(_), None) => {
                    self.claims.send_modify(|claims| claims.opening = Opening::Closed);
                }
                (Some(old), Some(new))
                    if old.uid == new.uid
                        && node_parts(&old.workload) == node_parts(&new.workload) => {}
                (None, Some(new)) if self.is_said(&new.workload) => {}
                (_, Some(new)) => self.say(&new.workload, Opening::Now),
                (None, None) => {}
            }
            last = now;
            if entry.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn is_said(&self, workload: &Workload) -> bool {
        let claims = self.claims.borrow();
        let said = claims.workload.as_ref().unwrap_or(&self.bootstrap);
        claims.opening != Opening::Closed && node_parts(said) == node_parts(workload)
    }
}

/// The registration that istiod makes of our stream.
pub(super) struct Auto {
    pub(super) claimant: Claimant,
    /// What istiod made the entry from, as far as we know.
    pub(super) told: Option<Told>,
    /// Where that is kept.
    pub(super) record: PathBuf,
    /// The Kubernetes API, where we may use it.
    pub(super) kube: Option<Arc<Client>>,
    /// How long istiod keeps an entry whose stream has ended.
    pub(super) grace: Duration,
}

impl Auto {
    /// The first claims: an entry of other claims that stands from before may have to be forgotten
    /// first.
    pub(super) fn opening(told: Option<&Told>, workload: &Workload, grace: Duration) -> Opening {
        let now = Told::of(workload, &entry_name(Mode::Istiod, workload));
        match told {
            Some(told) if told.hides(&now) => Opening::At(Instant::now() + grace + MARGIN),
            _ => Opening::Now,
        }
    }

    /// Follows the workload. Istiod does not change an entry that it has made: it has to be gone
    /// before the machine can be registered with other claims.
    pub(super) async fn follow(
        mut self,
        mut workload: watch::Receiver<Arc<Workload>>,
        mut upstream: watch::Receiver<UpstreamState>,
    ) {
        let mut current = Arc::clone(&self.claimant.bootstrap);
        self.turn_to(&current, &current).await;
        loop {
            tokio::select! {
                Ok(()) = workload.changed() => {
                    let now = Arc::clone(&workload.borrow_and_update());
                    if node_parts(&now) != node_parts(&current) {
                        self.turn_to(&now, &current).await;
                    }
                    current = now;
                }
                Ok(()) = upstream.changed() => {
                    if upstream.borrow_and_update().phase == Phase::Connected {
                        self.keep(&current);
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    async fn turn_to(&mut self, now: &Arc<Workload>, before: &Arc<Workload>) {
        let new = Told::of(now, &entry_name(Mode::Istiod, now));
        let Some(old) = self.told.clone().filter(|old| *old != new) else {
            if now != before {
                self.claimant.say(now, Opening::Now);
            }
            return;
        };
        let gone = match &self.kube {
            Some(kube) => old.forget(kube, before).await.map_err(|error| {
                let (entry, error) = (old.name(), chain(&error));
                tracing::warn!(
                    entry,
                    error,
                    "The old WorkloadEntry stays until istiod forgets it."
                );
            }),
            None => Err(()),
        };
        let opening = match gone {
            Ok(()) => Opening::Now,
            Err(()) if old.hides(&new) => {
                let seconds = (self.grace + MARGIN).as_secs();
                tracing::info!(
                    entry = old.name(),
                    seconds,
                    "Istiod has to forget the WorkloadEntry first; the machine is registered again \
                     after this time."
                );
                Opening::At(Instant::now() + self.grace + MARGIN)
            }
            Err(()) => Opening::Now,
        };
        self.claimant.say(now, opening);
    }

    /// Istiod has answered: what it was told is what the entry shows.
    fn keep(&mut self, workload: &Workload) {
        let told = Some(Told::of(workload, &entry_name(Mode::Istiod, workload)));
        if self.told == told {
            return;
        }
        self.told = told;
        if let Some(Err(error)) = self.told.as_ref().map(|told| told.write(&self.record)) {
            tracing::warn!(error = chain(&error), "What istiod was told could not be kept.");
        }
    }
}

/// What of a workload istiod reads from Envoy's node.
fn node_parts(workload: &Workload) -> impl PartialEq + use<> {
    let Workload { instance_ips, labels, network, locality, .. } = workload.clone();
    (instance_ips, labels, network, locality)
}

/// Istiod removes entries at a limited pace (Istio `pilot/pkg/autoregistration/controller.go`).
const MARGIN: Duration = Duration::from_secs(2);
