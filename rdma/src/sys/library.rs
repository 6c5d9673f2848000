//! Opens a shared library of rdma-core and resolves the functions that we call in it, once per process.
//!
//! What a library offers is a table: one field a function, filled at run time, so that the mock provider
//! can fill another one. [`super::ibverbs`] and [`super::rdmacm`] are the two tables.

use thiserror::Error;

/// Why a library of rdma-core can't be used in this process.
#[derive(Debug, Clone, Error)]
pub enum LoadError {
    /// The library isn't installed, or can't be loaded.
    #[error(
        "cannot open {library}: {reason}; to use RDMA install {packages}; everything else works without, \
         over TCP"
    )]
    Missing {
        /// The library's file name.
        library: &'static str,
        /// What to install.
        packages: &'static str,
        /// What the dynamic loader said.
        reason: String,
    },
    /// The library lacks a function that every release since 2010 has.
    #[error(
        "{library} has no {symbol}: {reason}; it is too old or not rdma-core's: update {packages}"
    )]
    Symbol {
        /// The library's file name.
        library: &'static str,
        /// What to update.
        packages: &'static str,
        /// The function looked for.
        symbol: &'static str,
        /// What the dynamic loader said.
        reason: String,
    },
}

/// A library to open: the ABI of both has been stable since 2005.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) library: &'static str,
    pub(super) packages: &'static str,
}

impl Source {
    pub(super) fn open(&self) -> Result<libloading::Library, LoadError> {
        // SAFETY: neither library has load-time side effects beyond reading its configuration.
        unsafe { libloading::Library::new(self.library) }.map_err(|error| LoadError::Missing {
            library: self.library,
            packages: self.packages,
            reason: error.to_string(),
        })
    }

    /// Resolves one function.
    ///
    /// # Safety
    /// `F` must be the function pointer type of the symbol.
    pub(super) unsafe fn symbol<F: Copy>(
        &self,
        library: &libloading::Library,
        symbol: &'static str,
    ) -> Result<F, LoadError> {
        // SAFETY: the caller gives the symbol's type.
        unsafe { library.get::<F>(symbol) }
            .map(|found| *found)
            .map_err(|error| LoadError::Symbol {
                library: self.library,
                packages: self.packages,
                symbol,
                reason: error.to_string(),
            })
    }
}

/// Declares a table of functions, the way to fill it from the system's library, and a check that every
/// signature is the header's.
macro_rules! library {
    (
        $( #[$docs:meta] )*
        $table:ident from $source:expr;
        required { $( $field:ident = $symbol:ident ( $( $argument:ty ),* ) $( -> $result:ty )?; )* }
        optional { $( $( #[$late_docs:meta] )* $late:ident = $late_symbol:ident ( $( $late_argument:ty ),* ) $( -> $late_result:ty )?; )* }
    ) => {
        $( #[$docs] )*
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy)]
        pub struct $table {
            $( pub $field: unsafe extern "C" fn( $( $argument ),* ) $( -> $result )?, )*
            $( $( #[$late_docs] )* pub $late: Option<unsafe extern "C" fn( $( $late_argument ),* ) $( -> $late_result )?>, )*
        }

        // The signatures above are those of the headers: checked by the compiler, never linked.
        const _: () = {
            $( let _: unsafe extern "C" fn( $( $argument ),* ) $( -> $result )? = $crate::sys::$symbol; )*
            $( let _: unsafe extern "C" fn( $( $late_argument ),* ) $( -> $late_result )? = $crate::sys::$late_symbol; )*
        };

        impl $table {
            /// The system's library, opened on first use and kept for the life of the process.
            pub fn system() -> Result<&'static $table, $crate::sys::LoadError> {
                static SYSTEM: std::sync::OnceLock<Result<$table, $crate::sys::LoadError>> =
                    std::sync::OnceLock::new();
                SYSTEM
                    .get_or_init(|| $table::open(&$source))
                    .as_ref()
                    .map_err(Clone::clone)
            }

            fn open(source: &$crate::sys::library::Source) -> Result<$table, $crate::sys::LoadError> {
                let library = source.open()?;
                let functions = $table {
                    // SAFETY: the symbol's type is the one its header declares (checked above).
                    $( $field: unsafe { source.symbol(&library, stringify!($symbol)) }?, )*
                    // SAFETY: as above.
                    $( $late: unsafe { source.symbol(&library, stringify!($late_symbol)) }.ok(), )*
                };
                // Providers start threads and register destructors: it is never unloaded.
                std::mem::forget(library);
                Ok(functions)
            }
        }
    };
}
pub(super) use library;
