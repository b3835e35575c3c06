//! The WorkloadEntry against the development mesh: kept true in our own hands, and left to istiod.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod bed;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bed::{Bed, trouble};
use serde_json::{Value, json};
use tokio::sync::watch;
use vm_agent::base::clock::{Clock, SharedClock, rfc3339};
use vm_agent::base::tasks::Tasks;
use vm_agent::devmesh::{Mesh, Options, Resource};
use vm_agent::identity::SpiffeId;
use vm_agent::kube::{Auth, Ca, Client};
use vm_agent::registry::{Config, Direct, Machine, RegistrationState, Sweep};
use vm_agent::workload::Workload;

const ENTRIES: Resource = Resource::WorkloadEntries;
const GRACE: Duration = Duration::from_secs(300);

/// A clock that a test sets.
struct Hands(Mutex<SystemTime>);

impl Hands {
    fn forward(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// A mesh, and machines that register themselves there.
struct World {
    mesh: Mesh,
    hands: Arc<Hands>,
}

impl World {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let hands = Arc::new(Hands(Mutex::new(SystemTime::now())));
        let clock: SharedClock = hands.clone();
        let mesh = Mesh::start(Options { clock, ..options }).await.unwrap();
        mesh.grant("vms", "client");
        Self { mesh, hands }
    }

    fn clock(&self) -> SharedClock {
        self.hands.clone()
    }

    /// A clock that is wrong by half a day.
    fn clock_ahead(&self) -> SharedClock {
        Arc::new(Hands(Mutex::new(self.hands.now() + Duration::from_secs(43_200))))
    }

    fn client(&self, clock: &SharedClock) -> Arc<Client> {
        let audience = "https://kubernetes.default.svc";
        let token = self.mesh.token("vms", "client", audience, Duration::from_secs(86_400));
        let config = vm_agent::kube::Config {
            server: format!("https://localhost:{}", self.mesh.kube_address().port()),
            ca: Ca::Pem(self.mesh.root_pem()),
            tls_server_name: None,
            auth: Auth::Token(token.into()),
        };
        Arc::new(Client::new(config, Arc::clone(clock)).unwrap())
    }

    fn machine(&self, id: &str, address: &str, force: bool) -> Registered {
        self.machine_by(self.clock(), id, address, force)
    }

    fn machine_by(&self, clock: SharedClock, id: &str, address: &str, force: bool) -> Registered {
        let workload = watch::Sender::new(Arc::new(workload("vm1", address)));
        let machine = Machine::of(id);
        let config = Config { machine, force, take_over_after: GRACE };
        let direct = Direct::new(self.client(&clock), workload.subscribe(), config, clock);
        let (tasks, direct) = (Tasks::new().0, Arc::new(direct));
        let (runner, stop) = (Arc::clone(&direct), tasks.stop_signal());
        tasks.spawn("registration", async move { runner.run(stop).await });
        Registered { tasks, direct, workload }
    }

    fn entry(&self) -> Value {
        self.mesh.entry("vms/vm1").unwrap()
    }

    /// Changes the entry as somebody does who edits it.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut entry = self.entry();
        change(&mut entry);
        entry["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        self.mesh.objects().put(ENTRIES, "vms", "vm1", entry);
    }
}

/// A machine that registers itself.
struct Registered {
    tasks: Tasks,
    direct: Arc<Direct>,
    workload: watch::Sender<Arc<Workload>>,
}

impl Registered {
    async fn until(&self, wanted: impl Fn(&RegistrationState) -> bool) -> RegistrationState {
        let mut state = self.direct.state();
        let waited = state.wait_for(|state| wanted(state));
        match tokio::time::timeout(Duration::from_secs(60), waited).await {
            Ok(state) => state.unwrap().clone(),
            Err(_) => panic!("{:#?}", self.direct.state().borrow()),
        }
    }

    /// Waits until the entry stands and is watched.
    async fn settled(&self) -> RegistrationState {
        self.until(|state| state.registered && state.watching).await
    }

    fn change(&self, change: impl FnOnce(&mut Workload)) {
        self.workload.send_modify(|workload| change(Arc::make_mut(workload)));
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn workload(name: &str, address: &str) -> Workload {
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

#[tokio::test]
async fn a_deleted_entry_is_made_again_at_once_with_every_field() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", false);
    machine.settled().await;
    let before = world.entry();
    world.mesh.objects().delete(ENTRIES, "vms", "vm1");
    let state = machine.until(|state| state.drift == 1 && state.applies == 2).await;
    assert!(state.registered && state.trouble.is_none());
    let after = world.entry();
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["spec"]["weight"], 7);
    assert_eq!(state.manager, Some(Machine::of("one").field_manager()));
}

#[tokio::test]
async fn a_field_that_somebody_removes_is_back_and_what_others_add_stays() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", false);
    machine.settled().await;
    world.edit(|entry| {
        entry["metadata"]["labels"]["team"] = json!("red");
        entry["metadata"]["annotations"]["note"] = json!("by hand");
        entry["spec"]["labels"].as_object_mut().unwrap().remove("app");
        entry["spec"].as_object_mut().unwrap().remove("locality");
    });
    machine.until(|state| state.applies == 2).await;
    let entry = world.entry();
    assert_eq!(entry["spec"]["labels"]["app"], "client");
    assert_eq!(entry["spec"]["locality"], "eu/a");
    assert_eq!(entry["metadata"]["labels"]["team"], "red");
    assert_eq!(entry["metadata"]["annotations"]["note"], "by hand");
    assert_eq!(machine.until(|_| true).await.drift, 1);
}

#[tokio::test]
async fn changes_of_the_machine_change_the_same_entry() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", false);
    machine.settled().await;
    let before = world.entry();
    machine.change(|workload| {
        workload.address = "10.0.0.2".parse().unwrap();
        workload.labels = [("version".to_owned(), "2".to_owned())].into();
        workload.weight = None;
    });
    machine.until(|state| state.applies == 2).await;
    let after = world.entry();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"]["address"], "10.0.0.2");
    assert_eq!(
        after["spec"]["labels"],
        json!({"version": "2"}),
        "what is not wanted any more goes"
    );
    assert_eq!(after["spec"].get("weight"), None);
    assert_eq!(world.mesh.objects().list(ENTRIES, None).len(), 1);
    assert_eq!(machine.until(|_| true).await.drift, 0);
}

#[tokio::test]
async fn who_holds_our_fields_is_named_and_keeps_them_while_the_others_stay_true() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", false);
    machine.settled().await;
    world.edit(|entry| {
        entry["spec"]["weight"] = json!(1);
        entry["metadata"]["labels"]["app"] = json!("stolen");
    });
    let state = machine.until(|state| state.trouble.is_some()).await;
    let what = state.trouble.unwrap().what;
    for words in ["vms/vm1", ".spec.weight (kubectl)", ".metadata.labels.app (kubectl)"] {
        assert!(what.contains(words), "{what}");
    }
    assert!(state.registered, "the entry is still this machine's");
    assert_eq!((state.conflicts, state.contested.len()), (1, 2));
    machine.change(|workload| workload.address = "10.0.0.2".parse().unwrap());
    machine.until(|state| state.applies == 3 && state.trouble.is_some()).await;
    let entry = world.entry();
    assert_eq!(
        (&entry["spec"]["address"], &entry["spec"]["weight"]),
        (&json!("10.0.0.2"), &json!(1))
    );
    // They let go of it.
    world.edit(|entry| {
        entry["spec"].as_object_mut().unwrap().remove("weight");
        entry["metadata"]["labels"].as_object_mut().unwrap().remove("app");
    });
    machine.until(|state| state.trouble.is_none() && state.contested.is_empty()).await;
    assert_eq!(world.entry()["spec"]["weight"], 7);
    assert_eq!(world.entry()["metadata"]["labels"]["app"], "client");
}

#[tokio::test]
async fn where_it_is_asked_for_fields_of_others_are_taken_over() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", true);
    machine.settled().await;
    world.edit(|entry| entry["spec"]["address"] = json!("10.9.9.9"));
    let state = machine.until(|state| state.applies == 2).await;
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.1");
    assert!(state.trouble.is_none());
}

#[tokio::test]
async fn an_entry_whose_address_somebody_else_decides_is_not_ours() {
    let world = World::new().await;
    let foreign = json!({"spec": {"address": "10.9.9.9", "serviceAccount": "client"}});
    world.mesh.objects().put(ENTRIES, "vms", "vm1", foreign);
    let machine = world.machine("one", "10.0.0.1", false);
    let state = machine.until(|state| state.trouble.is_some()).await;
    assert!(!state.registered);
    assert!(state.trouble.unwrap().what.contains(".spec.address (kubectl)"));
    assert_eq!(world.entry()["metadata"].get("labels"), None, "nothing of it was touched");
    assert!(machine.direct.remove().await.is_err());
}

#[tokio::test]
async fn of_two_machines_with_one_name_the_second_refuses_and_says_how_to_go_on() {
    let world = World::new().await;
    let first = world.machine("one", "10.0.0.1", false);
    first.settled().await;
    // Not even by force.
    let second = world.machine("two", "10.0.0.2", true);
    let state = second.until(|state| state.trouble.is_some()).await;
    assert!(!state.registered);
    let trouble = state.trouble.unwrap();
    assert!(trouble.what.contains("vms/vm1 belongs to another machine, at 10.0.0.1"), "{trouble}");
    let hint = trouble.hint.unwrap();
    assert!(hint.contains("--name") && hint.contains("kubectl -n vms delete workloadentry vm1"));
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.1");
    assert_eq!(first.until(|_| true).await.drift, 0, "the first one has felt nothing");
    assert!(second.direct.remove().await.is_err(), "nor does it remove what is not its own");
    // The first one leaves.
    first.tasks.stop();
    second.until(|state| state.watching).await;
    first.direct.remove().await.unwrap();
    second.until(|state| state.registered && state.trouble.is_none()).await;
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.2");
}

#[tokio::test]
async fn the_name_of_a_machine_that_is_gone_is_taken_over_after_the_grace() {
    let world = World::new().await;
    let first = world.machine("one", "10.0.0.1", false);
    first.settled().await;
    first.tasks.stop();
    world.hands.forward(GRACE - Duration::from_secs(5));
    let early = world.machine("two", "10.0.0.2", false);
    let state = early.until(|state| state.trouble.is_some()).await;
    assert!(state.trouble.unwrap().what.contains("was seen 29"));
    drop(early);
    world.hands.forward(Duration::from_secs(10));
    let second = world.machine("two", "10.0.0.2", false);
    second.until(|state| state.registered).await;
    let entry = world.entry();
    assert_eq!(entry["spec"]["address"], "10.0.0.2");
    assert_eq!(entry["metadata"]["annotations"]["vm-agent.io/machine"], Machine::of("two").hash());
    // The first one comes back, and finds its name taken.
    let first = world.machine("one", "10.0.0.1", false);
    assert!(!first.until(|state| state.trouble.is_some()).await.registered);
}

#[tokio::test]
async fn a_machine_whose_clock_is_ahead_steals_no_name() {
    let world = World::new().await;
    let first = world.machine("one", "10.0.0.1", false);
    first.settled().await;
    first.tasks.stop();
    let second = world.machine_by(world.clock_ahead(), "two", "10.0.0.2", false);
    let state = second.until(|state| state.registered || state.trouble.is_some()).await;
    assert!(state.trouble.unwrap().what.contains("was seen 0 seconds ago"));
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.1");
}

#[tokio::test]
async fn an_entry_whose_address_others_hold_is_still_ours_when_the_agent_starts_anew() {
    let world = World::new().await;
    let before = world.machine("one", "10.0.0.1", false);
    before.settled().await;
    world.edit(|entry| entry["spec"]["address"] = json!("10.9.9.9"));
    assert!(before.until(|state| state.trouble.is_some()).await.registered);
    drop(before);
    let after = world.machine("one", "10.0.0.1", false);
    let state = after.until(|state| state.trouble.is_some()).await;
    assert!(state.registered, "{state:?}");
    assert_eq!(state.contested, [".spec.address"]);
}

#[tokio::test]
async fn a_machine_that_was_replaced_while_it_was_cut_off_is_no_longer_registered() {
    let world = World::new().await;
    let first = world.machine("one", "10.0.0.1", false);
    first.settled().await;
    world.mesh.objects().delete(ENTRIES, "vms", "vm1");
    first.until(|state| state.drift == 1 && state.applies == 2).await;
    let mut standing = first.direct.standing();
    assert!(standing.borrow_and_update().is_some());
    // Somebody gives the entry to another machine.
    world.edit(|entry| {
        entry["metadata"]["annotations"]["vm-agent.io/machine"] = json!("another");
        entry["metadata"]["annotations"]["istio.io/connectedAt"] = json!("2026-01-01T00:00:00Z");
        entry["status"] = json!({"conditions": [{"type": "Healthy", "status": "False"}]});
    });
    let state = first.until(|state| !state.registered).await;
    assert!(state.trouble.unwrap().what.contains("connected to istiod since 2026-01-01"));
    standing.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn without_the_right_to_watch_the_entry_is_still_kept() {
    let hands = Arc::new(Hands(Mutex::new(SystemTime::now())));
    let mesh = Mesh::start(Options::default()).await.unwrap();
    let verbs = ["get", "create", "patch", "delete"];
    mesh.grant_verbs("vms", "client", &verbs, "workloadentries");
    let world = World { mesh, hands };
    let machine = world.machine("one", "10.0.0.1", false);
    let state = machine.until(|state| state.registered).await;
    assert!(!state.watching && state.trouble.is_none());
    machine.change(|workload| workload.weight = Some(1));
    machine.until(|state| state.applies == 2).await;
    assert_eq!(world.entry()["spec"]["weight"], 1);
}

#[tokio::test]
async fn a_watch_that_breaks_or_comes_too_late_misses_nothing() {
    let world = World::new().await;
    let machine = world.machine("one", "10.0.0.1", false);
    machine.settled().await;
    world.mesh.go_away().await.unwrap();
    world.mesh.objects().delete(ENTRIES, "vms", "vm1");
    world.mesh.objects().put(ENTRIES, "vms", "vm2", json!({"spec": {"address": "10.0.0.9"}}));
    world.mesh.objects().compact();
    world.mesh.come_back().await.unwrap();
    machine.until(|state| state.registered && state.applies >= 2 && state.watching).await;
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.1");
}

#[tokio::test]
async fn watches_that_end_at_once_are_opened_ever_more_slowly() {
    let options = Options { longest_watch: Duration::ZERO, ..Options::default() };
    let world = World::with(options).await;
    let _machine = world.machine("one", "10.0.0.1", false);
    let mut seen = world.mesh.seen();
    let watches = |seen: &vm_agent::devmesh::Seen| {
        seen.calls.iter().filter(|call| call.verb == "watch").count()
    };
    seen.wait_for(|seen| watches(seen) >= 1).await.unwrap();
    let start = tokio::time::Instant::now();
    seen.wait_for(|seen| watches(seen) >= 5).await.unwrap();
    // At least half of 200, 400, 800 and 1600 milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(1400), "{:?}", start.elapsed());
}

#[tokio::test]
async fn entries_of_siblings_that_never_came_back_are_removed_and_no_other() {
    let world = World::new().await;
    let put = |name: &str, account: &str, annotations: Value| {
        let labels = json!({"app.kubernetes.io/managed-by": "vm-agent"});
        let entry = json!({
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": {"address": "10.0.0.9", "serviceAccount": account},
        });
        world.mesh.objects().put(ENTRIES, "vms", name, entry);
    };
    let (left, just_now) =
        ("2020-01-01T00:00:00Z", rfc3339(world.hands.now() + Duration::from_secs(10)));
    let gone = json!({"vm-agent.io/machine": "x", "istio.io/disconnectedAt": left});
    put("gone", "client", gone.clone());
    put("other-account", "server", gone.clone());
    put("own", "client", gone.clone());
    put("by-istiod", "client", json!({"istio.io/disconnectedAt": left}));
    let here = json!({"vm-agent.io/machine": "y", "istio.io/connectedAt": just_now});
    put("here", "client", here);
    put(
        "just-left",
        "client",
        json!({"vm-agent.io/machine": "z", "istio.io/disconnectedAt": just_now}),
    );
    let tasks = Tasks::new().0;
    let sweep = Sweep {
        // By this clock all of them are old.
        client: world.client(&world.clock_ahead()),
        workload: Arc::new(workload("own", "10.0.0.1")),
        after: Duration::from_millis(200),
    };
    tasks.spawn("sweep", sweep.run(tasks.stop_signal()));
    // The second look comes after the first one's deletions.
    let mut seen = world.mesh.seen();
    let lists = |calls: &[vm_agent::devmesh::SeenCall]| {
        calls.iter().filter(|call| call.verb == "list").count()
    };
    seen.wait_for(|seen| lists(&seen.calls) >= 2).await.unwrap();
    let names: Vec<_> = world
        .mesh
        .objects()
        .list(ENTRIES, Some("vms"))
        .iter()
        .map(|entry| entry["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["by-istiod", "here", "just-left", "other-account", "own"]);
    tasks.stop();
}

/// A bed whose agent writes its entry itself.
async fn kubernetes_bed() -> (Bed, Value) {
    let bed = Bed::new().await;
    bed.mesh.grant("vms", "client");
    let token =
        bed.mesh.token("vms", "client", "https://kubernetes.default.svc", Duration::from_secs(600));
    std::fs::write(bed.path("kube-token"), token).unwrap();
    let kubernetes = json!({
        "server": format!("https://localhost:{}", bed.mesh.kube_address().port()),
        "caFile": bed.path("etc/vm-agent/root-cert.pem"), "tokenFile": bed.path("kube-token"),
    });
    (bed, kubernetes)
}

fn registered(status: &Value) -> bool {
    status["registration"]["registered"] == true
}

#[tokio::test]
async fn a_reload_changes_the_entry_and_names_what_needs_a_restart() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    bed.configure(&["workload", "labels"], json!({"app": "client", "version": "2"}));
    bed.configure(&["log"], json!({"level": "debug"}));
    let said = bed.command(&["reload"]);
    assert_eq!(said.status.code(), Some(0));
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(words.contains("log.level has changed and needs a restart"), "{words}");
    let status = bed
        .until("relabelled", |_| {
            let entry = bed.mesh.entry("vms/vm1").unwrap();
            entry["spec"]["labels"]["version"] == "2"
        })
        .await;
    assert_eq!(status["configuration"]["restart"], json!(["log.level"]));
    assert_eq!(status["workload"]["labels"]["version"], "2");
    assert!(trouble(&status, "configuration").is_empty());
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing_and_is_said_until_it_is_mended() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    bed.configure(&["workload", "labels"], json!({"app": "new", "x y": "z"}));
    let said = bed.command(&["reload"]);
    assert_eq!(said.status.code(), Some(4), "{said:?}");
    let status = bed.status().unwrap();
    assert!(trouble(&status, "configuration").contains("workload.labels"), "{status}");
    assert_eq!(status["ready"], json!(false), "the proxy of this test is none");
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap()["spec"].get("labels"), None);
    bed.configure(&["workload", "labels"], json!({"app": "new"}));
    bed.signal(nix::sys::signal::Signal::SIGHUP);
    bed.until("mended", |status| trouble(status, "configuration").is_empty()).await;
    bed.until("relabelled", |_| {
        bed.mesh.entry("vms/vm1").unwrap()["spec"]["labels"]["app"] == "new"
    })
    .await;
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn an_entry_that_was_made_anew_is_connected_anew() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    let _proxy = bed.proxy("client").await;
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.streams == 1 && seen.acks > 0).await.unwrap();
    bed.mesh.objects().delete(ENTRIES, "vms", "vm1");
    seen.wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    assert!(bed.mesh.entry("vms/vm1").is_some(), "the entry comes first");
    let _proxy = bed.proxy("client").await;
    seen.wait_for(|seen| seen.streams == 2).await.unwrap();
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn istiods_entry_of_old_labels_goes_before_the_machine_is_registered_with_new_ones() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(
        json!({"registration": {"kubernetes": kubernetes}, "workload": {"labels": {"v": "1"}}}),
    );
    bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    let entry = || bed.mesh.entry("vms/client-127.0.0.1");
    let before = entry().unwrap();
    bed.configure(&["workload", "labels"], json!({"v": "2"}));
    assert_eq!(bed.command(&["reload"]).status.code(), Some(0));
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    let _proxy = bed.proxy("client").await;
    bed.until("registered with new labels", |_| {
        entry().is_some_and(|entry| entry["spec"]["labels"]["v"] == "2")
    })
    .await;
    assert_ne!(entry().unwrap()["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn without_the_kubernetes_api_istiod_is_given_time_to_forget_the_old_entry() {
    let mut bed = Bed::new().await;
    let labels = |v: &str| json!({"labels": {"v": v}});
    bed.run(json!({"workload": labels("1"), "registration": {"gracePeriod": "1s"}}));
    bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    bed.until("kept", |_| bed.path("var/lib/vm-agent/registration.json").exists()).await;
    let uid =
        |bed: &Bed| bed.mesh.entry("vms/client-127.0.0.1").unwrap()["metadata"]["uid"].clone();
    let before = uid(&bed);
    assert_eq!(bed.stop().await, 0);
    // While it was stopped, it was given other labels.
    bed.run(json!({"workload": labels("2"), "registration": {"gracePeriod": "1s"}}));
    bed.until("certified again", |status| status["identity"]["valid"] == true).await;
    let streams = bed.mesh.seen().borrow().streams;
    let _proxy = bed.proxy("client").await;
    assert_eq!(bed.mesh.seen().borrow().streams, streams, "istiod is not called yet");
    assert_eq!(bed.mesh.sweep(Duration::ZERO), 1);
    bed.until("registered anew", registered).await;
    assert_ne!(
        uid(&bed),
        before,
        "the proxy of this test tells no labels, but it is another entry"
    );
    assert_eq!(bed.stop().await, 0);
}

/// Starts the agent's disk as another machine.
fn wake_as(bed: &Bed, machine: char) {
    let id = format!("{}\n", machine.to_string().repeat(32));
    std::fs::write(bed.path("etc/machine-id"), id).unwrap();
}

fn serial(status: &Value) -> String {
    status["identity"]["serial"].as_str().unwrap_or_default().to_owned()
}

fn in_the_mesh(status: &Value) -> bool {
    registered(status) && status["identity"]["valid"] == true
}

#[tokio::test]
async fn a_copy_of_a_machine_has_a_name_a_key_and_an_entry_of_its_own() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    wake_as(&bed, 'a');
    bed.run(json!({
        "registration": {"mode": "kubernetes", "kubernetes": kubernetes}, "identity": {"ttl": "1h"}
    }));
    let status = bed.until("registered", in_the_mesh).await;
    let (first, entry) = (serial(&status), bed.mesh.entry("vms/vm1").unwrap());
    assert_eq!(bed.stop().await, 0);
    bed.start();
    let status = bed.until("registered again", in_the_mesh).await;
    assert_eq!(serial(&status), first, "the same machine goes on with what it has");
    assert_eq!(bed.stop().await, 0);
    let original = bed.mesh.entry("vms/vm1").unwrap();
    assert_eq!(original["metadata"]["uid"], entry["metadata"]["uid"]);

    wake_as(&bed, 'b');
    bed.start();
    let status = bed.until("registered as itself", in_the_mesh).await;
    let name = status["workload"]["name"].as_str().unwrap();
    assert!(name.starts_with("vm1-"), "{name}");
    assert_ne!(serial(&status), first, "another key, and so another certificate");
    let own = bed.mesh.entry(&format!("vms/{name}")).unwrap();
    let machine = |entry: &Value| entry["metadata"]["annotations"]["vm-agent.io/machine"].clone();
    assert_ne!(machine(&own), machine(&original));
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap(), original);
    let said = std::fs::read_to_string(bed.path("log")).unwrap();
    assert_eq!(said.matches("This disk is a copy of another machine's").count(), 1, "{said}");

    assert_eq!(bed.stop().await, 0);
    bed.start();
    let again = bed.until("registered after a restart", in_the_mesh).await;
    assert_eq!(serial(&again), serial(&status));
    assert_eq!(again["workload"]["name"], status["workload"]["name"]);
    // The mesh runs on this thread.
    let mut leave = std::process::Command::new(env!("CARGO_BIN_EXE_vm-agent"));
    leave.arg("--root").arg(bed.root.path()).arg("leave");
    let left = tokio::task::spawn_blocking(move || leave.output().unwrap()).await.unwrap();
    assert_eq!(left.status.code(), Some(0), "{left:?}");
    assert_eq!(bed.mesh.entry(&format!("vms/{name}")), None);
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap(), original);
}

#[tokio::test]
async fn a_copy_of_a_machine_that_istiod_registered_leaves_that_ones_entry_alone() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    wake_as(&bed, 'a');
    bed.run(json!({"registration": {"kubernetes": kubernetes}}));
    let _proxy = {
        bed.until("certified", |status| status["identity"]["valid"] == true).await;
        bed.proxy("client").await
    };
    bed.until("registered", registered).await;
    bed.until("kept", |_| bed.path("var/lib/vm-agent/registration.json").exists()).await;
    assert_eq!(bed.stop().await, 0);
    let uid = || Some(bed.mesh.entry("vms/client-127.0.0.1")?["metadata"]["uid"].clone());
    let before = uid();
    assert!(before.is_some());
    wake_as(&bed, 'b');
    // An old entry of the same machine, at another address, would be removed.
    bed.configure(&["workload", "address"], json!("127.0.0.2"));
    bed.start();
    bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    assert_eq!(bed.stop().await, 0);
    let uid = || Some(bed.mesh.entry("vms/client-127.0.0.1")?["metadata"]["uid"].clone());
    assert_eq!(uid(), before);
}
