//! The numbers that travel.

/// How MPI is told what an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[non_exhaustive]
pub enum Kind {
    U8,
    U64,
    F32,
    F64,
}

mod sealed {
    /// Implemented here alone: MPI reads and writes the bytes of an element, so its kind must be
    /// the right one.
    pub trait Sealed {
        #[doc(hidden)]
        const KIND: super::Kind;
    }
}

pub(crate) use sealed::Sealed;

/// A number that ranks send to each other: `u8`, `u64`, `f32` or `f64`.
pub trait Element: Copy + Default + Sealed {}

/// An [`Element`] that ranks compare: `u64` or `f64` (of which none may be NaN: MPI leaves open what is
/// the smaller then).
pub trait Number: Element {}

impl Sealed for u8 {
    const KIND: Kind = Kind::U8;
}
impl Sealed for u64 {
    const KIND: Kind = Kind::U64;
}
impl Sealed for f32 {
    const KIND: Kind = Kind::F32;
}
impl Sealed for f64 {
    const KIND: Kind = Kind::F64;
}

impl Element for u8 {}
impl Element for u64 {}
impl Element for f32 {}
impl Element for f64 {}

impl Number for u64 {}
impl Number for f64 {}
