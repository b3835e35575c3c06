mod clocks;
mod export;
mod files;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::backoff::Retry;
use crate::base::clock::{Clock, SharedClock, SkewGauge, from_unix_seconds};
use crate::ca::{Csr, IssueError, IssuedChain, Issuer, Waiting};
use crate::credential::LadderError;
use crate::identity::{Anchors, IssuedIdentity, Roots, SpiffeId};

/// A wall clock that follows tokio's paused time.
struct TestClock(tokio::time::Instant);

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        from_unix_seconds(1_790_000_000) + self.0.elapsed()
    }
}

/// What the fake CA does next.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Sign,
    Away,
    OtherIdentity,
    Rubbish,
}

#[derive(Clone)]
struct FakeCa {
    authority: Arc<CertifiedIssuer<'static, rcgen::KeyPair>>,
    mood: Arc<Mutex<Mood>>,
    life: Duration,
    clock: SharedClock,
}

impl FakeCa {
    fn new(clock: &SharedClock, life: Duration) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = Arc::new(CertifiedIssuer::self_signed(params, key).unwrap());
        let mood = Arc::new(Mutex::new(Mood::Sign));
        Self { authority, mood, life, clock: Arc::clone(clock) }
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

impl Issuer for FakeCa {
    async fn issue(&self, csr: &Csr, _: Waiting<'_>) -> Result<IssuedChain, IssueError> {
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::Away {
            return Err(IssueError::Token(LadderError::None));
        }
        let mut request = CertificateSigningRequestParams::from_pem(&csr.pem).unwrap();
        let now = self.clock.now();
        request.params.not_before = (now - Duration::from_secs(120)).into();
        request.params.not_after = (now + self.life).into();
        if mood == Mood::OtherIdentity {
            let uri = "spiffe://cluster.local/ns/vms/sa/admin".try_into().unwrap();
            request.params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        }
        let chain_pem = request.signed_by(&self.authority).unwrap().pem();
        let chain_pem = if mood == Mood::Rubbish { "rubbish".to_owned() } else { chain_pem };
        let roots = Roots::from_pem(self.authority.pem().as_bytes()).unwrap();
        Ok(IssuedChain { chain_pem, anchors: Anchors::Sent(roots) })
    }
}

fn config(directory: &Path, ca: &FakeCa) -> Config {
    let root_cert = directory.join("root-cert.pem");
    std::fs::write(&root_cert, ca.authority.pem()).unwrap();
    Config {
        source: Source::Istiod,
        id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
        state_directory: directory.to_owned(),
        root_cert,
        key_algorithm: KeyAlgorithm::EcdsaP256,
        ttl: ca.life,
        renew_at: 0.5,
        jitter: 0.0,
        export_directory: Some(directory.join("export")),
        skew: SkewGauge::default(),
    }
}

struct Bed {
    directory: tempfile::TempDir,
    clock: SharedClock,
    ca: FakeCa,
    vault: Vault,
}

fn bed(life: u64) -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(TestClock(tokio::time::Instant::now()));
    let ca = FakeCa::new(&clock, Duration::from_secs(life));
    let vault = Vault::open(config(directory.path(), &ca), Arc::clone(&clock));
    Bed { directory, clock, ca, vault }
}

impl Bed {
    fn renewing(&self) -> tokio_util::sync::DropGuard {
        let stop = CancellationToken::new();
        let (tasks, _) = crate::base::tasks::Tasks::new();
        tasks.spawn("renew", renew(self.vault.clone(), self.ca.clone(), stop.clone()));
        stop.drop_guard()
    }

    /// The next certificate, once it is in use and on the disk.
    async fn next(&self) -> Arc<IssuedIdentity> {
        let (mut identity, mut renewal) = (self.vault.subscribe(), self.vault.renewal());
        let issued = renewal.borrow().issued;
        identity.mark_unchanged();
        identity.changed().await.unwrap();
        renewal.wait_for(|state| state.issued > issued).await.unwrap();
        let current = identity.borrow().clone();
        current.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn ten_renewals_pass_and_each_comes_at_half_of_the_life() {
    let bed = bed(60);
    let _renewing = bed.renewing();
    let mut last = bed.next().await;
    for _ in 0..10 {
        let fresh = bed.next().await;
        assert_ne!(fresh.serial(), last.serial());
        let pause = fresh.received_at().duration_since(last.received_at()).unwrap().as_secs();
        assert!((29..=31).contains(&pause), "{pause}");
        last = fresh;
    }
    assert_eq!(bed.vault.renewal().borrow().issued, 11);
}

#[tokio::test(start_paused = true)]
async fn keeps_the_current_certificate_while_the_authority_fails_and_goes_on_after() {
    let bed = bed(60);
    let _renewing = bed.renewing();
    let first = bed.next().await;
    for mood in [Mood::Away, Mood::OtherIdentity, Mood::Rubbish] {
        bed.ca.be(mood);
        let mut renewal = bed.vault.renewal();
        let failures = renewal.borrow().failures;
        renewal
            .wait_for(|state| state.failures > failures && state.trouble.is_some())
            .await
            .unwrap();
        let current = bed.vault.subscribe().borrow().clone().unwrap();
        assert_eq!(current.serial(), first.serial());
    }
    assert_eq!(bed.vault.renewal().borrow().trouble.clone().unwrap().retry, Retry::Later);
    bed.ca.be(Mood::Sign);
    assert_ne!(bed.next().await.serial(), first.serial());
    assert!(bed.vault.renewal().borrow().trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_serves_the_kept_identity_at_once() {
    let bed = bed(60);
    let renewing = bed.renewing();
    let first = bed.next().await;
    drop(renewing);
    let again = Vault::open(config(bed.directory.path(), &bed.ca), Arc::clone(&bed.clock));
    let kept = again.subscribe().borrow().clone().unwrap();
    assert_eq!((kept.serial(), kept.received_at()), (first.serial(), first.received_at()));
    assert!(again.renewal().borrow().restored);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &persist::path(bed.directory.path()).metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    tokio::time::advance(Duration::from_secs(61)).await;
    let late = Vault::open(config(bed.directory.path(), &bed.ca), Arc::clone(&bed.clock));
    assert!(late.subscribe().borrow().is_none(), "an expired identity is not served");
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_file_is_set_aside_and_a_new_certificate_fetched() {
    let bed = bed(60);
    let _renewing = bed.renewing();
    bed.next().await;
    let path = persist::path(bed.directory.path());
    for content in ["", "{", "{\"version\": 9}", "\0\0\0"] {
        std::fs::write(&path, content).unwrap();
        let again = Vault::open(config(bed.directory.path(), &bed.ca), Arc::clone(&bed.clock));
        assert!(again.subscribe().borrow().is_none());
        assert!(!path.exists() && path.with_file_name("identity.json.corrupt").exists());
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_written_is_a_condition_and_heals() {
    let bed = bed(60);
    let export = bed.directory.path().join("export");
    std::fs::write(&export, "in the way").unwrap();
    let _renewing = bed.renewing();
    bed.next().await;
    let mut renewal = bed.vault.renewal();
    renewal.wait_for(|state| state.storage_trouble.is_some()).await.unwrap();
    std::fs::remove_file(&export).unwrap();
    renewal.wait_for(|state| state.storage_trouble.is_none()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_exported_set_is_consistent_and_older_ones_are_gone() {
    let bed = bed(60);
    let _renewing = bed.renewing();
    for _ in 0..3 {
        let identity = bed.next().await;
        let mut renewal = bed.vault.renewal();
        renewal.wait_for(|state| state.issued > 0 && state.trouble.is_none()).await.unwrap();
        let export = bed.directory.path().join("export");
        let chain = std::fs::read_to_string(export.join("cert-chain.pem")).unwrap();
        assert_eq!(chain, identity.chain_pem());
        let sets = std::fs::read_dir(&export).unwrap();
        let sets = sets.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
        assert_eq!(sets, 2, "one set and the link to it");
    }
}
