//! Libraries that are used where they are found, and where they are looked for.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where distributions put the libraries of the NVIDIA driver and of CUDA.
const SYSTEM_DIRS: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

/// Where the wheels of the Python package index put libraries, below `site-packages`.
const WHEEL_DIRS: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cublas/lib", "nvidia/nccl/lib"];

/// A library of NVIDIA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Library {
    /// What it is, for people.
    pub what: &'static str,
    /// Its file in versions that will do, the best first.
    pub files: &'static [&'static str],
}

/// What every GPU needs.
pub const DRIVER: Library = Library {
    what: "NVIDIA driver",
    files: &["libcuda.so.1"],
};

/// Products of dense layers, optional.
pub const CUBLASLT: Library = Library {
    what: "cuBLASLt",
    files: &["libcublasLt.so.13", "libcublasLt.so.12"],
};

/// By which several GPUs talk.
pub const NCCL: Library = Library {
    what: "NCCL",
    files: &["libnccl.so.2"],
};

/// A library that is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    library: Library,
    /// The only folder that was looked into, if there is one.
    dir: Option<PathBuf>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { library, dir } = self;
        write!(f, "no {} found: {} is ", library.what, self.files())?;
        match dir {
            Some(dir) => write!(f, "not in {}", dir.display()),
            None => write!(f, "not in {}", Self::places()),
        }
    }
}

impl Missing {
    /// The names that were looked for.
    pub fn files(&self) -> String {
        self.library.files.join(" or ")
    }

    /// Where everything is looked for unless one folder is named.
    pub fn places() -> String {
        let dirs = SYSTEM_DIRS.join(", ");
        format!("LD_LIBRARY_PATH, a Python's site-packages/nvidia, {dirs}")
    }
}

impl std::error::Error for Missing {}

impl Library {
    /// Its file: in `dir` if one is named, else wherever it may be. Files are looked for and not loaded,
    /// which would run their code.
    ///
    /// # Errors
    /// [`Missing`], which says where it was looked for.
    pub fn find(self, dir: Option<&Path>) -> Result<PathBuf, Missing> {
        let dirs = match dir {
            Some(dir) => vec![dir.to_owned()],
            None => usual_dirs(),
        };
        let in_dirs = |file: &&str| {
            let path = |dir: &PathBuf| dir.join(file);
            dirs.iter().map(path).find(|path| path.is_file())
        };
        self.files.iter().find_map(in_dirs).ok_or_else(|| Missing {
            library: self,
            dir: dir.map(Path::to_owned),
        })
    }
}

fn usual_dirs() -> Vec<PathBuf> {
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let roots = [
        env::var_os("VIRTUAL_ENV").map(PathBuf::from),
        env::var_os("HOME").map(|home| Path::new(&home).join(".local")),
        Some(PathBuf::from("/usr/local")),
        Some(PathBuf::from("/usr")),
    ];
    let packages = roots.into_iter().flatten().flat_map(|root| packages(&root));
    env::split_paths(&named)
        .filter(|dir| !dir.as_os_str().is_empty())
        .chain(packages.flat_map(|dir| WHEEL_DIRS.map(|wheel| dir.join(wheel))))
        .chain(SYSTEM_DIRS.map(PathBuf::from))
        .collect()
}

/// The folders of packages of each Python below `root`.
fn packages(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join("lib")) else {
        return Vec::new();
    };
    let is_python = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("python3")
    };
    let mut pythons: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    pythons.retain(is_python);
    pythons.sort();
    pythons
        .iter()
        .flat_map(|python| ["site-packages", "dist-packages"].map(|dir| python.join(dir)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_folder_is_the_only_one() -> std::io::Result<()> {
        let dir = env::temp_dir().join(format!("moeshard-libraries-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let missing = CUBLASLT.find(Some(&dir)).expect_err("an empty folder");
        let expected = format!(
            "no cuBLASLt found: libcublasLt.so.13 or libcublasLt.so.12 is not in {}",
            dir.display()
        );
        assert_eq!(missing.to_string(), expected);
        fs::write(dir.join("libcublasLt.so.12"), "")?;
        let old = CUBLASLT.find(Some(&dir)).expect("an older one");
        assert_eq!(old, dir.join("libcublasLt.so.12"));
        fs::write(dir.join("libcublasLt.so.13"), "")?;
        let new = CUBLASLT.find(Some(&dir)).expect("a newer one");
        assert_eq!(new, dir.join("libcublasLt.so.13"));
        fs::remove_dir_all(&dir)
    }

    #[test]
    fn wheels_are_looked_for_in_every_python() -> std::io::Result<()> {
        let root = env::temp_dir().join(format!("moeshard-pythons-{}", std::process::id()));
        fs::create_dir_all(root.join("lib/python3.13/site-packages"))?;
        fs::create_dir_all(root.join("lib/perl5"))?;
        let lib = root.join("lib/python3.13");
        let expected = [lib.join("site-packages"), lib.join("dist-packages")];
        assert_eq!(packages(&root), expected);
        assert!(packages(&root.join("nowhere")).is_empty());
        fs::remove_dir_all(&root)
    }
}
