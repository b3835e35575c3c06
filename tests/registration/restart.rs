//! An agent that starts while the API server is away, and one that leaves.

use std::path::PathBuf;

use serde_json::json;

use crate::world::{ENTRIES, World};

/// A machine that was registered, and whose agent has ended.
async fn registered() -> (World, tempfile::TempDir, PathBuf) {
    let world = World::new().await;
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("entry.json");
    let machine = world.machine_with("one", "10.0.0.1", &record);
    machine.settled().await;
    (world, directory, record)
}

#[tokio::test]
async fn an_api_server_that_is_away_at_the_start_does_not_unregister_the_machine() {
    let (world, _directory, record) = registered().await;
    let uid = world.entry()["metadata"]["uid"].clone();
    world.mesh.go_away().await.unwrap();
    let machine = world.machine_with("one", "10.0.0.1", &record);
    let state = machine.until(|state| state.assumed && state.trouble.is_some()).await;
    assert!(state.registered && state.is_settled());
    let standing = machine.direct.standing().borrow().clone().unwrap();
    assert_eq!(json!(standing.uid), uid);
    world.mesh.come_back().await.unwrap();
    let state = machine.until(|state| !state.assumed && state.trouble.is_none()).await;
    assert!(state.registered && state.applies == 1);
}

#[tokio::test]
async fn a_machine_with_another_address_waits_for_the_api_server() {
    let (world, _directory, record) = registered().await;
    world.mesh.go_away().await.unwrap();
    for (id, address) in [("one", "10.0.0.2"), ("two", "10.0.0.1")] {
        let machine = world.machine_with(id, address, &record);
        let state = machine.until(|state| state.trouble.is_some()).await;
        assert!(!state.registered && !state.assumed, "{id} {address}");
    }
}

#[tokio::test]
async fn what_the_api_server_says_counts_more_than_the_last_run() {
    let (world, _directory, record) = registered().await;
    world.mesh.objects().delete(ENTRIES, "vms", "vm1");
    let thief = world.machine("two", "10.0.0.9", false);
    thief.settled().await;
    let machine = world.machine_with("one", "10.0.0.1", &record);
    let state = machine.until(|state| state.trouble.is_some()).await;
    assert!(!state.registered && !state.assumed);
    assert_eq!(*machine.direct.standing().borrow(), None);
    assert!(!record.exists(), "it is no record of an entry of this machine any more");
}

#[tokio::test]
async fn an_entry_is_removed_after_its_reconciler_has_ended_and_stays_away() {
    let (world, _directory, record) = registered().await;
    let machine = world.machine_with("one", "10.0.0.1", &record);
    machine.settled().await;
    machine.tasks.stop();
    machine.direct.ended().await;
    machine.direct.remove().await.unwrap();
    assert!(world.mesh.entry("vms/vm1").is_none());
    assert!(!record.exists());
}
