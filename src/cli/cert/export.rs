//! `vm-agent cert export`: key, chain and roots for another program, from the copy on disk, so that
//! it works without a running agent too.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use crate::agent::Outline;
use crate::base::clock::{self, rfc3339};
use crate::base::fsio::{self, NewFile};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options::{Global, Overrides};
use crate::cli::screen::{self, Paint, paint};
use crate::cli::status::{self, text};
use crate::cli::{settings, sudo_hint};
use crate::config::{Loaded, Settings};
use crate::identity::IssuedIdentity;
use crate::secrets::{KeptIdentity, Place, Source, look};

/// Arguments of `cert export`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Where to write key.pem, cert-chain.pem and root-cert.pem; made where it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let document = settings::from_file(global, &Overrides::default())?;
    let Loaded { settings, .. } = settings::load(&document, global)?;
    let directory =
        std::path::absolute(&args.directory).map_err(|error| Failure::new(Exit::Host, error))?;
    is_free(&directory, &settings)?;
    let identity = kept(global, &settings)?;
    prepare(&directory)?;
    write(&directory, &identity).map_err(host)?;
    screen::say(&format!(
        "{} {} has the certificate {} of {}, until {}",
        paint(Paint::Good, "✓"),
        directory.display(),
        identity.serial(),
        identity.id(),
        rfc3339(identity.not_after()),
    ));
    for words in remarks(global, &settings, &identity) {
        screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
    }
    Ok(())
}

/// What the agent keeps current itself is not to be written over.
fn is_free(directory: &Path, settings: &Settings) -> Result<(), Failure> {
    let own = settings.identity.export_directory.as_deref();
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if own.is_none_or(|own| real(own) != real(directory)) {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "{} is identity.exportDirectory: the agent keeps it current by itself",
        directory.display()
    );
    Err(Failure::new(Exit::Usage, error).hint("name another directory".to_owned()))
}

/// The last identity that was believed, if it is valid now.
fn kept(global: &Global, settings: &Settings) -> Result<IssuedIdentity, Failure> {
    let paths = settings::paths(global);
    let state_directory = paths.state_directory();
    let id = Outline::new(settings, &paths).id;
    let root_cert = &settings.mesh.root_cert;
    let place = Place { state_directory: &state_directory, root_cert, id: &id };
    let (exit, why) = match look(&place, clock::system().now()) {
        KeptIdentity::Good { identity, .. } => return Ok(*identity),
        KeptIdentity::Nothing => (Exit::NotReady, "there is none yet".to_owned()),
        KeptIdentity::NotNow { why, .. } => (Exit::NotReady, why),
        KeptIdentity::Unusable { why } => (Exit::Host, why),
    };
    let error = anyhow::anyhow!(
        "{} keeps no certificate that can be exported: {why}",
        state_directory.display()
    );
    let hint =
        sudo_hint().unwrap_or_else(|| "see `vm-agent cert show` and `vm-agent status`".to_owned());
    Err(Failure::new(exit, error).hint(hint))
}

/// A directory that is ours alone: in another one somebody could put another file in the key's
/// place, or read it while it is written.
fn prepare(directory: &Path) -> Result<(), Failure> {
    if !directory.exists() {
        return fsio::make_directory(directory, 0o700).map_err(host);
    }
    let found = directory.metadata().map_err(|error| Failure::new(Exit::Host, error))?;
    let own = nix::unistd::geteuid().as_raw();
    let why = if !found.is_dir() {
        "it is no directory".to_owned()
    } else if found.uid() != own {
        format!("it belongs to user {}, not to {own}", found.uid())
    } else if found.mode() & OTHERS_WRITE != 0 {
        format!("others may write there (its mode is {:04o})", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    let error = anyhow::anyhow!("no key is written into {}: {why}", directory.display());
    let hint = "name a directory of your own that only you can write, such as a new one".to_owned();
    Err(Failure::new(Exit::Host, error).hint(hint))
}

/// All three are written before any of them gets its name.
fn write(directory: &Path, identity: &IssuedIdentity) -> Result<(), fsio::FileError> {
    let paths = ["root-cert.pem", "cert-chain.pem", "key.pem"].map(|name| directory.join(name));
    let [roots, chain, key] = &paths;
    fsio::replace_all(&[
        NewFile { path: roots, content: identity.roots().pem().as_bytes(), mode: fsio::PUBLIC },
        NewFile { path: chain, content: identity.chain_pem().as_bytes(), mode: fsio::PUBLIC },
        NewFile {
            path: key,
            content: identity.key_pem().expose_secret().as_bytes(),
            mode: fsio::SECRET,
        },
    ])
}

/// What somebody who uses the copies has to know.
fn remarks(global: &Global, settings: &Settings, identity: &IssuedIdentity) -> Vec<String> {
    let from = match &settings.identity.source {
        Source::Files(files) => {
            format!("copies of a certificate that others keep in {}", files.certificate.display())
        }
        Source::Spiffe(socket) => {
            format!("copies of a certificate of the SPIFFE Workload API at {socket}")
        }
        Source::Istiod | Source::Kubernetes(_) => "copies".to_owned(),
    };
    let mut all = vec![format!(
        "these are {from}: nobody renews them (identity.exportDirectory names a directory that the agent keeps current)"
    )];
    let used = status::ask(global).map(|status| text(&status, "/identity/serial"));
    if let Ok(used) = used.as_deref()
        && used != identity.serial()
    {
        all.push(format!(
            "the running agent uses another certificate ({used}), which it could not keep on disk"
        ));
    }
    all
}

fn host(error: fsio::FileError) -> Failure {
    Failure::new(Exit::Host, error).hint(sudo_hint())
}

/// Group and others.
const OTHERS_WRITE: u32 = 0o022;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_others_can_write_gets_no_key() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        std::fs::create_dir(&open).unwrap();
        for mode in [0o777, 0o1777, 0o770] {
            std::fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            let words = prepare(&open).unwrap_err().error.to_string();
            assert!(words.contains(&format!("its mode is {mode:04o}")), "{words}");
        }
        std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        prepare(&open).unwrap();
        let new = root.path().join("new");
        prepare(&new).unwrap();
        assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(prepare(&file).is_err());
    }
}
