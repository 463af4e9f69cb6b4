//! Writes the folder of a head.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::{CARD, DENSE, HeadCard, HeadError, NORM, OUT, WEIGHTS};

/// `y = x · Wᵀ + b`
#[derive(Clone, Copy, Debug)]
pub struct DenseLayer<'a> {
    /// Inputs.
    pub n_in: usize,
    /// W, `[n_out, n_in]`
    pub weight: &'a [f32],
    /// b, `[n_out]`
    pub bias: &'a [f32],
}

/// Writes a head into `dir`, which is made if need be: `out`, after `dense` with a ReLU if there is
/// one.
///
/// # Errors
/// [`HeadError::Io`] if a file cannot be written.
///
/// # Panics
/// If a layer's weights are not `n_in` for each bias.
pub fn write(
    dir: &Path,
    card: &HeadCard,
    dense: Option<DenseLayer<'_>>,
    out: DenseLayer<'_>,
) -> Result<(), HeadError> {
    let io = |file: &Path, source| HeadError::Io {
        file: file.into(),
        done: "written",
        source,
    };
    fs::create_dir_all(dir).map_err(|error| io(dir, error))?;
    let d_model = card.encoder.d_model;
    let mut tensors = vec![(NORM.to_owned(), vec![d_model], bytes(&vec![1.0; d_model]))];
    for (name, layer) in dense
        .iter()
        .map(|layer| (DENSE, layer))
        .chain([(OUT, &out)])
    {
        let (n_in, n_out) = (layer.n_in, layer.bias.len());
        tensors.push((
            format!("{name}.weight"),
            vec![n_out, n_in],
            bytes(layer.weight),
        ));
        tensors.push((format!("{name}.bias"), vec![n_out], bytes(layer.bias)));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (
            name.as_str(),
            view.expect("a layer has n_in weights for each bias"),
        )
    });
    let file = dir.join(WEIGHTS);
    let written = serialize_to_file(views, None, &file);
    written.map_err(|error| io(&file, std::io::Error::other(error)))?;
    let file = dir.join(CARD);
    let json = serde_json::to_string_pretty(card).map_err(std::io::Error::from);
    let written = json.and_then(|json| fs::write(&file, json + "\n"));
    written.map_err(|error| io(&file, error))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
