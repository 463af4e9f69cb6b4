//! CIFAR-10's binary layout: records of a label and 3 × 32 × 32 pixels, one byte each.
//!
//! # Source
//! cs.toronto.edu/~kriz/cifar.html, "Binary version".

use std::path::Path;

use super::dataset::check_labels;
use super::source::{Source, reserve};
use super::{DataError, Dataset, ImageShape, Normalization};

const SHAPE: ImageShape = ImageShape {
    channels: 3,
    height: 32,
    width: 32,
};
const N_CLASSES: usize = 10;
const N_PIXELS: usize = 3 * 32 * 32;
const N_RECORD_BYTES: usize = 1 + N_PIXELS;

/// Reads files of records, one after the other.
///
/// # Errors
/// If a file cannot be read, is empty or no whole number of records, or has a label above 9.
pub fn read<P: AsRef<Path>>(
    files: &[P],
    normalization: &Normalization,
) -> Result<Dataset, DataError> {
    let tables = normalization.tables(SHAPE.channels)?;
    let mut set = Dataset {
        n_features: N_PIXELS,
        n_classes: N_CLASSES,
        features: Vec::new(),
        labels: Vec::new(),
        shape: Some(SHAPE),
    };
    for file in files {
        read_records(file.as_ref(), &tables, &mut set)?;
    }
    Ok(set)
}

fn read_records(file: &Path, tables: &[[f32; 256]], set: &mut Dataset) -> Result<(), DataError> {
    let mut source = Source::open(file)?;
    let n_records = n_records(&source)?;
    reserve(file, &mut set.features, n_records * N_PIXELS)?;
    let first = set.labels.len();
    let n_bytes = (n_records * N_RECORD_BYTES) as u128;
    let mut record = [0; N_RECORD_BYTES];
    for _ in 0..n_records {
        source.read(&mut record, n_bytes)?;
        set.labels.push(u32::from(record[0]));
        let planes = record[1..].chunks(SHAPE.height * SHAPE.width);
        for (plane, table) in planes.zip(tables) {
            let values = plane.iter().map(|&pixel| table[usize::from(pixel)]);
            set.features.extend(values);
        }
    }
    source.finish()?;
    check_labels(file, &set.labels[first..], N_CLASSES)
}

fn n_records(source: &Source) -> Result<usize, DataError> {
    let error = |found: String| DataError::Shape {
        file: source.file().into(),
        expected: format!("a whole number of records of {N_RECORD_BYTES} bytes"),
        found,
    };
    if source.is_gzip() {
        return Err(error("a gzipped file".into()));
    }
    match source.n_bytes() {
        0 => Err(DataError::Empty {
            file: source.file().into(),
        }),
        n if n % N_RECORD_BYTES as u64 == 0 => Ok((n / N_RECORD_BYTES as u64) as usize),
        n => Err(error(format!("{n} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(label: u8, pixels: [u8; 3]) -> Vec<u8> {
        let planes = pixels.map(|pixel| [pixel; 1024]);
        [&[label], planes.as_flattened()].concat()
    }

    fn read_files(contents: &[&[u8]]) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |(i, bytes): (usize, &&[u8])| {
            let file = folder.path().join(format!("{i}.bin"));
            fs::write(&file, bytes).expect("written");
            file
        };
        let files: Vec<_> = contents.iter().enumerate().map(write).collect();
        let normalization = Normalization::new(&[0.0, 0.5, 1.0], &[1.0, 0.5, 0.25]);
        let set = super::read(&files, &normalization.expect("sound"));
        let within = format!("{}/", folder.path().display());
        set.map_err(|error| error.to_string().replace(&within, ""))
    }

    #[test]
    fn files_follow_one_another_and_channels_are_normalised_apart() {
        let first = [record(3, [0, 255, 51]), record(9, [255, 0, 0])].concat();
        let set = read_files(&[&first, &record(0, [51, 51, 255])]).expect("sound");
        assert_eq!(set.labels, [3, 9, 0]);
        assert_eq!(set.shape.expect("images").n_features(), set.n_features);
        let channels = |example: usize| [0, 1024, 2048, 3071].map(|i| set.example(example)[i]);
        assert_eq!(
            channels(0),
            [0.0, 1.0, (0.2 - 1.0) / 0.25, (0.2 - 1.0) / 0.25]
        );
        assert_eq!(channels(1), [1.0, -1.0, -4.0, -4.0]);
        assert_eq!(channels(2), [0.2, (0.2 - 0.5) / 0.5, 0.0, 0.0]);
    }

    #[test]
    fn hostile_files_are_refused_by_name() {
        let check = |bytes: &[u8], expect: &str| {
            let sound = record(3, [0; 3]);
            assert_eq!(read_files(&[&sound, bytes]).expect_err("hostile"), expect);
        };
        let sound = record(3, [1, 2, 3]);
        let records = "1.bin: expected a whole number of records of 3073 bytes, found";
        check(&sound[..3072], &format!("{records} 3072 bytes"));
        check(
            &[&sound[..], &[0]].concat(),
            &format!("{records} 3074 bytes"),
        );
        check(&[0x1f, 0x8b, 8, 0], &format!("{records} a gzipped file"));
        check(&[], "1.bin: expected at least one example, found none");
        check(
            &[sound, record(10, [0; 3])].concat(),
            "1.bin: example 1 has label 10, expected one below 10",
        );
    }
}
