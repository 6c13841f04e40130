//! Opens the page in the user's browser.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::private_file;

/// A file that leads to the page, for as long as this value lives. The address itself is no argument of a program: whoever is on
/// this machine may read those, and the token with them.
pub struct Signpost {
    path: PathBuf,
}

impl Signpost {
    /// A file that leads to `address`. `name` is random.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(address: &str, name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("keywright-{name}.html"));
        let mut file = private_file::create(&path)?;
        let signpost = Self { path };
        write!(
            file,
            "<!doctype html><meta charset=\"utf-8\"><meta name=\"referrer\" content=\"no-referrer\">\
             <meta http-equiv=\"refresh\" content=\"0; url={address}\"><title>Keywright</title>"
        )?;
        Ok(signpost)
    }

    /// Has the user's browser go where it leads.
    ///
    /// # Errors
    /// If there is no browser to be found.
    pub fn follow(&self) -> io::Result<()> {
        open::that_detached(&self.path)
    }
}

impl Drop for Signpost {
    fn drop(&mut self) {
        // The token in it is spent, or of no use without this program.
        let _ = std::fs::remove_file(&self.path);
    }
}
