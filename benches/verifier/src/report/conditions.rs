//! On what machine, with what, and how busy it was beside.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

/// What the machine had done up to a moment, in ticks of all its processors.
pub struct Moment {
    at: Instant,
    stolen: f64,
    all: f64,
    load: String,
}

impl Moment {
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            at: Instant::now(),
            stolen: ticks.get(7).copied().unwrap_or_default(),
            all: ticks.iter().take(8).sum(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

pub fn describe(program: &Path, before: &Moment) -> Result<String> {
    let after = Moment::now();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| Some(line.split_once(':')?.1.trim()))
        .collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let first_line = |command: &mut Command| {
        let output = command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        output.unwrap_or_else(|_| "unknown".to_owned())
    };
    Ok(format!(
        "{} x {}, Linux {}, transparent huge pages {}.\n\
         {}, {}; the bases: hyper {}, tonic {}, prost {}.\n\
         Server on core 0, client on core 1 (behind a proxy: the proxy on core 0, authorization and client on core 1). \
         {:.0} s in all; load average {} before, {} after; {:.1} % of the time stolen by the host.\n\
         Again: `make bench-verifier`.\n",
        models.len(),
        models.first().unwrap_or(&"unknown processor"),
        kernel.trim(),
        pages.split(['[', ']']).nth(1).unwrap_or("unknown"),
        first_line(Command::new(program).arg("--version")),
        first_line(Command::new("rustc").arg("--version")),
        locked("hyper"),
        locked("tonic"),
        locked("prost"),
        before.at.elapsed().as_secs_f64(),
        before.load,
        after.load,
        (after.stolen - before.stolen) / (after.all - before.all) * 100.0,
    ))
}

/// The version of a package that this was built with.
fn locked(package: &str) -> &'static str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    let rest = include_str!("../../Cargo.lock").split_once(&entry).map_or("unknown", |(_, rest)| rest);
    rest.split('"').next().unwrap_or("unknown")
}
