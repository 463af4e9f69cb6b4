//! PyTorch's `.bin`: a pickled state dict and the storages that its tensors are views of.
//!
//! Two containers: a zip archive (since PyTorch 1.6), and before that pickles followed by the
//! storages one after the other. Neither is compressed, so tensors are read where they lie.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::error::{Result, file_error, tensor_error};
use super::info::StoredDType;
use super::listing::{Listing, Located, MAX_AXES, MAX_HEADER_BYTES, check_next, n_elements};
use super::pickle::{Id, Pickle, Value};
use super::slice::Layout;
use super::zip;
use crate::dtype::DType;

/// The longest storage key or storage class: both are looked at once for each tensor.
const MAX_LABEL_BYTES: usize = 64;

/// The first two pickles of the container before PyTorch 1.6: a magic number and a version.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

/// Lists the tensors of a file after checking everything that it claims.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Listing> {
    let (pickle, storages) = if bytes.starts_with(b"PK\x03\x04") {
        open_zip(file, bytes)?
    } else if bytes.starts_with(LEGACY_MAGIC) {
        open_legacy(file, bytes)?
    } else {
        let found = format!("{:02x?}", &bytes[..bytes.len().min(8)]);
        let expected = "the first bytes of a PyTorch zip archive or legacy pickle";
        return Err(file_error(file, expected, found));
    };
    let views = views(file, &pickle)?;
    if views.is_empty() {
        return Err(file_error(
            file,
            "a state dict with tensors",
            "no tensor in it",
        ));
    }
    let locate = |(name, view): (&str, View<'_>)| {
        let located = locate(file, name, view, &storages)?;
        Ok((name.to_owned(), located))
    };
    views.into_iter().map(locate).collect()
}

/// The bytes of the file that each storage takes, by its key.
type Storages = HashMap<String, Range<usize>>;

fn open_zip(file: &str, bytes: &[u8]) -> Result<(Pickle, Storages)> {
    let archive = zip::directory(bytes)
        .map_err(|found| file_error(file, "an uncompressed zip archive", found))?;
    let mut pickles = archive
        .iter()
        .filter(|(name, _)| name.ends_with("/data.pkl"));
    let (Some((name, at)), None) = (pickles.next(), pickles.next()) else {
        let found = "none of that name or several";
        return Err(file_error(file, "one entry data.pkl in its folder", found));
    };
    let folder = name.trim_end_matches("data.pkl");
    let order = archive
        .get(&format!("{folder}byteorder"))
        .map(|at| &bytes[at.clone()]);
    if order.is_some_and(|order| order != b"little") {
        return Err(file_error(
            file,
            "little-endian numbers",
            "another byte order",
        ));
    }
    let pickle = run_pickle(file, &bytes[at.clone()])?;
    let data = format!("{folder}data/");
    let storages = archive.iter().filter_map(|(name, at)| {
        let key = name.strip_prefix(&data)?;
        Some((key.to_owned(), at.clone()))
    });
    Ok((pickle, storages.collect()))
}

/// Reads the container before PyTorch 1.6: magic, version, machine, state dict, storage keys,
/// and each storage as a count of elements and its bytes.
fn open_legacy(file: &str, bytes: &[u8]) -> Result<(Pickle, Storages)> {
    let mut at = LEGACY_MAGIC.len();
    at += run_pickle(file, &bytes[at..])?.n_bytes;
    let pickle = run_pickle(file, &bytes[at..])?;
    at += pickle.n_bytes;
    let keys = run_pickle(file, &bytes[at..])?;
    at += keys.n_bytes;
    let elem_sizes: HashMap<&str, Option<usize>> = views(file, &pickle)?
        .into_iter()
        .map(|(_, view)| (view.key, view.elem_size))
        .collect();
    let storages = legacy_storages(file, bytes, at, &keys, &elem_sizes)?;
    Ok((pickle, storages))
}

/// Reads the storages from `at` on, in the order of their keys.
fn legacy_storages(
    file: &str,
    bytes: &[u8],
    mut at: usize,
    keys: &Pickle,
    elem_sizes: &HashMap<&str, Option<usize>>,
) -> Result<Storages> {
    let mut storages = Storages::new();
    for key in keys.strings() {
        check_label("key", key).map_err(|found| file_error(file, "storage keys", found))?;
        if storages.contains_key(key) {
            let expected = format!("one storage {key:?}");
            return Err(file_error(file, expected, "two of that key"));
        }
        // A storage is as long as its count says times the element size of its tensors.
        let elem_size = elem_sizes.get(key).copied().flatten();
        let storage = elem_size.and_then(|size| legacy_storage(bytes, at, size));
        let storage = storage.ok_or_else(|| {
            let expected = format!("storage {key:?} at byte {at}");
            let found = format!("another type, or an end of the file at {}", bytes.len());
            file_error(file, expected, found)
        })?;
        at = storage.end;
        storages.insert(key.to_owned(), storage);
    }
    Ok(storages)
}

/// The bytes of the storage whose count of elements is at `at`.
fn legacy_storage(bytes: &[u8], at: usize, elem_size: usize) -> Option<Range<usize>> {
    let n_elements = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let start = at + 8;
    let n_bytes = usize::try_from(n_elements).ok()?.checked_mul(elem_size)?;
    let end = start.checked_add(n_bytes)?;
    (end <= bytes.len()).then_some(start..end)
}

fn run_pickle(file: &str, bytes: &[u8]) -> Result<Pickle> {
    // The same limit as for other headers; a legacy file continues with its storages.
    let bytes = &bytes[..bytes.len().min(MAX_HEADER_BYTES)];
    Pickle::parse(bytes).map_err(|found| file_error(file, "a pickled state dict", found))
}

/// A tensor as the pickle describes it; nothing has been checked.
struct View<'a> {
    dtype: StoredDType,
    elem_size: Option<usize>,
    /// The storage.
    key: &'a str,
    /// In elements, as are the shape and the strides.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Every tensor of the state dict.
fn views<'a>(file: &str, pickle: &'a Pickle) -> Result<Vec<(&'a str, View<'a>)>> {
    let Value::Dict(items) = pickle.value(pickle.root) else {
        return Err(file_error(
            file,
            "a pickled dict from name to tensor",
            "something else",
        ));
    };
    let mut views = Vec::new();
    let mut seen = HashSet::new();
    for &(name, value) in items {
        let (Value::Str(name), Some(args)) = (pickle.value(name), pickle.tensor_args(value)) else {
            continue;
        };
        // What follows is copied for each tensor, while all of them may share it in the pickle.
        check_next(name, views.len())
            .map_err(|found| file_error(file, "a state dict as models have it", found))?;
        if !seen.insert(name.as_str()) {
            return Err(tensor_error(file, name, "one tensor of this name", "two"));
        }
        let view = pickle.view(args).map_err(|found| {
            let expected = "storage, offset, shape and strides in the pickle";
            tensor_error(file, name, expected, found)
        })?;
        views.push((name.as_str(), view));
    }
    Ok(views)
}

/// Checks a view against its storage.
fn locate(file: &str, name: &str, view: View<'_>, storages: &Storages) -> Result<Located> {
    let wrong = |expected: String, found: String| tensor_error(file, name, expected, found);
    let View {
        dtype,
        elem_size,
        key,
        offset,
        shape,
        mut strides,
    } = view;
    let storage = storages
        .get(key)
        .ok_or_else(|| wrong(format!("a storage {key:?}"), "none of that key".into()))?;
    let n_elements = n_elements(file, name, &shape)?;
    let elem_size = elem_size.unwrap_or(1);
    let n_stored = storage.len() / elem_size;
    // No step is ever taken on an axis of one, and PyTorch stores any number there.
    for (stride, _) in strides.iter_mut().zip(&shape).filter(|(_, dim)| **dim <= 1) {
        *stride = 0;
    }
    let layout = Layout { shape, strides };
    let end = layout
        .checked_extent()
        .and_then(|extent| offset.checked_add(extent));
    // More elements than stored means strides of zero: small files could claim any size.
    if n_elements > n_stored || end.is_none_or(|end| end > n_stored) {
        let Layout { shape, strides } = layout;
        let found = format!("{dtype} {shape:?} with strides {strides:?} at offset {offset}");
        return Err(wrong(
            format!("a view within the {n_stored} elements of storage {key:?}"),
            found,
        ));
    }
    let extent = layout.checked_extent().unwrap_or_default();
    Ok(Located {
        dtype,
        layout,
        start: storage.start + offset * elem_size,
        n_bytes: extent * elem_size,
    })
}

impl Pickle {
    /// The strings of a pickled list.
    fn strings(&self) -> impl Iterator<Item = &str> {
        let items: &[Id] = match self.value(self.root) {
            Value::List(items) => items,
            _ => &[],
        };
        items.iter().filter_map(|&item| match self.value(item) {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The arguments of `_rebuild_tensor_v2`, if that is what makes the value.
    fn tensor_args(&self, mut id: Id) -> Option<&[Id]> {
        // A parameter or a subclass wraps the call that makes the tensor; twice at most.
        for _ in 0..3 {
            let Value::Call { callable, args } = self.value(id) else {
                return None;
            };
            let (mut callable, mut args) = (*callable, *args);
            if self.class(callable)? == ("torch._tensor", "_rebuild_from_type_v2") {
                let &[inner, _, inner_args, ..] = self.tuple(args)? else {
                    return None;
                };
                (callable, args) = (inner, inner_args);
            }
            match self.class(callable)? {
                ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                    return self.tuple(args);
                }
                ("torch._utils", "_rebuild_parameter") => id = *self.tuple(args)?.first()?,
                _ => return None,
            }
        }
        None
    }

    /// Reads the arguments `(storage, offset, shape, strides, …)`, or says what they are instead.
    fn view(&self, args: &[Id]) -> Result<View<'_>, String> {
        const OTHER: &str = "other arguments";
        let &[storage, offset, shape, strides, ..] = args else {
            return Err(OTHER.into());
        };
        let (class, key) = self.storage(storage).ok_or(OTHER)?;
        check_label("class", class)?;
        check_label("key", key)?;
        let (dtype, elem_size) = stored_dtype(class);
        let shape = self.tuple(shape).ok_or(OTHER)?;
        let strides = self.tuple(strides).ok_or(OTHER)?;
        if shape.len() > MAX_AXES {
            let n_axes = shape.len();
            return Err(format!("{n_axes} axes where {MAX_AXES} is the most"));
        }
        if shape.len() != strides.len() {
            return Err(OTHER.into());
        }
        Ok(View {
            dtype,
            elem_size,
            key,
            offset: self.size(offset).ok_or(OTHER)?,
            shape: self.sizes(shape).ok_or(OTHER)?,
            strides: self.sizes(strides).ok_or(OTHER)?,
        })
    }

    /// The class and the key of a storage.
    fn storage(&self, id: Id) -> Option<(&str, &str)> {
        let Value::Persistent(storage) = self.value(id) else {
            return None;
        };
        // ("storage", class, key, location, n_elements)
        let &[_, class, key, ..] = self.tuple(*storage)? else {
            return None;
        };
        let Value::Str(key) = self.value(key) else {
            return None;
        };
        let (_, class) = self.class(class)?;
        Some((class, key))
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn size(&self, id: Id) -> Option<usize> {
        match self.value(id) {
            Value::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        }
    }

    fn sizes(&self, ids: &[Id]) -> Option<Vec<usize>> {
        ids.iter().map(|&size| self.size(size)).collect()
    }
}

/// Refuses a storage's class or key that is longer than any.
fn check_label(what: &str, label: &str) -> Result<(), String> {
    let n_bytes = label.len();
    if n_bytes > MAX_LABEL_BYTES {
        return Err(format!(
            "a storage {what} of {n_bytes} bytes where {MAX_LABEL_BYTES} is the most"
        ));
    }
    Ok(())
}

/// The format that a storage class stands for and its bytes per element, if known.
fn stored_dtype(class: &str) -> (StoredDType, Option<usize>) {
    let elem_size = match class {
        "FloatStorage" => return (StoredDType::Float(DType::F32), Some(4)),
        "HalfStorage" => return (StoredDType::Float(DType::F16), Some(2)),
        "BFloat16Storage" => return (StoredDType::Float(DType::BF16), Some(2)),
        "ComplexDoubleStorage" => Some(16),
        "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => Some(8),
        "IntStorage" => Some(4),
        "ShortStorage" => Some(2),
        "CharStorage" | "ByteStorage" | "BoolStorage" => Some(1),
        _ => None,
    };
    (StoredDType::Other(class.to_owned()), elem_size)
}
