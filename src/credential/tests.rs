use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::ladder::Origin;
use super::*;
use crate::base::backoff::Retry;
use crate::base::clock::{Clock, from_unix_seconds, unix_seconds};
use crate::base::trouble::chain;

/// A clock that only moves by hand.
struct FakeClock(Mutex<SystemTime>);

impl FakeClock {
    fn at(seconds: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(from_unix_seconds(seconds))))
    }

    fn set(&self, seconds: u64) {
        *self.0.lock().unwrap() = from_unix_seconds(seconds);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

fn made(claims: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// A token of our account that was made at 0.
pub(super) fn jwt(audience: &str, end: u64) -> String {
    made(&json!({"aud": [audience], "iat": 0, "exp": end, "sub": SUB}))
}

fn config(sources: Vec<Source>) -> Config {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
    let own_kube_token = PathBuf::new();
    Config { id, audience: "istio-ca".to_owned(), sources, own_kube_token }
}

fn ladder(sources: Vec<Source>, clock: &Arc<FakeClock>) -> Ladder {
    let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
    Ladder::new(config(sources), None, clock)
}

fn put(path: &Path, token: &str) {
    std::fs::write(path, token).unwrap();
}

/// A program that prints what `file` holds and notes that it ran.
fn printer(file: &Path, runs: &Path) -> Source {
    let script = format!("echo x >> {}; cat {}", runs.display(), file.display());
    Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec())
}

fn runs(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn the_first_rung_with_a_usable_token_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (file, oidc) = (dir.path().join("token"), dir.path().join("oidc"));
    let clock = FakeClock::at(1000);
    put(&file, &jwt("istio-ca", 2000));
    put(&oidc, &jwt("istio-ca", 9000));
    let sources = vec![Source::TokenFile(file.clone()), Source::OidcTokenFile(oidc)];
    let ladder = ladder(sources, &clock);
    assert_eq!(ladder.token().await.unwrap().rung, Rung::TokenFile);
    clock.set(2000);
    assert_eq!(ladder.token().await.unwrap().rung, Rung::OidcTokenFile);
    let state = ladder.state().borrow().clone();
    assert_eq!(state.in_use, Some(Rung::OidcTokenFile));
    assert_eq!(state.rung(Rung::TokenFile).unwrap().phase, Phase::Spent);
    put(&file, &jwt("istio-ca", 3000));
    assert_eq!(ladder.token().await.unwrap().rung, Rung::TokenFile, "a replaced file is read");
}

#[tokio::test]
async fn when_all_are_spent_each_says_since_when_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    put(&file, &jwt("istio-ca", 500));
    let command = Source::Command(vec!["/nonexistent/helper".to_owned()]);
    let oidc = Source::OidcTokenFile(dir.path().join("none"));
    let clock = FakeClock::at(1000);
    let ladder = ladder(vec![Source::TokenFile(file), command, oidc], &clock);
    let error = ladder.token().await.err().unwrap();
    let (text, hint) = (error.to_string(), error.hint().unwrap());
    for words in [
        "credential.tokenFile (since 1970-01-01T00:08:20Z): the token in",
        "credential.command (since 1970-01-01T00:16:40Z): no token from the program: cannot run",
        "credential.oidcTokenFile (since 1970-01-01T00:16:40Z): cannot use the token: cannot read",
    ] {
        assert!(text.contains(words), "{text} / {words}");
    }
    assert!(hint.contains("kubectl create token client -n vms --audience istio-ca"), "{hint}");
    assert!(hint.contains("; or credential.command must name"), "{hint}");
    assert_eq!(error.retry(), Retry::Later);
    let state = ladder.state().borrow().clone();
    let phases: Vec<Phase> = state.rungs.iter().map(|(_, rung)| rung.phase).collect();
    assert_eq!(phases, [Phase::Spent, Phase::Failing, Phase::Absent]);
}

#[tokio::test]
async fn a_token_for_somebody_else_is_not_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let clock = FakeClock::at(1000);
    let ladder = ladder(vec![Source::TokenFile(file.clone())], &clock);
    let other = made(&json!({"aud": ["istio-ca"], "sub": "system:serviceaccount:vms:admin"}));
    for (token, words) in [
        (jwt("vault", 2000), "for audience vault"),
        (other, "for service account vms/admin"),
        ("secret".to_owned(), "it has not three parts"),
    ] {
        put(&file, &token);
        let error = ladder.token().await.err().unwrap().to_string();
        assert!(error.contains(words) && !error.contains("secret"), "{error} / {words}");
    }
}

#[tokio::test]
async fn without_any_source_there_is_neither_certificate_nor_token() {
    let error = ladder(Vec::new(), &FakeClock::at(0)).token().await.err().unwrap();
    assert!(matches!(error, LadderError::None) && error.hint().is_some());
}

#[tokio::test]
async fn a_program_runs_again_only_when_two_thirds_of_its_tokens_life_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("token"), dir.path().join("runs"));
    put(&file, &jwt("istio-ca", 1000));
    let clock = FakeClock::at(0);
    let ladder = ladder(vec![printer(&file, &log)], &clock);
    for _ in 0..3 {
        ladder.token().await.unwrap();
    }
    assert_eq!(runs(&log), 1);
    let step = &ladder.inner.steps[0];
    clock.set(500);
    ladder.ask(step, asked::Want::Fresh).await.unwrap();
    assert_eq!(runs(&log), 1, "not due yet");
    clock.set(800);
    put(&file, &made(&json!({"iat": 800, "exp": 1800, "sub": SUB})));
    ladder.ask(step, asked::Want::Fresh).await.unwrap();
    assert_eq!(runs(&log), 2);
    assert_eq!(unix_seconds(ladder.token().await.unwrap().token.expires_at().unwrap()), 1800);
    put(&file, "");
    clock.set(1700);
    assert!(ladder.ask(step, asked::Want::Fresh).await.is_none());
    let state = ladder.state().borrow().rung(Rung::Command).unwrap().clone();
    assert_eq!((state.phase, state.failures), (Phase::Usable, 1), "the old one still lives");
    assert!(state.trouble.unwrap().what.contains("neither a token nor an ExecCredential"));
    ladder.token().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_was_set_back_makes_a_new_token_due() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("token"), dir.path().join("runs"));
    put(&file, &jwt("istio-ca", 1_000_000));
    let clock = FakeClock::at(10_000);
    let ladder = ladder(vec![printer(&file, &log)], &clock);
    ladder.token().await.unwrap();
    clock.set(9_990);
    ladder.ask(&ladder.inner.steps[0], asked::Want::Fresh).await.unwrap();
    assert_eq!(runs(&log), 1, "a little is nothing");
    clock.set(5_000);
    ladder.ask(&ladder.inner.steps[0], asked::Want::Fresh).await.unwrap();
    assert_eq!(runs(&log), 2);
}

#[tokio::test]
async fn what_istiod_refused_is_sent_again_only_when_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("token"), dir.path().join("oidc"));
    put(&file, &jwt("istio-ca", 2000));
    put(&other, &jwt("istio-ca", 3000));
    let sources = vec![Source::TokenFile(file.clone()), Source::OidcTokenFile(other.clone())];
    let ladder = ladder(sources, &FakeClock::at(1000));
    let first = ladder.token().await.unwrap();
    ladder.refuse(&first, "authentication failure");
    assert_eq!(ladder.token().await.unwrap().rung, Rung::OidcTokenFile);
    let state = ladder.state().borrow().rung(Rung::TokenFile).unwrap().clone();
    assert_eq!(state.phase, Phase::Failing);
    assert!(state.trouble.unwrap().what.contains("did not accept its token: authentication"));
    std::fs::remove_file(&other).unwrap();
    assert_eq!(ladder.token().await.unwrap().rung, Rung::TokenFile);
    put(&file, &jwt("istio-ca", 4000));
    ladder.token().await.unwrap();
    let state = ladder.state().borrow().rung(Rung::TokenFile).unwrap().clone();
    assert_eq!(
        (state.phase, state.trouble),
        (Phase::Usable, None),
        "another token is no refused one"
    );
}

#[tokio::test]
async fn what_istiod_accepts_after_all_is_no_refused_token() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("token"), dir.path().join("runs"));
    put(&file, &jwt("istio-ca", 2000));
    let sources = [Source::TokenFile(file.clone()), printer(&file, &log)];
    for source in sources {
        let ladder = ladder(vec![source], &FakeClock::at(100));
        let bearer = ladder.token().await.unwrap();
        // As while it cannot ask the API server.
        ladder.refuse(&bearer, "authentication failure");
        assert!(ladder.at_hand().is_none());
        let again = ladder.token().await.unwrap();
        ladder.accept(&again);
        assert!(ladder.at_hand().unwrap().token.is(&bearer.token));
        let (_, state) = ladder.state().borrow().rungs[0].clone();
        assert_eq!((state.phase, state.trouble), (Phase::Usable, None));
    }
}

#[tokio::test]
async fn a_source_whose_tokens_are_refused_is_not_asked_for_one_at_every_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("token"), dir.path().join("runs"));
    put(&file, &jwt("istio-ca", 2000));
    let ladder = ladder(vec![printer(&file, &log)], &FakeClock::at(1000));
    for _ in 0..3 {
        let bearer = ladder.token().await.unwrap();
        ladder.refuse(&bearer, "authentication failure");
    }
    assert_eq!(runs(&log), 1);
    let Origin::Asked(asked) = &ladder.inner.steps[0].origin else { panic!("it is a program") };
    asked.pace.rest(Duration::ZERO);
    ladder.token().await.unwrap();
    assert_eq!(runs(&log), 2, "after the pause");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_file_is_noticed_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let ladder = ladder(vec![Source::TokenFile(file.clone())], &FakeClock::at(1000));
    let (mut news, mut state) = (ladder.news(), ladder.state());
    let stop = tokio_util::sync::CancellationToken::new();
    let keeper = ladder.keep(stop.clone());
    let events = async {
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(!news.has_changed().unwrap());
        put(&file, &jwt("istio-ca", 2000));
        news.changed().await.unwrap();
        let usable = |state: &State| state.rungs[0].1.phase == Phase::Usable;
        state.wait_for(usable).await.unwrap();
        stop.cancel();
    };
    tokio::join!(keeper, events);
}

/// A metadata server that answers each request with this.
async fn metadata(answer: &'static str) -> (Source, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (sender, requests) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            sender.send(String::from_utf8_lossy(&request[..length]).into_owned()).await.ok();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (Source::Gce { address }, requests)
}

#[tokio::test]
async fn google_is_asked_as_its_own_and_believed_only_as_its_own() {
    let token = jwt("istio-ca", 5000);
    let good = format!(
        "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\ncontent-length: {}\r\n\r\n{token}",
        token.len()
    );
    let (source, mut requests) = metadata(good.leak()).await;
    let bearer = ladder(vec![source], &FakeClock::at(1000)).token().await.unwrap();
    assert_eq!(bearer.rung, Rung::Platform);
    let request = requests.recv().await.unwrap();
    let line = "GET /computeMetadata/v1/instance/service-accounts/default/identity?audience=istio-ca&format=full HTTP/1.1";
    assert!(request.starts_with(line), "{request}");
    assert!(request.to_lowercase().contains("metadata-flavor: google"), "{request}");
    for (answer, words) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "is not Google's metadata server"),
        (
            "HTTP/1.1 404 Not Found\r\nMetadata-Flavor: Google\r\ncontent-length: 0\r\n\r\n",
            "answered 404",
        ),
        (
            "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\ncontent-length: 2\r\n\r\nhi",
            "something else than a token",
        ),
        ("rubbish\r\n\r\n", "cannot ask the metadata server"),
    ] {
        let (source, _requests) = metadata(answer).await;
        let error = ladder(vec![source], &FakeClock::at(1000)).token().await.err().unwrap();
        assert!(chain(&error).contains(words), "{error} / {words}");
    }
}

const SUB: &str = "system:serviceaccount:vms:client";

#[cfg(feature = "devmesh")]
mod kubernetes;
