use std::os::unix::fs::PermissionsExt;

use super::*;

fn listed(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> = entries.map(name).map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn a_directory_with_files_of_others_is_left_as_it_is() {
    for theirs in ["key.pem", "set-up-scripts/run", "notes.txt"] {
        let bed = bed(60);
        let export = bed.directory.path().join("export");
        let path = export.join(theirs);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        std::fs::set_permissions(&export, std::fs::Permissions::from_mode(0o755)).unwrap();
        let before = listed(&export);
        let _renewing = bed.renewing();
        bed.next().await;
        let mut renewal = bed.vault.renewal();
        let failed =
            renewal.wait_for(|state| state.storage_trouble.is_some()).await.unwrap().clone();
        let told = failed.storage_trouble.unwrap().to_string();
        assert!(told.contains("name an empty directory"), "{told}");
        assert_eq!(listed(&export), before);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
        let mode = std::fs::metadata(&export).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o755);
        assert!(!remove_export(&export).unwrap());
        forget(bed.directory.path(), Some(&export)).unwrap();
        assert_eq!(listed(&export), before);
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_put_beside_our_sets_stays_and_ours_goes() {
    let bed = bed(60);
    let export = bed.directory.path().join("export");
    std::fs::create_dir(&export).unwrap();
    let _renewing = bed.renewing();
    bed.next().await;
    let mut renewal = bed.vault.renewal();
    renewal.wait_for(|state| state.issued == 1).await.unwrap();
    std::fs::create_dir(export.join("set-up-scripts")).unwrap();
    std::fs::write(export.join("set-up-scripts/run"), "theirs").unwrap();
    bed.next().await;
    renewal.wait_for(|state| state.issued == 2).await.unwrap();
    assert!(export.join("key.pem").is_file() && export.join("set-up-scripts/run").is_file());
    assert!(remove_export(&export).unwrap());
    assert_eq!(listed(&export), ["set-up-scripts"]);
}
