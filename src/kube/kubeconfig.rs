//! Credentials from a kubeconfig (Kubernetes `client-go/tools/clientcmd/api/v1/types.go`).

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde::Deserialize;

use super::{Auth, Ca, Config};
use crate::base::fsio::{self, FileError};

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It cannot be read.
    #[error("cannot use the kubeconfig")]
    File(#[source] FileError),
    /// It is no kubeconfig.
    #[error("{} is no kubeconfig: {why}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: Option<String>,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<SecretString>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<SecretString>,
}

/// Reads a kubeconfig's context: the named one, or the current one.
///
/// # Errors
/// When the file cannot be read, or the context lacks what is needed. Programs that make
/// credentials (`exec`) are not started, and a server is never left unverified.
pub fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Config, KubeconfigError> {
    let text = fsio::read_text(path, FILE_BYTES).map_err(KubeconfigError::File)?;
    let wrong = |why: String| KubeconfigError::Form { path: path.to_owned(), why };
    let file: Kubeconfig =
        serde_saphyr::from_str(&text).map_err(|error| wrong(first_line(&error.to_string())))?;
    let name = context.or(file.current_context.as_deref());
    let name = name.ok_or_else(|| wrong("it has no current-context".to_owned()))?.to_owned();
    let missing = |what: &str, name: &str| wrong(format!("it has no {what} {name:?}"));
    let context = file.contexts.into_iter().find(|context| context.name == name);
    let context = context.ok_or_else(|| missing("context", &name))?.context;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
    let user = file.users.into_iter().find(|user| user.name == context.user);
    let user = user.ok_or_else(|| missing("user", &context.user))?.user;
    let base = path.parent().unwrap_or_else(|| Path::new("/"));
    let ca = ca(&cluster, base).map_err(&wrong)?;
    let auth = auth(user, base, &wrong)?;
    Ok(Config { server: cluster.server, ca, auth })
}

fn ca(cluster: &Cluster, base: &Path) -> Result<Ca, String> {
    if cluster.insecure_skip_tls_verify {
        return Err("insecure-skip-tls-verify is not accepted: name the server's root in \
                    certificate-authority"
            .to_owned());
    }
    if cluster.tls_server_name.is_some() {
        return Err("tls-server-name is not supported: use a server URL with that name".to_owned());
    }
    match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => decode(data, "certificate-authority-data").and_then(|pem| {
            String::from_utf8(pem).map(Ca::Pem).map_err(|_| "its root is not PEM".to_owned())
        }),
        (None, Some(path)) => Ok(Ca::File(base.join(path))),
        (None, None) => Err("its cluster has no certificate-authority".to_owned()),
    }
}

fn auth(
    user: User,
    base: &Path,
    wrong: &impl Fn(String) -> KubeconfigError,
) -> Result<Auth, KubeconfigError> {
    if let Some(token) = user.token {
        return Ok(Auth::Token(token));
    }
    if let Some(path) = user.token_file {
        return Ok(Auth::TokenFile(base.join(path)));
    }
    let read =
        |path: PathBuf| fsio::read(&base.join(path), FILE_BYTES).map_err(KubeconfigError::File);
    let chain_pem = match (user.client_certificate_data, user.client_certificate) {
        (Some(data), _) => decode(&data, "client-certificate-data").map_err(wrong)?,
        (None, Some(path)) => read(path)?,
        (None, None) => {
            let why = "its user has no token, tokenFile or client certificate (exec plugins are not supported)";
            return Err(wrong(why.to_owned()));
        }
    };
    let key_pem = match (user.client_key_data, user.client_key) {
        (Some(data), _) => {
            decode(secrecy::ExposeSecret::expose_secret(&data), "client-key-data").map_err(wrong)?
        }
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
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Config, KubeconfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, yaml).unwrap();
        from_kubeconfig(&path, None)
    }

    const HEAD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        contexts: [{name: c, context: {cluster: c, user: u}}]\n";

    #[test]
    fn the_current_context_gives_server_root_and_token() {
        let yaml = format!(
            "{HEAD}clusters: [{{name: c, cluster: {{server: 'https://k:6443', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{token: abc}}}}]\n"
        );
        let config = read(&yaml).unwrap();
        assert_eq!(config.server, "https://k:6443");
        assert!(
            matches!(&config.ca, Ca::File(path) if path.ends_with("ca.pem") && path.is_absolute())
        );
        assert!(!format!("{config:?}").contains("abc"));
    }

    #[test]
    fn what_is_missing_is_named_and_no_server_is_left_unverified() {
        let cluster =
            "clusters: [{name: c, cluster: {server: 'https://k', certificate-authority: x}}]\n";
        let insecure = "clusters: [{name: c, cluster: {server: 'https://k', insecure-skip-tls-verify: true}}]\n";
        let user = "users: [{name: u, user: {token: abc}}]\n";
        let cases = [
            (String::new(), "no current-context"),
            (HEAD.to_owned(), "no cluster \"c\""),
            (format!("{HEAD}{cluster}"), "no user \"u\""),
            (format!("{HEAD}{insecure}{user}"), "insecure-skip-tls-verify"),
            (
                format!("{HEAD}{cluster}users: [{{name: u, user: {{exec: {{}}}}}}]\n"),
                "exec plugins",
            ),
        ];
        for (yaml, words) in cases {
            let error = read(&yaml).unwrap_err().to_string();
            assert!(error.contains(words), "{error} / {words}");
        }
    }
}
