//! The bytes of a file, plain or gzipped. Nothing is allocated because a header says so: what a file
//! declares is first held against what it can contain.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::DataError;

/// What deflate makes of a run of equal bytes at best: 258 bytes from two bits.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Decompressed bytes read from a gzipped file at most, 1 GiB: twice the largest set in this format
/// (EMNIST by class, 0.55 GB). A bomb that honestly declares its size ends here.
const MAX_GZIP_BYTES: u64 = 1 << 30;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A file being read from front to back.
pub(super) struct Source {
    file: PathBuf,
    reader: Reader,
    /// Of the file as it lies on the disk.
    n_bytes: u64,
    /// Read so far, decompressed.
    n_read: u64,
}

enum Reader {
    Plain(BufReader<File>),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

impl Source {
    /// Opens a file; whether it is gzipped shows in its first bytes.
    pub(super) fn open(file: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            file: file.into(),
            source,
        };
        let mut start = Vec::new();
        let opened = File::open(file).map_err(io)?;
        opened.take(2).read_to_end(&mut start).map_err(io)?;
        let opened = File::open(file).map_err(io)?;
        let n_bytes = opened.metadata().map_err(io)?.len();
        let buffered = BufReader::with_capacity(1 << 16, opened);
        let is_gzip = start == GZIP_MAGIC;
        if !is_gzip && file.extension().is_some_and(|extension| extension == "gz") {
            return Err(DataError::NotGzip { file: file.into() });
        }
        Ok(Self {
            file: file.into(),
            reader: match is_gzip {
                true => Reader::Gzip(Box::new(MultiGzDecoder::new(buffered))),
                false => Reader::Plain(buffered),
            },
            n_bytes,
            n_read: 0,
        })
    }

    /// The file's name.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether bytes are decompressed on the way.
    pub(super) fn is_gzip(&self) -> bool {
        matches!(self.reader, Reader::Gzip(_))
    }

    /// Bytes of the file as it lies on the disk.
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Whether the file can hold `declared` bytes; for a plain file, whether it holds exactly those.
    /// Returns them as a size that may be allocated.
    pub(super) fn admit(&self, declared: u128) -> Result<u64, DataError> {
        let file = self.file.clone();
        let limit = match self.reader {
            Reader::Plain(_) => self.n_bytes,
            Reader::Gzip(_) => MAX_GZIP_BYTES.min(self.n_bytes.saturating_mul(MAX_DEFLATE_RATIO)),
        };
        let admitted = u64::try_from(declared).ok().filter(|&n| n <= limit);
        match (admitted, &self.reader) {
            (None, Reader::Gzip(_)) => Err(DataError::Oversized {
                file,
                declared,
                limit,
                n_bytes: self.n_bytes,
            }),
            (None, Reader::Plain(_)) => Err(DataError::CutShort {
                file,
                expected: declared,
                found: self.n_bytes,
            }),
            (Some(n), Reader::Plain(_)) if n < self.n_bytes => Err(DataError::Trailing {
                file,
                expected: declared,
            }),
            (Some(n), _) => Ok(n),
        }
    }

    /// Fills `buffer`; a file that ends before was to have `expected` bytes in all.
    pub(super) fn read(&mut self, buffer: &mut [u8], expected: u128) -> Result<(), DataError> {
        let n_wanted = buffer.len();
        let n_filled = self.fill(buffer)?;
        match n_filled == n_wanted {
            true => Ok(()),
            false => Err(DataError::CutShort {
                file: self.file.clone(),
                expected,
                found: self.n_read,
            }),
        }
    }

    /// One big-endian number of a header of `expected` bytes.
    pub(super) fn read_u32(&mut self, expected: u128) -> Result<u32, DataError> {
        let mut bytes = [0; 4];
        self.read(&mut bytes, expected)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Expects the end. A gzipped file's checksum is compared on the way.
    pub(super) fn finish(mut self) -> Result<(), DataError> {
        let expected = u128::from(self.n_read);
        match self.fill(&mut [0])? {
            0 => Ok(()),
            _ => Err(DataError::Trailing {
                file: self.file,
                expected,
            }),
        }
    }

    /// Reads until `buffer` is full or the file ends; says how far it came.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, DataError> {
        let mut n_filled = 0;
        while n_filled < buffer.len() {
            let read = match &mut self.reader {
                Reader::Plain(reader) => reader.read(&mut buffer[n_filled..]),
                Reader::Gzip(reader) => reader.read(&mut buffer[n_filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(n) => n_filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        self.n_read += n_filled as u64;
        Ok(n_filled)
    }

    fn read_error(&self, source: std::io::Error) -> DataError {
        let file = self.file.clone();
        let is_damage = matches!(
            source.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput
        );
        match &self.reader {
            Reader::Gzip(_) if is_damage => DataError::Gzip {
                file,
                why: match source.kind() {
                    ErrorKind::UnexpectedEof => "it is cut short".into(),
                    _ => source.to_string(),
                },
            },
            _ => DataError::Io { file, source },
        }
    }
}

/// Makes room for numbers that a file was found to hold.
pub(super) fn reserve(
    file: &Path,
    values: &mut Vec<f32>,
    n_values: usize,
) -> Result<(), DataError> {
    let reserved = values.try_reserve_exact(n_values);
    reserved.map_err(|_| DataError::Memory {
        file: file.into(),
        n_values,
    })
}
