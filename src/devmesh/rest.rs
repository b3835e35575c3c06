//! The calls of objects that are kept: read, list, watch, create, apply, patch, update, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Query, State as Shared};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::answer::{self, Refusal};
use super::catalog::text;
use super::kind::Resource;
use super::kube::{User, authorize, parse};
use super::patch;
use super::schema::{self, Extent, Strictness};
use super::store::{Commit, Key, Preconditions, Write, WriteRefusal};
use super::target::Target;
use super::token::Account;
use super::watch::{self, Scope};
use super::{State, lock, table};
use crate::base::trouble::chain;

/// One call.
struct Call<'a> {
    state: &'a State,
    user: &'a User,
    target: Target,
    options: &'a BTreeMap<String, String>,
    headers: &'a HeaderMap,
}

/// Whatever no other route is for.
pub(super) async fn any(
    Shared(state): Shared<Arc<State>>,
    Extension(user): Extension<User>,
    (method, uri): (Method, Uri),
    Query(options): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let target = Target::read(uri.path()).ok_or_else(Refusal::no_such_path)?;
    let verb = target.verb(&method, &options);
    authorize(&state, &user, &target.act(verb))?;
    let (options, headers) = (&options, &headers);
    let call = Call { state: &state, user: &user, target, options, headers };
    match verb {
        "get" => call.read(),
        "list" => Ok(call.list()),
        "watch" => call.watch(),
        "create" => call.create(&body),
        "update" => call.update(&body),
        "patch" => call.patch(&body),
        "delete" => call.delete(&body),
        _ => Err(Refusal::method()),
    }
}

impl Call<'_> {
    fn key(&self) -> Key {
        Key::new(self.target.resource, &self.target.namespace, &self.target.name)
    }

    fn missing(&self) -> Refusal {
        Refusal::not_found(self.target.resource, &self.target.name)
    }

    fn live(&self) -> Result<Value, Refusal> {
        let Target { resource, namespace, name, .. } = &self.target;
        if *resource == Resource::ConfigMaps && name == ROOTS {
            return Ok(roots(self.state, namespace));
        }
        let found = self.state.objects.get(*resource, namespace, name);
        found.ok_or_else(|| self.missing())
    }

    fn read(&self) -> Result<Response, Refusal> {
        let object = self.live()?;
        if !table::is_wanted(self.headers) {
            return Ok(Json(object).into_response());
        }
        let revision = text(&object, "/metadata/resourceVersion").to_owned();
        Ok(self.table(&[object], &revision))
    }

    fn table(&self, objects: &[Value], revision: &str) -> Response {
        let now = self.state.options.clock.now();
        Json(table::of(self.target.resource, objects, revision, now)).into_response()
    }

    fn list(&self) -> Response {
        let Target { resource, namespace, .. } = &self.target;
        let scope = Scope::new(*resource, namespace, self.options);
        let revision = self.state.objects.revision().to_string();
        let items = self.state.objects.list(*resource, None);
        let items: Vec<Value> = items.into_iter().filter(|item| scope.has(item)).collect();
        if table::is_wanted(self.headers) {
            return self.table(&items, &revision);
        }
        Json(json!({
            "apiVersion": resource.api_version(),
            "kind": format!("{}List", resource.kind()),
            "metadata": {"resourceVersion": revision},
            "items": items,
        }))
        .into_response()
    }

    fn watch(&self) -> Result<Response, Refusal> {
        let Target { resource, namespace, .. } = &self.target;
        let mut scope = Scope::new(*resource, namespace, self.options);
        scope.table = table::is_wanted(self.headers);
        let options = &self.state.options;
        watch::follow(&self.state.objects, scope, self.options, options)
    }

    fn manager(&self) -> &str {
        self.options.get("fieldManager").map_or("unknown", String::as_str)
    }

    fn create(mut self, body: &[u8]) -> Result<Response, Refusal> {
        let mut object = parse(body)?;
        let name = text(&object, "/metadata/name").to_owned();
        let start = text(&object, "/metadata/generateName").to_owned();
        self.target.name = match (name.is_empty(), start.is_empty()) {
            (false, _) => name,
            (true, false) => format!("{start}{:05x}", rand::random::<u32>() & 0xf_ffff),
            (true, true) => {
                let cause = json!({
                    "reason": "FieldValueRequired", "field": "metadata.name",
                    "message": "Required value: name or generateName is required",
                });
                return Err(Refusal::unfit(self.target.resource, "", &[cause]));
            }
        };
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("name".to_owned(), json!(self.target.name));
        }
        let object = self.fit(object, Extent::Whole)?;
        self.write(object, &Write::Create { manager: self.manager() })
    }

    fn update(&self, body: &[u8]) -> Result<Response, Refusal> {
        let object = self.fit(parse(body)?, Extent::Whole)?;
        if self.target.part == "status" {
            let mut live = self.live()?;
            let status = object.get("status").cloned().unwrap_or_default();
            patch::merge(&mut live, &json!({"status": null}));
            patch::merge(&mut live, &json!({"status": status}));
            return self.write(live, &Write::Update { manager: self.manager() });
        }
        self.write(object, &Write::Update { manager: self.manager() })
    }

    fn patch(&self, body: &[u8]) -> Result<Response, Refusal> {
        let media = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media = media.unwrap_or_default().split(';').next().unwrap_or_default();
        let strategic = media == "application/strategic-merge-patch+json";
        match media {
            "application/apply-patch+yaml" => return self.apply(body),
            "application/merge-patch+json" | "application/json-patch+json" => {}
            _ if strategic && !self.target.resource.is_custom() => {}
            _ => return Err(Refusal::media_type()),
        }
        let mut object = self.live()?;
        if media == "application/json-patch+json" {
            let body = std::str::from_utf8(body).unwrap_or_default();
            patch::steps(&mut object, body)
                .map_err(|error| Refusal::bad_request(&error.to_string()))?;
        } else {
            patch::merge(&mut object, &parse(body)?);
        }
        let object = self.fit(object, Extent::Whole)?;
        self.write(object, &Write::Update { manager: self.manager() })
    }

    fn apply(&self, body: &[u8]) -> Result<Response, Refusal> {
        let manager = self.options.get("fieldManager").map(String::as_str).unwrap_or_default();
        if manager.is_empty() {
            let words = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: \
                         is required for apply patch";
            return Err(Refusal::invalid(words));
        }
        let extent = if self.live().is_ok() { Extent::Part } else { Extent::Whole };
        let object = self.fit(parse(body)?, extent)?;
        if extent == Extent::Whole {
            authorize(self.state, self.user, &self.target.act("create"))?;
        }
        let force = self.options.get("force").is_some_and(|force| force == "true");
        self.write(object, &Write::Apply { manager, force })
    }

    fn delete(&self, body: &[u8]) -> Result<Response, Refusal> {
        let Target { resource, namespace, name, .. } = &self.target;
        let options = if body.is_empty() { Value::Null } else { parse(body)? };
        let text = |path| options.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let wanted = Preconditions {
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
        };
        if self.commit() == Commit::Dry {
            return Ok(Json(answer::deleted(*resource, &self.live()?)).into_response());
        }
        let removed = self.state.objects.remove(&self.key(), &wanted);
        let removed = removed.map_err(|_| Refusal::stale(*resource, name))?;
        let removed = removed.ok_or_else(|| self.missing())?;
        match resource {
            Resource::Namespaces => self.state.objects.empty(name),
            Resource::ServiceAccounts => {
                self.state.tokens.delete(Account::new(namespace, name));
            }
            _ => {}
        }
        Ok(Json(answer::deleted(*resource, &removed)).into_response())
    }

    fn commit(&self) -> Commit {
        if self.options.get("dryRun").is_some_and(|dry| dry == "All") {
            Commit::Dry
        } else {
            Commit::Really
        }
    }

    fn write(&self, object: Value, how: &Write<'_>) -> Result<Response, Refusal> {
        let (key, name) = (self.key(), &self.target.name);
        let resource = key.resource;
        self.place()?;
        let written = self.state.objects.write(&key, object, how, self.commit());
        let (object, created) = written.map_err(|refusal| match refusal {
            WriteRefusal::Exists => Refusal::exists(resource, name),
            WriteRefusal::Missing => Refusal::not_found(resource, name),
            WriteRefusal::Stale => Refusal::stale(resource, name),
            WriteRefusal::Conflicts(conflicts) => Refusal::conflicts(&conflicts),
            WriteRefusal::Disk(error) => Refusal::internal(&chain(&error)),
        })?;
        if created && self.commit() == Commit::Really {
            self.born();
        }
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        Ok((code, Json(object)).into_response())
    }

    /// What comes into being with a new object.
    fn born(&self) {
        let Target { resource, namespace, name, .. } = &self.target;
        match resource {
            Resource::Namespaces => self.state.found(name),
            Resource::ServiceAccounts => self.state.tokens.revive(&Account::new(namespace, name)),
            _ => {}
        }
    }

    /// The namespace must exist, in a mesh that has any.
    fn place(&self) -> Result<(), Refusal> {
        let namespace = &self.target.namespace;
        let objects = &self.state.objects;
        let exists = namespace.is_empty()
            || objects.get(Resource::Namespaces, "", namespace).is_some()
            || objects.has_no(Resource::Namespaces);
        if exists { Ok(()) } else { Err(Refusal::not_found(Resource::Namespaces, namespace)) }
    }

    /// The object, if it fits its path and its kind.
    fn fit(&self, mut object: Value, extent: Extent) -> Result<Value, Refusal> {
        let Target { resource, namespace, name, .. } = &self.target;
        let (version, kind) = (text(&object, "/apiVersion"), text(&object, "/kind"));
        let expected = resource.api_version();
        if version != expected || kind != resource.kind() {
            let words = format!(
                "the object provided is unrecognized: found {kind:?} of {version:?}, expected {:?} \
                 of {expected:?}",
                resource.kind()
            );
            return Err(Refusal::bad_request(&words));
        }
        let own = text(&object, "/metadata/name");
        if own != name {
            let words = format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            );
            return Err(Refusal::bad_request(&words));
        }
        let own = text(&object, "/metadata/namespace");
        if !own.is_empty() && own != namespace {
            let words = "the namespace of the provided object does not match the namespace sent on \
                         the request";
            return Err(Refusal::bad_request(words));
        }
        if !is_name(name) {
            let cause = json!({
                "reason": "FieldValueInvalid", "field": "metadata.name",
                "message": format!("Invalid value: {name:?}: a lowercase RFC 1123 subdomain must \
                    consist of lower case alphanumeric characters, '-' or '.', and must start and \
                    end with an alphanumeric character"),
            });
            return Err(Refusal::unfit(*resource, name, &[cause]));
        }
        let strict = self.options.get("fieldValidation").is_some_and(|wish| wish == "Strict");
        let strictness = if strict { Strictness::Strict } else { Strictness::Prune };
        schema::check(*resource, &mut object, (strictness, extent))?;
        Ok(object)
    }
}

/// RFC 1123; names of Roles may have colons in them.
fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= LONGEST_NAME
        && name.chars().all(inner)
        && edge(name.chars().next())
        && edge(name.chars().next_back())
}

/// The mesh's roots, which every namespace has.
fn roots(state: &State, namespace: &str) -> Value {
    let roots = lock(&state.authorities).roots_pem();
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": ROOTS, "namespace": namespace}, "data": {"root-cert.pem": roots},
    })
}

/// The ConfigMap that holds the mesh's roots.
const ROOTS: &str = "istio-ca-root-cert";
const LONGEST_NAME: usize = 253;
