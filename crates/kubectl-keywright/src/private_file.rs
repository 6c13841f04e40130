//! Files that only the user can read.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// A new file. Where there are modes, it has 0600 from its first moment on.
///
/// # Errors
/// Also if there is one already: nothing is written over.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
