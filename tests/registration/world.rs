//! A mesh, and machines that register themselves there, without the rest of the agent.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::watch;
use vm_agent::base::clock::{Clock, SharedClock};
use vm_agent::base::tasks::Tasks;
use vm_agent::devmesh::{KUBERNETES_AUDIENCE, Mesh, Options, Resource};
use vm_agent::identity::SpiffeId;
use vm_agent::kube::{Auth, Ca, Client};
use vm_agent::registry::{Config, Direct, Machine, RegistrationState};
use vm_agent::workload::Workload;

pub(crate) const ENTRIES: Resource = Resource::WorkloadEntries;
pub(crate) const GRACE: Duration = Duration::from_secs(300);

/// A clock that a test sets.
pub(crate) struct Hands(Mutex<SystemTime>);

impl Hands {
    pub(crate) fn forward(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// A mesh, and machines that register themselves there.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) hands: Arc<Hands>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let world = Self::without_grant(options).await;
        world.mesh.grant("vms", "client");
        world
    }

    /// A mesh that lets nobody do anything yet.
    pub(crate) async fn without_grant(options: Options) -> Self {
        let hands = Arc::new(Hands(Mutex::new(SystemTime::now())));
        let clock: SharedClock = hands.clone();
        let mesh = Mesh::start(Options { clock, ..options }).await.unwrap();
        Self { mesh, hands }
    }

    pub(crate) fn clock(&self) -> SharedClock {
        self.hands.clone()
    }

    /// A clock that is wrong by half a day.
    pub(crate) fn clock_ahead(&self) -> SharedClock {
        Arc::new(Hands(Mutex::new(self.hands.now() + Duration::from_secs(43_200))))
    }

    pub(crate) fn client(&self, clock: &SharedClock) -> Arc<Client> {
        let day = Duration::from_secs(86_400);
        let token = self.mesh.token("vms", "client", KUBERNETES_AUDIENCE, day);
        let config = vm_agent::kube::Config {
            server: format!("https://localhost:{}", self.mesh.kube_address().port()),
            ca: Ca::Pem(self.mesh.root_pem()),
            tls_server_name: None,
            auth: Auth::Token(token.into()),
        };
        Arc::new(Client::new(config, Arc::clone(clock)).unwrap())
    }

    pub(crate) fn machine(&self, id: &str, address: &str, force: bool) -> Registered {
        self.machine_by(self.clock(), id, address, force)
    }

    pub(crate) fn machine_by(
        &self,
        clock: SharedClock,
        id: &str,
        address: &str,
        force: bool,
    ) -> Registered {
        let machine = Machine::of(id).with_instance(Some(format!("the-{id}")));
        let config = Config { machine, force, take_over_after: GRACE, record: None };
        self.start(clock, address, config)
    }

    /// One of the machines with this ID.
    pub(crate) fn copy(&self, id: &str, instance: &str, address: &str) -> Registered {
        let machine = Machine::of(id).with_instance(Some(instance.to_owned()));
        let config = Config { machine, force: false, take_over_after: GRACE, record: None };
        self.start(self.clock(), address, config)
    }

    /// A machine whose agent keeps its entry in this file.
    pub(crate) fn machine_with(&self, id: &str, address: &str, record: &Path) -> Registered {
        let machine = Machine::of(id).with_instance(Some(format!("the-{id}")));
        let record = Some(record.to_owned());
        let config = Config { machine, force: false, take_over_after: GRACE, record };
        self.start(self.clock(), address, config)
    }

    fn start(&self, clock: SharedClock, address: &str, config: Config) -> Registered {
        let workload = watch::Sender::new(Arc::new(workload("vm1", address)));
        let direct = Direct::new(self.client(&clock), workload.subscribe(), config, clock);
        let (tasks, direct) = (Tasks::new().0, Arc::new(direct));
        let (runner, stop) = (Arc::clone(&direct), tasks.stop_signal());
        tasks.spawn("registration", async move { runner.run(stop).await });
        Registered { tasks, direct, workload }
    }

    /// The first of two machines of one name leaves, and the other one, at this address, registers.
    pub(crate) async fn first_leaves(&self, first: &Registered, second: &Registered, at: &str) {
        first.tasks.stop();
        second.until(|state| state.watching).await;
        first.direct.remove().await.unwrap();
        second.until(|state| state.registered && state.trouble.is_none()).await;
        assert_eq!(self.entry()["spec"]["address"], at);
    }

    pub(crate) fn entry(&self) -> Value {
        self.mesh.entry("vms/vm1").unwrap()
    }

    /// Changes the entry as somebody does who edits it.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut entry = self.entry();
        change(&mut entry);
        entry["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        self.mesh.objects().put(ENTRIES, "vms", "vm1", entry);
    }
}

/// A machine that registers itself.
pub(crate) struct Registered {
    pub(crate) tasks: Tasks,
    pub(crate) direct: Arc<Direct>,
    workload: watch::Sender<Arc<Workload>>,
}

impl Registered {
    pub(crate) async fn until(
        &self,
        wanted: impl Fn(&RegistrationState) -> bool,
    ) -> RegistrationState {
        let mut state = self.direct.state();
        let waited = state.wait_for(|state| wanted(state));
        match tokio::time::timeout(Duration::from_secs(60), waited).await {
            Ok(state) => state.unwrap().clone(),
            Err(_) => panic!("{:#?}", self.direct.state().borrow()),
        }
    }

    /// Waits until the entry stands and is watched.
    pub(crate) async fn settled(&self) -> RegistrationState {
        self.until(|state| state.registered && state.watching).await
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Workload)) {
        self.workload.send_modify(|workload| change(Arc::make_mut(workload)));
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

pub(crate) fn workload(name: &str, address: &str) -> Workload {
    Workload {
        name: name.to_owned(),
        id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
        group: None,
        address: address.parse().unwrap(),
        instance_ips: vec![],
        labels: [("app".to_owned(), "client".to_owned())].into(),
        ports: [("http".to_owned(), 9080)].into(),
        network: "n1".to_owned(),
        locality: Some("eu/a".parse().unwrap()),
        weight: Some(7),
    }
}
