//! Fields that serde's derives would read too freely, or refuse in Rust's words.

use std::fmt;
use std::marker::PhantomData;

use moeshard_batcher::Direction;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor};

/// A JSON object; a struct alone would also be read from a list, field by field.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// An object, never a list.
pub(super) fn object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// An object, never a list; null is as absent.
pub(super) fn object_or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    let object = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(object.map(|Object(value)| value).unwrap_or_default())
}

/// How many of something, or null.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    struct Count(usize);
    impl<'de> Deserialize<'de> for Count {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_u64(CountVisitor).map(Count)
        }
    }
    struct CountVisitor;
    impl Visitor<'_> for CountVisitor {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a positive integer")
        }

        /// Zero is refused where the largest count is known too.
        fn visit_u64<E: Error>(self, n: u64) -> Result<usize, E> {
            Ok(usize::try_from(n).unwrap_or(usize::MAX))
        }

        fn visit_i64<E: Error>(self, n: i64) -> Result<usize, E> {
            Err(E::invalid_value(Unexpected::Signed(n), &self))
        }
    }
    let count = Option::<Count>::deserialize(deserializer)?;
    Ok(count.map(|Count(n)| n))
}

/// `left` or `right` in any case, or null.
pub(super) fn direction<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Direction>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let sides = [("left", Direction::Left), ("right", Direction::Right)];
    choose(&name.to_ascii_lowercase(), &sides).map(Some)
}

/// The one of `choices` that has this name.
pub(super) fn choose<T: Copy, E: Error>(name: &str, choices: &[(&str, T)]) -> Result<T, E> {
    let found = choices.iter().find(|(known, _)| *known == name);
    found.map(|&(_, choice)| choice).ok_or_else(|| {
        let known: Vec<String> = choices
            .iter()
            .map(|(known, _)| format!("`{known}`"))
            .collect();
        E::custom(format!("expected {}, got `{name}`", known.join(" or ")))
    })
}
