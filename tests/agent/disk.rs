//! A disk that does not answer: what the agent does beside it goes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::bed::{Bed, valid};

/// Replaces fsync(2) in a process: it blocks while the file `$HOLD/hold` is there, and says so.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int fd) {
    const char *directory = getenv("HOLD");
    char hold[4096], held[4096];
    snprintf(hold, sizeof hold, "%s/hold", directory ? directory : "");
    snprintf(held, sizeof held, "%s/held", directory ? directory : "");
    while (directory && access(hold, F_OK) == 0) {
        close(open(held, O_CREAT | O_WRONLY, 0600));
        usleep(10000);
    }
    return syscall(SYS_fsync, fd);
}
"#;

fn shim(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("shim.c"), directory.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    assert!(compiler.status().unwrap().success());
    library
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_holds_up_nothing_but_the_copy_on_it() {
    let mut bed = Bed::new().await;
    let library = shim(bed.root.path());
    bed.write_configuration(json!({"identity": {"ttl": "1h"}}));
    let hold = bed.root.path().display().to_string();
    bed.start_with(&[("LD_PRELOAD", library.to_str().unwrap()), ("HOLD", &hold)]);
    let before = bed.until("certified", valid).await["identity"]["serial"].clone();
    bed.until("kept", |_| bed.state("identity.json").exists()).await;
    let kept = std::fs::read(bed.state("identity.json")).unwrap();
    std::fs::write(bed.path("hold"), "").unwrap();
    let mut rotate = Command::new(crate::bed::AGENT)
        .arg("--root")
        .arg(bed.root.path())
        .args(["cert", "rotate"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !bed.path("held").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let page = timeout(Duration::from_secs(30), bed.page("/healthz/ready", "127.0.0.1")).await;
    assert!(page.expect("the agent answers").0.starts_with("HTTP/1.1"));
    bed.until("renewed", |status| status["identity"]["serial"] != before).await;
    assert_eq!(std::fs::read(bed.state("identity.json")).unwrap(), kept, "the disk still hangs");
    std::fs::remove_file(bed.path("hold")).unwrap();
    assert!(tokio::task::spawn_blocking(move || rotate.wait()).await.unwrap().unwrap().success());
    bed.until("kept", |_| std::fs::read(bed.state("identity.json")).unwrap() != kept).await;
}
