//! HTTP to the API server: every call has a limit of time and size.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::auth::Spare;
use super::elsewhere::Elsewhere;
use super::error::{KubeError, Verb};
use super::watch::Watch;
use super::{Auth, Ca, Config};
use crate::base::clock::{SharedClock, Skew, SkewGauge, Witness, parse_http_date, parse_rfc3339};
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::identity::{BoundObject, Roots};

/// A place in the API: an object, or with an empty name the collection that it would be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// API group and version, such as `networking.istio.io/v1`; `v1` for the core group.
    pub group_version: &'static str,
    /// The plural, such as `workloadentries`.
    pub resource: &'static str,
    /// Its namespace; empty for what belongs to the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    fn path(&self) -> String {
        let mut path = self.collection();
        if !self.name.is_empty() {
            path.push('/');
            path.push_str(&self.name);
        }
        path
    }

    fn collection(&self) -> String {
        let Self { group_version, resource, namespace, .. } = self;
        let prefix = if group_version.contains('/') { "apis" } else { "api" };
        if namespace.is_empty() {
            format!("/{prefix}/{group_version}/{resource}")
        } else {
            format!("/{prefix}/{group_version}/namespaces/{namespace}/{resource}")
        }
    }

    pub(super) fn title(&self) -> String {
        let place = [self.namespace.as_str(), self.name.as_str()];
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{} {}", self.resource, place.join("/")).trim_end().to_owned()
    }
}

/// One version of one object, which no later object of the same name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub revision: String,
}

impl Version {
    /// The version of an object as the API server shows it.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let text = |path| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
        Some(Self { uid: text("/metadata/uid")?, revision: text("/metadata/resourceVersion")? })
    }
}

/// A token that the API server made.
pub struct IssuedToken {
    /// The token.
    pub token: SecretString,
    /// Its end, which may be sooner than was asked for.
    pub expires_at: SystemTime,
}

/// A client of one API server.
#[derive(Debug)]
pub struct Client {
    server: String,
    auth: Auth,
    spare: Spare,
    tls: rustls::ClientConfig,
    /// The host behind the name of the URL, where its certificate has another name.
    elsewhere: Option<String>,
    /// Its connections; replaced with them.
    http: Mutex<reqwest::Client>,
    clock: SharedClockDebug,
    skew: SkewGauge,
}

/// The clock has nothing to show.
struct SharedClockDebug(SharedClock);

impl std::fmt::Debug for SharedClockDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Client {
    /// A client.
    ///
    /// # Errors
    /// When the URL, the roots or the client certificate cannot be used.
    pub fn new(config: Config, clock: SharedClock) -> Result<Self, KubeError> {
        let mut server = config.server.trim_end_matches('/').to_owned();
        let wrong = || KubeError::Server { found: config.server.clone() };
        let mut url = reqwest::Url::parse(&server).map_err(|_| wrong())?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if url.scheme() != "https" || url.host_str().is_none() || !plain {
            return Err(wrong());
        }
        let tls = tls_config(&config)?;
        let mut elsewhere = None;
        if let Some(name) = config.tls_server_name.as_deref() {
            elsewhere = Some(url.host_str().unwrap_or_default().to_owned());
            url.set_host(Some(name)).map_err(|_| wrong())?;
            server = url.as_str().trim_end_matches('/').to_owned();
        }
        let http = Mutex::new(connections(&tls, elsewhere.as_deref())?);
        let (clock, skew) = (SharedClockDebug(clock), SkewGauge::default());
        let (auth, spare) = (config.auth, Spare::default());
        Ok(Self { server, auth, spare, tls, elsewhere, http, clock, skew })
    }

    /// Lets the next call make a new connection: those that began at an address which this machine
    /// no longer has are dead, though nobody says so.
    pub fn reconnect(&self) {
        match connections(&self.tls, self.elsewhere.as_deref()) {
            Ok(new) => *self.http.lock().unwrap_or_else(PoisonError::into_inner) = new,
            Err(error) => tracing::debug!(%error, "The connections stay as they are."),
        }
    }

    /// Notes here what the server's answers say of this machine's clock.
    #[must_use]
    pub fn measuring(mut self, skew: SkewGauge) -> Self {
        self.skew = skew;
        self
    }

    /// The time by the server's clock, as far as its answers have told it lately; else by ours.
    #[must_use]
    pub fn server_time(&self) -> SystemTime {
        let now = self.clock.0.now();
        self.skew.now(now).map_or(now, |skew| skew.corrected(now))
    }

    /// Asks the server for nothing that needs a credential, and sends none: its answer tells its
    /// time (see [`Client::measuring`]).
    pub async fn ask_time(&self) {
        let started = Instant::now();
        if let Ok(response) = self.request(Method::GET, "/version").send().await {
            self.measure(&response, started.elapsed());
        }
    }

    /// The file of our bearer token, where the credential is one.
    #[must_use]
    pub fn token_file(&self) -> Option<&Path> {
        if let Auth::TokenFile(path) = &self.auth { Some(path) } else { None }
    }

    /// Goes on with this token when the one in the file has ended: a disk that is full keeps it out
    /// of there. `None` once it is in the file.
    pub fn spare_token(&self, token: Option<SecretString>) {
        self.spare.put(token);
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; code 404 when it does not exist.
    pub async fn get(&self, object: &Object) -> Result<Value, KubeError> {
        let request = self.request(Method::GET, &object.path());
        self.call(Verb::Get, object, request).await
    }

    /// Makes the fields of `body` so, as this field manager; others' fields are left alone
    /// (Kubernetes' server-side apply). With `force`, fields that others own are taken over.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; code 409 names the owner of a field.
    pub async fn apply(
        &self,
        object: &Object,
        body: &Value,
        field_manager: &str,
        force: bool,
    ) -> Result<Value, KubeError> {
        self.apply_at(object, body, field_manager, &format!("force={force}")).await
    }

    /// Asks whether an apply would succeed: the server authorizes, validates, admits and merges it,
    /// and stores nothing (`dryRun=All`).
    ///
    /// # Errors
    /// As [`Client::apply`] without `force`.
    pub async fn apply_dry_run(
        &self,
        object: &Object,
        body: &Value,
        field_manager: &str,
    ) -> Result<Value, KubeError> {
        self.apply_at(object, body, field_manager, "force=false&dryRun=All").await
    }

    async fn apply_at(
        &self,
        object: &Object,
        body: &Value,
        field_manager: &str,
        options: &str,
    ) -> Result<Value, KubeError> {
        let path = format!("{}?fieldManager={field_manager}&{options}", object.path());
        // JSON is YAML.
        let request = self
            .request(Method::PATCH, &path)
            .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(body.to_string());
        self.call(Verb::Apply, object, request).await
    }

    /// Makes an object that must not exist yet.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; code 409 when it exists.
    pub async fn create(&self, object: &Object, body: &Value) -> Result<Value, KubeError> {
        let request = self.request(Method::POST, &object.collection()).json(body);
        self.call(Verb::Create, object, request).await
    }

    /// The objects of a collection, as the server's `List`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn list(
        &self,
        collection: &Object,
        label_selector: Option<&str>,
    ) -> Result<Value, KubeError> {
        let mut request = self.request(Method::GET, &collection.collection());
        if let Some(selector) = label_selector {
            request = request.query(&[("labelSelector", selector)]);
        }
        self.call(Verb::List, collection, request).await
    }

    /// Has a token made for a service account (Kubernetes' TokenRequest). Without audiences it is
    /// for the API server itself.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or answers without a token.
    pub async fn request_token(
        &self,
        account: &Object,
        audiences: &[&str],
        life: Duration,
    ) -> Result<IssuedToken, KubeError> {
        self.request_bound_token(account, audiences, life, None).await
    }

    /// The same, for a token that dies with an object of the account's namespace.
    ///
    /// # Errors
    /// As [`Client::request_token`]; and when the object is gone.
    pub async fn request_bound_token(
        &self,
        account: &Object,
        audiences: &[&str],
        life: Duration,
        bound_to: Option<&BoundObject>,
    ) -> Result<IssuedToken, KubeError> {
        let mut spec = json!({"audiences": audiences, "expirationSeconds": life.as_secs()});
        if let (Some(BoundObject { kind, name, uid }), Some(spec)) =
            (bound_to, spec.as_object_mut())
        {
            let object = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid});
            spec.insert("boundObjectRef".to_owned(), object);
        }
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
        });
        let request = self.request(Method::POST, &format!("{}/token", account.path())).json(&body);
        let answer = self.call(Verb::RequestToken, account, request).await?;
        let text = |path| answer.pointer(path).and_then(Value::as_str);
        let expires_at = text("/status/expirationTimestamp").and_then(parse_rfc3339);
        match (text("/status/token"), expires_at) {
            (Some(token), Some(expires_at)) => {
                Ok(IssuedToken { token: SecretString::from(token), expires_at })
            }
            _ => Err(KubeError::Rubbish { verb: Verb::RequestToken, what: account.title() }),
        }
    }

    /// Watches one object, or a collection, from a revision on: what changes after it is told. The
    /// server ends a watch after some minutes; a new one goes on from the last revision.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; code 410 when the revision is too old, and the
    /// object has to be read again.
    pub async fn watch(&self, object: &Object, revision: &str) -> Result<Watch, KubeError> {
        let seconds = WATCH_LIMIT.as_secs().to_string();
        let mut query = vec![("watch", "true"), ("timeoutSeconds", seconds.as_str())];
        query.push(("resourceVersion", revision));
        query.push(("allowWatchBookmarks", "true"));
        let only = format!("metadata.name={}", object.name);
        if !object.name.is_empty() {
            query.push(("fieldSelector", only.as_str()));
        }
        let limit = WATCH_LIMIT.saturating_add(CALL_LIMIT);
        let request = self.request(Method::GET, &object.collection()).query(&query).timeout(limit);
        let response = self.send(Verb::Watch, object, request).await?;
        Ok(Watch::new(response, object.title(), self.server.clone()))
    }

    /// Deletes an object; one that does not exist is fine.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete(&self, object: &Object) -> Result<(), KubeError> {
        self.remove(object, self.request(Method::DELETE, &object.path())).await
    }

    /// Deletes this version of an object; one that does not exist is fine.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; code 409 when the object has changed since, or
    /// is another one of that name.
    pub async fn delete_only(&self, object: &Object, version: &Version) -> Result<(), KubeError> {
        let Version { uid, revision } = version;
        let only = json!({"uid": uid, "resourceVersion": revision});
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": only});
        self.remove(object, self.request(Method::DELETE, &object.path()).json(&options)).await
    }

    async fn remove(&self, object: &Object, request: RequestBuilder) -> Result<(), KubeError> {
        match self.call(Verb::Delete, object, request).await {
            Err(error) if error.code() != Some(404) => Err(error),
            _ => Ok(()),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner).clone();
        http.request(method, format!("{}{path}", self.server))
    }

    async fn call(
        &self,
        verb: Verb,
        object: &Object,
        request: RequestBuilder,
    ) -> Result<Value, KubeError> {
        let response = self.send(verb, object, request).await?;
        let body = self.body(verb, object, response).await?;
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// An answer that is no refusal; its body is not read yet.
    async fn send(
        &self,
        verb: Verb,
        object: &Object,
        request: RequestBuilder,
    ) -> Result<Response, KubeError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = self.auth.bearer(self.clock.0.now(), &self.spare)? {
            let bearer = format!("Bearer {}", token.expose_secret());
            let mut bearer = HeaderValue::try_from(bearer).map_err(|_| KubeError::Tls {
                why: "the token has strange characters".to_owned(),
            })?;
            bearer.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, bearer);
        }
        let started = Instant::now();
        let response = request.headers(headers).send().await;
        let response = response.map_err(|source| self.lost(verb, object, source))?;
        self.measure(&response, started.elapsed());
        let (code, retry_after) = (response.status(), retry_after(&response));
        if code.is_success() {
            return Ok(response);
        }
        let body = self.body(verb, object, response).await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Err(KubeError::refused(verb, &object.title(), &value, code.as_u16(), retry_after))
    }

    /// Its `Date` is of the time at which it was written.
    fn measure(&self, response: &Response, took: Duration) {
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(parse_http_date).filter(|_| took <= MEASURED) {
            let now = self.clock.0.now();
            self.skew.note(Skew::of_answer(date, took, now, Witness::KubernetesApi));
        }
    }

    async fn body(
        &self,
        verb: Verb,
        object: &Object,
        response: Response,
    ) -> Result<Zeroizing<Vec<u8>>, KubeError> {
        let body = bounded(response).await.map_err(|source| self.lost(verb, object, source))?;
        // It may hold a token.
        body.map(Zeroizing::new).ok_or_else(|| KubeError::TooLarge {
            verb,
            what: object.title(),
            limit: BODY_BYTES,
        })
    }

    fn lost(&self, verb: Verb, object: &Object, source: reqwest::Error) -> KubeError {
        let (what, server) = (object.title(), self.server.clone());
        // The URL stands beside it already.
        KubeError::Transport { verb, what, server, source: source.without_url() }
    }
}

fn connections(
    tls: &rustls::ClientConfig,
    elsewhere: Option<&str>,
) -> Result<reqwest::Client, KubeError> {
    let mut builder = reqwest::Client::builder();
    if let Some(host) = elsewhere {
        builder = builder.dns_resolver(Arc::new(Elsewhere { host: host.to_owned() }));
    }
    builder
        .tls_backend_preconfigured(tls.clone())
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEPALIVE_LIMIT)
        .http2_keep_alive_while_idle(true)
        .timeout(CALL_LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent(concat!("vm-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| KubeError::Tls { why: chain(&error) })
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The body, or `None` when it is too large.
async fn bounded(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len().saturating_add(chunk.len()) > BODY_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

fn tls_config(config: &Config) -> Result<rustls::ClientConfig, KubeError> {
    let wrong = |why: String| KubeError::Tls { why };
    let pem = match &config.ca {
        Ca::File(path) => fsio::read(path, PEM_BYTES).map_err(KubeError::Credential)?,
        Ca::Pem(pem) => pem.clone().into_bytes(),
    };
    let roots = Roots::from_pem(&pem).map_err(|error| wrong(format!("its roots: {error}")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots.store());
    let mut tls = match &config.auth {
        Auth::ClientCertificate { chain_pem, key_pem } => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem).collect();
            let chain = chain.map_err(|_| wrong("the client certificate is broken".to_owned()))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.expose_secret().as_bytes())
                .map_err(|_| wrong("the client key is broken".to_owned()))?;
            let built = builder.with_client_auth_cert(chain, key);
            built.map_err(|error| wrong(format!("the client certificate: {error}")))?
        }
        _ => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// An answer that took longer says too little of the time.
const MEASURED: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The API server's own limit is 60 s; nothing that we ask takes longer than moments.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The server ends a watch after this time.
const WATCH_LIMIT: Duration = Duration::from_secs(240);
/// A connection whose server vanished without a word is noticed after their sum.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);
/// etcd's objects are at most 1.5 MiB.
const BODY_BYTES: usize = 8 << 20;
const PEM_BYTES: u64 = 1 << 20;
