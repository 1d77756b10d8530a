//! From a blob to the tar that it holds, by what the bytes are, whatever somebody says they are.
//!
//! What comes out is bounded by what went in: a small blob must not fill the disk.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

/// How the beginning of a blob shows what it is.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Those that are known, and not read.
const OTHERS: [(&[u8], &str, &str); 2] = [
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz -d"),
    (b"BZh", "bzip2", "bzip2 -d"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Of content that begins with `bytes`; six are enough to tell.
    ///
    /// # Errors
    /// Unsupported for a known kind that is not read.
    pub fn detect(bytes: &[u8]) -> io::Result<Self> {
        if let Some((_, name, remedy)) = OTHERS.iter().find(|(magic, ..)| bytes.starts_with(magic))
        {
            let text = format!("{name} is not read: undo it first, by `{remedy}`");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(match bytes {
            bytes if bytes.starts_with(GZIP) => Self::Gzip,
            bytes if bytes.starts_with(ZSTD) => Self::Zstd,
            _ => Self::None,
        })
    }
}

/// What `reader` holds, without its compression. Fails where that grows to more than it may.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    /// Of both sides of a decoder.
    const BUFFER: usize = 128 * 1024;
    let packed = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: reader,
        count: Rc::clone(&packed),
    };
    let mut reader = BufReader::with_capacity(BUFFER, counted);
    let decoder: Box<dyn Read + 'a> = match Compression::detect(reader.fill_buf()?)? {
        Compression::None => return Ok(Box::new(reader)),
        Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(reader)?),
    };
    Ok(Box::new(Bounded {
        inner: decoder,
        packed,
        unpacked: 0,
    }))
}

/// As much as so many bytes may grow when they are decompressed.
///
/// Real layers grow to the thirtyfold at most; zeros, which bombs are made of, grow to the
/// thousandfold with gzip and more with zstd.
fn unpacked_max(packed: u64) -> u64 {
    const FACTOR: u64 = 100;
    const ALWAYS: u64 = 1 << 30;
    packed.saturating_mul(FACTOR).saturating_add(ALWAYS)
}

/// Tells how many bytes were read.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Fails where more comes out than what went in allows.
struct Bounded<R> {
    inner: R,
    packed: Rc<Cell<u64>>,
    unpacked: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.unpacked += count as u64;
        if self.unpacked > unpacked_max(self.packed.get()) {
            let text = "it grows to more than the 100-fold when it is unpacked, as bombs do";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        decompress(bytes)?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn each_kind_is_told_by_its_bytes() {
        let text = b"text".repeat(1000);
        assert_eq!(read(&text).expect("as it is"), text);
        assert_eq!(read(b"").expect("nothing"), b"");
        assert_eq!(read(&gzip(&text)).expect("gzip"), text);
        let twice = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(read(&twice).expect("two members"), b"ab");
        let zstd = zstd::encode_all(&text[..], 1).expect("memory");
        assert_eq!(
            read(&[zstd.clone(), zstd].concat()).expect("frames"),
            text.repeat(2)
        );
        for (magic, name, _) in OTHERS {
            let error = read(&[magic, &[0; 20]].concat()).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_an_error() {
        for whole in [
            gzip(&[7; 9000]),
            zstd::encode_all(&[7; 9000][..], 1).expect("memory"),
        ] {
            for len in [whole.len() - 1, whole.len() / 2] {
                read(&whole[..len]).expect_err("cut short");
            }
        }
        let mut damaged = gzip(&[7; 9000]);
        let end = damaged.len() - 5;
        damaged[end] ^= 1;
        read(&damaged).expect_err("the checksum is wrong");
    }

    #[test]
    fn a_bomb_ends_at_its_bound() {
        const LEN: u64 = 3 << 30;
        for packed in [
            zstd::encode_all(io::repeat(0).take(LEN), 1).expect("memory"),
            gzip(&vec![0; 8 << 20]).repeat((LEN >> 23) as usize),
        ] {
            let mut bomb = decompress(&packed[..]).expect("a known kind");
            let error = io::copy(&mut bomb, &mut io::sink()).expect_err("too much");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
    }
}
