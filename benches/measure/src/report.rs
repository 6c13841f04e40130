//! Where a report goes.

use std::fs;
use std::io;
use std::path::Path;

/// Prints a report, and writes it into `bench/<name>.md` beside `temporary`: `CARGO_TARGET_TMPDIR`, which cargo tells only to the
/// measurement itself.
pub fn publish(temporary: &str, name: &str, title: &str, report: &str) -> io::Result<()> {
    let folder = Path::new(temporary).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.md"));
    let report = report.trim_end();
    fs::write(&file, format!("# {title}\n\n{report}\n"))?;
    println!("{report}\n\nThis is in {}.", file.display());
    Ok(())
}
