//! `vm-agent bugreport`: all that somebody who helps from afar needs to know, in one file.

use std::path::{Path, PathBuf};

use super::doctor::patient;
use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::run::runtime;
use super::{screen, service};
use crate::base::fsio;
use crate::doctor::{Parcel, examine, pages};

/// Arguments of `bugreport`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write it (`-`: to standard output)
    #[arg(short, long, value_name = "FILE", default_value = "vm-agent-bugreport.json")]
    output: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let patient = patient(global, &args.overrides)?;
    let (report, proxy) =
        runtime()?.block_on(async { (examine(&patient).await, pages(&patient).await) });
    let log = service::log(global);
    let parcel = Parcel { patient: &patient, report: &report, log, proxy };
    let text = serde_json::to_string_pretty(&parcel.tree()).map_err(super::other)?;
    if args.output == Path::new("-") {
        return screen::out(&text);
    }
    // Beside the file its new content is made: a bare name is in the working directory.
    let path =
        std::path::absolute(&args.output).map_err(|error| Failure::new(Exit::Host, error))?;
    let text = format!("{text}\n");
    fsio::replace(&path, text.as_bytes(), fsio::SECRET).map_err(|error| {
        Failure::new(Exit::Host, error).hint("name another place with -o".to_owned())
    })?;
    screen::say(&format!(
        "{} is written: {} bytes; keys and tokens are taken out, names and addresses are not",
        path.display(),
        text.len()
    ));
    Ok(())
}
