//! Clocks that are set, and machines that slept.

use super::*;
use crate::base::clock::Witness;
use crate::identity::Refusal;

/// A wall clock that is off by some seconds, which can be changed.
#[derive(Clone)]
struct Wrong {
    right: SharedClock,
    off: Arc<Mutex<i64>>,
}

impl Clock for Wrong {
    fn now(&self) -> SystemTime {
        let off = *self.off.lock().unwrap();
        let by = Duration::from_secs(off.unsigned_abs());
        if off < 0 { self.right.now() - by } else { self.right.now() + by }
    }
}

struct Machine {
    bed: Bed,
    clock: Wrong,
}

/// A machine whose clock can be set, beside an authority whose clock is right.
fn machine(life: u64) -> Machine {
    let mut bed = bed(life);
    let clock = Wrong { right: Arc::clone(&bed.clock), off: Arc::default() };
    bed.vault = Vault::open(config(bed.directory.path(), &bed.ca), Arc::new(clock.clone()));
    Machine { bed, clock }
}

impl Machine {
    fn set(&self, off: i64) {
        *self.clock.off.lock().unwrap() = off;
    }

    fn true_seconds(&self) -> u64 {
        self.bed.clock.now().duration_since(from_unix_seconds(1_790_000_000)).unwrap().as_secs()
    }

    async fn until(&self, wanted: impl FnMut(&RenewalState) -> bool) -> RenewalState {
        self.bed.vault.renewal().wait_for(wanted).await.unwrap().clone()
    }

    fn serial(&self) -> String {
        self.bed.vault.subscribe().borrow().as_ref().unwrap().serial().to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_does_not_delay_renewal() {
    let machine = machine(3600);
    let _renewing = machine.bed.renewing();
    machine.bed.next().await;
    machine.set(-100);
    machine.bed.next().await;
    assert!((1799..=1801).contains(&machine.true_seconds()), "{}", machine.true_seconds());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_renews_when_it_wakes_up() {
    let machine = machine(3600);
    let _renewing = machine.bed.renewing();
    machine.bed.next().await;
    // The authority's clock is the same one: it went on while ours stood still.
    machine.set(2000);
    tokio::select! {
        _ = machine.bed.next() => {}
        () = tokio::time::sleep(Duration::from_secs(31)) => panic!("it sleeps on"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_far_off_is_said_and_nothing_is_lost_when_it_is_set_right() {
    let machine = machine(3600);
    let _renewing = machine.bed.renewing();
    machine.bed.next().await;
    let first = machine.serial();
    for (off, words) in [(-864_000, "valid only from"), (864_000, "expired at")] {
        machine.set(off);
        let state = machine.until(|state| state.trouble.is_some()).await;
        let trouble = state.trouble.unwrap();
        assert!(trouble.what.contains(words), "{}", trouble.what);
        assert!(trouble.hint.unwrap().contains("timedatectl set-ntp true"));
        machine.set(0);
        machine.until(|state| state.trouble.is_none()).await;
        assert_eq!(machine.serial(), first);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_certificate_from_the_future_is_renewed_at_once() {
    let machine = machine(3600);
    let renewing = machine.bed.renewing();
    let first = machine.bed.next().await;
    drop(renewing);
    // The clock was set back by less than the authority dates back: the certificate is valid.
    machine.set(-100);
    let config = config(machine.bed.directory.path(), &machine.bed.ca);
    let vault = Vault::open(config, Arc::new(machine.clock.clone()));
    assert!(vault.renewal().borrow().restored);
    let again = Bed { vault, ..machine.bed };
    let _renewing = again.renewing();
    let second = tokio::time::timeout(Duration::from_secs(5), again.next()).await.unwrap();
    assert_ne!(second.serial(), first.serial());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_held_until_it_is_valid_unless_the_clock_goes_back() {
    let machine = machine(3600);
    // The authority dates certificates back by two minutes: 200 s behind leaves 80 s.
    machine.set(-200);
    let _renewing = machine.bed.renewing();
    let state = machine.until(|state| state.phase == RenewalPhase::Holding).await;
    assert!(state.trouble.unwrap().hint.unwrap().contains("it is used then"));
    assert!(machine.bed.vault.subscribe().borrow().is_none());
    let identity = machine.bed.next().await;
    assert!((80..=82).contains(&machine.true_seconds()));
    assert_eq!(identity.received_at(), machine.clock.now());
    let skew = machine.bed.vault.config().skew.now(machine.clock.now()).unwrap();
    assert_eq!(skew.measured_by, Witness::CertificateStart);
    machine.bed.vault.renew_now();
    machine.until(|state| state.phase == RenewalPhase::Holding).await;
    machine.set(-2000);
    let state = machine.until(|state| state.phase == RenewalPhase::Retrying).await;
    assert!(state.trouble.unwrap().what.contains("refused the certificate"));
}

#[tokio::test(start_paused = true)]
async fn what_is_held_can_be_dropped_for_something_better() {
    let machine = machine(3600);
    let candidate = |off: i64| {
        machine.set(off);
        let key = crate::identity::KeyPair::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let id = machine.bed.vault.id().clone();
        let (pem, ttl) = (key.csr_pem(&id).unwrap(), Duration::from_secs(3600));
        let csr = Csr { pem, ttl, key_algorithm: KeyAlgorithm::EcdsaP256 };
        let ca = machine.bed.ca.clone();
        async move {
            let issued = ca.issue(&csr, &|_| {}).await.unwrap();
            let key_pem = key.private_key_pem().clone();
            crate::identity::Candidate {
                chain_pem: issued.chain_pem,
                key_pem,
                anchors: issued.anchors,
            }
        }
    };
    let held = candidate(-200).await;
    let vault = machine.bed.vault.clone();
    tokio::select! {
        _ = vault.admit(held) => panic!("it is not valid yet"),
        () = tokio::time::sleep(Duration::from_secs(5)) => {}
    }
    assert!(vault.subscribe().borrow().is_none());
    vault.admit(candidate(0).await).await.unwrap();
    assert!(matches!(vault.admit(candidate(-900).await).await, Err(Refusal::NotYetValid { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_the_disk_has_is_served_once_a_clock_that_was_wrong_at_the_start_is_set() {
    for off in [-100_000_000, 100_000_000] {
        let mut machine = machine(3600);
        let renewing = machine.bed.renewing();
        let kept = machine.bed.next().await.serial().to_owned();
        drop(renewing);
        machine.bed.ca.be(Mood::Away);
        machine.set(off);
        let config = config(machine.bed.directory.path(), &machine.bed.ca);
        machine.bed.vault = Vault::open(config, Arc::new(machine.clock.clone()));
        assert!(machine.bed.vault.subscribe().borrow().is_none());
        let _renewing = machine.bed.renewing();
        machine.until(|state| state.failures > 0).await;
        machine.set(0);
        let restored = machine.until(|state| state.restored);
        tokio::time::timeout(Duration::from_secs(60), restored).await.unwrap();
        assert_eq!(machine.serial(), kept);
    }
}
