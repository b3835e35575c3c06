//! The entry stays as it is wanted, whoever changes or deletes it, and whatever becomes of the watch.

use std::time::Duration;

use serde_json::json;
use vm_agent::devmesh::Options;
use vm_agent::registry::Machine;

use crate::world::{ENTRIES, World};

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
async fn without_the_right_to_watch_the_entry_is_still_kept() {
    let verbs = ["get", "create", "patch", "delete"];
    let world = World::without_grant(Options::default()).await;
    world.mesh.grant_verbs("vms", "client", &verbs, "workloadentries");
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
