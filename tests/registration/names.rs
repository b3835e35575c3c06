//! Machines of one name, those that are gone, and those that never came back.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use vm_agent::base::clock::{Clock, rfc3339};
use vm_agent::base::tasks::Tasks;
use vm_agent::registry::{Machine, Sweep};

use crate::world::{ENTRIES, GRACE, World, workload};

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
    world.first_leaves(&first, &second, "10.0.0.2").await;
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
