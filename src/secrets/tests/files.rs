//! Certificates in files.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::*;
use crate::identity::KeyPair;

struct Place {
    bed: Bed,
    files: Files,
}

impl Place {
    fn new() -> Self {
        let bed = bed(3600);
        let at = |name: &str| bed.directory.path().join(name);
        let files = Files { certificate: at("tls.crt"), key: at("tls.key"), roots: None };
        Self { bed, files }
    }

    fn following(&self) -> tokio_util::sync::DropGuard {
        let stop = CancellationToken::new();
        let (tasks, _) = crate::base::tasks::Tasks::new();
        let follower = follow_files(self.bed.vault.clone(), self.files.clone(), stop.clone());
        tasks.spawn("follow", follower);
        stop.drop_guard()
    }

    /// A certificate and its key, PEM.
    async fn pair(&self) -> (String, String) {
        let key = KeyPair::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let pem = key.csr_pem(self.bed.vault.id()).unwrap();
        let key_algorithm = KeyAlgorithm::EcdsaP256;
        let csr = Csr { pem, ttl: self.bed.ca.life, key_algorithm };
        let issued = self.bed.ca.issue(&csr, &|_| {}).await.unwrap();
        (issued.chain_pem, key.private_key_pem().expose_secret().to_owned())
    }

    fn trouble(&self) -> Option<String> {
        self.bed.vault.renewal().borrow().trouble.as_ref().map(|trouble| trouble.what.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_pair_is_waited_for_and_then_said() {
    let place = Place::new();
    let (one, two) = (place.pair().await, place.pair().await);
    std::fs::write(&place.files.certificate, &one.0).unwrap();
    std::fs::write(&place.files.key, &one.1).unwrap();
    let _following = place.following();
    let first = place.bed.next().await;
    std::fs::write(&place.files.key, &two.1).unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(place.trouble(), None, "the other half may come");
    let mut renewal = place.bed.vault.renewal();
    renewal.wait_for(|state| state.trouble.is_some()).await.unwrap();
    assert!(place.trouble().unwrap().contains("another key"));
    let current = place.bed.vault.subscribe().borrow().clone().unwrap();
    assert_eq!(current.serial(), first.serial(), "the old pair serves on");
    std::fs::write(&place.files.certificate, &two.0).unwrap();
    assert_ne!(place.bed.next().await.serial(), first.serial());
    renewal.wait_for(|state| state.trouble.is_none()).await.unwrap();
}

/// Kubernetes' volumes and cert-manager's driver swap a link to a directory.
#[tokio::test(start_paused = true)]
async fn a_swapped_directory_behind_links_is_seen() {
    let place = Place::new();
    let root = place.bed.directory.path();
    for name in ["tls.crt", "tls.key"] {
        symlink(PathBuf::from("..data").join(name), root.join(name)).unwrap();
    }
    let swap = |set: &str, pair: &(String, String)| {
        let directory = root.join(set);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("tls.crt"), &pair.0).unwrap();
        std::fs::write(directory.join("tls.key"), &pair.1).unwrap();
        symlink(set, root.join("..data.new")).unwrap();
        std::fs::rename(root.join("..data.new"), root.join("..data")).unwrap();
    };
    swap("one", &place.pair().await);
    let _following = place.following();
    let first = place.bed.next().await;
    swap("two", &place.pair().await);
    assert_ne!(place.bed.next().await.serial(), first.serial());
    assert_eq!(place.bed.vault.renewal().borrow().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn files_that_do_not_change_are_not_read_again() {
    let place = Place::new();
    let pair = place.pair().await;
    std::fs::write(&place.files.certificate, &pair.0).unwrap();
    std::fs::write(&place.files.key, &pair.1).unwrap();
    let _following = place.following();
    place.bed.next().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(place.bed.vault.renewal().borrow().attempts, 1);
    place.bed.vault.renew_now();
    let mut renewal = place.bed.vault.renewal();
    renewal.wait_for(|state| state.attempts == 2).await.unwrap();
}
