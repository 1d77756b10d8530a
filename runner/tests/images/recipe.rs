//! Images for tests, made of nothing but bytes, and containers of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::harness::{Outcome, World, finish_with_input};

/// A layer in the making.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// A busybox tree, with users: root, apache (48) and default (1001).
    pub fn busybox(world: &World) -> Self {
        let busybox = fs::read(world.rootfs().join("bin/busybox")).expect("busybox");
        let mut layer = Self::new();
        for dir in ["bin", "etc", "proc", "sys", "dev"] {
            layer = layer.dir(dir, 0o755, 0);
        }
        layer = layer
            .dir("tmp", 0o1777, 0)
            .file("bin/busybox", 0o755, 0, &busybox);
        for applet in [
            "sh", "cat", "ls", "stat", "id", "env", "pwd", "echo", "true", "sleep", "readlink",
            "test",
        ] {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        layer
            .file("etc/passwd", 0o644, 0, b"root:x:0:0::/root:/bin/sh\napache:x:48:48::/:/bin/sh\ndefault:x:1001:0::/home:/bin/sh\n")
            .file("etc/group", 0o644, 0, b"root:x:0:\napache:x:48:\n")
    }

    pub fn dir(self, path: &str, mode: u32, owner: u64) -> Self {
        self.entry(EntryType::Directory, path, "", mode, owner, b"")
    }

    pub fn file(self, path: &str, mode: u32, owner: u64, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", mode, owner, content)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, 0, b"")
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, 0, b"")
    }

    pub fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        target: &str,
        mode: u32,
        owner: u64,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        // The builder would not take all that a hostile layer holds.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).expect("memory");
        self
    }

    /// A file with attributes.
    pub fn attributed(mut self, path: &str, attributes: &[(&str, &[u8])]) -> Self {
        let named: Vec<_> = attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        let records = named.iter().map(|(name, value)| (name.as_str(), *value));
        self.0.append_pax_extensions(records).expect("memory");
        self.file(path, 0o755, 0, b"x")
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory")
    }
}

/// An image in the making.
pub struct Recipe {
    /// Tars, the lowest first.
    pub layers: Vec<Vec<u8>>,
    /// How it wants to be run.
    pub config: Value,
    pub names: Vec<String>,
    pub diff_ids: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    No,
    Gzip,
    Zstd,
}

pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn hex(bytes: &[u8]) -> String {
    digest(bytes)["sha256:".len()..].to_owned()
}

pub fn pack(bytes: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::No => bytes.to_vec(),
        Packed::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).expect("memory");
            encoder.finish().expect("memory")
        }
        Packed::Zstd => zstd::encode_all(bytes, 1).expect("memory"),
    }
}

impl Recipe {
    pub fn new(name: &str, layers: impl IntoIterator<Item = Layer>) -> Self {
        let layers: Vec<_> = layers.into_iter().map(Layer::finish).collect();
        Self {
            diff_ids: layers.iter().map(|layer| digest(layer)).collect(),
            layers,
            config: json!({}),
            names: vec![name.to_owned()],
        }
    }

    pub fn config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// The whole configuration, whose digest is the image's id.
    pub fn whole_config(&self) -> Vec<u8> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        serde_json::to_vec(&config).expect("JSON")
    }

    pub fn id(&self) -> String {
        hex(&self.whole_config())
    }

    pub fn docker_archive(&self) -> Vec<u8> {
        let mut files = Vec::new();
        let mut paths = Vec::new();
        for layer in &self.layers {
            let path = format!("{}/layer.tar", hex(layer));
            files.push((path.clone(), layer.clone()));
            paths.push(path);
        }
        let config = format!("{}.json", self.id());
        files.push((config.clone(), self.whole_config()));
        let manifest = json!([{"Config": config, "RepoTags": self.names, "Layers": paths}]);
        files.push((
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ));
        tar_of(&files)
    }

    /// The files of an OCI layout.
    pub fn oci_files(&self, packed: Packed) -> Vec<(String, Vec<u8>)> {
        let media_type = match packed {
            Packed::No => "application/vnd.oci.image.layer.v1.tar",
            Packed::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packed::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let blobs: Vec<_> = self
            .layers
            .iter()
            .map(|layer| pack(layer, packed))
            .collect();
        let descriptor = |media_type: &str, blob: &[u8]| json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()});
        let layers: Vec<_> = blobs
            .iter()
            .map(|blob| descriptor(media_type, blob))
            .collect();
        let config = self.whole_config();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let named = |name: &String| {
            let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
            named["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            named
        };
        let index: Vec<_> = self.names.iter().map(named).collect();
        let index = json!({"schemaVersion": 2, "manifests": index}).to_string();
        let mut files: Vec<_> = blobs
            .into_iter()
            .chain([config, manifest])
            .map(|blob| (format!("blobs/sha256/{}", hex(&blob)), blob))
            .collect();
        files.push(("index.json".to_owned(), index.into_bytes()));
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        files.push(("oci-layout".to_owned(), layout.to_vec()));
        files
    }

    pub fn oci_archive(&self, packed: Packed) -> Vec<u8> {
        tar_of(&self.oci_files(packed))
    }

    /// Loads it, and returns its id.
    #[track_caller]
    pub fn load(&self, world: &World) -> String {
        let loaded = load(world, &self.docker_archive());
        let lines: String = self
            .names
            .iter()
            .map(|name| format!("Loaded image: {name}\n"))
            .collect();
        assert_eq!(loaded.success(), lines, "{loaded:?}");
        self.id()
    }
}

/// `coracle load`, through a pipe.
#[track_caller]
pub fn load(world: &World, archive: &[u8]) -> Outcome {
    finish_with_input(world.coracle(["load"]), archive)
}

pub fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    // As all tools write them, and some expect.
    let mut layer = Layer::new();
    if files
        .iter()
        .any(|(path, _)| path.starts_with("blobs/sha256/"))
    {
        layer = layer.dir("blobs/", 0o755, 0).dir("blobs/sha256/", 0o755, 0);
    }
    for (path, content) in files {
        layer = layer.file(path, 0o644, 0, content);
    }
    layer.finish()
}

/// Puts a file of the world's user into the world.
pub fn put(world: &World, name: &str, content: &[u8]) -> PathBuf {
    let path = world.path(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(&path, content).expect("written");
    world.give_away(&path);
    path
}

/// The directories of all layers that are unpacked.
pub fn layer_dirs(world: &World) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let of_maps = list(&world.storage().join("layers"));
    let layers = of_maps.iter().flat_map(|dir| list(dir));
    let dirs = layers.map(|layer| layer.join("diff"));
    dirs.filter(|dir| dir.is_dir()).collect()
}

/// Before the image's name, for a container that is gone when its command has ended.
pub const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

/// Such a container: further flags, the image and its command.
pub fn run_image(world: &World, words: &[&str]) -> Outcome {
    world.try_coracle(&[&RUN, words].concat())
}
