//! Watches and deletions with preconditions, as the agent's own client asks for them.

use super::*;
use crate::kube::{Auth, Ca, Client, Config, Object, Version, WatchEvent};

const ENTRIES: Resource = Resource::WorkloadEntries;

fn client(mesh: &Mesh) -> Client {
    let config = Config {
        server: format!("https://localhost:{}", mesh.kube_address().port()),
        ca: Ca::Pem(mesh.root_pem()),
        tls_server_name: None,
        auth: Auth::Token(mesh.admin_token().into()),
    };
    Client::new(config, clock::system()).unwrap()
}

fn place(name: &str) -> Object {
    Object {
        group_version: "networking.istio.io/v1",
        resource: "workloadentries",
        namespace: "vms".to_owned(),
        name: name.to_owned(),
    }
}

fn put(mesh: &Mesh, name: &str, weight: u32) {
    mesh.objects().put(ENTRIES, "vms", name, json!({"spec": {"weight": weight}}));
}

fn revision(mesh: &Mesh) -> String {
    mesh.objects().revision().to_string()
}

#[tokio::test]
async fn a_watch_tells_what_happens_to_its_object_and_to_no_other() {
    let mesh = mesh().await;
    put(&mesh, "vm1", 1);
    let start = revision(&mesh);
    put(&mesh, "vm2", 1);
    put(&mesh, "vm1", 2);
    let mut watch = client(&mesh).watch(&place("vm1"), &start).await.unwrap();
    let present = watch.next().await.unwrap().unwrap();
    let WatchEvent::Present(now) = present else { panic!("{present:?}") };
    assert_eq!(now["spec"]["weight"], 2, "what happened before the watch began is told, too");
    mesh.objects().delete(ENTRIES, "vms", "vm1");
    let gone = watch.next().await.unwrap().unwrap();
    let WatchEvent::Deleted(last) = gone else { panic!("{gone:?}") };
    assert_eq!(last["metadata"]["resourceVersion"], revision(&mesh));
    put(&mesh, "vm2", 2);
    let past = watch.next().await.unwrap().unwrap();
    assert_eq!(past, WatchEvent::Bookmark(revision(&mesh)), "others only move the bookmark");
}

#[tokio::test]
async fn a_watch_of_a_collection_begins_where_its_list_ended() {
    let mesh = mesh().await;
    put(&mesh, "vm1", 1);
    let client = client(&mesh);
    let list = client.list(&place(""), None).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let none = client.list(&place(""), Some("app=other")).await.unwrap();
    assert_eq!(none["items"], json!([]));
    let start = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = client.watch(&place(""), start).await.unwrap();
    put(&mesh, "vm2", 1);
    let present = watch.next().await.unwrap().unwrap();
    assert!(matches!(present, WatchEvent::Present(new) if new["metadata"]["name"] == "vm2"));
}

#[tokio::test]
async fn a_revision_that_is_too_old_is_gone() {
    let mesh = mesh().await;
    put(&mesh, "vm1", 1);
    let old = revision(&mesh);
    put(&mesh, "vm1", 2);
    let client = client(&mesh);
    let mut watch = client.watch(&place("vm1"), &revision(&mesh)).await.unwrap();
    mesh.objects().compact();
    assert_eq!(client.watch(&place("vm1"), &old).await.err().unwrap().code(), Some(410));
    put(&mesh, "vm1", 3);
    let present = watch.next().await.unwrap().unwrap();
    assert!(matches!(present, WatchEvent::Present(_)), "a watch that was up to date goes on");
}

#[tokio::test]
async fn only_the_version_that_was_seen_is_deleted() {
    let mesh = mesh().await;
    put(&mesh, "vm1", 1);
    let client = client(&mesh);
    let seen = Version::of(&client.get(&place("vm1")).await.unwrap()).unwrap();
    put(&mesh, "vm1", 2);
    let refused = client.delete_only(&place("vm1"), &seen).await.unwrap_err();
    assert_eq!(refused.code(), Some(409));
    let seen = Version::of(&client.get(&place("vm1")).await.unwrap()).unwrap();
    client.delete_only(&place("vm1"), &seen).await.unwrap();
    assert_eq!(mesh.entry("vms/vm1"), None);
    client.delete_only(&place("vm1"), &seen).await.unwrap();
}
