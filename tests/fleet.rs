//! A thousand machines' worth of the real renewal and registration, against the development mesh.
#![cfg(feature = "devmesh")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use vm_agent::base::clock::{self, SkewGauge};
use vm_agent::base::tasks::Tasks;
use vm_agent::ca::IstiodIssuer;
use vm_agent::controlplane::{self, Dialer};
use vm_agent::credential::{self, Ladder};
use vm_agent::devmesh::{Mesh, Options, Resource};
use vm_agent::identity::{KeyAlgorithm, SpiffeId};
use vm_agent::kube::{self, Auth, Ca, Client};
use vm_agent::registry::{self, Direct, Machine};
use vm_agent::secrets::{self, Vault};
use vm_agent::workload::Workload;

const MACHINES: usize = 1000;
/// All start in the same moment; from then on chance draws them apart.
const LIFE: Duration = Duration::from_secs(60);

struct Fleet {
    mesh: Mesh,
    directory: tempfile::TempDir,
    client: Arc<Client>,
    tasks: Tasks,
}

impl Fleet {
    async fn new() -> Self {
        let mesh = Mesh::start(Options::default()).await.unwrap();
        mesh.grant("vms", "client");
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("root-cert.pem"), mesh.root_pem()).unwrap();
        let hour = Duration::from_secs(3600);
        std::fs::write(path("token"), mesh.token("vms", "client", "istio-ca", hour)).unwrap();
        let audience = "https://kubernetes.default.svc";
        std::fs::write(path("kube"), mesh.token("vms", "client", audience, hour)).unwrap();
        let config = kube::Config {
            server: format!("https://localhost:{}", mesh.kube_address().port()),
            ca: Ca::File(path("root-cert.pem")),
            auth: Auth::TokenFile(path("kube")),
            tls_server_name: None,
        };
        let client = Arc::new(Client::new(config, clock::system()).unwrap());
        Self { mesh, directory, client, tasks: Tasks::new().0 }
    }

    /// Starts a machine's renewal and registration.
    fn start(&self, number: usize) -> Vault {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
        let state_directory = self.directory.path().join(number.to_string());
        std::fs::create_dir(&state_directory).unwrap();
        let vault = Vault::open(vault(&id, &state_directory), clock::system());
        let issuer = IstiodIssuer::new(self.dialer(&id, &vault));
        let stop = self.tasks.stop_signal();
        self.tasks.spawn("renewal", secrets::renew(vault.clone(), issuer, stop));
        let config = registry::Config {
            machine: Machine::of(&number.to_string()),
            force: false,
            take_over_after: Duration::from_secs(300),
            record: None,
        };
        let workload = watch::channel(Arc::new(workload(&id, number))).1;
        let direct = Direct::new(Arc::clone(&self.client), workload, config, clock::system());
        let stop = self.tasks.stop_signal();
        self.tasks.spawn("registration", async move { direct.run(stop).await });
        vault
    }

    fn dialer(&self, id: &SpiffeId, vault: &Vault) -> Dialer {
        let path = |name: &str| self.directory.path().join(name);
        let tokens = credential::Config {
            id: id.clone(),
            audience: "istio-ca".to_owned(),
            sources: vec![credential::Source::TokenFile(path("token"))],
            own_kube_token: path("none"),
        };
        let config = controlplane::Config {
            endpoint: format!("localhost:{}", self.mesh.address().port()).parse().unwrap(),
            connect_to: Some("127.0.0.1".to_owned()),
            server_name: None,
            root_cert: path("root-cert.pem"),
            cluster_id: "Kubernetes".to_owned(),
            step_limit: Duration::from_secs(60),
        };
        let ladder = Ladder::new(tokens, None, clock::system());
        Dialer::new(config, ladder, vault.subscribe(), clock::system())
    }
}

fn vault(id: &SpiffeId, state_directory: &Path) -> secrets::Config {
    secrets::Config {
        source: secrets::Source::Istiod,
        id: id.clone(),
        state_directory: state_directory.to_owned(),
        root_cert: state_directory.with_file_name("root-cert.pem"),
        key_algorithm: KeyAlgorithm::EcdsaP256,
        ttl: LIFE,
        renew_at: 0.5,
        jitter: 0.15,
        export_directory: None,
        skew: SkewGauge::default(),
    }
}

fn workload(id: &SpiffeId, number: usize) -> Workload {
    let address = format!("10.{}.{}.1", number / 250, number % 250);
    Workload {
        name: format!("vm{number}"),
        id: id.clone(),
        group: None,
        address: address.parse().unwrap(),
        instance_ips: vec![address.parse().unwrap()],
        labels: BTreeMap::from([("app".to_owned(), "client".to_owned())]),
        ports: BTreeMap::new(),
        network: String::new(),
        locality: None,
        weight: None,
    }
}

/// Waits for the second certificate of a machine: the first one that its own clock asked for.
async fn second(vault: Vault, started: Instant) -> u64 {
    let mut identity = vault.subscribe();
    let first = identity.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let serial = first.serial().to_owned();
    let is_new = |one: &Option<Arc<vm_agent::identity::IssuedIdentity>>| {
        one.as_ref().is_some_and(|one| one.serial() != serial)
    };
    identity.wait_for(is_new).await.unwrap();
    started.elapsed().as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_machines_register_and_renew_without_a_refusal_and_drift_apart() {
    let fleet = Fleet::new().await;
    let started = Instant::now();
    let vaults: Vec<Vault> = (0..MACHINES).map(|number| fleet.start(number)).collect();
    let renewed = vaults.into_iter().map(|vault| second(vault, started));
    let renewed = tokio::time::timeout(10 * LIFE, futures_util::future::join_all(renewed)).await;
    let mut seconds = BTreeMap::<u64, usize>::new();
    for second in renewed.unwrap() {
        *seconds.entry(second).or_default() += 1;
    }
    println!("renewals by second after the start: {seconds:?}");
    let most = seconds.values().max().copied().unwrap_or_default();
    assert!(most < MACHINES / 5, "{most} of {MACHINES} in one second");
    // Nothing says that a registration ends before a renewal.
    let registered = async {
        while fleet.mesh.objects().list(Resource::WorkloadEntries, Some("vms")).len() < MACHINES {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(10 * LIFE, registered).await.unwrap();
    assert_eq!(fleet.mesh.seen().borrow().refused, 0);
    assert!(fleet.tasks.finish(Duration::from_secs(30)).await);
}
