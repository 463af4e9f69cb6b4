//! Matrices of float32 in NumPy's file format, written row by row.
//!
//! The header has room for any number of rows, so it is written at once and patched as rows come:
//! a file can be read at any time, and its data are never moved.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

/// Bytes of the header, a multiple of 64 as NumPy wants it.
pub const HEADER: usize = 128;

/// Bytes before the dictionary: magic, version, length.
const PREFIX: usize = 10;

/// Why a file is not continued.
const NOT_OURS: &str = "it is no .npy matrix of float32 that this program wrote";

/// Writes rows of one width.
#[derive(Debug)]
pub struct NpyWriter {
    file: BufWriter<File>,
    width: usize,
    n_rows: u64,
}

impl NpyWriter {
    /// Starts a matrix in an empty file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(file: File, width: usize) -> io::Result<Self> {
        let mut file = BufWriter::new(file);
        file.write_all(&header(0, width))?;
        Ok(Self {
            file,
            width,
            n_rows: 0,
        })
    }

    /// Continues a matrix after its last whole row.
    ///
    /// # Errors
    /// If the file is no matrix of float32 of this width; the error says what it is.
    pub fn resume(mut file: File, width: usize) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len < HEADER as u64 {
            check_torn(&mut file, width)?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            return Self::create(file, width);
        }
        let mut found = vec![0; HEADER];
        file.read_exact(&mut found)?;
        let (_, found) = parse_header(&found).map_err(io::Error::other)?;
        if found != width {
            let reason = format!("its rows have {found} numbers, this run's have {width}");
            return Err(io::Error::other(reason));
        }
        let row = 4 * width as u64;
        let n_rows = (len - HEADER as u64) / row;
        file.set_len(HEADER as u64 + n_rows * row)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file: BufWriter::new(file),
            width,
            n_rows,
        })
    }

    /// Rows of the matrix, those of an earlier run included.
    #[must_use]
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If the file cannot be written, or the row has another width.
    pub fn write_row(&mut self, row: &[f32]) -> io::Result<()> {
        if row.len() != self.width {
            let reason = format!("a row of {} numbers, expected {}", row.len(), self.width);
            return Err(io::Error::other(reason));
        }
        for value in row {
            self.file.write_all(&value.to_le_bytes())?;
        }
        self.n_rows += 1;
        Ok(())
    }

    /// Appends a row of NaN.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_nan(&mut self) -> io::Result<()> {
        self.write_row(&vec![f32::NAN; self.width])
    }

    /// Hands everything to the system, and has the header count it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(self.n_rows, self.width))?;
        file.seek(SeekFrom::End(0))?;
        Ok(())
    }
}

/// A file shorter than a header must be the beginning of one, or it is somebody else's.
fn check_torn(file: &mut File, width: usize) -> io::Result<()> {
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    let mut whole = header(0, width);
    // The number of rows follows, and it is any.
    let open = whole.iter().rposition(|byte| *byte == b'(');
    whole.truncate(open.map_or(0, |open| open + 1));
    let n = whole.len().min(found.len());
    if whole[..n] != found[..n] {
        return Err(io::Error::other(NOT_OURS));
    }
    Ok(())
}

/// The header of a matrix `[n_rows, width]`.
fn header(n_rows: u64, width: usize) -> Vec<u8> {
    let dict =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {width}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(((HEADER - PREFIX) as u16).to_le_bytes());
    bytes.extend(dict.into_bytes());
    // Two numbers of at most 20 digits fit.
    bytes.resize(HEADER - 1, b' ');
    bytes.push(b'\n');
    bytes
}

/// Rows and width of a matrix that this program wrote.
///
/// # Errors
/// What is wrong with it.
pub fn parse_header(bytes: &[u8]) -> Result<(u64, usize), String> {
    let text = bytes
        .get(PREFIX..HEADER)
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    let shape = text
        .split_once("'shape': (")
        .and_then(|(_, rest)| rest.split_once(')'))
        .and_then(|(shape, _)| shape.split_once(", "));
    let shape = shape.and_then(|(n, width)| Some((n.parse().ok()?, width.parse().ok()?)));
    match shape {
        Some((n_rows, width)) if bytes[..HEADER] == header(n_rows, width) => Ok((n_rows, width)),
        _ => Err(NOT_OURS.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back() {
        for shape in [(0, 1), (7, 384), (u64::MAX, usize::MAX)] {
            let bytes = header(shape.0, shape.1);
            assert_eq!(bytes.len(), HEADER);
            assert_eq!(parse_header(&bytes), Ok(shape));
        }
        assert!(parse_header(b"PK").is_err());
        assert!(parse_header(&[0; HEADER]).is_err());
    }
}
