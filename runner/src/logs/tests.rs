//! Writer and reader together: what goes in comes out, over rotations, crashes and full disks.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

fn log_path() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    (dir, path)
}

fn entries(path: &Path, tail: Option<usize>) -> Vec<Entry> {
    next_entries(&mut LogReader::open(path, tail).unwrap())
}

/// Those that are there by now. Nothing is missing before them.
fn next_entries(reader: &mut LogReader) -> Vec<Entry> {
    let next = || match reader.next_line().unwrap()? {
        Line::Output(entry) => Some(entry),
        Line::Lost(bytes) => panic!("{bytes} bytes are missing"),
    };
    std::iter::from_fn(next).collect()
}

fn output(entries: &[Entry], stream: Stream) -> Vec<u8> {
    entries
        .iter()
        .filter(|entry| entry.stream == stream)
        .flat_map(|entry| entry.clone().output())
        .collect()
}

fn lines(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8(entry.content.clone()).unwrap())
        .collect()
}

/// Bytes as programs write them: with many newlines, and now and then more than one entry holds.
fn any_output() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b' ')];
    let long = (any::<u8>(), MAX_CONTENT_LEN - 1..3 * MAX_CONTENT_LEN + 2)
        .prop_map(|(byte, len)| vec![byte; len]);
    prop_oneof![60 => vec(byte, 0..200), 1 => long]
}

proptest! {
    #[test]
    fn whatever_is_written_comes_back(
        writes in vec((prop::sample::select(&STREAMS), any_output()), 0..20),
        reopen_at in 0..20_usize,
    ) {
        let (_dir, path) = log_path();
        let mut writer = LogWriter::open(&path).unwrap();
        for (index, (stream, output)) in writes.iter().enumerate() {
            if index == reopen_at {
                writer = LogWriter::open(&path).unwrap();
            }
            writer.write(*stream, output);
        }
        prop_assert_eq!(writer.finish(), 0);
        let entries = entries(&path, None);
        for stream in STREAMS {
            let written: Vec<u8> = writes.iter().filter(|(to, _)| *to == stream).flat_map(|(_, bytes)| bytes.clone()).collect();
            prop_assert_eq!(output(&entries, stream), written);
        }
        prop_assert!(entries.iter().all(|entry| entry.content.len() <= MAX_CONTENT_LEN));
    }

    #[test]
    fn rotation_keeps_the_latest_and_bounds_the_files(
        writes in vec(vec(any::<u8>(), 0..300), 1..60),
        max_file_len in 100..2000_u64,
    ) {
        let (_dir, path) = log_path();
        let mut writer = LogWriter::with_max_file_len(&path, max_file_len).unwrap();
        let mut follower = LogReader::open(&path, None).unwrap();
        let mut followed = Vec::new();
        for bytes in &writes {
            writer.write(Stream::Stdout, bytes);
            followed.extend(next_entries(&mut follower));
        }
        let written = writes.concat();
        // Who comes later gets the end of it.
        let kept = output(&entries(&path, None), Stream::Stdout);
        prop_assert!(written.ends_with(&kept));
        // Who follows misses nothing, unless one write alone fills more than a file.
        const ENTRY_OVERHEAD: usize = "2026-11-21T23:59:59.123456789Z stdout F \n".len();
        let entry_count = |bytes: &Vec<u8>| 1 + bytes.iter().filter(|&&byte| byte == b'\n').count();
        let longest_write = writes.iter().map(|bytes| bytes.len() + ENTRY_OVERHEAD * entry_count(bytes)).max();
        if longest_write.unwrap_or(0) as u64 <= max_file_len {
            prop_assert_eq!(output(&followed, Stream::Stdout), written);
        }
        for file in [path.clone(), rotated(&path)] {
            let len = fs::metadata(&file).map_or(0, |found| found.len());
            prop_assert!(len <= max_file_len, "{} has {len} bytes", file.display());
        }
    }

    #[test]
    fn a_damaged_log_never_panics(bytes in vec(any::<u8>(), 0..500), tail in prop::option::of(0..5_usize)) {
        let (_dir, path) = log_path();
        fs::write(&path, bytes).unwrap();
        entries(&path, tail);
        LogWriter::open(&path).unwrap().write(Stream::Stdout, b"on\n");
        prop_assert_eq!(lines(&entries(&path, Some(1))), ["on"]);
    }
}

#[test]
fn the_file_is_what_other_tools_read() {
    let (_dir, path) = log_path();
    let mut writer = LogWriter::open(&path).unwrap();
    writer.write(Stream::Stdout, b"one\n\ntwo");
    writer.write(Stream::Stderr, b"oops\r\n");
    let text = fs::read_to_string(&path).unwrap();
    let without_times: Vec<_> = text
        .split_terminator('\n')
        .map(|line| &line[31..])
        .collect();
    assert_eq!(
        without_times,
        [
            "stdout F one",
            "stdout F ",
            "stdout P two",
            "stderr F oops\r"
        ]
    );
    for line in text.lines() {
        assert!(
            line[..30].parse::<Timestamp>().is_ok() && line.as_bytes()[30] == b' ',
            "{line}"
        );
    }
}

#[test]
fn tail_counts_lines_over_both_files() {
    let (_dir, path) = log_path();
    let mut writer = LogWriter::open(&path).unwrap();
    writer.write(Stream::Stdout, b"1\n2\n3\n");
    fs::rename(&path, rotated(&path)).unwrap();
    let mut writer = LogWriter::open(&path).unwrap();
    writer.write(Stream::Stdout, b"4\n5 be");
    writer.write(Stream::Stdout, b"gins\n");

    assert!(entries(&path, Some(0)).is_empty());
    assert_eq!(lines(&entries(&path, Some(1))), ["5 be", "gins"]);
    assert_eq!(lines(&entries(&path, Some(2))), ["4", "5 be", "gins"]);
    assert_eq!(
        lines(&entries(&path, Some(4))),
        ["2", "3", "4", "5 be", "gins"]
    );
    assert_eq!(lines(&entries(&path, Some(100))).len(), 6);
    assert_eq!(entries(&path, Some(100)), entries(&path, None));
    assert!(entries(&path.with_extension("none"), Some(3)).is_empty());
}

#[test]
fn a_torn_last_line_is_taken_back() {
    let (_dir, path) = log_path();
    LogWriter::open(&path)
        .unwrap()
        .write(Stream::Stdout, b"whole\n");
    let torn = "2026-11-21T23:59:59.123456789Z stdout F to".to_owned() + &"r".repeat(10_000);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(torn.as_bytes())
        .unwrap();
    assert_eq!(lines(&entries(&path, None)), ["whole"]);
    LogWriter::open(&path)
        .unwrap()
        .write(Stream::Stdout, b"next\n");
    assert_eq!(lines(&entries(&path, None)), ["whole", "next"]);
}

#[test]
fn what_a_full_disk_keeps_out_is_counted() {
    // Writes to /dev/full fail with ENOSPC, and so does truncating it.
    let mut writer = LogWriter::open("/dev/full")
        .unwrap_or_else(|_| panic!("/dev/full is there on every Linux"));
    writer.write(Stream::Stdout, b"lost\n");
    writer.write(Stream::Stderr, b"too");
    assert_eq!(writer.finish(), 8);
}

/// A directory in the place of the file that a rotation makes keeps the log from growing, as a full
/// disk does.
#[test]
fn a_log_says_how_much_is_missing_where_it_goes_on() {
    let (_dir, path) = log_path();
    let obstacle = with_suffix(&path, ".new");
    let mut writer = LogWriter::with_max_file_len(&path, 50).unwrap();
    writer.write(Stream::Stdout, b"first\n");
    fs::create_dir(&obstacle).unwrap();
    writer.write(Stream::Stdout, b"lost\n");
    writer.write(Stream::Stderr, b"too");
    fs::remove_dir(&obstacle).unwrap();
    writer.write(Stream::Stdout, b"on\n");
    writer.write(Stream::Stdout, b"and on\n");
    assert_eq!(writer.finish(), 0);

    let mut reader = LogReader::open(&path, None).unwrap();
    let read = std::iter::from_fn(|| reader.next_line().unwrap());
    let read: Vec<_> = read
        .map(|line| match line {
            Line::Output(entry) => String::from_utf8(entry.content).unwrap(),
            Line::Lost(bytes) => format!("{bytes} missing"),
        })
        .collect();
    // Two files at most: the first one is gone.
    assert_eq!(read, ["8 missing", "on", "and on"]);
}

#[test]
fn a_follower_wakes_when_something_is_written() {
    const FAR_OFF: Duration = Duration::from_secs(60);
    let (_dir, path) = log_path();
    let mut reader = LogReader::open(&path, None).unwrap();
    assert_eq!(reader.next_line().unwrap(), None);
    let writing = path.clone();
    let writer = thread::spawn(move || {
        LogWriter::open(writing)
            .unwrap()
            .write(Stream::Stdout, b"here\n")
    });
    let entries = loop {
        match next_entries(&mut reader) {
            none if none.is_empty() => reader.wait(None, FAR_OFF).unwrap(),
            some => break some,
        }
    };
    assert_eq!(lines(&entries), ["here"]);
    writer.join().unwrap();
}
