//! Credentials from kubeconfigs, read and merged as kubectl does (Kubernetes
//! `client-go/tools/clientcmd`).

mod exec;
mod form;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use super::{Auth, Ca, Config};
use crate::base::fsio::{self, FileError};
use exec::Plugin;
use form::{Cluster, Document, User};

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It cannot be read.
    #[error("cannot use the kubeconfig")]
    File(#[source] FileError),
    /// It is no kubeconfig.
    #[error("{place} is no kubeconfig: {why}")]
    Form {
        /// The file, or the files.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// There is none.
    #[error("there is no kubeconfig: {place} does not exist")]
    Missing {
        /// The files that were looked for.
        place: String,
    },
    /// The program that makes the credential failed.
    #[error("the kubeconfig's program {command:?} made no credential: {why}")]
    Plugin {
        /// The program.
        command: String,
        /// What it did.
        why: String,
        /// How it is installed, in the words of the kubeconfig.
        install_hint: Option<String>,
    },
}

impl KubeconfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => {
                Some("name one with --kubeconfig FILE, or in $KUBECONFIG".to_owned())
            }
            Self::Plugin { install_hint, .. } => install_hint.clone(),
            Self::File(_) | Self::Form { .. } => None,
        }
    }
}

/// The kubeconfigs of a person.
#[derive(Clone, Debug)]
pub enum Kubeconfigs {
    /// One that was named: it must exist.
    Named(PathBuf),
    /// Several, of which those that exist count, the earlier before the later.
    Listed(Vec<PathBuf>),
}

/// What a kubeconfig's context gives.
#[derive(Debug)]
pub struct Chosen {
    /// The API server, and who we are to it.
    pub config: Config,
    /// The namespace that the context names.
    pub namespace: Option<String>,
    /// The server's roots, PEM.
    pub ca_pem: String,
}

/// Reads a kubeconfig's context: the named one, or the current one.
///
/// # Errors
/// When the file cannot be read, or the context lacks what is needed. Programs that make
/// credentials (`exec`) are not started, and a server is never left unverified.
pub fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Config, KubeconfigError> {
    let merged = Merged::read(&Kubeconfigs::Named(path.to_owned()))?;
    let Selected { cluster, ca, user, place, .. } = merged.select(context)?;
    if user.exec.is_some() && user.token.is_none() && user.token_file.is_none() {
        let why = "exec plugins are not run by the agent: give its user a token, a tokenFile or a \
                   client certificate";
        return Err(KubeconfigError::Form { place, why: why.to_owned() });
    }
    let auth = auth(user, &place)?;
    Ok(Config { server: cluster.server, ca, auth, tls_server_name: cluster.tls_server_name })
}

/// Reads the context of a person's kubeconfigs: the named one, or the current one. A program that
/// the kubeconfig names (`exec`) is run for the credential.
///
/// # Errors
/// As [`from_kubeconfig`], and when that program fails.
pub async fn from_kubeconfigs(
    files: &Kubeconfigs,
    context: Option<&str>,
) -> Result<Chosen, KubeconfigError> {
    let Selected { cluster, ca, mut user, namespace, place } =
        Merged::read(files)?.select(context)?;
    let ca_pem = match &ca {
        Ca::Pem(pem) => pem.clone(),
        Ca::File(path) => fsio::read_text(path, FILE_BYTES).map_err(KubeconfigError::File)?,
    };
    let fixed = user.token.is_some() || user.token_file.is_some() || user.has_certificate();
    let auth = match user.exec.take().filter(|_| !fixed) {
        Some(exec) => Plugin::new(exec, &cluster, &ca_pem).run().await?,
        None => auth(user, &place)?,
    };
    let Cluster { server, tls_server_name, .. } = cluster;
    Ok(Chosen { config: Config { server, ca, auth, tls_server_name }, namespace, ca_pem })
}

/// All files as one, and their names for errors.
struct Merged {
    document: Document,
    place: String,
}

/// One context of it.
struct Selected {
    cluster: Cluster,
    ca: Ca,
    user: User,
    namespace: Option<String>,
    place: String,
}

impl Merged {
    fn read(files: &Kubeconfigs) -> Result<Self, KubeconfigError> {
        let (paths, optional) = match files {
            Kubeconfigs::Named(path) => (std::slice::from_ref(path), false),
            Kubeconfigs::Listed(paths) => (paths.as_slice(), true),
        };
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let place = names.join(", ");
        let mut document: Option<Document> = None;
        for path in paths {
            let text = match fsio::read_text(path, FILE_BYTES) {
                Err(error) if optional && error.is_missing() => continue,
                text => zeroize::Zeroizing::new(text.map_err(KubeconfigError::File)?),
            };
            let mut one: Document = serde_saphyr::from_str(&text).map_err(|error| {
                let (place, why) = (path.display().to_string(), first_line(&error.to_string()));
                KubeconfigError::Form { place, why }
            })?;
            one.anchor(path.parent().unwrap_or_else(|| Path::new("/")));
            match &mut document {
                Some(document) => document.merge(one),
                None => document = Some(one),
            }
        }
        match document {
            Some(document) => Ok(Self { document, place }),
            None => Err(KubeconfigError::Missing { place }),
        }
    }

    fn select(self, context: Option<&str>) -> Result<Selected, KubeconfigError> {
        let Self { mut document, place } = self;
        let wrong = |why: String| KubeconfigError::Form { place: place.clone(), why };
        let current = document.current_context.clone().filter(|name| !name.is_empty());
        let name = context.map(str::to_owned).or(current);
        let name = name.ok_or_else(|| wrong("it has no current-context".to_owned()))?;
        let missing = |what: &str, name: &str| wrong(format!("it has no {what} {name:?}"));
        let context = document.context(&name).ok_or_else(|| missing("context", &name))?;
        let cluster = document.take_cluster(&context.cluster);
        let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?;
        let user = document.take_user(&context.user);
        let user = user.ok_or_else(|| missing("user", &context.user))?;
        let ca = ca(&cluster).map_err(wrong)?;
        let namespace = context.namespace.filter(|name| !name.is_empty());
        Ok(Selected { cluster, ca, user, namespace, place })
    }
}

fn ca(cluster: &Cluster) -> Result<Ca, String> {
    if cluster.insecure_skip_tls_verify {
        return Err("insecure-skip-tls-verify is not accepted: name the server's root in \
                    certificate-authority"
            .to_owned());
    }
    if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Err(
            "proxy-url is not supported: name a server that can be reached directly".to_owned()
        );
    }
    match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => decode(data, "certificate-authority-data").and_then(|pem| {
            String::from_utf8(pem).map(Ca::Pem).map_err(|_| "its root is not PEM".to_owned())
        }),
        (None, Some(path)) => Ok(Ca::File(path.clone())),
        (None, None) => Err("its cluster has no certificate-authority".to_owned()),
    }
}

impl User {
    fn has_certificate(&self) -> bool {
        self.client_certificate.is_some() || self.client_certificate_data.is_some()
    }
}

fn auth(user: User, place: &str) -> Result<Auth, KubeconfigError> {
    let wrong = |why: String| KubeconfigError::Form { place: place.to_owned(), why };
    // As client-go has it: a file is newer than what was written beside it.
    if let Some(path) = user.token_file {
        return Ok(Auth::TokenFile(path));
    }
    if let Some(token) = user.token {
        return Ok(Auth::Token(token));
    }
    let read = |path: PathBuf| fsio::read(&path, FILE_BYTES).map_err(KubeconfigError::File);
    let chain_pem = match (user.client_certificate_data, user.client_certificate) {
        (Some(data), _) => decode(&data, "client-certificate-data").map_err(wrong)?,
        (None, Some(path)) => read(path)?,
        (None, None) => {
            let why = match (user.auth_provider, user.username) {
                (Some(provider), _) => format!(
                    "its user has the auth-provider {:?}, which Kubernetes has given up: use an \
                     exec plugin instead",
                    provider.name
                ),
                (None, Some(_)) => {
                    "its user has a password, which Kubernetes has given up".to_owned()
                }
                (None, None) => {
                    "its user has no token, tokenFile, client certificate or exec plugin".to_owned()
                }
            };
            return Err(wrong(why));
        }
    };
    let key_pem = match (user.client_key_data, user.client_key) {
        (Some(data), _) => decode(data.expose_secret(), "client-key-data").map_err(wrong)?,
        (None, Some(path)) => read(path)?,
        (None, None) => return Err(wrong("its user has a certificate without a key".to_owned())),
    };
    let key_pem = String::from_utf8(key_pem).map_err(|_| wrong("its key is not PEM".to_owned()))?;
    Ok(Auth::ClientCertificate { chain_pem, key_pem: SecretString::from(key_pem) })
}

fn decode(data: &str, field: &str) -> Result<Vec<u8>, String> {
    let data: String = data.split_whitespace().collect();
    STANDARD.decode(data).map_err(|_| format!("its {field} is not base64"))
}

/// A parser's later lines quote the file, which may hold secrets.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// Kubeconfigs of many clusters have some hundred kilobytes.
const FILE_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests;
