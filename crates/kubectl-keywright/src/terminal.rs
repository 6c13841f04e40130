//! The person at the other end: results on standard output, the rest on standard error.
//!
//! Colours, prompts and lines that are written over are for terminals. A pipe gets a line for each change.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use tokio::sync::oneshot;
use unicode_width::UnicodeWidthStr;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::interrupt::stopped;
use crate::view::escape::escape;

/// Octets that are read for a key. No key is longer, and what is longer is no key.
const LONGEST_INPUT: u64 = 4096;

/// What the standard streams are.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Whether a person can answer: standard input and standard error are terminals.
    pub can_ask: bool,
    /// Whether standard input is a terminal.
    pub input_is_terminal: bool,
    /// Whether results are read by a person at once.
    pub output_is_terminal: bool,
    /// Whether nobody reads results: standard output is closed, or the null device.
    pub output_is_lost: bool,
    /// Whether a line of progress can be written over.
    can_rewrite: bool,
    /// Whether progress is told elsewhere.
    is_quiet: bool,
    /// Columns of the terminal that results go to.
    pub width: Option<usize>,
}

/// A line that says what is waited for.
pub struct ProgressLine {
    can_rewrite: bool,
    is_quiet: bool,
    last: String,
    is_open: bool,
}

impl Terminal {
    /// The terminal of this process.
    pub fn detect() -> Self {
        let (input, output) = (io::stdin().is_terminal(), io::stdout().is_terminal());
        let error = io::stderr().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        Self {
            can_ask: input && error,
            input_is_terminal: input,
            output_is_terminal: output,
            output_is_lost: is_lost(io::stdout()),
            can_rewrite: error && !is_dumb && !set("NO_COLOR") && takes_escapes(),
            is_quiet: false,
            width: width.filter(|_| output),
        }
    }

    /// Says something that is no result. What comes from objects in it is made safe.
    pub fn say(&self, text: &str) {
        let lines: Vec<_> = text.lines().map(escape).collect();
        // Whoever has closed standard error does not want to know.
        let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
    }

    /// Says what the API server warns of.
    pub fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.say(&format!("Warning: {warning}"));
        }
    }

    /// Prints a result, with its newline. The caller has made safe what comes from objects.
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut output = anstream::stdout();
        let printed = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        printed.or_else(|error| match error.kind() {
            // As every program does whose output goes into `head`.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Failure::failed(format!("Standard output cannot be written: {error}."))),
        })
    }

    /// Prints a key: all of standard output, with a newline only where a person reads it.
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn print_key(&self, key: &str) -> Result<(), Failure> {
        let mut output = io::stdout().lock();
        let end: &[u8] = if self.output_is_terminal { b"\n" } else { b"" };
        let printed = output.write_all(key.as_bytes()).and_then(|()| output.write_all(end));
        printed
            .and_then(|()| output.flush())
            .map_err(|error| Failure::failed(format!("Standard output cannot be written: {error}.")))
    }

    /// Asks a person for a line. `None` at the end of the input. What was typed before the question does not answer it.
    ///
    /// # Errors
    /// If standard input cannot be read.
    pub fn ask(&self, question: &str) -> Result<Option<String>, Failure> {
        if self.input_is_terminal {
            discard_input();
        }
        let mut error = io::stderr();
        let _ = write!(error, "{}", escape(question)).and_then(|()| error.flush());
        let mut line = String::new();
        let read = io::stdin().lock().take(LONGEST_INPUT).read_line(&mut line).map_err(|error| unreadable(&error))?;
        if read == 0 {
            self.say("");
            return Ok(None);
        }
        Ok(Some(line.trim().to_owned()))
    }

    /// Reads a key, or what may be one: without echo from a terminal, else all of standard input.
    ///
    /// # Errors
    /// If standard input cannot be read, or somebody presses Ctrl-C or ends the program.
    pub async fn read_key(&self, question: &str) -> Result<Zeroizing<String>, Failure> {
        if self.input_is_terminal {
            let line = read_without_echo(question).await?;
            return line.map(|line| trimmed(&line)).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => Failure::interrupted("Interrupted. Nothing was looked up."),
                _ => unreadable(&error),
            });
        }
        // The full capacity from the start: a string that grows leaves copies in memory that are not wiped.
        let mut input = Zeroizing::new(String::with_capacity(LONGEST_INPUT as usize + 1));
        io::stdin().lock().take(LONGEST_INPUT).read_to_string(&mut input).map_err(|error| unreadable(&error))?;
        Ok(trimmed(&input))
    }

    /// A line that says what is waited for.
    pub fn progress(&self) -> ProgressLine {
        ProgressLine { can_rewrite: self.can_rewrite, is_quiet: self.is_quiet, last: String::new(), is_open: false }
    }

    /// The same terminal, for a part of something whose progress is told elsewhere.
    pub fn quiet(self) -> Self {
        Self { is_quiet: true, ..self }
    }
}

/// Asks for a line that is not echoed. Whoever ends the program meanwhile gets the terminal back as it was.
async fn read_without_echo(question: &str) -> Result<io::Result<Zeroizing<String>>, Failure> {
    // From here on a signal does not end the program by itself.
    let stopped = stopped()?;
    let settings = Settings::now();
    let (sender, line) = oneshot::channel();
    let question = question.to_owned();
    // No thread of the runtime, which would wait for it at the end.
    let asking = std::thread::Builder::new().spawn(move || {
        // Whoever has stopped the program does not want to know.
        let _ = sender.send(rpassword::prompt_password(question).map(Zeroizing::new));
    });
    if let Err(error) = asking {
        return Ok(Err(error));
    }
    tokio::select! {
        line = line => Ok(line.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))),
        () = stopped => {
            settings.restore();
            let _ = writeln!(io::stderr());
            Ok(Err(io::ErrorKind::Interrupted.into()))
        }
    }
}

/// How the terminal is set.
#[cfg(unix)]
struct Settings(Option<(std::fs::File, rustix::termios::Termios)>);

#[cfg(unix)]
impl Settings {
    /// Those of the terminal that is asked, whatever standard input is.
    fn now() -> Self {
        let terminal = std::fs::File::open("/dev/tty").ok();
        Self(terminal.and_then(|terminal| rustix::termios::tcgetattr(&terminal).ok().map(|set| (terminal, set))))
    }

    /// Sets it so again.
    fn restore(&self) {
        if let Some((terminal, settings)) = &self.0 {
            // A terminal that was closed needs no echo.
            let _ = rustix::termios::tcsetattr(terminal, rustix::termios::OptionalActions::Now, settings);
        }
    }
}

/// A console sets itself back.
#[cfg(windows)]
struct Settings;

#[cfg(windows)]
impl Settings {
    fn now() -> Self {
        Self
    }

    fn restore(&self) {}
}

/// Forgets what was typed and not read.
#[cfg(unix)]
fn discard_input() {
    // What stays is read as the answer, as on a terminal that cannot forget.
    let _ = rustix::termios::tcflush(io::stdin(), rustix::termios::QueueSelector::IFlush);
}

/// A console cannot be told to.
#[cfg(windows)]
fn discard_input() {}

/// Whether an answer agrees. No answer does not.
pub fn is_yes(answer: Option<&str>) -> bool {
    answer.is_some_and(|answer| ["y", "yes"].contains(&&*answer.to_lowercase()))
}

impl ProgressLine {
    /// Says what is waited for now, if that is news.
    pub fn show(&mut self, text: &str) {
        if self.is_quiet || self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        let mut error = io::stderr().lock();
        let _ = if self.can_rewrite {
            let width = terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
            let shown = cut(&escape(text), width.saturating_sub(1));
            self.is_open = true;
            write!(error, "\r\x1b[K{shown}").and_then(|()| error.flush())
        } else {
            writeln!(error, "{}", escape(text))
        };
    }

    /// Says how many of many are done: each on a terminal, every hundredth in a pipe.
    pub fn count(&mut self, what: &str, done: usize, all: usize) {
        if self.can_rewrite || done.is_multiple_of(100) {
            self.show(&format!("{what} {done} of {all}..."));
        }
    }

    /// Takes the line away, for a result to take its place.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let mut error = io::stderr().lock();
            let _ = write!(error, "\r\x1b[K").and_then(|()| error.flush());
        }
    }
}

/// A standard stream that was closed is the null device when the program begins.
#[cfg(unix)]
fn is_lost(output: impl std::os::fd::AsFd) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let stream = output.as_fd().try_clone_to_owned().and_then(|stream| std::fs::File::from(stream).metadata());
    let (Ok(stream), Ok(null)) = (stream, std::fs::metadata("/dev/null")) else { return false };
    stream.file_type().is_char_device() && stream.rdev() == null.rdev()
}

/// A standard stream that was closed has no type. The null device has that of a console.
#[cfg(windows)]
fn is_lost(output: io::Stdout) -> bool {
    let kind = winapi_util::file::typ(&output);
    !output.is_terminal() && kind.map_or(true, |kind| kind.is_char())
}

/// Whether the terminal of standard error knows escapes.
#[cfg(unix)]
fn takes_escapes() -> bool {
    true
}

/// A console does once it is told to. What is a terminal and no console is that of a Unix shell, which does.
#[cfg(windows)]
fn takes_escapes() -> bool {
    winapi_util::console::Console::stderr()
        .map_or(true, |mut console| console.set_virtual_terminal_processing(true).is_ok())
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One line of what was read, without what surrounds a key that was copied.
fn trimmed(input: &str) -> Zeroizing<String> {
    Zeroizing::new(input.trim().to_owned())
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::failed(format!("Standard input cannot be read: {error}."))
}

/// As much of `text` as has room in `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    for character in text.chars() {
        let mut longer = shown.clone();
        longer.push(character);
        if longer.width() + 3 > width {
            break;
        }
        shown = longer;
    }
    shown + "..."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_stays_one_line() {
        for (text, width, shown) in
            [("waiting", 10, "waiting"), ("waiting for x", 10, "waiting..."), ("鍵鍵鍵鍵", 7, "鍵鍵...")]
        {
            assert_eq!(cut(text, width), shown);
        }
    }
}
