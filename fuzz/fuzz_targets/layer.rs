//! A layer's tar, applied to a directory: nothing appears outside, whatever the members are called
//! and lead to, and it ends.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run layer -- -max_total_time=60 -max_len=16384
//! ```

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use runner::untrusted::layer;

/// In memory, where there is such a file system: `tree` is unpacked into, `beside` is not.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let shm = PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    let place = base.join(format!("coracle-fuzz-{}", std::process::id()));
    fs::create_dir_all(place.join("beside")).expect("made");
    fs::write(place.join("beside/file"), "untouched").expect("written");
    place
});

fuzz_target!(|bytes: &[u8]| {
    let tree = PLACE.join("tree");
    fs::create_dir(&tree).expect("made");
    let sealed = sealed(bytes);
    for tar in [bytes, &sealed] {
        if let Err(error) = layer(tar, &tree) {
            assert!(!error.is_empty());
        }
    }
    remove(&tree);
    let mut names: Vec<_> = fs::read_dir(&*PLACE)
        .expect("there")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["beside"]);
    assert_eq!(fs::read_dir(PLACE.join("beside")).expect("there").count(), 1);
    let beside = fs::read(PLACE.join("beside/file")).expect("there");
    assert_eq!(beside, b"untouched");
});

/// With the checksum that each block would have as a header, which no mutation finds.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    for header in sealed.chunks_exact_mut(512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    sealed
}

/// Modes of directories may forbid it at first.
fn remove(tree: &PathBuf) {
    if runner::untrusted::remove(tree).is_err() {
        fs::remove_dir_all(tree).expect("removed");
    }
}
