//! HTTP to the API server: every call has a limit of time and size.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::error::{KubeError, Verb};
use super::{Auth, Ca, Config};
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::identity::Roots;

/// An object in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// API group and version, such as `networking.istio.io/v1`.
    pub group_version: &'static str,
    /// The plural, such as `workloadentries`.
    pub resource: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    fn path(&self) -> String {
        let Self { group_version, resource, namespace, name } = self;
        format!("/apis/{group_version}/namespaces/{namespace}/{resource}/{name}")
    }

    fn title(&self) -> String {
        format!("{} {}/{}", self.resource, self.namespace, self.name)
    }
}

/// A client of one API server.
#[derive(Debug)]
pub struct Client {
    server: String,
    auth: Auth,
    http: reqwest::Client,
    clock: SharedClockDebug,
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
        let server = config.server.trim_end_matches('/').to_owned();
        let wrong = || KubeError::Server { found: server.clone() };
        let url = reqwest::Url::parse(&server).map_err(|_| wrong())?;
        if url.scheme() != "https" || url.host_str().is_none() || url.path() != "/" {
            return Err(wrong());
        }
        let tls = tls_config(&config)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_LIMIT)
            .timeout(CALL_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("vm-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| KubeError::Tls { why: chain(&error) })?;
        Ok(Self { server, auth: config.auth, http, clock: SharedClockDebug(clock) })
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
        let path = format!("{}?fieldManager={field_manager}&force={force}", object.path());
        // JSON is YAML.
        let request = self
            .request(Method::PATCH, &path)
            .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(body.to_string());
        self.call(Verb::Apply, object, request).await
    }

    /// Deletes an object; one that does not exist is fine.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete(&self, object: &Object) -> Result<(), KubeError> {
        let request = self.request(Method::DELETE, &object.path());
        match self.call(Verb::Delete, object, request).await {
            Err(error) if error.code() != Some(404) => Err(error),
            _ => Ok(()),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server))
    }

    async fn call(
        &self,
        verb: Verb,
        object: &Object,
        request: RequestBuilder,
    ) -> Result<Value, KubeError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = self.auth.bearer(self.clock.0.now())? {
            let bearer = format!("Bearer {}", token.expose_secret());
            let mut bearer = HeaderValue::try_from(bearer).map_err(|_| KubeError::Tls {
                why: "the token has strange characters".to_owned(),
            })?;
            bearer.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, bearer);
        }
        let failed = |source: reqwest::Error| KubeError::Transport {
            verb,
            what: object.title(),
            server: self.server.clone(),
            // The URL stands beside it already.
            source: source.without_url(),
        };
        let response = request.headers(headers).send().await.map_err(failed)?;
        let (code, retry_after) = (response.status(), retry_after(&response));
        let body = bounded(response).await.map_err(failed)?;
        let body = body.ok_or_else(|| KubeError::TooLarge {
            verb,
            what: object.title(),
            limit: BODY_BYTES,
        })?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if code.is_success() {
            return Ok(value);
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        Err(KubeError::Refused {
            verb,
            what: object.title(),
            code: code.as_u16(),
            reason: text("reason").unwrap_or_else(|| "no reason".to_owned()),
            message: text("message").unwrap_or_else(|| "it gave no message".to_owned()),
            retry_after,
        })
    }
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

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The API server's own limit is 60 s; nothing that we ask takes longer than moments.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// etcd's objects are at most 1.5 MiB.
const BODY_BYTES: usize = 8 << 20;
const PEM_BYTES: u64 = 1 << 20;
