//! The identity, by hand.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use vm_agent::devmesh::Fault;

use crate::bed::{Bed, valid};
use crate::host::{Host, text};

async fn certified() -> (Bed, Value) {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    let status = bed.until("certified", valid).await;
    let serial = status["identity"]["serial"].clone();
    (bed, serial)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_the_new_certificate_and_shows_it() {
    let (bed, old) = certified().await;
    let rotated = bed.command(&["cert", "rotate", "--json"]);
    assert_eq!(rotated.status.code(), Some(0), "{}", text(&rotated.stderr));
    let shown: Value = serde_json::from_slice(&rotated.stdout).unwrap();
    assert_ne!(shown["serial"], old);
    assert_eq!(bed.status().unwrap()["identity"]["serial"], shown["serial"]);
    assert!(text(&rotated.stderr).contains(old.as_str().unwrap()), "it says what it replaces");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_rotation_says_why_and_the_old_certificate_serves_on() {
    let (bed, old) = certified().await;
    bed.mesh.set_fault(Fault::Refuse);
    let refused = bed.command(&["cert", "rotate"]);
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{told}");
    assert!(
        told.contains("Unauthenticated") && told.contains("the old one serves until"),
        "{told}"
    );
    assert_eq!(bed.status().unwrap()["identity"]["serial"], old);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_needs_no_agent_and_no_directory_that_others_can_write() {
    let (mut bed, serial) = certified().await;
    assert_eq!(bed.stop().await, 0);
    let to = bed.path("exported");
    let exported = bed.command(&["cert", "export", to.to_str().unwrap()]);
    let told = text(&exported.stderr);
    assert_eq!(exported.status.code(), Some(0), "{told}");
    assert!(
        told.contains(serial.as_str().unwrap()) && told.contains("nobody renews them"),
        "{told}"
    );
    let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(["key.pem", "cert-chain.pem", "root-cert.pem"].map(mode), [0o600, 0o644, 0o644]);
    let read = |name: &str| std::fs::read_to_string(to.join(name)).unwrap();
    assert!(read("key.pem").contains("PRIVATE KEY"));
    assert_eq!(read("root-cert.pem").trim(), bed.mesh.root_pem().trim());
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o777)).unwrap();
    let refused = bed.command(&["cert", "export", to.to_str().unwrap()]);
    let told = text(&refused.stderr);
    assert!(refused.status.code() == Some(9) && told.contains("others may write there"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_nothing_to_export_or_rotate() {
    let host = Host::new().await;
    host.configure(json!({}));
    let to = host.bed.path("exported");
    let none = host.run(host.agent(&["cert", "export", to.to_str().unwrap()])).await;
    let told = text(&none.stderr);
    assert!(none.status.code() == Some(3) && told.contains("there is none yet"), "{told}");
    assert!(!to.exists());
    let none = host.run(host.agent(&["cert", "rotate"])).await;
    assert_eq!(none.status.code(), Some(11));
}
