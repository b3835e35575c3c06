//! Disks that were copied: the copy is a machine of its own.

use serde_json::{Value, json};

use crate::bed::{Bed, registered, valid};
use crate::kubernetes_bed;
use crate::world::World;

/// Starts the agent's disk as another machine.
fn wake_as(bed: &Bed, machine: char) {
    let id = format!("{}\n", machine.to_string().repeat(32));
    std::fs::write(bed.path("etc/machine-id"), id).unwrap();
}

fn serial(status: &Value) -> String {
    status["identity"]["serial"].as_str().unwrap_or_default().to_owned()
}

fn in_the_mesh(status: &Value) -> bool {
    registered(status) && valid(status)
}

#[tokio::test(flavor = "multi_thread")]
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
    let said = bed.log();
    assert_eq!(said.matches("This disk is a copy of another machine's").count(), 1, "{said}");

    assert_eq!(bed.stop().await, 0);
    bed.start();
    let again = bed.until("registered after a restart", in_the_mesh).await;
    assert_eq!(serial(&again), serial(&status));
    assert_eq!(again["workload"]["name"], status["workload"]["name"]);
    let left = bed.command(&["leave"]);
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
        bed.until("certified", valid).await;
        bed.proxy("client").await
    };
    bed.until("registered", registered).await;
    bed.until("kept", |_| bed.state("registration.json").exists()).await;
    assert_eq!(bed.stop().await, 0);
    let uid = || Some(bed.mesh.entry("vms/client-127.0.0.1")?["metadata"]["uid"].clone());
    let before = uid();
    assert!(before.is_some());
    wake_as(&bed, 'b');
    // An old entry of the same machine, at another address, would be removed.
    bed.configure(&["workload", "address"], json!("127.0.0.2"));
    bed.start();
    bed.until("certified", valid).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    assert_eq!(bed.stop().await, 0);
    let uid = || Some(bed.mesh.entry("vms/client-127.0.0.1")?["metadata"]["uid"].clone());
    assert_eq!(uid(), before);
}

#[tokio::test]
async fn of_two_machines_with_one_id_the_later_one_does_not_register_and_both_say_so() {
    let world = World::new().await;
    let first = world.copy("one", "a", "10.0.0.1");
    first.settled().await;
    let uid = world.entry()["metadata"]["uid"].clone();
    let second = world.copy("one", "b", "10.0.0.2");
    let refused = second.until(|state| state.trouble.is_some()).await;
    assert!(!refused.registered);
    let what = refused.trouble.unwrap().what;
    assert!(
        what.contains("at 10.0.0.1, holds") && what.contains("at 10.0.0.2, does not"),
        "{what}"
    );
    let holder = first.until(|state| state.trouble.is_some()).await;
    assert!(holder.registered);
    let what = holder.trouble.unwrap().what;
    assert!(what.contains("at 10.0.0.2, asks") && what.contains("at 10.0.0.1, holds"), "{what}");
    assert_eq!(holder.drift, 0);
    let entry = world.entry();
    assert_eq!((&entry["spec"]["address"], &entry["metadata"]["uid"]), (&json!("10.0.0.1"), &uid));
    assert!(entry["metadata"]["annotations"].get("vm-agent.io/challenge").is_none(), "{entry}");
    assert!(second.direct.remove().await.is_err(), "it does not remove the entry of the other one");
    world.first_leaves(&first, &second, "10.0.0.2").await;
}

#[tokio::test]
async fn a_machine_that_was_booted_again_with_another_address_takes_its_entry_back() {
    let world = World::new().await;
    let before = world.copy("one", "boot-1", "10.0.0.1");
    before.settled().await;
    before.tasks.stop();
    let after = world.copy("one", "boot-2", "10.0.0.2");
    let state = after.until(|state| state.registered).await;
    assert!(state.trouble.is_none());
    assert_eq!(world.entry()["spec"]["address"], "10.0.0.2");
    // With the same address there is nobody to ask.
    after.tasks.stop();
    let again = world.copy("one", "boot-3", "10.0.0.2");
    again.until(|state| state.registered).await;
    assert_eq!(world.entry()["metadata"]["annotations"]["vm-agent.io/instance"], "boot-3");
}
