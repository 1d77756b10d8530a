//! How a pull goes on, on stderr: bars on a terminal, and else Podman's lines.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::engine::{BlobProgress, ImageRef, Progress};
use crate::images::digest::Digest;
use crate::printable::put;

/// For `pull` and `run`.
pub fn progress(quiet: bool) -> Box<dyn Progress> {
    match (quiet, std::io::stderr().is_terminal()) {
        (true, _) => Box::new(Quiet),
        (false, true) => Box::new(Bars(MultiProgress::new())),
        (false, false) => Box::new(Lines),
    }
}

struct Quiet;

impl Progress for Quiet {
    fn trying(&self, _: &ImageRef) {}

    fn found(&self) {}

    fn layer(&self, _: &Digest, _: u64) -> Box<dyn BlobProgress> {
        Box::new(Self)
    }

    fn layer_is_there(&self, _: &Digest) {}

    fn config(&self, _: &Digest) {}

    fn manifest(&self) {}
}

impl BlobProgress for Quiet {
    fn at(&self, _: u64) {}

    fn done(&self) {}
}

/// A line for each step that is done.
struct Lines;

struct Line(Digest);

impl Progress for Lines {
    fn trying(&self, image: &ImageRef) {
        put(&format!("Trying to pull {image}...\n"));
    }

    fn found(&self) {
        put("Getting image source signatures\n");
    }

    fn layer(&self, layer: &Digest, _: u64) -> Box<dyn BlobProgress> {
        Box::new(Line(layer.clone()))
    }

    fn layer_is_there(&self, layer: &Digest) {
        put(&format!("{}\n", there(layer)));
    }

    fn config(&self, config: &Digest) {
        put(&format!("Copying config {} done\n", &config.hex()[..10]));
    }

    fn manifest(&self) {
        put("Writing manifest to image destination\nStoring signatures\n");
    }
}

impl BlobProgress for Line {
    fn at(&self, _: u64) {}

    fn done(&self) {
        put(&format!("Copying blob {} done\n", self.0.short()));
    }
}

struct Bars(MultiProgress);

struct Bar(ProgressBar);

impl Progress for Bars {
    fn trying(&self, image: &ImageRef) {
        Lines.trying(image);
    }

    fn found(&self) {
        Lines.found();
    }

    fn layer(&self, layer: &Digest, len: u64) -> Box<dyn BlobProgress> {
        const LINE: &str = "Copying blob {prefix} [{bar:30}] {bytes} / {total_bytes}";
        let style = ProgressStyle::with_template(LINE).expect("it is well-formed");
        let bar = self.0.add(ProgressBar::new(len)).with_style(style);
        bar.set_prefix(layer.short().to_owned());
        Box::new(Bar(bar))
    }

    fn layer_is_there(&self, layer: &Digest) {
        // Fails where the terminal has gone, and nobody reads.
        let _ = self.0.println(there(layer));
    }

    fn config(&self, config: &Digest) {
        Lines.config(config);
    }

    fn manifest(&self) {
        Lines.manifest();
    }
}

impl BlobProgress for Bar {
    fn at(&self, len: u64) {
        self.0.set_position(len);
    }

    fn done(&self) {
        let style = ProgressStyle::with_template("Copying blob {prefix} done");
        self.0.set_style(style.expect("it is well-formed"));
        self.0.finish();
    }
}

fn there(layer: &Digest) -> String {
    format!("Copying blob {} skipped: already exists", layer.short())
}
