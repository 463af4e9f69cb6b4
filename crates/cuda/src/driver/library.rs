//! Libraries that are loaded when the program runs: their functions, by name.

use std::ffi::c_void;
use std::path::Path;

use moeshard_tensor::device::{DeviceError, Result};

/// Declares `Functions`, those of a library that are used, with the signatures of its header.
macro_rules! functions {
    ($($name:ident: $symbol:literal ($($arg:ty),*) -> $result:ty;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl Functions {
            /// # Safety
            /// What `find` gives for a name is the library's function of that name.
            unsafe fn load(
                find: impl Fn(&'static str) -> Option<*const std::ffi::c_void>,
            ) -> std::result::Result<Self, String> {
                Ok(Self {$(
                    $name: {
                        let symbol = find($symbol).ok_or_else(|| format!("it has no {}", $symbol))?;
                        // SAFETY: the caller's promise; the signature is that of the header.
                        unsafe {
                            std::mem::transmute::<
                                *const std::ffi::c_void,
                                unsafe extern "C" fn($($arg),*) -> $result,
                            >(symbol)
                        }
                    },
                )*})
            }
        }
    };
}
pub(super) use functions;

/// A library that is loaded; its functions are there for as long as this is.
pub(super) struct Loaded {
    library: libloading::Library,
}

impl Loaded {
    /// # Errors
    /// [`DeviceError::SetUp`], with the library's name, if it does not load.
    pub(super) fn open(what: &str, path: &Path) -> Result<Self> {
        // SAFETY: loading a library runs its initialisers, which is what it is for.
        let library = unsafe { libloading::Library::new(path) };
        let library = library.map_err(|e| set_up(what, path, e))?;
        Ok(Self { library })
    }

    /// Where a function is.
    pub(super) fn find(&self, name: &str) -> Option<*const c_void> {
        // SAFETY: only the address is taken.
        let symbol = unsafe { self.library.get::<*const c_void>(name.as_bytes()) };
        symbol.ok().map(|symbol| *symbol)
    }
}

pub(super) fn set_up(what: &str, path: &Path, reason: impl std::fmt::Display) -> DeviceError {
    DeviceError::SetUp(format!("{what}, {}: {reason}", path.display()))
}
