//! Against the Kubernetes API of the development mesh.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::fsio;
use crate::devmesh::{Fault, KUBERNETES_AUDIENCE, Mesh, Options, Service};
use crate::kube::{Auth, Ca, Client};

struct Bed {
    mesh: Mesh,
    clock: Arc<FakeClock>,
    /// What the tests call 0: TLS goes by the machine's own clock.
    origin: u64,
    directory: tempfile::TempDir,
}

impl Bed {
    /// At 1000 s, with an API token for 8000 s.
    async fn new(options: Options) -> Self {
        let origin = unix_seconds(crate::base::clock::system().now()) - 1000;
        let clock = FakeClock::at(origin + 1000);
        let options = Options { clock: Arc::clone(&clock) as _, ..options };
        let mesh = Mesh::start(options).await.unwrap();
        mesh.grant("vms", "client");
        let bed = Self { mesh, clock, origin, directory: tempfile::tempdir().unwrap() };
        bed.put_api_token(8000);
        bed
    }

    fn api_token(&self) -> PathBuf {
        self.directory.path().join("kube-token")
    }

    fn kept(&self) -> PathBuf {
        self.directory.path().join("istio-token.json")
    }

    fn put_api_token(&self, seconds: u64) {
        let life = Duration::from_secs(seconds);
        let token = self.mesh.token("vms", "client", KUBERNETES_AUDIENCE, life);
        put(&self.api_token(), &token);
    }

    fn ladder(&self) -> Ladder {
        self.ladder_with(self.api_token())
    }

    fn ladder_with(&self, own_kube_token: PathBuf) -> Ladder {
        self.ladder_of(self.api_token(), own_kube_token)
    }

    fn ladder_of(&self, kube_token: PathBuf, own_kube_token: PathBuf) -> Ladder {
        let life = Duration::from_secs(2000);
        let source = Source::Kubernetes { life, kept: Some(self.kept()) };
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let kube = crate::kube::Config {
            server: format!("https://localhost:{}", self.mesh.kube_address().port()),
            ca: Ca::Pem(self.mesh.root_pem()),
            auth: Auth::TokenFile(kube_token),
            tls_server_name: None,
        };
        let client = Arc::new(Client::new(kube, Arc::clone(&clock)).unwrap());
        Ladder::new(Config { own_kube_token, ..config(vec![source]) }, Some(&client), clock)
    }

    fn set(&self, seconds: u64) {
        self.clock.set(self.origin + seconds);
    }

    fn seconds(&self, at: Option<SystemTime>) -> Option<u64> {
        at.map(|at| unix_seconds(at) - self.origin)
    }

    /// The end of the token in the file for the API.
    fn file_end(&self) -> u64 {
        self.seconds(Token::read(&self.api_token()).unwrap().expires_at()).unwrap()
    }

    fn end(&self, state: &State) -> Option<u64> {
        self.seconds(state.rung(Rung::Kubernetes)?.expires_at)
    }

    fn api_end(&self, state: &State) -> Option<u64> {
        self.seconds(state.kubernetes_api.as_ref()?.expires_at)
    }

    /// Lets the keeper work until the state is as wanted.
    async fn until(&self, ladder: &Ladder, wanted: impl Fn(&State) -> bool) -> State {
        let (stop, mut state) = (CancellationToken::new(), ladder.state());
        let wait = async {
            let found = tokio::time::timeout(Duration::from_secs(30), state.wait_for(wanted)).await;
            let found = found.expect("not as wanted").unwrap().clone();
            stop.cancel();
            found
        };
        tokio::join!(ladder.clone().keep(stop.clone()), wait).1
    }

    fn requests(&self) -> usize {
        let seen = self.mesh.seen();
        let seen = seen.borrow();
        seen.calls.iter().filter(|call| call.path.ends_with("/client/token")).count()
    }
}

#[tokio::test]
async fn the_kubernetes_api_makes_a_token_that_is_kept_over_a_restart() {
    let bed = Bed::new(Options::default()).await;
    let ladder = bed.ladder();
    let bearer = ladder.token().await.unwrap();
    assert_eq!(bearer.token.claims().audiences, ["istio-ca"]);
    assert_eq!(bed.seconds(bearer.token.expires_at()), Some(3000));
    assert_eq!(bed.requests(), 1);
    let mode = std::fs::metadata(bed.kept()).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, fsio::SECRET);
    bed.mesh.go_away().await.unwrap();
    let again = bed.ladder().token().await.unwrap();
    assert!(again.token.is(&bearer.token), "the API server is not needed for it");
    bed.set(3000);
    let error = bed.ladder().token().await.err().unwrap();
    assert!(error.to_string().contains("cannot make a token for serviceaccounts"), "{error}");
    assert_eq!(error.retry(), Retry::Soon, "it may come back at any time");
}

#[tokio::test]
async fn both_tokens_are_renewed_by_the_wall_clock_before_they_end() {
    let bed = Bed::new(Options::default()).await;
    let ladder = bed.ladder();
    let state = bed.until(&ladder, |state| bed.end(state) == Some(3000)).await;
    assert_eq!(bed.api_end(&state), Some(9000), "not due yet");
    // As after a night's sleep: one look is enough.
    bed.set(6500);
    let state = bed
        .until(&ladder, |state| bed.end(state) == Some(8500) && bed.api_end(state) == Some(14_500))
        .await;
    assert_eq!(state.rungs[0].1.trouble, None);
    assert_eq!(bed.file_end(), 14_500);
    let new = Token::read(&bed.api_token()).unwrap();
    assert_eq!(new.claims().audiences, [KUBERNETES_AUDIENCE]);
    assert_eq!(new.claims().life(), Some(Duration::from_secs(8000)));
    let mode = std::fs::metadata(bed.api_token()).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, fsio::SECRET);
    assert_eq!(bed.requests(), 3);
}

#[tokio::test]
async fn a_token_that_was_made_in_our_future_is_replaced_at_once() {
    let bed = Bed::new(Options::default()).await;
    bed.set(90_000);
    bed.put_api_token(8000);
    // As after a start with a clock that is a day behind.
    bed.set(1000);
    bed.until(&bed.ladder(), |state| bed.end(state).is_some()).await;
    assert_eq!(bed.requests(), 2, "one for istiod, and one for the API itself");
}

#[tokio::test]
async fn a_disk_that_is_full_for_longer_than_the_token_lives_strands_nobody() {
    let bed = Bed::new(Options::default()).await;
    let file = std::fs::File::open(bed.api_token()).unwrap();
    // It can be read, and no file can be made beside it.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let ladder = bed.ladder_of(PathBuf::from(&path), PathBuf::from(&path));
    bed.set(6500);
    let api = |state: &State| state.kubernetes_api.clone().unwrap();
    // Both tokens: a request that is under way when the keeper stops may be counted later.
    let both = |state: &State| api(state).trouble.is_some() && bed.end(state) == Some(8500);
    let state = bed.until(&ladder, both).await;
    let trouble = api(&state).trouble.unwrap().what;
    assert!(trouble.contains("cannot keep the new token"), "{trouble}");
    let requests = bed.requests();
    bed.set(9500);
    let state = bed.until(&ladder, |state| bed.end(state) == Some(11_500)).await;
    assert_eq!(
        (api(&state).phase_at(bed.clock.now()), bed.api_end(&state)),
        (Phase::Usable, Some(14_500))
    );
    assert_eq!(bed.requests(), requests + 1, "the API's own was not made again");
    // The one in memory is renewed like any other.
    bed.set(12_000);
    bed.until(&ladder, |state| bed.api_end(state) == Some(20_000)).await;
    assert_eq!(bed.file_end(), 9000);
}

#[tokio::test]
async fn an_operators_own_file_is_never_rewritten() {
    let bed = Bed::new(Options::default()).await;
    let ladder = bed.ladder_with(PathBuf::from("/elsewhere/kube-token"));
    bed.set(8000);
    let state = bed.until(&ladder, |state| bed.end(state).is_some()).await;
    assert_eq!((bed.api_end(&state), bed.file_end()), (Some(9000), 9000));
    assert_eq!(bed.requests(), 1);
}

#[tokio::test]
async fn a_token_of_another_account_is_not_replaced_by_ours() {
    let bed = Bed::new(Options::default()).await;
    let life = Duration::from_secs(8000);
    put(&bed.api_token(), &bed.mesh.token("vms", "admin", KUBERNETES_AUDIENCE, life));
    bed.mesh.grant_verbs("vms", "admin", &["create"], "serviceaccounts/token");
    let ladder = bed.ladder();
    bed.set(8000);
    bed.until(&ladder, |state| bed.end(state).is_some()).await;
    let held = Token::read(&bed.api_token()).unwrap();
    assert_eq!(held.claims().account.as_ref().unwrap().name, "admin");
}

#[tokio::test]
async fn a_server_that_gives_shorter_tokens_does_not_take_the_longer_one_away() {
    let longest_token_life = Duration::from_secs(1200);
    let bed = Bed::new(Options { longest_token_life, ..Options::default() }).await;
    let ladder = bed.ladder();
    bed.set(6500);
    let state = bed.until(&ladder, |state| bed.end(state) == Some(7700)).await;
    assert_eq!((bed.api_end(&state), bed.file_end()), (Some(9000), 9000));
    bed.set(8500);
    // A rest of more than a moment was agreed; a new ladder is a restarted agent.
    let ladder = bed.ladder();
    bed.until(&ladder, |state| bed.api_end(state) == Some(9700)).await;
    assert_eq!(bed.file_end(), 9700);
}

#[tokio::test]
async fn while_the_api_server_refuses_the_old_tokens_are_kept_and_it_is_said() {
    let bed = Bed::new(Options::default()).await;
    let ladder = bed.ladder();
    bed.until(&ladder, |state| bed.end(state) == Some(3000)).await;
    bed.mesh.faults().set(Service::Kube, Fault::Status(tonic::Code::Unavailable, "no etcd"));
    bed.set(2500);
    let troubled = |state: &State| state.rungs[0].1.trouble.is_some();
    let state = bed.until(&ladder, troubled).await;
    let rung = &state.rungs[0].1;
    assert_eq!((rung.phase, bed.end(&state)), (Phase::Usable, Some(3000)));
    assert!(rung.trouble.as_ref().unwrap().what.contains("no etcd"), "{rung:?}");
    assert!(ladder.token().await.is_ok());
    bed.mesh.faults().clear();
    let state = bed.until(&ladder, |state| bed.end(state) == Some(4500)).await;
    assert_eq!(state.rungs[0].1.trouble, None);
    assert!(state.rungs[0].1.failures > 0);
}

#[tokio::test]
async fn without_the_permission_the_role_that_is_missing_is_named() {
    let bed = Bed::new(Options::default()).await;
    let life = Duration::from_secs(600);
    put(&bed.api_token(), &bed.mesh.token("vms", "stranger", KUBERNETES_AUDIENCE, life));
    let error = bed.ladder().token().await.err().unwrap();
    assert!(error.to_string().contains("Forbidden"), "{error}");
    assert!(error.hint().unwrap().contains("verb create on serviceaccounts/token"));
}

#[tokio::test]
async fn a_new_api_token_mends_a_ladder_that_was_spent() {
    let bed = Bed::new(Options::default()).await;
    bed.put_api_token(0);
    let ladder = bed.ladder();
    let spent = |state: &State| state.rungs[0].1.phase == Phase::Spent;
    let state = bed.until(&ladder, spent).await;
    assert_eq!(state.kubernetes_api.unwrap().phase, Phase::Spent);
    assert_eq!(bed.requests(), 0, "an expired token is not sent");
    let news = ladder.news();
    let fresh = async {
        bed.put_api_token(8000);
        bed.until(&ladder, |state| state.rungs[0].1.phase == Phase::Usable).await
    };
    let state = fresh.await;
    assert!(news.has_changed().unwrap());
    assert_eq!(state.rungs[0].1.trouble, None);
}

#[tokio::test]
async fn a_token_for_the_api_that_is_empty_or_cut_is_restored_from_its_second_copy() {
    let bed = Bed::new(Options::default()).await;
    let path = bed.api_token();
    let kept_until = async |wanted: &dyn Fn() -> bool| {
        let ladder = bed.ladder();
        let wait = async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = ladder.keep(CancellationToken::new()) => {}
            () = wait => {}
        }
    };
    kept_until(&|| path.with_extension("json").exists()).await;
    let good = std::fs::read_to_string(&path).unwrap();
    for damaged in ["", &good[..good.len() / 3]] {
        put(&path, damaged);
        kept_until(&|| std::fs::read_to_string(&path).unwrap() == good).await;
    }
    // What is no part of it is somebody's doing.
    put(&path, "another");
    let ladder = bed.ladder();
    let mut state = ladder.state();
    let failed =
        |state: &State| state.kubernetes_api.as_ref().is_some_and(|api| api.trouble.is_some());
    tokio::select! {
        () = ladder.keep(CancellationToken::new()) => {}
        failed = state.wait_for(failed) => drop(failed.unwrap()),
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "another");
}
