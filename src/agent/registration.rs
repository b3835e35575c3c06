//! Who keeps the WorkloadEntry, and what istiod is told after it: the mode decides.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::claims::{Auto, Claimant};
use super::machine::{instance, machine};
use super::rooms::Services;
use super::start::never_ends;
use super::{CapturePlan, Leaving, Plan, RegistrationPlan};
use crate::base::clock::SharedClock;
use crate::base::fsio::FileError;
use crate::base::tasks::Tasks;
use crate::kube::Client;
use crate::registry::{Config, Direct, Mode, RegistrationState, Sweep, Told};
use crate::workload::Workload;
use crate::xds::{Claims, UpstreamState};

/// The registration before it runs.
pub(super) struct Registration {
    plan: RegistrationPlan,
    kube: Option<Arc<Client>>,
    workload: watch::Receiver<Arc<Workload>>,
    /// Our own hand on the WorkloadEntry, in the mode `kubernetes`.
    direct: Option<Arc<Direct>>,
    /// What istiod made the entry from, in the mode `istiod`, and where that is kept.
    told: Option<Told>,
    record: PathBuf,
}

impl Registration {
    /// The registration of this workload.
    ///
    /// # Errors
    /// When the machine's id cannot be kept.
    pub(super) fn open(
        plan: &Plan,
        kube: Option<Arc<Client>>,
        workload: watch::Receiver<Arc<Workload>>,
        clock: &SharedClock,
    ) -> Result<Self, FileError> {
        let record = plan.paths.registration_record();
        let paths = plan.paths.clone();
        let machine = machine(&paths)?.with_instance(Some(instance(&paths)));
        let plan = plan.registration.clone();
        let config = Config {
            machine,
            force: plan.force,
            take_over_after: plan.take_over_after,
            record: Some(paths.entry_record()),
        };
        let client = kube.as_ref().filter(|_| plan.mode == Mode::Kubernetes);
        let direct = client.map(|client| {
            let (client, clock) = (Arc::clone(client), Arc::clone(clock));
            Arc::new(Direct::new(client, workload.clone(), config, clock))
        });
        let told = Told::read(&record);
        Ok(Self { plan, kube, workload, direct, told, record })
    }

    /// The state before the first try.
    pub(super) fn wanted(&self) -> RegistrationState {
        let namespace = self.workload.borrow().id.namespace().to_string();
        RegistrationState::new(self.plan.mode, namespace, self.plan.name.clone())
    }

    /// Our own hand's state, where there is one.
    pub(super) fn state(&self) -> Option<watch::Receiver<RegistrationState>> {
        self.direct.as_ref().map(|direct| direct.state())
    }

    /// The claims before anything runs.
    pub(super) fn first_claims(&self) -> Claims {
        if self.plan.mode != Mode::Istiod {
            return Claims::default();
        }
        let workload = self.workload.borrow();
        let opening = Auto::opening(self.told.as_ref(), &workload, self.plan.grace);
        Claims { workload: None, opening }
    }

    /// Keeps the entry, where that is ours to do, and tells istiod what changes. What is returned
    /// is for the way out.
    pub(super) fn run(
        self,
        tasks: &Tasks,
        claims: watch::Sender<Claims>,
        upstream: watch::Receiver<UpstreamState>,
        services: Services,
        capture: Option<CapturePlan>,
    ) -> Leaving {
        let registrar = tasks.child();
        self.keep(&registrar);
        let (remove, delay) = (self.plan.remove_on_stop, self.plan.leave_delay);
        let registration = self.direct.clone();
        self.claim(tasks, claims, upstream);
        Leaving { remove, delay, registration, registrar, capture, services }
    }

    fn keep(&self, registrar: &Tasks) {
        let Some(direct) = &self.direct else { return };
        let (keeper, stop) = (Arc::clone(direct), registrar.stop_signal());
        registrar.critical("registration", never_ends(async move { keeper.run(stop).await }));
        if let (Some(client), Some(after)) = (&self.kube, self.plan.remove_stale_after) {
            let client = Arc::clone(client);
            let workload = Arc::clone(&self.workload.borrow());
            let sweep = Sweep { client, workload, after };
            registrar.critical("stale-entries", never_ends(sweep.run(registrar.stop_signal())));
        }
    }

    fn claim(
        self,
        tasks: &Tasks,
        claims: watch::Sender<Claims>,
        upstream: watch::Receiver<UpstreamState>,
    ) {
        let Self { plan, kube, workload, direct, told, record, .. } = self;
        let bootstrap = Arc::clone(&workload.borrow());
        let claimant = Claimant { bootstrap, claims };
        match (plan.mode, direct) {
            (Mode::Kubernetes, Some(direct)) => {
                tasks.essential("claims", claimant.follow_entry(direct.standing()));
            }
            (Mode::Istiod, _) => {
                let auto = Auto { claimant, told, record, kube, grace: plan.grace };
                tasks.essential("claims", auto.follow(workload, upstream));
            }
            _ => tasks.essential("claims", claimant.follow(workload)),
        }
    }
}
