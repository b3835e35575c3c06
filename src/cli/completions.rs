//! `vm-agent completions`: what a shell needs to complete our commands and options.

use std::io::Write;

use clap::{Command as CommandLine, CommandFactory};
use clap_complete::{Shell, generate};

use super::exit::{Exit, Failure};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Kind,
}

/// The shells that the packages have completions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A file for `/usr/share/bash-completion/completions`.
    Bash,
    /// A file `_vm-agent` for a directory of `$fpath`.
    Zsh,
    /// A file for `/usr/share/fish/vendor_completions.d`.
    Fish,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let shell = match args.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    let mut command = visible(&super::Cli::command());
    generate(shell, &mut command, env!("CARGO_PKG_NAME"), &mut script);
    match std::io::stdout().lock().write_all(&script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Other, error))
        }
        _ => Ok(()),
    }
}

/// The command line without what is hidden, which clap_complete would offer as well.
fn visible(whole: &CommandLine) -> CommandLine {
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set());
    CommandLine::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(whole.get_arguments())
        .subcommands(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_not_offered() {
        let whole = super::super::Cli::command();
        let shown = visible(&whole);
        let has = |command: &CommandLine, name: &str| command.find_subcommand(name).is_some();
        for name in ["launch-proxy", "man"] {
            assert!(has(&whole, name) && !has(&shown, name), "{name}");
        }
        assert!(has(&shown, "join"));
        assert!(shown.get_arguments().any(|arg| arg.get_long() == Some("root")));
    }
}
