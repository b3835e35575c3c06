//! The agent's binary: hands over to the library.

/// Keys and tokens pass through buffers of libraries that do not clear them: every block of memory is
/// overwritten when it is freed.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> std::process::ExitCode {
    vm_agent::cli::run(std::env::args_os())
}
