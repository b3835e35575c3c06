//! The command line: arguments, words on the screen, exit statuses. It decides nothing that the
//! daemon has to do.

mod bugreport;
mod bundle;
mod capture;
mod cert;
mod completions;
mod config;
mod doctor;
mod exit;
mod facts;
mod interrupt;
mod join;
mod launch;
mod leave;
mod logs;
mod man;
mod options;
mod overview;
mod progress;
mod proxy;
mod reference;
mod reload;
mod run;
mod screen;
mod service;
mod settings;
mod status;
mod stopping;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};

use exit::{Exit, Failure};
use options::Global;

/// Brings this virtual machine into an Istio mesh and keeps it there.
#[derive(Debug, Parser)]
#[command(name = "vm-agent", version, propagate_version = true, after_help = exit::statuses())]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring this machine into the mesh, and report when it is ready
    Join(Box<join::Args>),
    /// Run the agent in the foreground (what the service unit starts)
    Run(Box<run::Args>),
    /// Show what is so now; the exit status says whether the machine is ready
    Status(status::Args),
    /// Wait until the agent has reached a state
    Wait(wait::Args),
    /// Have the running agent read its configuration again (as SIGHUP does)
    Reload,
    /// Take this machine out of the mesh and remove all that join and run made
    Leave(leave::Args),
    /// Find out what is wrong with this machine, and what mends it
    Doctor(Box<doctor::Args>),
    /// Write all that is known of this machine into one file, without secrets
    Bugreport(Box<bugreport::Args>),
    /// Make or show join bundles (for the cluster's operator)
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Show, apply or remove this host's redirect rules
    #[command(subcommand)]
    Capture(Box<capture::Command>),
    /// Show the machine's certificate
    #[command(subcommand)]
    Cert(cert::Command),
    /// Check or show the configuration, and what there is to set
    #[command(subcommand)]
    Config(config::Command),
    /// Restart the proxy, or take it out of traffic and back
    #[command(subcommand)]
    Proxy(proxy::Command),
    /// Show what is known of this machine and its cloud, by the names that templates use
    Facts(Box<facts::Args>),
    /// Print the completions of a shell
    Completions(completions::Args),
    /// Show the version
    Version,
    /// Write the manual pages (for the packages)
    #[command(hide = true)]
    Man(man::Args),
    /// Become the proxy (used by the agent itself)
    #[command(hide = true)]
    LaunchProxy(launch::Args),
    /// Become the proxy that tells its version (used by checks)
    #[command(hide = true)]
    TellVersion(launch::Version),
    /// Start the proxy by an order on standard input (used by the service manager)
    #[command(hide = true)]
    ServeOrder,
    /// Have an agent that is restarted step aside (used by the service unit)
    #[command(hide = true)]
    BeforeStop,
    /// Tidy up behind an agent that has ended (used by the service unit)
    #[command(hide = true)]
    AfterStop,
}

impl Command {
    /// Whether it sets its log up by itself, as its configuration says.
    fn has_own_log(&self) -> bool {
        matches!(
            self,
            Self::Join(_)
                | Self::Run(_)
                | Self::LaunchProxy(_)
                | Self::TellVersion(_)
                | Self::AfterStop
        )
    }
}

/// Runs the command line and returns its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = overview::command().try_get_matches_from(args);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if !cli.command.has_own_log() {
        logs::start(&cli.global, logs::Wanted { level: "error", json: false });
    }
    let result = match cli.command {
        Command::Join(args) => join::run(&cli.global, *args),
        Command::Run(args) => run::run(&cli.global, *args),
        Command::Status(args) => status::run(&cli.global, &args),
        Command::Wait(args) => wait::run(&cli.global, &args),
        Command::Reload => reload::run(&cli.global),
        Command::Leave(args) => leave::run(&cli.global, &args),
        Command::Doctor(args) => doctor::run(&cli.global, &args),
        Command::Bugreport(args) => bugreport::run(&cli.global, &args),
        Command::Bundle(command) => bundle::run(command),
        Command::Capture(command) => capture::run(&cli.global, &command),
        Command::Cert(command) => cert::run(&cli.global, &command),
        Command::Config(command) => config::run(&cli.global, command),
        Command::Proxy(command) => proxy::run(&cli.global, command),
        Command::Facts(args) => facts::run(&cli.global, &args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Version => screen::out(concat!("vm-agent ", env!("CARGO_PKG_VERSION"))),
        Command::LaunchProxy(args) => launch::run(args),
        Command::TellVersion(args) => launch::tell(&args),
        Command::ServeOrder => launch::serve(&cli.global),
        Command::BeforeStop => stopping::before(&cli.global),
        Command::AfterStop => stopping::after(&cli.global),
    };
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            screen::failure(&failure);
            failure.exit.into()
        }
    }
}

/// Help goes to standard output with status 0, a wrong command line to standard error with 2. Who
/// reads only its first lines is no error.
fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    let failed = printed.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
    if error.use_stderr() || failed { Exit::Usage.into() } else { Exit::Ok.into() }
}

/// A failure of a command that has no status of its own.
fn other(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(Exit::Other, error)
}

/// Says at once what only root can do with the machine's own root; below another one whoever owns
/// it can do it.
fn needs_root(global: &Global, what: &'static str) -> Result<(), Failure> {
    match sudo_hint().filter(|_| global.root == std::path::Path::new("/")) {
        Some(hint) => Err(Failure::new(Exit::Host, anyhow::anyhow!(what)).hint(hint)),
        None => Ok(()),
    }
}

/// What may help somebody who is not root.
fn sudo_hint() -> Option<String> {
    (!nix::unistd::geteuid().is_root()).then(|| "try it with sudo".to_owned())
}
