//! Embeddings of earlier runs, so that another topology, or a run that goes on, need not wait for the
//! encoder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// The name of the one tensor of a file.
const TENSOR: &str = "embeddings";

/// A folder with a file for each set of texts.
#[derive(Clone, Debug)]
pub(super) struct Cache(pub(super) PathBuf);

impl Cache {
    /// The file of a key.
    pub(super) fn file(&self, key: &str) -> PathBuf {
        self.0.join(format!("{key}.safetensors"))
    }

    /// The vectors kept under a key, `[n_texts, d_model]`; nothing if there are none. A file that is not
    /// what it should be is made anew, and said so.
    pub(super) fn read(&self, key: &str, n_texts: usize, d_model: usize) -> Option<Vec<Vec<f32>>> {
        let file = self.file(key);
        let bytes = fs::read(&file).ok()?;
        match vectors(&bytes, n_texts, d_model) {
            Ok(vectors) => Some(vectors),
            Err(error) => {
                tracing::warn!("{}: {error:#}; embedding anew", file.display());
                None
            }
        }
    }

    /// Keeps vectors under a key: the whole file or none.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, key: &str, vectors: &[Vec<f32>]) -> Result<()> {
        let (file, d_model) = (self.file(key), vectors.first().map_or(0, Vec::len));
        let numbers = vectors.iter().flatten();
        let bytes: Vec<u8> = numbers.flat_map(|x| x.to_le_bytes()).collect();
        let write = || -> Result<()> {
            fs::create_dir_all(&self.0)?;
            let view = TensorView::new(Dtype::F32, vec![vectors.len(), d_model], &bytes)?;
            // Every rank of a run may come here at the same time.
            let beside = file.with_extension(format!("{}.new", std::process::id()));
            serialize_to_file([(TENSOR, view)], None, &beside)?;
            Ok(fs::rename(&beside, &file)?)
        };
        write().with_context(|| format!("cannot write {}", file.display()))
    }
}

fn vectors(bytes: &[u8], n_texts: usize, d_model: usize) -> Result<Vec<Vec<f32>>> {
    let file = SafeTensors::deserialize(bytes)?;
    let tensor = file.tensor(TENSOR)?;
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    ensure!(
        dtype == Dtype::F32 && shape == [n_texts, d_model] && d_model > 0,
        "expected F32 [{n_texts}, {d_model}], found {dtype:?} {shape:?}"
    );
    let numbers = tensor.data().as_chunks::<4>().0;
    let numbers: Vec<f32> = numbers.iter().map(|&x| f32::from_le_bytes(x)).collect();
    Ok(numbers.chunks_exact(d_model).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_unless_it_is_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache(folder.path().join("embeddings"));
        assert_eq!(cache.read("a", 2, 3), None);
        let vectors = vec![vec![1.0, -2.5, 1e-30], vec![0.0, 3.0, f32::MAX]];
        cache.write("a", &vectors).expect("written");
        assert_eq!(cache.read("a", 2, 3), Some(vectors.clone()));
        assert_eq!(cache.read("b", 2, 3), None);
        assert_eq!(cache.read("a", 3, 2), None);
        let bytes = fs::read(cache.file("a")).expect("the file");
        for length in [0, 7, bytes.len() - 1] {
            fs::write(cache.file("a"), &bytes[..length]).expect("written");
            assert_eq!(cache.read("a", 2, 3), None, "{length}");
        }
        cache.write("a", &vectors).expect("written");
        assert_eq!(cache.read("a", 2, 3), Some(vectors));
    }
}
