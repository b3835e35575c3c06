//! The proxy outlives the agent, and is drained and restarted by command. The test plays the proxy's
//! admin interface; its process is one that only waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::{get, post};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Bed;

/// What a proxy's admin interface says of it.
struct Admin {
    port: u16,
    drained: Arc<AtomicBool>,
}

impl Admin {
    async fn start() -> Self {
        let drained = Arc::new(AtomicBool::new(false));
        let (shown, failed, well) = (drained.clone(), drained.clone(), drained.clone());
        let stats = move || async move {
            let live = u8::from(!shown.load(Ordering::SeqCst));
            format!(
                "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n\
                 listener_manager.workers_started: 1\nserver.live: {live}\nserver.state: 0\n"
            )
        };
        let pages = Router::new()
            .route("/stats", get(stats))
            .route("/server_info", get(|| async { r#"{"version": "x/1.2.3/y"}"# }))
            .route("/drain_listeners", post(|| async {}))
            .route(
                "/healthcheck/fail",
                post(move || async move { failed.store(true, Ordering::SeqCst) }),
            )
            .route(
                "/healthcheck/ok",
                post(move || async move { well.store(false, Ordering::SeqCst) }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, pages).await });
        Self { port, drained }
    }
}

/// A machine in the mesh.
async fn ready(bed: &mut Bed, admin: &Admin) -> Value {
    bed.run(json!({"proxy": {"adminPort": admin.port}, "registration": {"leaveDelay": "10ms"}}));
    bed.keep_proxy("client");
    bed.until("ready", |status| status["ready"] == true).await
}

/// Whether the proxy of a status runs. A zombie, for which nobody waits, does not.
fn lives(status: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", status["proxy"]["pid"]));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// What istiod heard last of the machine's health: `None` for a healthy one.
async fn told(bed: &Bed, wanted: impl Fn(Option<&str>) -> bool) {
    let mut seen = bed.mesh.seen();
    let heard = seen.wait_for(|seen| {
        seen.health.last().is_some_and(|health| wanted(health.unhealthy.as_deref()))
    });
    tokio::time::timeout(std::time::Duration::from_secs(60), heard).await.unwrap().unwrap();
}

/// Runs a command to its end, and returns its exit status and its words.
fn command(bed: &Bed, args: &[&str]) -> (i32, String) {
    let output = bed.command(args);
    let words = [output.stdout, output.stderr].map(|words| String::from_utf8(words).unwrap());
    let words = words.concat();
    (output.status.code().unwrap(), words)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_proxy_is_adopted_and_the_machine_is_ready_again() {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    let first = ready(&mut bed, &admin).await;
    assert_eq!(first["proxy"]["origin"], "started");
    bed.kill().await;
    bed.start();
    let second = bed.until("ready", |status| status["ready"] == true).await;
    let of =
        |status: &Value| (status["proxy"]["pid"].clone(), status["identity"]["serial"].clone());
    assert_eq!(of(&second), of(&first));
    assert_eq!(
        (&second["proxy"]["origin"], &second["proxy"]["restarts"]),
        (&json!("adopted"), &json!(0))
    );
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(bed.stop().await, 0);
    assert!(!lives(&second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_was_started_with_other_settings_is_not_adopted() {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    let first = ready(&mut bed, &admin).await;
    bed.kill().await;
    bed.configure(&["proxy"], json!({"logLevel": "info", "adminPort": admin.port,
        "terminationDrainDuration": "100ms", "binary": std::path::absolute("tests/fakes/envoy").unwrap()}));
    bed.start();
    let second = bed.until("ready", |status| status["ready"] == true).await;
    assert_eq!(second["proxy"]["origin"], "started");
    assert_ne!(second["proxy"]["pid"], first["proxy"]["pid"]);
    assert!(!lives(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_out_of_traffic_stays_so_for_the_next_agent_until_it_is_taken_back() {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    ready(&mut bed, &admin).await;
    told(&bed, |unhealthy| unhealthy.is_none()).await;
    let (code, words) = command(&bed, &["proxy", "drain"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("out of traffic") && words.contains("proxy undrain"), "{words}");
    assert!(admin.drained.load(Ordering::SeqCst));
    told(&bed, |unhealthy| unhealthy == Some("the proxy is out of traffic")).await;
    let status = bed.status().unwrap();
    assert_eq!((&status["phase"], &status["ready"]), (&json!("drained"), &json!(false)));
    let (_, words) = command(&bed, &["doctor"]);
    assert!(words.contains("taken the proxy out of traffic"), "{words}");
    bed.kill().await;
    bed.start();
    bed.until("drained", |status| status["phase"] == "drained").await;
    let (code, words) = command(&bed, &["proxy", "undrain"]);
    assert_eq!(code, 0, "{words}");
    bed.until("ready", |status| status["ready"] == true).await;
    assert!(!admin.drained.load(Ordering::SeqCst));
    told(&bed, |unhealthy| unhealthy.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_by_command_is_said_to_istiod_and_is_no_death() {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    let first = ready(&mut bed, &admin).await;
    let heard = bed.mesh.seen().borrow().health.len();
    let (code, words) = command(&bed, &["proxy", "restart"]);
    assert_eq!(code, 0, "{words}");
    let status = bed.until("ready", |status| status["ready"] == true).await;
    let proxy = &status["proxy"];
    assert_ne!(proxy["pid"], first["proxy"]["pid"]);
    assert!(words.contains(&proxy["pid"].to_string()), "{words}");
    assert_eq!((&proxy["restarts"], &proxy["ordered_restarts"]), (&json!(0), &json!(1)));
    told(&bed, |unhealthy| unhealthy.is_none()).await;
    let health = bed.mesh.seen().borrow().health.clone();
    assert!(health[heard..].iter().any(|health| health.unhealthy.is_some()), "{health:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_with_a_dead_agent_leaves_no_proxy_and_without_an_agent_there_is_nothing_to_command()
 {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    let status = ready(&mut bed, &admin).await;
    bed.kill().await;
    for what in ["restart", "drain", "undrain"] {
        let (code, words) = command(&bed, &["proxy", what]);
        assert_eq!(code, 11, "{words}");
        assert!(words.contains("no agent answers"), "{words}");
    }
    assert!(lives(&status));
    let (code, words) = command(&bed, &["leave"]);
    assert_eq!(code, 0, "{words}");
    assert!(!lives(&status));
    assert!(!bed.path("run/vm-agent").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_is_refused_while_the_first_lives_and_takes_nothing_from_it() {
    let (mut bed, admin) = (Bed::new().await, Admin::start().await);
    let first = ready(&mut bed, &admin).await;
    assert_eq!(command(&bed, &["run"]).0, 10);
    bed.signal(Signal::SIGHUP);
    let now = bed.until("as before", |status| status["configuration"]["reads"] == 1).await;
    assert_eq!(now["proxy"]["pid"], first["proxy"]["pid"]);
}
