//! `man`: the man pages.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Arguments;
use crate::failure::Failure;

/// Writes a page for the program, and one for each command.
pub fn write(directory: &Path) -> Result<(), Failure> {
    if !directory.is_dir() {
        return Err(Failure::usage(format!("--directory {}: there is no such directory.", directory.display())));
    }
    let command = Arguments::command().bin_name("kubectl-keywright");
    clap_mangen::generate_to(command, directory)
        .map_err(|error| Failure::failed(format!("--directory {}: {error}.", directory.display())))
}
