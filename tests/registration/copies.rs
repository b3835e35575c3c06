//! Disks that were copied: the copy is a machine of its own.

use serde_json::{Value, json};

use crate::bed::{Bed, registered, valid};
use crate::kubernetes_bed;

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
