//! What a mesh with a directory remembers.

use super::*;

fn with(state: &tempfile::TempDir) -> Options {
    Options { state: Some(state.path().to_owned()), ..Options::default() }
}

async fn restarted(mesh: Mesh, state: &tempfile::TempDir) -> Mesh {
    mesh.go_away().await.unwrap();
    drop(mesh);
    Mesh::start(with(state)).await.unwrap()
}

#[tokio::test]
async fn objects_roots_and_tokens_outlive_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let mesh = Mesh::start(with(&state)).await.unwrap();
    mesh.add_group("vms/client");
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", json!({"spec": {"weight": 1}}));
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm2", json!({"spec": {"weight": 2}}));
    mesh.objects().delete(Resource::WorkloadEntries, "vms", "vm1");
    mesh.rotate_root().unwrap();
    let (revision, roots) = (mesh.objects().revision(), mesh.root_pem());
    let (token, admin) = (token(&mesh), mesh.admin_token().to_owned());
    let before = certify(channel(&mesh, None).await, &token).await.unwrap();
    let mesh = restarted(mesh, &state).await;
    assert_eq!(mesh.objects().revision(), revision);
    assert_eq!((mesh.root_pem(), mesh.admin_token()), (roots, admin.as_str()));
    let entries = mesh.objects().list(Resource::WorkloadEntries, None);
    let [vm2] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((&vm2["metadata"]["name"], &vm2["spec"]["weight"]), (&json!("vm2"), &json!(2)));
    // The newest root still signs.
    let after = certify(channel(&mesh, None).await, &token).await.unwrap();
    assert_eq!(before.0.last(), after.0.last());
}

#[tokio::test]
async fn a_watch_from_before_a_restart_has_to_read_again() {
    let state = tempfile::tempdir().unwrap();
    let mesh = Mesh::start(with(&state)).await.unwrap();
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", json!({"spec": {"weight": 1}}));
    let old = mesh.objects().revision();
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", json!({"spec": {"weight": 2}}));
    let mesh = restarted(mesh, &state).await;
    assert!(mesh.objects().changes_after(old, |_| true).is_none());
    let now = mesh.objects().revision();
    assert_eq!(
        mesh.objects().changes_after(now, |_| true).map(|(_, changes)| changes.len()),
        Some(0)
    );
}

#[tokio::test]
async fn a_directory_serves_one_mesh_at_a_time() {
    let state = tempfile::tempdir().unwrap();
    let _mesh = Mesh::start(with(&state)).await.unwrap();
    let refused = Mesh::start(with(&state)).await.err().unwrap();
    assert!(matches!(refused, MeshError::Disk(_)), "{refused:?}");
}

#[tokio::test]
async fn a_rotation_tells_the_root_before_it_signs_and_retires_the_old_one_last() {
    let mesh = mesh().await;
    let (old, token) = (mesh.root_pem(), token(&mesh));
    let roots = |chain: &[String]| chain.last().cloned().unwrap();
    mesh.servers.introduce().unwrap();
    let told = certify(channel(&mesh, None).await, &token).await.unwrap();
    assert_eq!(certificates(&roots(&told.0)).len(), 2);
    let signer = lock(&mesh.state.authorities).signing.root_pem();
    assert_eq!(signer, old, "nobody is asked to trust what they were not told of");
    mesh.servers.promote().unwrap();
    assert_ne!(lock(&mesh.state.authorities).signing.root_pem(), old);
    mesh.servers.retire().unwrap();
    let only = mesh.root_pem();
    assert_eq!((certificates(&only).len(), only != old), (1, true));
    assert_eq!(lock(&mesh.state.authorities).kubernetes.root_pem(), old);
}
