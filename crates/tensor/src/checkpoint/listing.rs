//! What each file format is parsed into, and the JSON shared by the formats.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::error::{Result, tensor_error};
use super::info::StoredDType;
use super::slice::{Layout, checked_n_elements};

/// The largest header or index that is parsed, as in the safetensors format.
pub(crate) const MAX_HEADER_BYTES: usize = 100_000_000;

/// The most tensors that a file or an index may list: far above the largest models.
pub(crate) const MAX_TENSORS: usize = 1_000_000;

/// The longest name of a tensor or a class.
pub(crate) const MAX_NAME_BYTES: usize = 4096;

/// The most axes of a tensor; weights of text encoders have three at most.
pub(crate) const MAX_AXES: usize = 8;

/// A tensor of a file and where its bytes lie. Every bound in it has been checked.
#[derive(Debug)]
pub(crate) struct Located {
    /// The stored format.
    pub(crate) dtype: StoredDType,
    /// Shape and strides.
    pub(crate) layout: Layout,
    /// The byte of the file at which element 0 starts.
    pub(crate) start: usize,
    /// Bytes from there to the end of the last element.
    pub(crate) n_bytes: usize,
}

/// The tensors of one file, by name, in no particular order.
pub(crate) type Listing = Vec<(String, Located)>;

/// The number of elements of a shape, or a complaint that it overflows.
pub(crate) fn n_elements(file: &str, tensor: &str, shape: &[usize]) -> Result<usize> {
    checked_n_elements(shape).ok_or_else(|| {
        let found = format!("shape {shape:?}, which overflows");
        tensor_error(file, tensor, "a shape whose size fits in memory", found)
    })
}

/// Refuses a name that is longer than any, and one more tensor than any file has.
pub(crate) fn check_next(name: &str, n_before: usize) -> Result<(), String> {
    let n_bytes = name.len();
    if n_bytes > MAX_NAME_BYTES {
        return Err(format!(
            "a tensor name of {n_bytes} bytes where {MAX_NAME_BYTES} is the most"
        ));
    }
    if n_before >= MAX_TENSORS {
        return Err(format!("more than {MAX_TENSORS} tensors"));
    }
    Ok(())
}

/// A JSON object as a list, so that a name given twice is seen rather than merged.
///
/// The safetensors key `__metadata__` is skipped.
pub(crate) struct Pairs<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
    type Value = Pairs<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            check_next(&key, pairs.len()).map_err(A::Error::custom)?;
            let value = map
                .next_value()
                .map_err(|e| A::Error::custom(format_args!("tensor {key:?}: {e}")))?;
            pairs.push((key, value));
        }
        Ok(Pairs(pairs))
    }
}
