//! Arguments in, exit code out. Everything else is the library's: `src/lib.rs` is the map.

use std::process::ExitCode;

/// Messages are allocated on one thread and freed on another, which glibc's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pointsman::cli::run()
}
