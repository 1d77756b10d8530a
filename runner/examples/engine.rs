//! Containers started and looked after by a program with threads, as a server would do it.
//!
//! ```text
//! engine                                  lists containers
//! engine rm NAME...                       stops and removes these, all at a time
//! engine run SECONDS DIR COMMAND [ARG]... runs a command on the tree in DIR, for so long at most,
//!                                         shows what it has written, and forgets it
//! engine create DIR COMMAND [ARG]...      the first half of run; shows the name
//! engine start SECONDS NAME               the second half
//! engine pipe DIR COMMAND [ARG]...        runs a command with its output on ours
//! engine layers rw|ro N DIR... COMMAND [ARG]...
//!                                         as pipe, on N directories, the uppermost first
//! engine exec NAME COMMAND [ARG]...       runs another one in a container that runs
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use runner::engine::{
    Attach, ContainerRequest, Engine, EngineError, ErrorKind, ExecRequest, Network, SoftLimits,
    Source,
};
use runner::logs::Line;
use runner::state::Dirs;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(1);

type AnyError = Box<dyn Error + Send + Sync>;

fn main() -> Result<ExitCode, AnyError> {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before there are threads: the engine's own processes are this program, started once more.
    if let Some(code) = runner::roles::play(&args) {
        return Ok(code);
    }
    let words = args[1..].iter().map(|word| word.to_string_lossy().into());
    let words: Vec<String> = words.collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()?;
    runtime.block_on(serve(&words))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(words: &[String]) -> Result<(), AnyError> {
    // The engine's calls block, which is for threads that may.
    let engine = spawn_blocking(open).await??;
    match words {
        [] => {
            for container in spawn_blocking(move || engine.list()).await??.containers {
                println!("{}  {:?}", container.name, container.status);
            }
        }
        [verb, names @ ..] if verb == "rm" => remove_all(&engine, names).await?,
        [verb, seconds, dir, command @ ..] if verb == "run" => {
            let limit = Duration::from_secs(seconds.parse()?);
            let name = create(&engine, request(directory(dir, command))).await?;
            let ended = start(&engine, name.clone(), limit).await;
            if ended.is_err() {
                // One that cannot be started is as it was.
                blocking(&engine, move |engine| engine.remove(&name, true)).await?;
            }
            let code = ended.inspect_err(|error| eprintln!("{}", http_status(error.kind())))?;
            println!("exit code {code}");
        }
        [verb, dir, command @ ..] if verb == "create" => {
            println!(
                "{}",
                create(&engine, request(directory(dir, command))).await?
            );
        }
        [verb, seconds, name] if verb == "start" => {
            let limit = Duration::from_secs(seconds.parse()?);
            let code = start(&engine, name.clone(), limit).await?;
            println!("exit code {code}");
        }
        [verb, dir, command @ ..] if verb == "pipe" => {
            let request = request(directory(dir, command));
            let code = spawn_blocking(move || pipe(&engine, request)).await??;
            println!("exit code {code}");
        }
        [verb, mode, count, words @ ..] if verb == "layers" => {
            let (lowers, command) = words.split_at_checked(count.parse()?).ok_or("too few")?;
            let source = Source::Layers {
                lowers: lowers.iter().map(PathBuf::from).collect(),
                command: command.iter().map(OsString::from).collect(),
            };
            let request = ContainerRequest {
                read_only: mode == "ro",
                ..request(source)
            };
            let code = spawn_blocking(move || pipe(&engine, request)).await??;
            println!("exit code {code}");
        }
        [verb, name, command @ ..] if verb == "exec" => {
            let code = exec(&engine, name, command).await?;
            println!("exit code {code}");
        }
        _ => return Err("no such words; see the head of this example".into()),
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

fn directory(dir: &str, command: &[String]) -> Source {
    Source::Directory {
        dir: dir.into(),
        in_place: false,
        command: command.iter().map(OsString::from).collect(),
    }
}

fn request(source: Source) -> ContainerRequest {
    ContainerRequest {
        network: Network::default(),
        init: true,
        ..ContainerRequest::new(source, SoftLimits::default())
    }
}

/// Makes a container for a later start, and returns its name.
async fn create(engine: &Engine, request: ContainerRequest) -> Result<String, EngineError> {
    let create = |engine: &Engine| engine.create(request, &mut warn);
    Ok(blocking(engine, create).await?.name)
}

/// Runs a container for `limit` at most, shows what it has written, and forgets it.
async fn start(engine: &Engine, name: String, limit: Duration) -> Result<i32, EngineError> {
    let starting = name.clone();
    let start = move |engine: &Engine| engine.start(&starting, None)?.started(&mut warn);
    blocking(engine, start).await?;
    let wait = |name: String| blocking(engine, move |engine| engine.wait(&name));
    let code = match timeout(limit, wait(name.clone())).await {
        Ok(code) => code?,
        Err(_) => {
            let asked = name.clone();
            blocking(engine, move |engine| stop(engine, &asked)).await?;
            wait(name.clone()).await?
        }
    };
    blocking(engine, move |engine| {
        let mut log = engine.logs(&name, None)?;
        while let Some(line) = log.next_line()? {
            match line {
                Line::Output(entry) => println!("{}", String::from_utf8_lossy(&entry.content)),
                Line::Lost(bytes) => eprintln!("{bytes} bytes are missing here"),
            }
        }
        engine.remove(&name, false)
    })
    .await?;
    Ok(code.expect("it is removed here only"))
}

/// Runs a container that is attached to this program, and leaves nothing of it.
fn pipe(engine: &Engine, request: ContainerRequest) -> Result<i32, AnyError> {
    let request = ContainerRequest {
        remove: true,
        ..request
    };
    let attach = Attach {
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut launch = engine.run(request, Some(attach), &mut warn)?;
    launch.started(&mut warn)?;
    if let Some(outputs) = launch.streams.take().and_then(|ends| ends.outputs) {
        io::copy(&mut File::from(outputs.stdout), &mut io::stdout())?;
    }
    Ok(launch.ended()?)
}

/// Runs another command in a container that runs, with its output on ours.
async fn exec(engine: &Engine, name: &str, command: &[String]) -> Result<i32, AnyError> {
    let request = ExecRequest {
        command: command.iter().map(OsString::from).collect(),
        env: Vec::new(),
        workdir: None,
        user: None,
        privileged: false,
        terminal: false,
        stdin: false,
    };
    let name = name.to_owned();
    let started = blocking(engine, move |engine| {
        let mut exec = engine.exec(&name, request)?;
        exec.started()?;
        Ok(exec)
    });
    let started = started.await;
    let mut exec = started.inspect_err(|error| eprintln!("{}", http_status(error.kind())))?;
    let outputs = exec.streams.outputs.take().ok_or("it has a terminal")?;
    // Both at a time: it waits while nobody reads.
    let errors = spawn_blocking(|| io::copy(&mut File::from(outputs.stderr), &mut io::stderr()));
    spawn_blocking(|| io::copy(&mut File::from(outputs.stdout), &mut io::stdout())).await??;
    errors.await??;
    Ok(spawn_blocking(|| exec.ended()).await??)
}

async fn blocking<T: Send + 'static>(
    engine: &Engine,
    call: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let engine = engine.clone();
    let called = spawn_blocking(move || call(&engine)).await;
    called.expect("no call of the engine panics")
}

async fn remove_all(engine: &Engine, names: &[String]) -> Result<(), AnyError> {
    let mut removals = JoinSet::new();
    for name in names.iter().cloned() {
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

fn stop_and_remove(engine: &Engine, name: &str) -> Result<(), EngineError> {
    stop(engine, name)?;
    // One that was to be removed at its end is gone already.
    engine.remove(name, true).map(drop)
}

fn stop(engine: &Engine, name: &str) -> Result<(), EngineError> {
    let stop = engine.stop(&[name.to_owned()], Some(PATIENCE));
    stop.finish().collect()
}

fn warn(text: &str) {
    eprintln!("{text}");
}

fn http_status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid
        | ErrorKind::Ambiguous
        | ErrorKind::CommandNotFound
        | ErrorKind::CommandNotExecutable => 400,
        ErrorKind::NoSuchContainer
        | ErrorKind::NoSuchImage
        | ErrorKind::NoSuchVolume
        | ErrorKind::NoSuchSecret
        | ErrorKind::NoSuchNetwork => 404,
        ErrorKind::NotRunning
        | ErrorKind::ImageInUse
        | ErrorKind::VolumeInUse
        | ErrorKind::NetworkInUse
        | ErrorKind::StillRunning
        | ErrorKind::WrongState
        | ErrorKind::InUse => 409,
        ErrorKind::PortUnavailable | ErrorKind::Internal => 500,
    }
}
