use std::os::unix::fs::PermissionsExt;

use super::*;

struct Bed(tempfile::TempDir);

impl Bed {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A program that prints this.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.write(name, &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn read(yaml: &str) -> Result<Config, KubeconfigError> {
    let bed = Bed::new();
    from_kubeconfig(&bed.write("config", yaml), None)
}

const HEAD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
    contexts: [{name: c, context: {cluster: c, user: u}}]\n";
const CLUSTER: &str = "clusters: [{name: c, cluster: {server: 'https://k:6443', certificate-authority-data: cGVt}}]\n";

#[test]
fn the_current_context_gives_server_root_and_token() {
    let yaml = format!(
        "{HEAD}clusters: [{{name: c, cluster: {{server: 'https://k:6443', certificate-authority: ca.pem}}}}]\n\
         users: [{{name: u, user: {{token: abc}}}}]\n"
    );
    let config = read(&yaml).unwrap();
    assert_eq!(config.server, "https://k:6443");
    assert!(matches!(&config.ca, Ca::File(path) if path.ends_with("ca.pem") && path.is_absolute()));
    assert!(!format!("{config:?}").contains("abc"));
}

#[test]
fn what_is_missing_is_named_and_no_server_is_left_unverified() {
    let insecure =
        "clusters: [{name: c, cluster: {server: 'https://k', insecure-skip-tls-verify: true}}]\n";
    let proxied =
        "clusters: [{name: c, cluster: {server: 'https://k', proxy-url: 'socks5://p'}}]\n";
    let token = "users: [{name: u, user: {token: abc}}]\n";
    let user = |user: &str| format!("{HEAD}{CLUSTER}users: [{{name: u, user: {user}}}]\n");
    let cases = [
        (String::new(), "no current-context"),
        (HEAD.to_owned(), "no cluster \"c\""),
        (format!("{HEAD}{CLUSTER}"), "no user \"u\""),
        (format!("{HEAD}{insecure}{token}"), "insecure-skip-tls-verify is not accepted"),
        (format!("{HEAD}{proxied}{token}"), "proxy-url is not supported"),
        (user("{exec: {command: aws}}"), "exec plugins are not run by the agent"),
        (user("{auth-provider: {name: gcp}}"), "the auth-provider \"gcp\""),
        (user("{username: me, password: x}"), "a password"),
        (user("{client-certificate-data: '!'}"), "client-certificate-data is not base64"),
        (user("{client-certificate-data: cGVt}"), "a certificate without a key"),
        (user("{}"), "no token, tokenFile, client certificate or exec plugin"),
    ];
    for (yaml, words) in cases {
        let error = read(&yaml).unwrap_err().to_string();
        assert!(error.contains(words), "{error} / {words}");
    }
}

#[tokio::test]
async fn of_several_files_the_first_that_names_something_wins_and_missing_ones_are_skipped() {
    let bed = Bed::new();
    let one = bed.write(
        "one/config",
        "current-context: b\n\
         clusters: [{name: c, cluster: {server: 'https://one', certificate-authority: ca.pem}}]\n\
         contexts: [{name: a, context: {cluster: c, user: u}}]\n",
    );
    let two = bed.write(
        "two/config",
        "current-context: a\n\
         clusters: [{name: c, cluster: {server: 'https://two', tls-server-name: two}}]\n\
         contexts: [{name: a, context: {cluster: x, user: x}}, {name: b, context: {cluster: c, user: u, namespace: vms}}]\n\
         users: [{name: u, user: {tokenFile: token}}]\n",
    );
    bed.write("one/ca.pem", "pem of one");
    let none = bed.0.path().join("none");
    let files = Kubeconfigs::Listed(vec![none.clone(), one, two]);
    let chosen = from_kubeconfigs(&files, None).await.unwrap();
    assert_eq!(
        (chosen.config.server.as_str(), chosen.ca_pem.as_str()),
        ("https://one", "pem of one")
    );
    assert_eq!((chosen.namespace.as_deref(), chosen.config.tls_server_name), (Some("vms"), None));
    assert!(matches!(&chosen.config.auth, Auth::TokenFile(path) if path.ends_with("two/token")));
    let other = from_kubeconfigs(&files, Some("a")).await.unwrap();
    assert_eq!(other.namespace, None);
    let error = from_kubeconfigs(&Kubeconfigs::Listed(vec![none]), None).await.unwrap_err();
    assert!(matches!(error, KubeconfigError::Missing { .. }) && error.hint().is_some());
}

fn with_plugin(command: &str, more: &str) -> String {
    format!(
        "{HEAD}{CLUSTER}users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, \
         command: {command}, installHint: install it, interactiveMode: Never{more}}}}}}}]\n"
    )
}

async fn run(bed: &Bed, yaml: &str) -> Result<Auth, KubeconfigError> {
    let files = Kubeconfigs::Named(bed.write("config", yaml));
    from_kubeconfigs(&files, None).await.map(|chosen| chosen.config.auth)
}

#[tokio::test]
async fn a_program_makes_a_token_and_is_told_what_it_may_know() {
    let bed = Bed::new();
    // It gives back a part of what it was told.
    bed.program(
        "bin/plugin",
        r#"server=$(printf %s "$KUBERNETES_EXEC_INFO" | sed 's/.*"server":"\([^"]*\)".*/\1/')
printf '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"%s %s %s"}}' "$1" "$WORD" "$server""#,
    );
    let more = ", args: [one], env: [{name: WORD, value: two}], provideClusterInfo: true";
    let auth = run(&bed, &with_plugin("bin/plugin", more)).await.unwrap();
    let Auth::Token(token) = auth else { panic!("{auth:?}") };
    assert_eq!(token.expose_secret(), "one two https://k:6443");
}

#[tokio::test]
async fn a_program_may_make_a_client_certificate() {
    let bed = Bed::new();
    bed.program(
        "plugin",
        r#"echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"clientCertificateData":"chain","clientKeyData":"key"}}'"#,
    );
    let auth = run(&bed, &with_plugin("./plugin", "")).await.unwrap();
    assert!(matches!(&auth, Auth::ClientCertificate { chain_pem, .. } if chain_pem == b"chain"));
}

#[tokio::test]
async fn a_program_that_fails_is_said_with_how_to_install_it_and_without_what_it_printed() {
    let bed = Bed::new();
    let cases = [
        ("exit 3", "ended with exit status: 3"),
        ("echo secret", "no ExecCredential"),
        (
            r#"echo '{"kind":"ExecCredential","apiVersion":"x","status":{"token":"secret"}}'"#,
            "something else",
        ),
        (
            r#"echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{}}'"#,
            "neither a token",
        ),
    ];
    for (script, words) in cases {
        bed.program("plugin", script);
        let error = run(&bed, &with_plugin("./plugin", "")).await.unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("install it"));
        let error = error.to_string();
        assert!(error.contains(words) && !error.contains("secret"), "{error} / {words}");
    }
    let error = run(&bed, &with_plugin("./none", "")).await.unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
    let old = with_plugin("./plugin", "").replace("k8s.io/v1,", "k8s.io/v1alpha1,");
    assert!(run(&bed, &old).await.unwrap_err().to_string().contains("expected client"), "{old}");
}
