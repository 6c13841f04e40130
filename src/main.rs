//! `keywright`: the one binary of the server image. Runs the role of the command line. Exit codes: 0 success, 1 failure,
//! 2 wrong usage.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mimalloc::MiMalloc;
use rustix::thread::disable_transparent_huge_pages;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

use keywright::args::{Arguments, CrdsArguments, ProgramArguments, Role};
use keywright::webhook::CertificateOrigin;
use keywright::{certificates, client, controller, telemetry, verifier, webhook};
use keywright_core::api;

/// A quarter faster for a verifier than the system's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let role = Arguments::parse().role;
    if !matches!(role, Role::Verifier(_)) {
        // A verifier finds a key among a million a fifth faster in huge pages. All that a controller with a thousand
        // ApiKeys gets from them is 43 MiB instead of 11. A kernel that refuses has none.
        let _ = disable_transparent_huge_pages(true);
    }
    let done = match role {
        Role::Crds(arguments) => print_crds(&arguments),
        // One thread: a controller waits most of the time, and to hand its work from thread to thread took a third of its
        // CPU time.
        Role::Controller(arguments) => run(&mut Builder::new_current_thread(), &arguments.server.program, async {
            let config = client::config(arguments.server.program.kubeconfig.as_deref()).await?;
            controller::run(&config, arguments.options(&hostname()), terminated()?).await
        }),
        Role::Verifier(arguments) => run(&mut Builder::new_multi_thread(), &arguments.server.program, async {
            let config = client::config(arguments.server.program.kubeconfig.as_deref()).await?;
            verifier::run(&config, arguments.options(&hostname())?, terminated()?).await
        }),
        Role::Webhook(arguments) => run(&mut Builder::new_multi_thread(), &arguments.server.program, async {
            let origin = match arguments.pem_files() {
                Some(files) => CertificateOrigin::Files(files),
                None => {
                    let config = client::config(arguments.server.program.kubeconfig.as_deref()).await?;
                    CertificateOrigin::Authority(client::requesting(&config)?)
                }
            };
            webhook::run(origin, arguments.options(), terminated()?).await
        }),
        Role::Certificates(arguments) => run(&mut Builder::new_current_thread(), &arguments.program, async {
            let config = client::config(arguments.program.kubeconfig.as_deref()).await?;
            certificates::run(client::requesting(&config)?, arguments.options()).await
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "failed");
            eprintln!("keywright: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds(arguments: &CrdsArguments) -> anyhow::Result<()> {
    for definition in api::custom_resource_definitions() {
        // Deprecated upstream, and therefore used in this one place of the program: its output is what `crds/` holds.
        let yaml = serde_yaml::to_string(&definition)?;
        match &arguments.output_directory {
            Some(folder) => {
                let file = folder.join(format!("{}.yaml", definition.spec.names.plural));
                std::fs::write(&file, yaml).with_context(|| format!("cannot write {}", file.display()))?;
            }
            None => write!(std::io::stdout(), "---\n{yaml}")?,
        }
    }
    Ok(())
}

fn run(
    runtime: &mut Builder,
    arguments: &ProgramArguments,
    role: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    telemetry::start_log(arguments.log_format, telemetry::log_filter(&arguments.log_filter)?)?;
    runtime.enable_all().build()?.block_on(role)
}

/// Resolves at the first SIGTERM or SIGINT.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The Pod's name, or else the machine's name.
fn hostname() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"))
        .map_or_else(|_| "keywright".to_owned(), |name| name.trim().to_owned())
}
