//! The agent's binary: hands over to the library.

fn main() -> std::process::ExitCode {
    vm_agent::cli::run(std::env::args_os())
}
