//! A guard against a verifier that gets slower: the instructions that each kind of work takes, beside reviewed ones.
//!
//! Unlike times, they are the same on a busy machine. This program runs itself under valgrind's callgrind, which counts
//! for each thread. For each kind, one thread does the work once and another one does it twice: what the second takes
//! more is the work alone. `WRITE=1` writes down what was counted.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use mimalloc::MiMalloc;

use work::{KINDS, Kind, PIECES, World};

mod work;

/// As in the program.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const REVIEWED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reviewed.tsv");

/// What `WRITE=1` begins the file with.
const HEADER: &str = "\
# Instructions that the verifier takes for a piece of work. `make instructions` compares, and with WRITE=1 writes this
# file, for review. Counted by callgrind on x86_64 with AVX2, without the key's SHA-256, which has a row of its own.
# kind\tinstructions
";

/// More instructions than were reviewed, in percent, that pass: other versions of libc and valgrind take that little.
const TOLERANCE: f64 = 3.0;
/// With this many fewer, in percent, it is time to write them down.
const GAIN: f64 = 10.0;

/// An argument of this program: do the work, under callgrind.
const WORK: &str = "work";

/// Instructions by kind, in the order of [`KINDS`].
type Counts = Vec<(String, i64)>;

fn main() -> Result<ExitCode> {
    if std::env::args().nth(1).is_some_and(|argument| argument == WORK) {
        World::new()?.do_all()?;
        return Ok(ExitCode::SUCCESS);
    }
    let counts = count()?;
    if !is_comparable() {
        println!("{counts:#?}\nNot compared: those that were reviewed are of x86_64 with AVX2.");
        return Ok(ExitCode::SUCCESS);
    }
    if std::env::var_os("WRITE").is_some() {
        let rows: String = counts.iter().map(|(kind, count)| format!("{kind}\t{count}\n")).collect();
        std::fs::write(REVIEWED, format!("{HEADER}{rows}"))?;
    }
    let text = std::fs::read_to_string(REVIEWED).with_context(|| format!("cannot read {REVIEWED}"))?;
    Ok(if compare(&counts, &parse(&text)?)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What valgrind shows of the processor decides which of several functions libc and memchr take.
fn is_comparable() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

impl World {
    /// One thread after the other, and none ends before all are done: callgrind would count the next one as the same.
    fn do_all(&self) -> Result<()> {
        let all_done = Mutex::new(());
        thread::scope(|scope| {
            let _not_yet = all_done.lock();
            for (kind, _, begin) in KINDS {
                for passes in [1, 2] {
                    let (done, is_done) = mpsc::channel();
                    let all_done = &all_done;
                    scope.spawn(move || {
                        self.work(begin, passes);
                        done.send(()).ok();
                        drop(all_done.lock());
                    });
                    is_done.recv().context(kind)?;
                }
            }
            Ok(())
        })
    }

    fn work(&self, begin: Kind, passes: usize) {
        let mut piece = begin(self);
        for _ in 0..passes {
            (0..PIECES).for_each(&mut piece);
        }
    }
}

/// The instructions of one piece of each kind, rounded.
fn count() -> Result<Counts> {
    let program = std::env::current_exe()?;
    let output = program.with_extension("callgrind");
    let status = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--separate-threads=yes", "--combine-dumps=yes"])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .args([program.as_os_str(), WORK.as_ref()])
        .status()
        .context("cannot run valgrind")?;
    ensure!(status.success(), "the work under valgrind ended with {status}");
    let threads = totals(&std::fs::read_to_string(&output)?)?;
    // The first thread is the one that made the others.
    let once_and_twice = threads.get(1..).unwrap_or_default().chunks_exact(2);
    let pieces: Vec<i64> = once_and_twice.map(|pair| (pair[1] - pair[0] + PIECES as i64 / 2) / PIECES as i64).collect();
    ensure!(pieces.len() == KINDS.len(), "callgrind has counted {} threads", threads.len());
    let counts = KINDS.iter().zip(&pieces);
    Ok(counts.map(|((kind, hashes, _), piece)| ((*kind).to_owned(), piece - hashes * pieces[0])).collect())
}

/// The totals of all threads in callgrind's output, in the order in which they began.
fn totals(output: &str) -> Result<Vec<i64>> {
    let (mut totals, mut thread) = (BTreeMap::new(), 0_usize);
    for line in output.lines() {
        if let Some(number) = line.strip_prefix("thread: ") {
            thread = number.parse()?;
        } else if let Some(total) = line.strip_prefix("totals: ") {
            totals.insert(thread, total.parse()?);
        }
    }
    Ok(totals.into_values().collect())
}

fn parse(text: &str) -> Result<Counts> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let (kind, count) = row.split_once('\t').with_context(|| format!("{REVIEWED}: not two columns: {row}"))?;
        Ok((kind.to_owned(), count.parse().with_context(|| format!("{REVIEWED}: {row}"))?))
    })
    .collect()
}

/// Tells how the counts compare, and answers whether they pass.
fn compare(counts: &Counts, reviewed: &Counts) -> Result<bool> {
    let kinds = |counts: &Counts| counts.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>();
    ensure!(kinds(counts) == kinds(reviewed), "{REVIEWED} has other kinds: make instructions WRITE=1");
    let mut passes = true;
    for ((kind, count), (_, reviewed)) in counts.iter().zip(reviewed) {
        let change = 100.0 * (*count as f64 / *reviewed as f64 - 1.0);
        let verdict = match change {
            more if more > TOLERANCE => ", TOO MANY",
            fewer if fewer < -GAIN => ", fewer: make instructions WRITE=1 keeps it so",
            _ => "",
        };
        passes &= change <= TOLERANCE;
        println!("{kind:14} {count:6} instructions, {reviewed:6} reviewed, {change:+6.2} %{verdict}");
    }
    if !passes {
        println!(
            "At most {TOLERANCE} % more than in {REVIEWED} pass. Make the work cheaper; or accept what it takes by\n\
             make instructions WRITE=1, and say why in the commit."
        );
    }
    Ok(passes)
}
