//! The members of a tar, one after another.
//!
//! Headers are the tar crate's. Which headers belong together is told here, since its own iterator
//! ends an extended header's value at a newline, which the binary value of an attribute may hold,
//! and reads extended headers of any length into memory. Where implementations differ on where a
//! member ends (POSIX.1-2017, pax), so that one would see members that another does not, the tar is
//! refused.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// A path in bytes, as PATH_MAX less its NUL.
pub const PATH_LEN_MAX: usize = 4095;

/// What a member of a tar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    /// Of either sort.
    Device,
}

/// A member, less its content.
#[derive(Debug, Clone)]
pub struct Member {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Of a link.
    pub target: Vec<u8>,
    /// Permissions, setuid and the like.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub modified: i64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("it is no tar: {0}")]
    Malformed(&'static str),
    #[error("its member {path:?} {defect}")]
    Member { path: String, defect: &'static str },
}

/// Reads a tar. The content of the member that [`Members::next`] has returned is read from this.
pub struct Members<R> {
    reader: R,
    /// Of the present member's content, and what fills its last block.
    left: u64,
    padding: u64,
}

/// What extended headers say of the member that comes next.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    len: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Members<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
        }
    }

    /// The next member; what is left of the one before is passed over. `None` at the end.
    pub fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extended = Extended::default();
        let mut is_extended = false;
        loop {
            let Some(header) = self.next_header()? else {
                return match is_extended {
                    false => Ok(None),
                    true => Err(TarError::Malformed("it ends behind an extended header")),
                };
            };
            let len = number(&header.as_old().size, header.entry_size())?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    extended.path = Some(until_nul(self.extension(len)?));
                }
                EntryType::GNULongLink => {
                    extended.target = Some(until_nul(self.extension(len)?));
                }
                EntryType::XHeader => extended.add(&self.extension(len)?)?,
                EntryType::XGlobalHeader => {
                    let mut global = Extended::default();
                    global.add(&self.extension(len)?)?;
                    if global.says_something() {
                        return Err(TarError::Malformed("it has a global header"));
                    }
                    continue;
                }
                _ => return self.member(&header, len, extended).map(Some),
            }
            is_extended = true;
        }
    }

    /// For what comes behind the last member.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// `None` at the end: of the archive, or of the stream.
    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped < rest {
            return Err(TarError::Malformed("it ends within a member"));
        }
        let mut header = Header::new_old();
        let mut block = Vec::with_capacity(header.as_bytes().len());
        self.reader.by_ref().take(BLOCK).read_to_end(&mut block)?;
        if block.is_empty() || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if block.len() as u64 != BLOCK {
            return Err(TarError::Malformed("it ends within a header"));
        }
        header.as_mut_bytes().copy_from_slice(&block);
        let is_intact = header.cksum().is_ok_and(|sum| {
            let field = 148..156;
            let counted = |(at, byte): (usize, &u8)| match field.contains(&at) {
                true => u32::from(b' '),
                false => u32::from(*byte),
            };
            sum == block.iter().enumerate().map(counted).sum::<u32>()
        });
        match is_intact {
            true => Ok(Some(header)),
            false => Err(TarError::Malformed("the checksum of a header is wrong")),
        }
    }

    /// The content of an extended header.
    fn extension(&mut self, len: u64) -> Result<Vec<u8>, TarError> {
        /// Of paths, and of attributes, which Linux keeps to 64 KiB each.
        const EXTENSION_MAX: u64 = 1 << 20;
        if len > EXTENSION_MAX {
            return Err(TarError::Malformed(
                "an extended header is longer than 1 MiB",
            ));
        }
        self.begin(len)?;
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn begin(&mut self, len: u64) -> Result<(), TarError> {
        // Longer than any file, `off_t`: with what fills its last block it would be no number.
        if i64::try_from(len).is_err() {
            return Err(TarError::Malformed("a member is longer than a file can be"));
        }
        self.left = len;
        self.padding = len.next_multiple_of(BLOCK) - len;
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header,
        len: u64,
        extended: Extended,
    ) -> Result<Member, TarError> {
        let path = extended.path;
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |defect| {
            Err(TarError::Member {
                path: String::from_utf8_lossy(&path).chars().take(200).collect(),
                defect,
            })
        };
        let kind = match header.entry_type() {
            // Before there were directories.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            EntryType::GNUSparse => return refuse(SPARSE),
            _ => return refuse("is of an unknown kind"),
        };
        let len = match (kind, extended.len.unwrap_or(len)) {
            (Kind::File, len) => len,
            // Some writers tell the size of the file here; nobody expects content.
            (Kind::HardLink, _) | (_, 0) => 0,
            _ => return refuse("has content, and is no file"),
        };
        let target = extended.target;
        let target = target.or_else(|| header.link_name_bytes().map(Into::into));
        let target = target.unwrap_or_default();
        if path.is_empty() || path.contains(&0) || target.contains(&0) {
            return refuse("has no path");
        }
        if path.len() > PATH_LEN_MAX || target.len() > PATH_LEN_MAX {
            return refuse("has a path of more than 4095 bytes");
        }
        let fields = header.as_old();
        let member = Member {
            kind,
            target,
            mode: number(&fields.mode, header.mode())? & 0o7777,
            uid: match extended.uid {
                Some(uid) => uid,
                None => number(&fields.uid, header.uid())?,
            },
            gid: match extended.gid {
                Some(gid) => gid,
                None => number(&fields.gid, header.gid())?,
            },
            modified: match extended.modified {
                Some(at) => at,
                None => i64::try_from(number(&fields.mtime, header.mtime())?).unwrap_or(i64::MAX),
            },
            xattrs: extended.xattrs,
            path,
        };
        self.begin(len)?;
        Ok(member)
    }
}

const SPARSE: &str =
    "is a sparse file, which layers do not have: pack it again without GNU tar's --sparse";

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.by_ref().take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            let text = "the tar ends within a member";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl Extended {
    /// Adds the records of a pax header: `LENGTH KEY=VALUE\n`, each with its own length in LENGTH.
    fn add(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        const MALFORMED: TarError = TarError::Malformed("an extended header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ');
            let space = space.ok_or(MALFORMED)?;
            let len = decimal(&records[..space]).and_then(|len| usize::try_from(len).ok());
            let record = len.and_then(|len| records.get(space + 1..len));
            let record = record.and_then(|record| record.strip_suffix(b"\n"));
            let record = record.ok_or(MALFORMED)?;
            records = &records[space + 1 + record.len() + 1..];
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or(MALFORMED)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || decimal(value).map(Some).ok_or(MALFORMED);
            match key {
                // An empty value takes back what was said before.
                b"path" => self.path = (!value.is_empty()).then(|| value.to_owned()),
                b"linkpath" => self.target = (!value.is_empty()).then(|| value.to_owned()),
                b"size" => self.len = number()?,
                b"uid" => self.uid = number()?,
                b"gid" => self.gid = number()?,
                b"mtime" => self.modified = Some(seconds(value).ok_or(MALFORMED)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(TarError::Member {
                        path: String::from_utf8_lossy(self.path.as_deref().unwrap_or(b"?")).into(),
                        defect: SPARSE,
                    });
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether it changes what members are.
    fn says_something(&self) -> bool {
        self.path.is_some()
            || self.target.is_some()
            || self.len.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || !self.xattrs.is_empty()
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    bytes
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

/// Whole seconds of a time with a fraction, which may be before 1970.
fn seconds(text: &[u8]) -> Option<i64> {
    let whole = text.split(|byte| *byte == b'.').next()?;
    let (is_negative, digits) = match whole.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, whole),
    };
    let seconds = i64::try_from(decimal(digits)?).ok()?;
    Some(if is_negative { -seconds } else { seconds })
}

/// What a field of a header says; an empty one is 0, as many writers leave it.
fn number<T: Default>(field: &[u8], read: io::Result<T>) -> Result<T, TarError> {
    match field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        true => Ok(T::default()),
        false => read.map_err(|_| TarError::Malformed("a header has a number that is none")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: EntryType, path: &str, len: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).expect("a path");
        header.set_size(len);
        header.set_mode(0o4755);
        header.set_uid(48);
        header.set_gid(7);
        header.set_mtime(1);
        header.set_cksum();
        header
    }

    fn empty_numbers(path: &str) -> Header {
        let mut header = header(EntryType::Regular, path, 0);
        let fields = header.as_old_mut();
        for field in [&mut fields.uid, &mut fields.gid, &mut fields.mode] {
            *field = [0; 8];
        }
        (fields.size, fields.mtime) = ([0; 12], [b' '; 12]);
        header.set_cksum();
        header
    }

    fn block(header: &Header, content: &[u8]) -> Vec<u8> {
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn pax(kind: EntryType, records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut len = body.len() + 1;
            while len != body.len() + len.to_string().len() {
                len = body.len() + len.to_string().len();
            }
            content.extend(len.to_string().into_bytes());
            content.extend(body);
        }
        block(&header(kind, "pax", content.len() as u64), &content)
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
        let mut members = Members::new(bytes);
        let mut all = Vec::new();
        while let Some(member) = members.next()? {
            let mut content = Vec::new();
            members.read_to_end(&mut content)?;
            all.push((member, content));
        }
        Ok(all)
    }

    fn refused(bytes: &[u8], why: &str) {
        let error = read(bytes).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn members_have_what_their_headers_say() {
        let tar = [
            block(&header(EntryType::Directory, "d/", 0), b""),
            block(&header(EntryType::Regular, "d/f", 3), b"abc"),
            block(&empty_numbers("g"), b""),
            vec![0; 1024],
            b"trailing".to_vec(),
        ];
        let all = read(&tar.concat()).expect("a tar");
        let [(dir, _), (file, content), (last, _)] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!((dir.kind, &*dir.path), (Kind::Directory, &b"d/"[..]));
        assert_eq!((file.kind, &**content), (Kind::File, &b"abc"[..]));
        assert_eq!((file.mode, file.uid, file.gid), (0o4755, 48, 7));
        assert_eq!(&*last.path, b"g");
    }

    #[test]
    fn extended_headers_replace_fields_whatever_bytes_they_hold() {
        let value = b"a\n9 size=1\n\0\xff";
        let tar = [
            pax(EntryType::XGlobalHeader, &[("comment", b"x")]),
            pax(
                EntryType::XHeader,
                &[
                    ("SCHILY.xattr.security.capability", value),
                    ("path", b"long/name"),
                    ("size", b"600"),
                    ("uid", b"3000000"),
                    ("mtime", b"-1.5"),
                ],
            ),
            block(&header(EntryType::Regular, "short", 3), &[1; 600]),
            block(&header(EntryType::GNULongLink, "././@LongLink", 3), b"to\0"),
            block(&header(EntryType::Symlink, "link", 0), b""),
        ];
        let all = read(&tar.concat()).expect("a tar");
        let [(file, content), (link, _)] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!((&*file.path, content.len()), (&b"long/name"[..], 600));
        assert_eq!((file.uid, file.gid, file.modified), (3_000_000, 7, -1));
        let expected = (b"security.capability".to_vec(), value.to_vec());
        assert_eq!(file.xattrs, [expected]);
        assert_eq!((&*link.path, &*link.target), (&b"link"[..], &b"to"[..]));
    }

    #[test]
    fn what_others_may_read_differently_is_refused() {
        let file = block(&header(EntryType::Regular, "f", 3), b"abc");
        refused(&file[..600], "within a member");
        refused(&file[..100], "within a header");
        let endless = pax(EntryType::XHeader, &[("size", b"18446744073709551500")]);
        refused(&[&endless[..], &file].concat(), "longer than a file");
        let mut damaged = file.clone();
        damaged[0] ^= 1;
        refused(&damaged, "checksum");
        let size = pax(EntryType::XGlobalHeader, &[("size", b"1")]);
        refused(&[&size[..], &file].concat(), "global header");
        let sparse = pax(EntryType::XHeader, &[("GNU.sparse.major", b"1")]);
        refused(&[&sparse[..], &file].concat(), "sparse");
        refused(
            &block(&header(EntryType::Directory, "d", 3), b"abc"),
            "no file",
        );
        refused(
            &block(&header(EntryType::new(b'Q'), "q", 0), b""),
            "unknown kind",
        );
        refused(
            &pax(EntryType::XHeader, &[("path", b"x")]),
            "extended header",
        );
        let malformed = block(&header(EntryType::XHeader, "p", 9), b"99 path=x");
        refused(&[&malformed[..], &file].concat(), "malformed");
        refused(
            &block(&header(EntryType::XHeader, "p", 2 << 20), b""),
            "1 MiB",
        );
        let long = "x".repeat(5000);
        let long = pax(EntryType::XHeader, &[("path", long.as_bytes())]);
        refused(&[&long[..], &file].concat(), "4095");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), kind in any::<u8>()) {
            if bytes.len() >= 512 {
                bytes[156] = kind;
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(&bytes[..512]);
                header.set_size(200);
                header.set_cksum();
                bytes[..512].copy_from_slice(header.as_bytes());
            }
            let _ = read(&bytes);
        }
    }
}
