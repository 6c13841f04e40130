//! Starts everything, measures in turns, and writes it down.

mod conditions;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::bytes::{Template, Verdict, http_answer};
use crate::load::{Client, Load, Outcome, Protocol};
use crate::processes::{CLIENT_CORE, Process, SERVER_CORE, free_address, get};
use crate::records::Records;
use keywright_measure::population::{KeyText, Random, UNKNOWN, junk_text, key_text, spec};
use keywright_measure::statistics::{Quartiles, percentile};

const HTTP: Protocol = Protocol::Http { path: "/verify" };
const ONE_STREAM: Protocol = Protocol::Grpc { streams: 1 };
const SIXTEEN_STREAMS: Protocol = Protocol::Grpc { streams: 16 };

/// Changes a second where records change.
const CHANGES: f64 = 1000.0;
/// Requests with junk a second where junk comes in.
const JUNK: f64 = 50_000.0;

/// A shape of load: protocol and connections.
type Shape = (Protocol, usize);

struct Bench {
    folder: PathBuf,
    rounds: usize,
    round: Duration,
    many: Verifier,
    few: Verifier,
    base_http: Process,
    base_grpc: Process,
    /// Another verifier to compare with, in place of servers that do nothing.
    rival: Option<Verifier>,
    keys: Vec<KeyText>,
    unknown: Vec<KeyText>,
    junk: Vec<KeyText>,
    rows: Vec<String>,
}

/// The released program, and the records that it follows.
struct Verifier {
    process: Process,
    grpc: SocketAddr,
    records: Records,
    /// From its start until it was Ready.
    start: Duration,
}

/// One round of one side.
struct Round {
    outcome: Outcome,
    cpu: f64,
    p99: Duration,
}

/// What a round is about.
type Side<'s> = Box<dyn FnMut() -> Result<Round> + 's>;

/// Rounds of two sides that took turns.
struct Comparison {
    ours: Vec<Round>,
    base: Vec<Round>,
}

/// Measures everything and writes `verifier.md` into `folder`.
pub fn run(program: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let before = conditions::Moment::now();
    let mut bench = Bench::start(program, folder)?;
    let wanted = env::var("KEYWRIGHT_BENCH_ROWS").unwrap_or_default();
    for (name, measure) in Bench::ROWS {
        if wanted.is_empty() || wanted.split(',').any(|wanted| wanted == *name) {
            measure(&mut bench).with_context(|| format!("measuring {name}"))?;
        }
    }
    let conditions = conditions::describe(program, &before)?;
    let report = format!(
        "# The verifier\n\nMedians of {} rounds of {:?}, lower and upper quartile in brackets. Ratios are of rounds that \
         followed one another; only they mean anything elsewhere.\n\n\
         | What | Base | Goal | Ratio | Ours | Base's |\n|---|---|---|---|---|---|\n{}\n{conditions}",
        bench.rounds,
        bench.round,
        bench.rows.join("")
    );
    let file = bench.folder.join("verifier.md");
    fs::write(&file, &report)?;
    println!("{report}\nThis is in {}.", file.display());
    Ok(())
}

fn number(name: &str, default: f64) -> Result<f64> {
    env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}: a number is needed")))
}

type Measurement = fn(&mut Bench) -> Result<()>;

impl Bench {
    /// In the order of the report.
    const ROWS: &[(&str, Measurement)] = &[
        ("http", Self::http),
        ("grpc", Self::grpc),
        ("denials", Self::denials),
        ("half-load", Self::half_load),
        ("changes", Self::changes),
        ("junk", Self::junk),
        ("memory", Self::memory),
        ("envoy", Self::envoy),
        ("nginx", Self::nginx),
    ];

    fn start(program: &Path, folder: PathBuf) -> Result<Self> {
        let records = number("KEYWRIGHT_BENCH_RECORDS", 1e6)? as usize;
        let own = env::current_exe()?;
        let base = |role: &str| {
            let address = free_address()?;
            let arguments = [role.to_owned(), address.to_string()];
            Process::spawn(SERVER_CORE, &own, &arguments, address, &folder.join(role))?.listening()
        };
        let (base_http, base_grpc) = (base("base-http")?, base("base-grpc")?);
        eprintln!("minting {records} keys");
        let keys = (0..records).map(key_text).collect();
        eprintln!("starting verifiers");
        let start_rival = |program| {
            let folder = folder.join("rival");
            fs::create_dir_all(&folder)?;
            Verifier::start(Path::new(&program), records, SERVER_CORE, &folder)
        };
        Ok(Self {
            rounds: number("KEYWRIGHT_BENCH_ROUNDS", 9.0)? as usize,
            round: Duration::from_secs_f64(number("KEYWRIGHT_BENCH_SECONDS", 1.2)?),
            many: Verifier::start(program, records, SERVER_CORE, &folder)?,
            few: Verifier::start(program, records / 10, CLIENT_CORE, &folder)?,
            rival: env::var_os("KEYWRIGHT_BENCH_BASE").map(start_rival).transpose()?,
            base_http,
            base_grpc,
            keys,
            unknown: (UNKNOWN..UNKNOWN + 100_000).map(key_text).collect(),
            junk: (0..100_000).map(junk_text).collect(),
            rows: Vec::new(),
            folder,
        })
    }

    fn client<'k>(
        &self,
        address: SocketAddr,
        (protocol, connections): Shape,
        keys: &'k [KeyText],
        rate: Option<f64>,
    ) -> Result<Client<'k>> {
        let duration = self.round;
        Client::connect(Load { address, protocol, connections, keys, rate, duration, shares_its_core: false })
    }

    fn http(&mut self) -> Result<()> {
        for connections in [16, 64] {
            let shape = (HTTP, connections);
            let comparison = self.compare(
                self.side(&self.many.process, self.many.process.address, shape, &self.keys, Verdict::Allowed)?,
                self.base_side(shape)?,
            )?;
            let what = format!("HTTP, {connections} connections: requests per core");
            let (base, goal) = self.base_and_goal("hyper, 200 at once", "0.85 / 0.95");
            self.add(&what, base, goal, &comparison, Figure::PerCore);
        }
        Ok(())
    }

    fn grpc(&mut self) -> Result<()> {
        let octets = Template::grpc().data_length() - 5;
        for (shape, name, goal) in
            [((SIXTEEN_STREAMS, 4), "4 x 16", "1.5 / 4"), ((ONE_STREAM, 16), "16 x 1", "1.3 / 1.8")]
        {
            let comparison = self.compare(
                self.side(&self.many.process, self.many.grpc, shape, &self.keys, Verdict::Allowed)?,
                self.base_side(shape)?,
            )?;
            let what = format!("gRPC Check of {octets} octets, {name} streams: requests per core");
            let (base, goal) = self.base_and_goal("tonic, decodes and allows", goal);
            self.add(&what, base, goal, &comparison, Figure::PerCore);
        }
        Ok(())
    }

    /// What a verifier's requests per core are compared with.
    fn base_side(&self, shape: Shape) -> Result<Side<'_>> {
        let (process, address) = match (&self.rival, shape.0) {
            (Some(rival), _) => (&rival.process, rival.address(shape)),
            (None, Protocol::Http { .. }) => (&self.base_http, self.base_http.address),
            (None, Protocol::Grpc { .. }) => (&self.base_grpc, self.base_grpc.address),
        };
        self.side(process, address, shape, &self.keys, Verdict::Allowed)
    }

    /// The name of that, and the goal.
    fn base_and_goal<'n>(&self, usual: &'n str, goal: &'n str) -> (&'n str, &'n str) {
        if self.rival.is_some() { ("the other verifier", "-") } else { (usual, goal) }
    }

    fn denials(&mut self) -> Result<()> {
        for (name, shape) in [("HTTP, 16 connections", (HTTP, 16)), ("gRPC, 4 x 16 streams", (SIXTEEN_STREAMS, 4))] {
            let address = self.many.address(shape);
            let comparison = self.compare(
                self.side(&self.many.process, address, shape, &self.unknown, Verdict::Refused)?,
                self.side(&self.many.process, address, shape, &self.keys, Verdict::Allowed)?,
            )?;
            let what = format!("{name}: CPU time of a denial");
            self.add(&what, "the same, allowed", "<= 1.0 / 0.9", &comparison, Figure::CpuTime);
        }
        Ok(())
    }

    /// At half of what the slower one can do.
    fn half_load(&mut self) -> Result<()> {
        let shape = (HTTP, 16);
        let capacity = self.client(self.many.process.address, shape, &self.keys, None)?.run()?.per_second();
        let side = |process, address| self.paced_side(process, address, shape, capacity / 2.0);
        let comparison = self.compare(
            side(&self.many.process, self.many.process.address)?,
            side(&self.base_http, self.base_http.address)?,
        )?;
        self.add(
            "HTTP, 16 connections at half load: p99",
            "hyper, 200 at once",
            "<= 1.3 / 1.1",
            &comparison,
            Figure::P99,
        );
        Ok(())
    }

    fn changes(&mut self) -> Result<()> {
        let shape = (HTTP, 16);
        let address = self.many.process.address;
        let quiet = self.side(&self.many.process, address, shape, &self.keys, Verdict::Allowed)?;
        let mut changing = self.side(&self.many.process, address, shape, &self.keys, Verdict::Allowed)?;
        let comparison = self.compare(
            Box::new(|| {
                let _changes = Background::changes(&self.many.records, self.keys.len());
                changing()
            }),
            quiet,
        )?;
        drop(changing);
        let what = format!("HTTP, 16 connections, while {CHANGES} records a second change: requests");
        self.add(&what, "the same at rest", ">= 0.95 / 0.99", &comparison, Figure::Throughput);

        let probes = self.rounds * 100;
        let mut at_rest = self.enforced(probes)?;
        self.add_times("An event written to its key refused, at rest", "-", &mut at_rest);
        let mut under_changes = {
            let _changes = Background::changes(&self.many.records, self.keys.len());
            self.enforced(probes)?
        };
        self.add_times(&format!("The same, with {CHANGES} others a second"), "<= 1 ms / 0.1 ms", &mut under_changes);
        let mut under_load = {
            let mut client = self.client(self.many.grpc, (SIXTEEN_STREAMS, 4), &self.keys, None)?;
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let load = scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        client.run()?;
                    }
                    anyhow::Ok(())
                });
                let times = self.enforced(probes / 4);
                stop.store(true, Ordering::Relaxed);
                load.join().expect("the client does not panic")?;
                times
            })?
        };
        self.add_times("The same, under gRPC load with 4 x 16 streams", "-", &mut under_load);
        Ok(())
    }

    /// From writing the event that suspends a key to its refusal, over a connection that asks again and again.
    fn enforced(&self, probes: usize) -> Result<Vec<Duration>> {
        let mut stream = TcpStream::connect(self.many.process.address)?;
        stream.set_nodelay(true)?;
        let template = Template::http("/verify");
        let mut input = vec![0; 8192];
        let mut random = Random::new(5);
        let mut ask = |key: &KeyText| -> Result<Verdict> {
            let mut request = Vec::new();
            template.write(key, &mut request);
            stream.write_all(&request)?;
            let mut filled = 0;
            loop {
                filled += stream.read(&mut input[filled..])?;
                if let Some((verdict, _)) = http_answer(&input[..filled]) {
                    return Ok(verdict);
                }
            }
        };
        (0..probes)
            .map(|_| {
                let number = random.below(self.keys.len());
                let key = &self.keys[number];
                let before = ask(key)?;
                ensure!(before == Verdict::Allowed, "a good key, number {number}, was not allowed: {before:?}");
                let mut suspended = spec(number);
                suspended["suspended"] = json!(true);
                let written = Instant::now();
                self.many.records.change(number, suspended)?;
                while ask(key)? != Verdict::Refused {
                    ensure!(written.elapsed() < Duration::from_secs(10), "a suspended key was never refused");
                }
                let time = written.elapsed();
                let restored = Instant::now();
                self.many.records.change(number, spec(number))?;
                while ask(key)? != Verdict::Allowed {
                    ensure!(restored.elapsed() < Duration::from_secs(10), "a restored key stays refused");
                }
                Ok(time)
            })
            .collect()
    }

    /// The do-nothing servers show what a core leaves to the good requests at best: what comes in has to be answered.
    fn junk(&mut self) -> Result<()> {
        for (name, shape, base, base_name) in [
            ("HTTP, 16 connections", (HTTP, 16), &self.base_http, "hyper, 200 at once"),
            ("gRPC, 4 x 16 streams", (SIXTEEN_STREAMS, 4), &self.base_grpc, "tonic, decodes and allows"),
        ] {
            let ours = self.beside_junk(&self.many.process, self.many.address(shape), shape, Verdict::Refused)?;
            let others = self.beside_junk(base, base.address, shape, Verdict::Allowed)?;
            for (whose, (comparison, came_through), goal) in
                [("", ours, ">= 0.7 / 0.9"), (&*format!(", of {base_name}"), others, "-")]
            {
                let what = format!(
                    "{name}: good requests beside junk that is offered at {JUNK} a second ({came_through:.0} came \
                     through){whose}"
                );
                self.rows.push(row(&what, "alone", goal, &comparison, Figure::Throughput));
            }
        }
        Ok(())
    }

    /// Good requests beside junk and alone, and how much junk a second came through.
    fn beside_junk(
        &self,
        process: &Process,
        address: SocketAddr,
        shape: Shape,
        junk_is: Verdict,
    ) -> Result<(Comparison, f64)> {
        let alone = self.side(process, address, shape, &self.keys, Verdict::Allowed)?;
        let mut good = self.client(address, shape, &self.keys, None)?;
        let mut junk = self.client(address, shape, &self.junk, Some(JUNK))?;
        let mut rates = Vec::new();
        let beside = || {
            round(process, Verdict::Allowed, || {
                let (outcome, junk) = good.run_with(&mut junk)?;
                check(&junk, junk_is)?;
                rates.push(junk.per_second());
                Ok(outcome)
            })
        };
        let comparison = self.compare(Box::new(beside), alone)?;
        Ok((comparison, Quartiles::of(rates).median()))
    }

    /// With both in use: what looks for due last uses then takes is the same in both, and not the keys'.
    fn memory(&mut self) -> Result<()> {
        let (many, few) = (self.keys.len(), self.keys.len() / 10);
        for (process, keys) in [(&self.many.process, &self.keys[..]), (&self.few.process, &self.keys[..few])] {
            let mut side = self.side(process, process.address, (HTTP, 16), keys, Verdict::Allowed)?;
            for _ in 0..self.rounds {
                side()?;
            }
        }
        let octets = (self.many.process.resident() - self.few.process.resident()) / (many - few) as f64;
        self.rows.push(format!(
            "| Resident memory per key, between {few} and {many} | 48 octets | <= 300 | - | {octets:.0} octets | - |\n"
        ));
        let (start, records) = (self.many.start, many);
        self.rows
            .push(format!("| Start to Ready with {records} records from a stand-in | - | - | - | {start:.1?} | - |\n"));
        Ok(())
    }

    fn envoy(&mut self) -> Result<()> {
        let Some(envoy) = find("envoy", &["envoy-1.40.0/envoy/_bin/envoy"]) else {
            return self.add_absent("Envoy");
        };
        let start = |authorization: SocketAddr| {
            let address = free_address()?;
            let file = self.configure(include_str!("../proxies/envoy.yaml"), "envoy", address, authorization)?;
            let arguments =
                ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"].map(str::to_owned);
            Process::spawn(SERVER_CORE, &envoy, &arguments, address, &self.folder.join("envoy"))?.listening()
        };
        let ours = start(self.few.grpc)?;
        let fixed = self.start_beside("base-grpc")?;
        let base = start(fixed.address)?;
        self.behind(&ours, &base, "Envoy", "the same, tonic that allows at once", "0.97 / 1.0")
    }

    fn nginx(&mut self) -> Result<()> {
        let Some(nginx) = find("nginx", &["nginx/usr/sbin/nginx"]) else {
            return self.add_absent("nginx");
        };
        let start = |core, template, authorization: SocketAddr| {
            let address = free_address()?;
            let file = self.configure(template, "nginx", address, authorization)?;
            let arguments = ["-c", &file, "-p", &self.folder.to_string_lossy()].map(str::to_owned);
            Process::spawn(core, &nginx, &arguments, address, &self.folder.join("nginx"))?.listening()
        };
        let asking = include_str!("../proxies/nginx.conf");
        let ours = start(SERVER_CORE, asking, self.few.process.address)?;
        let fixed = start(CLIENT_CORE, include_str!("../proxies/nginx-204.conf"), self.few.process.address)?;
        let base = start(SERVER_CORE, asking, fixed.address)?;
        self.behind(&ours, &base, "nginx auth_request", "the same, a 204 from another nginx", "0.95 / 1.0")
    }

    fn behind(&mut self, ours: &Process, base: &Process, proxy: &str, name: &str, goal: &str) -> Result<()> {
        let load = |process: &Process| Load {
            address: process.address,
            protocol: Protocol::Http { path: "/" },
            connections: 16,
            keys: &self.keys[..self.keys.len() / 10],
            rate: None,
            duration: self.round,
            shares_its_core: true,
        };
        let comparison = self.compare(
            rounds_of(Client::connect(load(ours))?, ours, Verdict::Allowed),
            rounds_of(Client::connect(load(base))?, base, Verdict::Allowed),
        )?;
        self.add(&format!("Behind {proxy}, 16 connections: requests"), name, goal, &comparison, Figure::Throughput);
        Ok(())
    }

    fn start_beside(&self, role: &str) -> Result<Process> {
        let address = free_address()?;
        let arguments = [role.to_owned(), address.to_string()];
        Process::spawn(CLIENT_CORE, &env::current_exe()?, &arguments, address, &self.folder.join(role))?.listening()
    }

    fn configure(&self, template: &str, name: &str, listen: SocketAddr, authorization: SocketAddr) -> Result<String> {
        let text = template
            .replace("port_value: LISTEN", &format!("port_value: {}", listen.port()))
            .replace("LISTEN", &listen.port().to_string())
            .replace("FOLDER", &self.folder.to_string_lossy())
            .replace("AUTHORIZATION", &authorization.port().to_string());
        let file = self.folder.join(format!("{name}-{}.yaml", listen.port()));
        fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// A client with connections of its own, and the process whose CPU time counts.
    fn side<'s>(
        &'s self,
        process: &'s Process,
        address: SocketAddr,
        shape: Shape,
        keys: &'s [KeyText],
        expected: Verdict,
    ) -> Result<Side<'s>> {
        let client = self.client(address, shape, keys, None)?;
        Ok(rounds_of(client, process, expected))
    }

    fn paced_side<'s>(
        &'s self,
        process: &'s Process,
        address: SocketAddr,
        shape: Shape,
        rate: f64,
    ) -> Result<Side<'s>> {
        Ok(rounds_of(self.client(address, shape, &self.keys, Some(rate))?, process, Verdict::Allowed))
    }

    /// Lets two sides take turns, each one first in every other round. The first round of each counts for nothing.
    fn compare(&self, mut ours: Side<'_>, mut base: Side<'_>) -> Result<Comparison> {
        let mut comparison = Comparison { ours: Vec::new(), base: Vec::new() };
        for round in 0..=self.rounds {
            if round % 2 == 0 {
                comparison.ours.push(ours()?);
                comparison.base.push(base()?);
            } else {
                comparison.base.push(base()?);
                comparison.ours.push(ours()?);
            }
        }
        comparison.ours.remove(0);
        comparison.base.remove(0);
        Ok(comparison)
    }

    fn add(&mut self, what: &str, base: &str, goal: &str, comparison: &Comparison, figure: Figure) {
        self.rows.push(row(what, base, goal, comparison, figure));
    }

    fn add_times(&mut self, what: &str, goal: &str, times: &mut [Duration]) {
        let [median, p99] = [0.5, 0.99].map(|part| percentile(times, part).as_secs_f64() * 1e3);
        let count = times.len();
        let row = format!("| {what} | - | {goal} | - | p50 {median:.2} ms, p99 {p99:.2} ms of {count} | - |\n");
        eprint!("{row}");
        self.rows.push(row);
    }

    fn add_absent(&mut self, proxy: &str) -> Result<()> {
        self.rows.push(format!("| Behind {proxy} | - | - | not installed: `tests/testbed/tools.sh` | - | - |\n"));
        Ok(())
    }
}

/// A row of the report.
fn row(what: &str, base: &str, goal: &str, comparison: &Comparison, figure: Figure) -> String {
    let pairs = comparison.ours.iter().zip(&comparison.base);
    let ratio = Quartiles::of(pairs.map(|(ours, base)| figure.of(ours) / figure.of(base)).collect());
    let describe = |rounds: &[Round]| {
        let median = |value: &dyn Fn(&Round) -> f64| Quartiles::of(rounds.iter().map(value).collect()).median();
        format!(
            "{:.0}/s, CPU {:.1} µs, p99 {:.0} µs, client {:.0} % busy",
            median(&|round| round.outcome.per_second()),
            median(&|round| Figure::CpuTime.of(round) * 1e6),
            median(&|round| round.p99.as_secs_f64() * 1e6),
            median(&|round| round.outcome.utilisation * 100.0),
        )
    };
    let (ours, others) = (describe(&comparison.ours), describe(&comparison.base));
    let row = format!("| {what} | {base} | {goal} | {ratio} | {ours} | {others} |\n");
    eprint!("{row}");
    row
}

/// What of two rounds is compared.
#[derive(Clone, Copy)]
enum Figure {
    /// Requests for each second of the server's CPU time.
    PerCore,
    /// The server's CPU seconds for each request.
    CpuTime,
    Throughput,
    P99,
}

impl Figure {
    fn of(self, round: &Round) -> f64 {
        match self {
            Self::PerCore => round.outcome.answered() as f64 / round.cpu,
            Self::CpuTime => round.cpu / round.outcome.answered() as f64,
            Self::Throughput => round.outcome.per_second(),
            Self::P99 => round.p99.as_secs_f64(),
        }
    }
}

fn rounds_of<'s>(mut client: Client<'s>, process: &'s Process, expected: Verdict) -> Side<'s> {
    Box::new(move || round(process, expected, || client.run()))
}

fn round(process: &Process, expected: Verdict, ask: impl FnOnce() -> Result<Outcome>) -> Result<Round> {
    let before = process.cpu_seconds();
    let mut outcome = ask()?;
    let cpu = process.cpu_seconds() - before;
    check(&outcome, expected)?;
    let p99 = percentile(&mut outcome.latencies, 0.99);
    Ok(Round { outcome, cpu, p99 })
}

fn check(outcome: &Outcome, expected: Verdict) -> Result<()> {
    let (allowed, refused, other) = (outcome.allowed, outcome.refused, outcome.other);
    let is_as_expected = outcome.count(expected) == outcome.answered();
    ensure!(is_as_expected, "{expected:?} was expected of all: {allowed} allowed, {refused} refused, {other} others");
    Ok(())
}

impl Verifier {
    fn start(program: &Path, count: usize, core: &str, folder: &Path) -> Result<Self> {
        let records = Records::serve(count)?;
        let kubeconfig = folder.join(format!("kubeconfig-{count}"));
        fs::write(&kubeconfig, records.kubeconfig().to_string())?;
        let (http, grpc, admin) = (free_address()?, free_address()?, free_address()?);
        let arguments = [
            "verifier".to_owned(),
            "--identity=verifier-0".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--http-address={http}"),
            format!("--grpc-address={grpc}"),
            format!("--admin-address={admin}"),
        ];
        let started = Instant::now();
        let process = Process::spawn(core, program, &arguments, http, &folder.join(format!("verifier-{count}")))?;
        let process = process.until("is Ready", |_| get(admin, "/readyz") == Some(200))?;
        let start = started.elapsed();
        eprintln!("Ready with {count} records after {start:.1?}");
        Ok(Self { process, grpc, records, start })
    }

    fn address(&self, (protocol, _): Shape) -> SocketAddr {
        match protocol {
            Protocol::Http { .. } => self.process.address,
            Protocol::Grpc { .. } => self.grpc,
        }
    }
}

impl Records {
    /// Changes owners of random records, at a steady rate, until told to stop.
    fn keep_changing(&self, count: usize, stop: &AtomicBool) -> Result<()> {
        let mut random = Random::new(11);
        let started = Instant::now();
        for change in 0.. {
            let due = started + Duration::from_secs_f64(f64::from(change) / CHANGES);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let number = random.below(count);
            let mut changed = spec(number);
            changed["owner"] = json!(format!("person-{:02}@example.com", change % 20));
            self.change(number, changed)?;
        }
        Ok(())
    }
}

/// Changes that go on until this is dropped.
struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Background {
    fn changes(records: &Records, count: usize) -> Self {
        let (records, stop) = (records.clone(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&stop);
        Self { stop, thread: Some(thread::spawn(move || records.keep_changing(count, &told))) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(thread::JoinHandle::join);
    }
}

fn find(name: &str, cached: &[&str]) -> Option<PathBuf> {
    let cache = env::var("KEYWRIGHT_CACHE")
        .or_else(|_| env::var("XDG_CACHE_HOME").map(|home| format!("{home}/keywright")))
        .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cache/keywright")));
    let in_cache = cached.iter().map(|path| Path::new(cache.as_deref().unwrap_or_default()).join(path));
    let folders = ["/usr/local/bin", "/usr/bin", "/usr/sbin"];
    folders.iter().map(|folder| Path::new(folder).join(name)).chain(in_cache).find(|path| path.exists())
}
