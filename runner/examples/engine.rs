//! Containers looked after by a program with threads, as a server would do it.
//!
//! ```text
//! cargo run -p coracle --example engine              lists containers
//! cargo run -p coracle --example engine NAME...      stops and removes these, all at a time
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use runner::engine::{Engine, EngineError, ErrorKind};
use runner::state::Dirs;
use tokio::task::{JoinSet, spawn_blocking};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before there are threads: the engine's own processes are this program, started once more.
    if let Some(code) = runner::roles::play(&args) {
        return Ok(code);
    }
    let names = args[1..].iter().map(|name| name.to_string_lossy().into());
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    runtime.block_on(serve(names.collect()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(names: Vec<String>) -> Result<(), Box<dyn Error>> {
    // The engine's calls block, which is for threads that may.
    let engine = spawn_blocking(open).await??;
    if names.is_empty() {
        for container in spawn_blocking(move || engine.list()).await??.containers {
            println!("{}  {:?}", container.name, container.status);
        }
        return Ok(());
    }
    let mut removals = JoinSet::new();
    for name in names {
        let engine = engine.clone();
        removals.spawn_blocking(move || (stop_and_remove(&engine, &name), name));
    }
    while let Some(ended) = removals.join_next().await {
        match ended? {
            (Ok(()), name) => println!("{name}  200"),
            (Err(error), name) => println!("{name}  {} {error}", http_status(error.kind())),
        }
    }
    Ok(())
}

fn open() -> Result<Engine, EngineError> {
    let engine = Engine::open(Dirs::discover()?)?;
    for left_over in engine.repair()? {
        eprintln!("{left_over}");
    }
    Ok(engine)
}

fn stop_and_remove(engine: &Engine, name: &str) -> Result<(), EngineError> {
    for ended in engine.stop(&[name.to_owned()], PATIENCE).finish() {
        ended?;
    }
    // One that was to be removed at its end is gone already.
    engine.remove(name, true).map(drop)
}

fn http_status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid | ErrorKind::Ambiguous => 400,
        ErrorKind::NoSuchContainer | ErrorKind::NoSuchImage => 404,
        ErrorKind::NotRunning | ErrorKind::StillRunning | ErrorKind::InUse => 409,
        ErrorKind::PortUnavailable | ErrorKind::Internal => 500,
    }
}
