//! The directory of a zip archive whose entries are stored without compression.
//!
//! `torch.save` writes such archives so that tensors can be mapped into memory, which a general
//! zip reader, made for streams, gives away.

use std::collections::HashMap;
use std::ops::Range;

use super::listing::MAX_HEADER_BYTES;

const END_OF_DIRECTORY: u32 = 0x0605_4b50;
const ZIP64_LOCATOR: u32 = 0x0706_4b50;
const ZIP64_END_OF_DIRECTORY: u32 = 0x0606_4b50;
const DIRECTORY_ENTRY: u32 = 0x0201_4b50;
const LOCAL_HEADER: u32 = 0x0403_4b50;

/// Entry names and the bytes of the archive that they stand for.
pub(crate) type Directory = HashMap<String, Range<usize>>;

/// Lists an archive, or says what is wrong with it.
pub(crate) fn directory(bytes: &[u8]) -> Result<Directory, String> {
    let (start, n_entries) = find_directory(bytes).ok_or("no directory at its end: truncated")?;
    let mut at = start;
    let mut directory = Directory::new();
    for entry_idx in 0..n_entries {
        let entry = entry_at(bytes, at)
            .ok_or_else(|| format!("directory entry {entry_idx} of {n_entries} damaged"))?;
        at += entry.n_header_bytes;
        if at - start > MAX_HEADER_BYTES {
            return Err(format!("a directory of over {MAX_HEADER_BYTES} bytes"));
        }
        if entry.is_packed {
            return Err(format!("entry {:?} compressed or encrypted", entry.name));
        }
        let data = data_of(bytes, &entry)
            .ok_or_else(|| format!("entry {:?} outside of the archive", entry.name))?;
        if directory.contains_key(&entry.name) {
            return Err(format!("entry {:?} twice", entry.name));
        }
        directory.insert(entry.name, data);
    }
    Ok(directory)
}

/// Where the directory starts and how many entries it has.
fn find_directory(bytes: &[u8]) -> Option<(usize, usize)> {
    const END_LEN: usize = 22;
    const MAX_COMMENT: usize = u16::MAX as usize;
    let last = bytes.len().checked_sub(END_LEN)?;
    let end = (last.saturating_sub(MAX_COMMENT)..=last)
        .rev()
        .find(|&at| u32_at(bytes, at) == Some(END_OF_DIRECTORY))?;
    let locator = end
        .checked_sub(20)
        .filter(|&at| u32_at(bytes, at) == Some(ZIP64_LOCATOR));
    let Some(locator) = locator else {
        return Some((
            u32_at(bytes, end + 16)? as usize,
            u16_at(bytes, end + 10)? as usize,
        ));
    };
    let end = u64_at(bytes, locator + 8)?;
    (u32_at(bytes, end)? == ZIP64_END_OF_DIRECTORY).then_some(())?;
    Some((
        u64_at(bytes, end.checked_add(48)?)?,
        u64_at(bytes, end.checked_add(32)?)?,
    ))
}

/// One entry of the directory.
struct Entry {
    name: String,
    /// Neither plainly stored nor readable without a key.
    is_packed: bool,
    n_bytes: usize,
    /// Where the local header lies that precedes the data.
    local_header: usize,
    /// The length of this directory entry itself.
    n_header_bytes: usize,
}

fn entry_at(bytes: &[u8], at: usize) -> Option<Entry> {
    const FIXED_LEN: usize = 46;
    let entry = bytes.get(at..)?;
    (u32_at(entry, 0)? == DIRECTORY_ENTRY).then_some(())?;
    let (flags, method) = (u16_at(entry, 8)?, u16_at(entry, 10)?);
    let name_end = FIXED_LEN + u16_at(entry, 28)? as usize;
    let extra_end = name_end + u16_at(entry, 30)? as usize;
    let name = entry.get(FIXED_LEN..name_end)?;
    let extra = entry.get(name_end..extra_end)?;
    let (n_bytes, local_header) = sizes(entry, extra)?;
    Some(Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        is_packed: flags & 1 != 0 || method != 0,
        n_bytes,
        local_header,
        n_header_bytes: extra_end + u16_at(entry, 32)? as usize,
    })
}

/// The size of the data and the place of the local header, either of which may be too large for
/// its own field and then stands in the zip64 extra field.
fn sizes(entry: &[u8], extra: &[u8]) -> Option<(usize, usize)> {
    let packed = u32_at(entry, 20)? as usize;
    let plain = u32_at(entry, 24)? as usize;
    let header = u32_at(entry, 42)? as usize;
    let mut large = zip64_extra(extra).unwrap_or_default().chunks_exact(8);
    let mut widen = |field: usize| match field {
        0xffff_ffff => u64_at(large.next()?, 0),
        _ => Some(field),
    };
    // The order in which the extra field holds them.
    let plain = widen(plain)?;
    let packed = widen(packed)?;
    let header = widen(header)?;
    (plain == packed).then_some((plain, header))
}

/// The zip64 block among the extra fields.
fn zip64_extra(mut extra: &[u8]) -> Option<&[u8]> {
    const ZIP64: usize = 1;
    loop {
        let (id, len) = (u16_at(extra, 0)? as usize, u16_at(extra, 2)? as usize);
        let block = extra.get(4..4 + len)?;
        if id == ZIP64 {
            return Some(block);
        }
        extra = &extra[4 + len..];
    }
}

/// The bytes of an entry, which follow a local header of variable length.
fn data_of(bytes: &[u8], entry: &Entry) -> Option<Range<usize>> {
    const FIXED_LEN: usize = 30;
    let local = bytes.get(entry.local_header..)?;
    (u32_at(local, 0)? == LOCAL_HEADER).then_some(())?;
    let n_header_bytes = FIXED_LEN + u16_at(local, 26)? as usize + u16_at(local, 28)? as usize;
    let start = entry.local_header + n_header_bytes;
    let end = start.checked_add(entry.n_bytes)?;
    (end <= bytes.len()).then_some(start..end)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

/// A 64-bit field, if it is of any use as a size or an offset here.
fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    array_at(bytes, at).and_then(|field| u64::from_le_bytes(field).try_into().ok())
}
