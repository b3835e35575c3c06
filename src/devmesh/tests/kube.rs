//! The Kubernetes API: objects, ownership, permissions, tokens.

use reqwest::Method;

use super::*;

const ENTRIES: &str = "/apis/networking.istio.io/v1/namespaces/vms/workloadentries";
const APPLY: &str = "application/apply-patch+yaml";

struct Api {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    fn new(mesh: &Mesh, token: &str, client: Option<&ClientIdentity>) -> Self {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(&mesh.root_pem(), client))
            .build()
            .unwrap();
        let base = format!("https://localhost:{}", mesh.kube_address().port());
        Self { client, base, token: token.to_owned() }
    }

    fn admin(mesh: &Mesh) -> Self {
        Self::new(mesh, mesh.admin_token(), None)
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        let request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .header("content-type", APPLY)
            .body(body.to_owned());
        let response = request.send().await.unwrap();
        let code = response.status().as_u16();
        let body = response.text().await.unwrap();
        (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, "").await
    }

    async fn apply(&self, manager: &str, options: &str, spec: Value) -> (u16, Value) {
        let path = format!("{ENTRIES}/vm1?fieldManager={manager}{options}");
        self.call(Method::PATCH, &path, &entry(spec).to_string()).await
    }
}

fn entry(spec: Value) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": "WorkloadEntry",
        "metadata": {"name": "vm1", "namespace": "vms"}, "spec": spec,
    })
}

#[tokio::test]
async fn an_apply_creates_changes_and_leaves_alone() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let (code, made) = api.apply("agent", "", json!({"address": "10.0.0.1", "weight": 2})).await;
    assert_eq!((code, &made["metadata"]["generation"]), (201, &json!(1)));
    let (code, same) = api.apply("agent", "", json!({"address": "10.0.0.1", "weight": 2})).await;
    assert_eq!(
        (code, &same["metadata"]["resourceVersion"]),
        (200, &made["metadata"]["resourceVersion"])
    );
    let (_, changed) = api.apply("agent", "", json!({"address": "10.0.0.2"})).await;
    assert_eq!(
        changed["spec"],
        json!({"address": "10.0.0.2"}),
        "what is not applied any more goes"
    );
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    let owners = &changed["metadata"]["managedFields"];
    assert_eq!(owners[0]["manager"], "agent");
    assert_eq!(owners[0]["fieldsV1"], json!({"f:spec": {"f:address": {}}}));
    assert_eq!(api.get(&format!("{ENTRIES}/vm1")).await, (200, changed.clone()));
    let (_, all) = api.get(ENTRIES).await;
    assert_eq!((&all["kind"], &all["items"][0]), (&json!("WorkloadEntryList"), &changed));
}

#[tokio::test]
async fn an_apply_conflicts_with_another_owner_unless_it_is_forced() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let labels = json!({"address": "10.0.0.1", "labels": {"app": "a", "team": "red"}});
    api.apply("helm", "", labels).await;
    let agents = json!({"address": "10.0.0.2", "labels": {"app": "b"}});
    let (code, refused) = api.apply("agent", "", agents.clone()).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 2 conflicts: conflicts with \"helm\":\n- .spec.address\n- .spec.labels.app"
    );
    let cause = json!({"reason": "FieldManagerConflict", "message": "conflict with \"helm\"", "field": ".spec.address"});
    assert_eq!(
        (&refused["reason"], &refused["details"]["causes"][0]),
        (&json!("Conflict"), &cause)
    );
    let (code, forced) = api.apply("agent", "&force=true", agents).await;
    assert_eq!(code, 200);
    assert_eq!(
        forced["spec"]["labels"],
        json!({"app": "b", "team": "red"}),
        "the rest stays helm's"
    );
    let (code, refused) = api.apply("helm", "", json!({"address": "10.0.0.1"})).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"agent\": .spec.address"
    );
}

#[tokio::test]
async fn a_field_that_somebody_edited_is_named_with_its_editor() {
    let mesh = mesh().await;
    mesh.objects().put(
        Resource::WorkloadEntries,
        "vms",
        "vm1",
        json!({"spec": {"address": "10.0.0.9"}}),
    );
    let (_, refused) = Api::admin(&mesh).apply("agent", "", json!({"address": "10.0.0.1"})).await;
    let words = refused["message"].as_str().unwrap();
    assert!(
        words.contains("conflict with \"kubectl\" using networking.istio.io/v1 at "),
        "{words}"
    );
    // The same value is shared, not fought for.
    let (code, _) = Api::admin(&mesh).apply("agent", "", json!({"address": "10.0.0.9"})).await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn an_apply_may_come_as_yaml_and_must_have_a_manager_and_a_fitting_name() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let yaml = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm1}\nspec:\n  address: 10.0.0.1\n";
    let at = |path: &str| format!("{ENTRIES}/{path}");
    let (code, made) = api.call(Method::PATCH, &at("vm1?fieldManager=agent"), yaml).await;
    assert_eq!((code, &made["spec"]["address"]), (201, &json!("10.0.0.1")));
    let (code, refused) = api.call(Method::PATCH, &at("vm1"), yaml).await;
    assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")));
    let (code, refused) = api.call(Method::PATCH, &at("vm2?fieldManager=agent"), yaml).await;
    assert_eq!((code, &refused["reason"]), (400, &json!("BadRequest")));
    let (code, _) = api.call(Method::PATCH, &at("vm1?fieldManager=agent"), "[").await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn an_account_may_do_what_it_was_granted_in_its_own_namespace() {
    let mesh = mesh().await;
    let token = mesh.token("vms", "client", KUBERNETES_AUDIENCE, HOUR);
    let api = Api::new(&mesh, &token, None);
    let (code, refused) = api.apply("agent", "", json!({"address": "10.0.0.1"})).await;
    let words = "workloadentries.networking.istio.io \"vm1\" is forbidden: User \
        \"system:serviceaccount:vms:client\" cannot patch resource \"workloadentries\" in API group \
        \"networking.istio.io\" in the namespace \"vms\"";
    let details = json!({"name": "vm1", "group": "networking.istio.io", "kind": "workloadentries"});
    assert_eq!(code, 403);
    assert_eq!(
        refused,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
               "message": words, "reason": "Forbidden", "details": details, "code": 403})
    );
    mesh.grant_verbs("vms", "client", &["patch"], "workloadentries");
    let (_, refused) = api.apply("agent", "", json!({"address": "10.0.0.1"})).await;
    assert!(refused["message"].as_str().unwrap().contains("cannot create"), "{refused}");
    mesh.grant("vms", "client");
    assert_eq!(api.apply("agent", "", json!({"address": "10.0.0.1"})).await.0, 201);
    let elsewhere = ENTRIES.replace("/vms/", "/prod/");
    assert_eq!(api.get(&format!("{elsewhere}/vm1")).await.0, 403);
    let calls = mesh.seen().borrow().calls.clone();
    assert_eq!(
        (calls[0].verb, calls[0].user.as_str()),
        ("patch", "system:serviceaccount:vms:client")
    );
}

#[tokio::test]
async fn unknown_callers_objects_and_paths_are_told_apart() {
    let mesh = mesh().await;
    let stranger = Api::new(&mesh, "x", None);
    let (code, refused) = stranger.get(ENTRIES).await;
    assert_eq!((code, &refused["reason"]), (401, &json!("Unauthorized")));
    assert_eq!(stranger.get("/version").await.1["major"], "1");
    let api = Api::admin(&mesh);
    let (code, refused) = api.get(&format!("{ENTRIES}/none")).await;
    assert_eq!((code, &refused["reason"]), (404, &json!("NotFound")));
    assert_eq!(refused["message"], "workloadentries.networking.istio.io \"none\" not found");
    let (code, refused) = api.get("/apis/other.example/v1").await;
    assert_eq!((code, &refused["reason"]), (404, &json!("NotFound")));
    assert_eq!(refused["message"], "the server could not find the requested resource");
    let (_, resources) = api.get("/apis/networking.istio.io/v1").await;
    assert_eq!(resources["resources"].as_array().unwrap().len(), 3);
    let (_, groups) = api.get("/apis").await;
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == GROUP));
}

#[tokio::test]
async fn creating_twice_and_updating_an_old_version_are_refused() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let body = entry(json!({"address": "10.0.0.1"})).to_string();
    let (code, mut made) = api.call(Method::POST, ENTRIES, &body).await;
    assert_eq!(code, 201);
    let (code, refused) = api.call(Method::POST, ENTRIES, &body).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("AlreadyExists")));
    let path = format!("{ENTRIES}/vm1");
    made["spec"]["address"] = json!("10.0.0.2");
    assert_eq!(api.call(Method::PUT, &path, &made.to_string()).await.0, 200);
    let (code, refused) = api.call(Method::PUT, &path, &made.to_string()).await;
    assert_eq!(code, 409);
    assert!(refused["message"].as_str().unwrap().contains("has been modified"), "{refused}");
    let (code, deleted) = api.call(Method::DELETE, &path, "").await;
    assert_eq!((code, &deleted["status"]), (200, &json!("Success")));
    assert_eq!(api.call(Method::DELETE, &path, "").await.0, 404);
}

#[tokio::test]
async fn a_requested_token_is_good_for_what_it_was_requested_for() {
    let mesh = mesh().await;
    let path = "/api/v1/namespaces/vms/serviceaccounts/client/token";
    let own = Api::new(&mesh, &token(&mesh), None);
    let ask =
        json!({"spec": {"audiences": [ISTIO_AUDIENCE], "expirationSeconds": 600}}).to_string();
    let (code, refused) = own.call(Method::POST, path, &ask).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "serviceaccounts \"client\" is forbidden: User \"system:serviceaccount:vms:client\" \
         cannot create resource \"serviceaccounts/token\" in API group \"\" in the namespace \"vms\""
    );
    mesh.grant_verbs("vms", "client", &["create"], "serviceaccounts/token");
    let (code, made) = own.call(Method::POST, path, &ask).await;
    assert_eq!((code, &made["kind"]), (201, &json!("TokenRequest")));
    assert!(made["status"]["expirationTimestamp"].is_string());
    let fresh = made["status"]["token"].as_str().unwrap();
    certify(channel(&mesh, None).await, fresh).await.unwrap();
    let short = ask.replace("600", "599");
    assert_eq!(own.call(Method::POST, path, &short).await.0, 422);
}

#[tokio::test]
async fn a_user_may_come_with_a_client_certificate() {
    let mesh = mesh().await;
    let admin = mesh.user_certificate("root", &["system:masters"]).unwrap();
    assert_eq!(Api::new(&mesh, "", Some(&admin)).get(ENTRIES).await.0, 200);
    let other = mesh.user_certificate("eve", &[]).unwrap();
    let (code, refused) = Api::new(&mesh, "", Some(&other)).get(ENTRIES).await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap().contains("User \"eve\" cannot list"), "{refused}");
}

#[tokio::test]
async fn faults_of_the_api_have_the_form_of_its_answers() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    mesh.faults().set(Service::Kube, Fault::Status(Code::Unavailable, "etcd is away"));
    let (code, refused) = api.get(ENTRIES).await;
    assert_eq!((code, &refused["message"]), (503, &json!("etcd is away")));
    mesh.faults().set(Service::Kube, Fault::Refuse);
    assert_eq!(api.get(ENTRIES).await.0, 401);
    mesh.faults().set(Service::Kube, Fault::Rubbish);
    assert_eq!(api.get(ENTRIES).await, (200, Value::String("<html>rubbish</html>".to_owned())));
}

#[tokio::test]
async fn a_server_is_known_by_the_name_that_was_given_for_its_certificate() {
    use crate::kube::{Auth, Ca, Client, Config, Object};
    let mesh = mesh().await;
    let object = Object {
        group_version: API_VERSION,
        resource: "workloadgroups",
        namespace: "vms".to_owned(),
        name: String::new(),
    };
    let list = async |name: Option<&str>| {
        let config = Config {
            server: format!("https://localhost:{}", mesh.kube_address().port()),
            ca: Ca::Pem(mesh.root_pem()),
            auth: Auth::Token(mesh.admin_token().into()),
            tls_server_name: name.map(str::to_owned),
        };
        Client::new(config, clock::system()).unwrap().list(&object, None).await
    };
    list(None).await.unwrap();
    // Nobody resolves this name: the connection goes to the host of the URL.
    list(Some("kubernetes.default.svc")).await.unwrap();
    let refused = list(Some("other.example.com")).await.unwrap_err();
    assert!(crate::base::trouble::chain(&refused).contains("not valid for name"), "{refused:?}");
}

async fn patch(api: &Api, media: &str, body: &str) -> (u16, Value) {
    let request = api
        .client
        .patch(format!("{}{ENTRIES}/vm1", api.base))
        .bearer_auth(&api.token)
        .header("content-type", media)
        .body(body.to_owned());
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn patches_of_both_forms_are_taken_and_strategic_ones_are_not_for_istios_kinds() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let (code, _) = patch(&api, "application/merge-patch+json", "{}").await;
    assert_eq!(code, 404, "there is nothing to patch");
    api.apply("agent", "", json!({"address": "10.0.0.1", "weight": 2})).await;
    let body = r#"{"metadata":{"labels":{"a":"b"}},"spec":{"weight":null}}"#;
    let (code, made) = patch(&api, "application/merge-patch+json", body).await;
    assert_eq!((code, &made["metadata"]["labels"]["a"]), (200, &json!("b")));
    assert_eq!(made["spec"], json!({"address": "10.0.0.1"}));
    let body = r#"[{"op":"replace","path":"/spec/address","value":"10.0.0.2"}]"#;
    let (code, made) = patch(&api, "application/json-patch+json", body).await;
    assert_eq!((code, &made["spec"]["address"]), (200, &json!("10.0.0.2")));
    let (code, refused) = patch(&api, "application/strategic-merge-patch+json", "{}").await;
    assert_eq!((code, &refused["reason"]), (415, &json!("UnsupportedMediaType")));
}

#[tokio::test]
async fn a_spec_that_does_not_fit_is_refused_with_its_causes() {
    let mesh = mesh().await;
    let api = Api::admin(&mesh);
    let (code, refused) =
        api.apply("agent", "", json!({"address": 7, "ports": {"http": "x"}})).await;
    assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")));
    let causes = refused["details"]["causes"].as_array().unwrap();
    assert_eq!(
        (&causes[0]["field"], &causes[1]["field"]),
        (&json!("spec.address"), &json!("spec.ports.http"))
    );
    let unknown = json!({"address": "10.0.0.1", "colour": "red"});
    let (code, made) = api.apply("agent", "", unknown.clone()).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"address": "10.0.0.1"})), "it is left out");
    let (code, refused) = api.apply("agent", "&fieldValidation=Strict", unknown).await;
    assert_eq!((code, &refused["reason"]), (400, &json!("BadRequest")));
    assert!(refused["message"].as_str().unwrap().ends_with("unknown field \"spec.colour\""));
    // A condition of a policy that would not hold is never left out.
    let path = "/apis/security.istio.io/v1/namespaces/vms/authorizationpolicies";
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p"}, "spec": {"rules": [{"when": []}]},
    });
    assert_eq!(api.call(Method::POST, path, &policy.to_string()).await.0, 400);
}

#[tokio::test]
async fn a_role_allows_what_it_says_to_whom_it_is_bound() {
    let mesh = mesh().await;
    let token = mesh.token("vms", "client", KUBERNETES_AUDIENCE, HOUR);
    let own = Api::new(&mesh, &token, None);
    assert_eq!(own.get(ENTRIES).await.0, 403);
    let rule = json!({"apiGroups": [GROUP], "resources": ["workloadentries"], "verbs": ["list"]});
    mesh.objects().put(Resource::Roles, "vms", "reader", json!({"rules": [rule]}));
    let subject = json!({"kind": "ServiceAccount", "name": "client", "namespace": "vms"});
    let binding = json!({"subjects": [subject], "roleRef": {"kind": "Role", "name": "reader"}});
    mesh.objects().put(Resource::RoleBindings, "vms", "reader", binding);
    assert_eq!(own.get(ENTRIES).await.0, 200);
    assert_eq!(own.get(&format!("{ENTRIES}/vm1")).await.0, 403, "it says nothing of get");
    let review = json!({"spec": {"resourceAttributes": {
        "verb": "list", "group": GROUP, "resource": "workloadentries", "namespace": "vms",
    }}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (_, answer) = own.call(Method::POST, path, &review.to_string()).await;
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test]
async fn a_mesh_with_namespaces_knows_which_exist_and_whose_accounts() {
    let mesh = mesh().await;
    mesh.add_namespace("vms");
    let api = Api::admin(&mesh);
    let elsewhere = ENTRIES.replace("/vms/", "/prod/");
    let body = entry(json!({"address": "10.0.0.1"})).to_string().replace("\"vms\"", "\"prod\"");
    let (code, refused) = api.call(Method::POST, &elsewhere, &body).await;
    assert_eq!((code, &refused["message"]), (404, &json!("namespaces \"prod\" not found")));
    let token = mesh.token("vms", "client", KUBERNETES_AUDIENCE, HOUR);
    assert_eq!(Api::new(&mesh, &token, None).get(ENTRIES).await.0, 401, "there is no such account");
    mesh.objects().put(Resource::ServiceAccounts, "vms", "client", json!({}));
    assert_eq!(Api::new(&mesh, &token, None).get(ENTRIES).await.0, 403);
    assert_eq!(api.call(Method::POST, ENTRIES, &entry(json!({})).to_string()).await.0, 201);
    assert_eq!(api.call(Method::DELETE, "/api/v1/namespaces/vms", "").await.0, 200);
    assert_eq!(mesh.objects().list(Resource::WorkloadEntries, None), Vec::<Value>::new());
}
