//! A cloud's metadata service: Amazon's, Microsoft's and Google's at one address, each as strict
//! about its headers as the real one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{MeshError, listen, lock};
use crate::base::tasks::Tasks;

/// A machine as its cloud describes it.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// Region or location.
    pub region: String,
    /// Zone; empty for none.
    pub zone: String,
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// Size.
    pub size: String,
    /// Google's project.
    pub project: String,
    /// Tags or attributes.
    pub tags: BTreeMap<String, String>,
    /// Whether AWS shows tags to the machine.
    pub shows_tags: bool,
}

/// What goes wrong with a metadata service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloudFault {
    /// Bodies have no end.
    Endless,
    /// Nothing.
    #[default]
    None,
    /// Every question is answered with a redirection to the same place.
    Redirect,
    /// Every question is refused with this status.
    Refuse(u16),
    /// Something else answers: a page for people.
    Rubbish,
    /// Connections are accepted and no answer comes, as behind too small a hop limit.
    Silent,
    /// Only questions for tags are not answered.
    SilentTags,
}

/// A running metadata service. It ends when it is dropped.
pub struct CloudService {
    address: SocketAddr,
    desk: Arc<Desk>,
    tasks: Tasks,
}

struct Desk {
    instance: Mutex<Instance>,
    fault: watch::Sender<CloudFault>,
    /// Method and path of every question.
    asked: watch::Sender<Vec<String>>,
}

impl CloudService {
    /// Starts one on loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(instance: Instance) -> Result<Self, MeshError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = listen(wanted).await?;
        let address = listener.local_addr();
        let address = address.map_err(|source| MeshError::Listen { address: wanted, source })?;
        let desk = Arc::new(Desk {
            instance: Mutex::new(instance),
            fault: watch::Sender::default(),
            asked: watch::Sender::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&desk));
        let tasks = Tasks::new().0;
        tasks.spawn("devmesh-cloud", async move {
            drop(axum::serve(listener, router).await);
        });
        Ok(Self { address, desk, tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets something go wrong from now on. Questions that wait go on waiting, until the fault is
    /// [`CloudFault::None`].
    pub fn set_fault(&self, fault: CloudFault) {
        self.desk.fault.send_replace(fault);
    }

    /// Describes the machine differently from now on.
    pub fn set_instance(&self, instance: Instance) {
        *lock(&self.desk.instance) = instance;
    }

    /// The questions so far, such as `GET /latest/api/token`, to look at and to wait for.
    #[must_use]
    pub fn asked(&self) -> watch::Receiver<Vec<String>> {
        self.desk.asked.subscribe()
    }
}

impl Drop for CloudService {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn answer(
    Shared(desk): Shared<Arc<Desk>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    desk.asked.send_modify(|asked| asked.push(format!("{method} {uri}")));
    let fault = *desk.fault.borrow();
    let tags = uri.path().contains("/tags/") || uri.path().contains("/attributes/");
    match fault {
        CloudFault::Endless => {
            let more =
                stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 999])));
            return ([("metadata-flavor", "Google")], Body::from_stream(more)).into_response();
        }
        CloudFault::Redirect => {
            return (StatusCode::FOUND, [(header::LOCATION, uri.to_string())]).into_response();
        }
        CloudFault::Refuse(code) => {
            return StatusCode::from_u16(code).unwrap_or_default().into_response();
        }
        CloudFault::Rubbish => return "<html>Please log in to this network</html>".into_response(),
        CloudFault::Silent => patiently(&desk).await,
        CloudFault::SilentTags if tags => patiently(&desk).await,
        CloudFault::SilentTags | CloudFault::None => {}
    }
    let instance = lock(&desk.instance).clone();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let path = uri.path();
    let question = Question { method: &method, path, query: uri.query(), text: &text };
    if path.starts_with("/latest/") {
        amazon(&question, &instance)
    } else if path.starts_with("/metadata/") {
        microsoft(&question, &instance)
    } else if let Some(rest) = path.strip_prefix("/computeMetadata/v1/") {
        google(rest, &question, &instance)
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

async fn patiently(desk: &Desk) {
    // Nobody can take the fault back once the service is gone.
    drop(desk.fault.subscribe().wait_for(|fault| *fault == CloudFault::None).await);
}

struct Question<'a> {
    method: &'a Method,
    path: &'a str,
    query: Option<&'a str>,
    text: &'a dyn Fn(&str) -> Option<&'a str>,
}

fn amazon(question: &Question<'_>, instance: &Instance) -> Response {
    let Some(path) = question.path.strip_prefix("/latest/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if path == "api/token" {
        let life = (question.text)("x-aws-ec2-metadata-token-ttl-seconds");
        let life = life.and_then(|life| life.parse().ok());
        return match life {
            _ if *question.method != Method::PUT => StatusCode::METHOD_NOT_ALLOWED.into_response(),
            Some(1..=21_600) => TOKEN.into_response(),
            _ => StatusCode::BAD_REQUEST.into_response(),
        };
    }
    if (question.text)("x-aws-ec2-metadata-token") != Some(TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let tag = path.strip_prefix("meta-data/tags/instance").filter(|_| instance.shows_tags);
    match (path, tag) {
        ("dynamic/instance-identity/document", _) => json!({
            "accountId": "123456789012", "architecture": "x86_64", "version": "2017-09-30",
            "region": instance.region, "availabilityZone": instance.zone,
            "instanceId": instance.id, "instanceType": instance.size,
        })
        .to_string()
        .into_response(),
        (_, Some("" | "/")) => {
            instance.tags.keys().cloned().collect::<Vec<_>>().join("\n").into_response()
        }
        (_, Some(key)) => known(instance.tags.get(key.trim_start_matches('/')).cloned()),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn microsoft(question: &Question<'_>, instance: &Instance) -> Response {
    let version = question.query.unwrap_or_default().contains("api-version=2019-08-15");
    if (question.text)("metadata") != Some("true") || !version {
        return (StatusCode::BAD_REQUEST, "Bad request. api-version or header is missing")
            .into_response();
    }
    if question.path != "/metadata/instance/compute" {
        return StatusCode::NOT_FOUND.into_response();
    }
    let tag = |(name, value): (&String, &String)| json!({"name": name, "value": value});
    let tags: Vec<Value> = instance.tags.iter().map(tag).collect();
    json!({
        "azEnvironment": "AzurePublicCloud", "osType": "Linux", "location": instance.region,
        "zone": instance.zone, "vmId": instance.id, "name": instance.name, "vmSize": instance.size,
        "tagsList": tags,
    })
    .to_string()
    .into_response()
}

fn google(path: &str, question: &Question<'_>, instance: &Instance) -> Response {
    if (question.text)("metadata-flavor") != Some("Google") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let found = match path {
        "instance/zone" => Some(format!("projects/4711/zones/{}", instance.zone)),
        "instance/id" => Some(instance.id.clone()),
        "instance/name" => Some(instance.name.clone()),
        "instance/machine-type" => Some(format!("projects/4711/machineTypes/{}", instance.size)),
        "project/project-id" => Some(instance.project.clone()),
        _ => {
            let key = path.strip_prefix("instance/attributes/");
            key.and_then(|key| instance.tags.get(key).cloned())
        }
    };
    ([("metadata-flavor", "Google")], known(found)).into_response()
}

fn known(value: Option<String>) -> Response {
    value.map_or_else(|| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

const TOKEN: &str = "AQAEAExampleTokenOfThisService==";
