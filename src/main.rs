//! Arguments in, exit code out. Everything else is the library's: `src/lib.rs` is the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    pointsman::cli::run()
}
