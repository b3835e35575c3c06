//! The picture shows what the services know.

use super::*;

#[tokio::test]
async fn the_picture_has_services_with_their_endpoints_and_wakes_when_they_change() {
    let mesh = mesh().await;
    let mut changes = mesh.changes();
    let service = json!({"spec": {
        "hosts": ["details.internal.com"], "resolution": "STATIC",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9080}],
        "workloadSelector": {"labels": {"app": "details"}},
    }});
    let entry = json!({"spec": {
        "address": "10.0.0.9", "serviceAccount": "details", "labels": {"app": "details"},
    }});
    mesh.objects().put(Resource::ServiceEntries, "vms", "details", service);
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm9", entry);
    assert!(changes.next().await);
    let picture = mesh.picture();
    let [service] = picture.services.as_slice() else { panic!("{:?}", picture.services) };
    let [endpoint] = service.endpoints.as_slice() else { panic!("{service:?}") };
    assert_eq!((service.host.as_str(), service.addresses.len()), ("details.internal.com", 1));
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/vms/sa/details");
    assert_eq!((endpoint.ports[&80], endpoint.healthy, endpoint.secured), (9080, true, true));
    let [machine] = picture.machines.as_slice() else { panic!("{:?}", picture.machines) };
    assert_eq!((machine.name.as_str(), machine.mutual_tls), ("vm9", "STRICT"));
    assert_eq!((machine.entry.as_deref(), &machine.stream), (Some("vms/vm9"), &None));
    assert_eq!(picture.roots.len(), 1);
}

#[tokio::test]
async fn the_picture_has_certificates_and_who_was_refused_one() {
    let mesh = mesh().await;
    let csr = KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&csr).unwrap().pem().unwrap();
    let mut client = IstioCertificateServiceClient::new(channel(&mesh, None).await);
    let ask = |seconds| IstioCertificateRequest {
        csr: csr.clone(),
        validity_duration: seconds,
        ..Default::default()
    };
    client.create_certificate(with_token(ask(60), &token(&mesh))).await.unwrap();
    client.create_certificate(with_token(ask(i64::MAX), &token(&mesh))).await.unwrap_err();
    let picture = mesh.picture();
    assert_eq!((picture.identities.len(), picture.identities[0].id.as_str()), (1, ID));
    assert_eq!(picture.identities[0].replaces, None);
    assert_eq!((picture.denials[0].who.as_str(), picture.denials[0].what), (ID, "certificate"));
}
