//! Builds the embedded image: compiles its web server into a static executable, and lists it with
//! the other files of the image for `src/image.rs` to embed.
//!
//! The server needs nothing but the standard library, so it is compiled by the same `rustc` for the
//! same target, with no network and no further toolchain. It has to be static, as the image has no
//! C library.

#[path = "../netstack/build/unwinder.rs"]
mod unwinder;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use sha2::{Digest, Sha256};

/// One file of the image.
struct ImageFile {
    path: String,
    mode: u32,
    source: PathBuf,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=image");
    println!("cargo::rerun-if-changed=../netstack/build/unwinder.rs");
    unwinder::link();
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let image_dir = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("image");

    let hello = out_dir.join("coracle-hello");
    compile(&image_dir.join("hello/main.rs"), &hello)?;
    // For the test that runs it.
    println!("cargo::rustc-env=CORACLE_HELLO={}", hello.display());

    let mut files = vec![ImageFile {
        path: "bin/coracle-hello".to_owned(),
        mode: 0o755,
        source: hello,
    }];
    list_files(&image_dir.join("rootfs"), "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let listing = out_dir.join("hello_image.rs");
    fs::write(&listing, describe(&files)?)
        .map_err(|error| format!("cannot write {}: {error}", listing.display()))
}

fn compile(source: &Path, program: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let target = variable("TARGET")?;
    let mut rustc = Command::new(variable("RUSTC")?);
    // With the target named, flags apply to it and not to the host, where `+crt-static` would break
    // procedural macros.
    rustc.args([
        "--edition",
        "2024",
        "--crate-name",
        "coracle_hello",
        "--crate-type",
        "bin",
        "--target",
        &target,
    ]);
    for option in [
        "target-feature=+crt-static",
        "opt-level=s",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let output = rustc
        .arg("-o")
        .arg(program)
        .arg(source)
        .output()
        .map_err(|error| format!("cannot run rustc to build the embedded image: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut message = format!("cannot build the embedded image's web server for {target}:\n");
    message += &String::from_utf8_lossy(&output.stderr);
    if ["-lc", "libc.a", "static"]
        .iter()
        .any(|hint| message.contains(hint))
    {
        message += "\nIt is linked statically, which needs the C library's static form (libc.a):\n\
            install libc6-dev (Debian, Ubuntu), glibc-static (Fedora, RHEL), glibc-devel-static (openSUSE) or musl-dev (Alpine).";
    }
    Err(message)
}

fn list_files(dir: &Path, prefix: &str, files: &mut Vec<ImageFile>) -> Result<(), String> {
    let failed = |error| format!("cannot list {}: {error}", dir.display());
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = format!("{prefix}{}", entry.file_name().display());
        if entry.file_type().map_err(failed)?.is_dir() {
            list_files(&entry.path(), &format!("{path}/"), files)?;
        } else {
            files.push(ImageFile {
                path,
                mode: 0o644,
                source: entry.path(),
            });
        }
    }
    Ok(())
}

/// The files as a Rust table, and the image's id: the SHA-256 of all names, modes and contents.
fn describe(files: &[ImageFile]) -> Result<String, String> {
    let mut hash = Sha256::new();
    let mut table = String::new();
    for ImageFile { path, mode, source } in files {
        let contents = fs::read(source)
            .map_err(|error| format!("cannot read {}: {error}", source.display()))?;
        hash.update(format!("{path}\0{mode:o}\0{}\0", contents.len()));
        hash.update(&contents);
        writeln!(
            table,
            "    File {{ path: {path:?}, mode: 0o{mode:o}, contents: include_bytes!({source:?}) }},"
        )
        .expect("a String takes all that is written");
    }
    let id: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!(
        "const ID: &str = {id:?};\n\nconst FILES: &[File] = &[\n{table}];\n"
    ))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: this program is run by cargo"))
}
