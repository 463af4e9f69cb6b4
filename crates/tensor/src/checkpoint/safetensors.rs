//! The safetensors format: a length, a JSON header, and the bytes of all tensors.
//!
//! Parsed here rather than by the `safetensors` crate because that one merges names given twice,
//! refuses a whole file for one unknown dtype, and says neither file nor tensor in its errors. A
//! test holds the two readers against each other.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::error::{Result, file_error, tensor_error};
use super::info::StoredDType;
use super::listing::{Listing, Located, MAX_AXES, MAX_HEADER_BYTES, Pairs, n_elements};
use super::slice::{Layout, row_major};
use crate::dtype::DType;

/// One entry of the header, as JSON has it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "axes")]
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Reads a shape, giving up at the first axis too many.
fn axes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(AxesVisitor)
}

struct AxesVisitor;

impl<'de> Visitor<'de> for AxesVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of the sizes of all axes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() == MAX_AXES {
                return Err(A::Error::custom(format_args!("more than {MAX_AXES} axes")));
            }
            shape.push(dim);
        }
        Ok(shape)
    }
}

/// Lists the tensors of a file after checking everything that its header claims.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Listing> {
    let header = header(file, bytes)?;
    let data_start = 8 + header.len();
    let Pairs(entries) = serde_json::from_slice::<Pairs<Entry>>(header).map_err(|e| {
        let expected = "a JSON header with dtype, shape and data_offsets of every tensor";
        file_error(file, expected, format!("an error in it: {e}"))
    })?;
    let listing = entries
        .into_iter()
        .map(|(name, entry)| {
            let located = locate(file, &name, entry, data_start, bytes.len())?;
            Ok((name, located))
        })
        .collect::<Result<Listing>>()?;
    check_coverage(file, &listing, data_start, bytes.len())?;
    Ok(listing)
}

/// The JSON part of the file.
fn header<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        let found = format!("a file of {} bytes", bytes.len());
        return Err(file_error(file, "8 bytes of header length", found));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER_BYTES as u64 {
        let expected = format!("a header of at most {MAX_HEADER_BYTES} bytes");
        return Err(file_error(
            file,
            expected,
            format!("a header length of {len}"),
        ));
    }
    rest.get(..len as usize).ok_or_else(|| {
        let found = format!(
            "only {} bytes after the header length: truncated",
            rest.len()
        );
        file_error(file, format!("a header of {len} bytes"), found)
    })
}

/// Checks one entry against itself and against the size of the file.
fn locate(file: &str, name: &str, entry: Entry, data_start: usize, end: usize) -> Result<Located> {
    let (from, to) = entry.data_offsets;
    let n_data = (end - data_start) as u64;
    if from > to || to > n_data {
        let expected = format!("data_offsets in order and within the {n_data} bytes of data");
        return Err(tensor_error(
            file,
            name,
            expected,
            format!("[{from}, {to}]"),
        ));
    }
    let n_elements = n_elements(file, name, &entry.shape)?;
    let n_bytes = (to - from) as usize;
    let (dtype, bits) = stored_dtype(entry.dtype);
    let n_wanted = bits.map(|bits| n_elements as u128 * bits as u128);
    if let Some(n_wanted) = n_wanted.filter(|n| *n != n_bytes as u128 * 8) {
        let expected = format!(
            "{} bytes for {dtype} {:?}",
            n_wanted.div_ceil(8),
            entry.shape
        );
        let found = format!("data_offsets [{from}, {to}], which span {n_bytes}");
        return Err(tensor_error(file, name, expected, found));
    }
    let strides = row_major(&entry.shape);
    let layout = Layout {
        shape: entry.shape,
        strides,
    };
    Ok(Located {
        dtype,
        layout,
        start: data_start + from as usize,
        n_bytes,
    })
}

/// The format of that name and its bits per element, if known.
fn stored_dtype(name: String) -> (StoredDType, Option<usize>) {
    let bits = match name.as_str() {
        "F32" => return (StoredDType::Float(DType::F32), Some(32)),
        "F16" => return (StoredDType::Float(DType::F16), Some(16)),
        "BF16" => return (StoredDType::Float(DType::BF16), Some(16)),
        "F64" | "I64" | "U64" | "C64" => Some(64),
        "I32" | "U32" => Some(32),
        "I16" | "U16" => Some(16),
        "I8" | "U8" | "BOOL" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => Some(8),
        "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(8),
        "F6_E2M3" | "F6_E3M2" => Some(6),
        "F4" => Some(4),
        _ => None,
    };
    (StoredDType::Other(name), bits)
}

/// The format demands that tensors cover the data without overlap, hole or trailing bytes.
fn check_coverage(file: &str, listing: &Listing, data_start: usize, end: usize) -> Result<()> {
    let mut spans: Vec<(usize, usize, &str)> = listing
        .iter()
        .map(|(name, t)| (t.start, t.start + t.n_bytes, name.as_str()))
        .collect();
    spans.sort_unstable();
    let mut at = data_start;
    for (from, to, name) in spans {
        if from != at {
            let what = if from < at {
                "an overlap with another tensor"
            } else {
                "a hole"
            };
            let expected = format!("its data to start at offset {}", at - data_start);
            let found = format!("{what} at offset {}", from - data_start);
            return Err(tensor_error(file, name, expected, found));
        }
        at = to;
    }
    if at != end {
        let expected = format!("{} bytes of data for its tensors", at - data_start);
        return Err(file_error(file, expected, format!("{}", end - data_start)));
    }
    Ok(())
}
