//! IDX, the format of MNIST, Fashion-MNIST and EMNIST: a magic number, the size of each dimension as
//! big-endian u32, then one byte a value.
//!
//! # Source
//! yann.lecun.com/exdb/mnist, "File formats".

use std::path::Path;

use super::dataset::check_labels;
use super::source::{Source, reserve};
use super::{DataError, Dataset, ImageShape, Normalization};

/// Unsigned bytes in one dimension.
const LABELS_MAGIC: u32 = 0x0000_0801;
/// Unsigned bytes in three dimensions.
const IMAGES_MAGIC: u32 = 0x0000_0803;

/// Pixels normalised at a time.
const CHUNK: usize = 1 << 16;

/// Reads a file of images and the file of their labels, both plain or gzipped.
///
/// # Errors
/// If a file cannot be read, is of another kind, cut short or too long, declares more than it can
/// contain, has a label that is not below `n_classes`, or if the two do not belong together.
pub fn read(
    images: &Path,
    labels: &Path,
    n_classes: usize,
    normalization: &Normalization,
) -> Result<Dataset, DataError> {
    let table = normalization.tables(1)?[0];
    let mut pixels = Source::open(images)?;
    let header = ImagesHeader::read(&mut pixels)?;
    let labels_read = read_labels(labels, n_classes)?;
    // Before any memory is taken for pixels.
    if labels_read.len() != header.n_images {
        return Err(DataError::Counts {
            images: images.into(),
            n_images: header.n_images,
            labels: labels.into(),
            n_labels: labels_read.len(),
        });
    }
    Ok(Dataset {
        n_features: header.shape.n_features(),
        n_classes,
        features: read_pixels(pixels, &header, &table)?,
        labels: labels_read,
        shape: Some(header.shape),
    })
}

struct ImagesHeader {
    n_images: usize,
    shape: ImageShape,
    /// Of the whole file.
    n_bytes: u128,
}

impl ImagesHeader {
    const N_BYTES: u128 = 16;

    fn read(source: &mut Source) -> Result<Self, DataError> {
        let magic = source.read_u32(Self::N_BYTES)?;
        check_magic(source, magic, "IDX images", IMAGES_MAGIC)?;
        let n_images = source.read_u32(Self::N_BYTES)?;
        let height = source.read_u32(Self::N_BYTES)?;
        let width = source.read_u32(Self::N_BYTES)?;
        if n_images == 0 {
            let file = source.file().into();
            return Err(DataError::Empty { file });
        }
        if height == 0 || width == 0 {
            return Err(DataError::Shape {
                file: source.file().into(),
                expected: "images of at least one pixel".into(),
                found: format!("{height} × {width}"),
            });
        }
        let n_bytes = Self::N_BYTES + u128::from(n_images) * u128::from(height) * u128::from(width);
        source.admit(n_bytes)?;
        Ok(Self {
            n_images: n_images as usize,
            shape: ImageShape {
                channels: 1,
                height: height as usize,
                width: width as usize,
            },
            n_bytes,
        })
    }
}

fn read_pixels(
    mut source: Source,
    header: &ImagesHeader,
    table: &[f32; 256],
) -> Result<Vec<f32>, DataError> {
    let n_values = header.n_images * header.shape.n_features();
    let mut features = Vec::new();
    reserve(source.file(), &mut features, n_values)?;
    let mut chunk = vec![0; CHUNK.min(n_values)];
    while features.len() < n_values {
        let chunk = &mut chunk[..CHUNK.min(n_values - features.len())];
        source.read(chunk, header.n_bytes)?;
        features.extend(chunk.iter().map(|&pixel| table[usize::from(pixel)]));
    }
    source.finish()?;
    Ok(features)
}

fn read_labels(file: &Path, n_classes: usize) -> Result<Vec<u32>, DataError> {
    const HEADER: u128 = 8;
    let mut source = Source::open(file)?;
    let magic = source.read_u32(HEADER)?;
    check_magic(&source, magic, "IDX labels", LABELS_MAGIC)?;
    let n_labels = source.read_u32(HEADER)?;
    if n_labels == 0 {
        return Err(DataError::Empty { file: file.into() });
    }
    let n_bytes = HEADER + u128::from(n_labels);
    source.admit(n_bytes)?;
    let mut bytes = vec![0; n_labels as usize];
    source.read(&mut bytes, n_bytes)?;
    source.finish()?;
    let labels: Vec<u32> = bytes.into_iter().map(u32::from).collect();
    check_labels(file, &labels, n_classes)?;
    Ok(labels)
}

fn check_magic(
    source: &Source,
    found: u32,
    kind: &'static str,
    expected: u32,
) -> Result<(), DataError> {
    match found == expected {
        true => Ok(()),
        false => Err(DataError::Magic {
            file: source.file().into(),
            kind,
            expected,
            found,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn header(magic: u32, dimensions: &[u32]) -> Vec<u8> {
        let numbers = std::iter::once(&magic).chain(dimensions);
        numbers.flat_map(|number| number.to_be_bytes()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    /// Two images of 1 × 3.
    fn images() -> Vec<u8> {
        [header(IMAGES_MAGIC, &[2, 1, 3]), vec![0, 51, 255, 1, 2, 3]].concat()
    }

    fn labels() -> Vec<u8> {
        [header(LABELS_MAGIC, &[2]), vec![9, 0]].concat()
    }

    /// Reads what lies in files of these names and contents.
    fn read_files(images: (&str, &[u8]), labels: (&str, &[u8])) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |(name, bytes): (&str, &[u8])| -> PathBuf {
            let file = folder.path().join(name);
            fs::write(&file, bytes).expect("written");
            file
        };
        let half = Normalization::new(&[0.5], &[0.5]).expect("sound");
        let set = super::read(&write(images), &write(labels), 10, &half);
        let within = format!("{}/", folder.path().display());
        set.map_err(|error| error.to_string().replace(&within, ""))
    }

    #[test]
    fn plain_and_gzipped_files_are_read_alike() {
        let plain = read_files(("i", &images()), ("l", &labels())).expect("sound");
        assert_eq!((plain.n_features, plain.n_classes), (3, 10));
        assert_eq!(plain.labels, [9, 0]);
        assert_eq!(plain.features[..3], [-1.0, (0.2 - 0.5) / 0.5, 1.0]);
        let shape = plain.shape.expect("images");
        assert_eq!((shape.channels, shape.height, shape.width), (1, 1, 3));
        let zipped = (gzip(&images()), gzip(&labels()));
        let read = read_files(("i.gz", &zipped.0), ("l.gz", &zipped.1));
        assert_eq!(read.expect("sound"), plain);
        // Two gzip members one after the other are one file.
        let (first, second) = (gzip(&images()[..7]), gzip(&images()[7..]));
        let read = read_files(("i.gz", &[first, second].concat()), ("l", &labels()));
        assert_eq!(read.expect("sound"), plain);
    }

    #[test]
    fn hostile_images_are_refused_by_name() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read_files(("i", bytes), ("l", &labels())).expect_err("hostile");
            assert_eq!(error, expect);
        };
        let sound = images();
        check(&[], "i: cut short: expected 16 bytes, found 0");
        check(&sound[..9], "i: cut short: expected 16 bytes, found 9");
        check(&sound[..21], "i: cut short: expected 22 bytes, found 21");
        check(
            &[&sound[..], &[0]].concat(),
            "i: expected 22 bytes, found more after them",
        );
        check(
            &labels(),
            "i: expected IDX images beginning with 0x00000803, found 0x00000801",
        );
        check(
            &header(IMAGES_MAGIC, &[0, 28, 28]),
            "i: expected at least one example, found none",
        );
        check(
            &header(IMAGES_MAGIC, &[2, 0, 28]),
            "i: expected images of at least one pixel, found 0 × 28",
        );
        check(
            &header(IMAGES_MAGIC, &[u32::MAX; 3]),
            "i: cut short: expected 79228162458924105385300197391 bytes, found 16",
        );
        let three = [header(IMAGES_MAGIC, &[3, 1, 1]), vec![0; 3]].concat();
        check(
            &three,
            "l: expected a label for each of the 3 images of i, found 2",
        );
    }

    #[test]
    fn hostile_labels_are_refused_by_name() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read_files(("i", &images()), ("l", bytes)).expect_err("hostile");
            assert_eq!(error, expect);
        };
        let sound = labels();
        check(&sound[..5], "l: cut short: expected 8 bytes, found 5");
        check(&sound[..9], "l: cut short: expected 10 bytes, found 9");
        check(
            &[&sound[..], &[0]].concat(),
            "l: expected 10 bytes, found more after them",
        );
        check(
            &images(),
            "l: expected IDX labels beginning with 0x00000801, found 0x00000803",
        );
        check(
            &header(LABELS_MAGIC, &[0]),
            "l: expected at least one example, found none",
        );
        check(
            &[&sound[..8], &[3, 10]].concat(),
            "l: example 1 has label 10, expected one below 10",
        );
    }

    #[test]
    fn hostile_gzip_is_refused_by_name() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read_files(("i.gz", bytes), ("l", &labels())).expect_err("hostile");
            assert_eq!(error, expect);
        };
        let sound = gzip(&images());
        check(
            &images(),
            "i.gz: expected a gzipped file by its name, found one that does not begin as such",
        );
        check(
            &sound[..sound.len() - 1],
            "i.gz: its gzip stream is damaged: it is cut short",
        );
        let mut wrong_checksum = sound.clone();
        let at = sound.len() - 5;
        wrong_checksum[at] ^= 1;
        check(
            &wrong_checksum,
            "i.gz: its gzip stream is damaged: corrupt gzip stream does not have a matching checksum",
        );
        check(
            &[&sound[..], b"more than a header"].concat(),
            "i.gz: its gzip stream is damaged: invalid gzip header",
        );
        check(
            &gzip(&images()[..21]),
            "i.gz: cut short: expected 22 bytes, found 21",
        );
        check(
            &gzip(&[images(), vec![0]].concat()),
            "i.gz: expected 22 bytes, found more after them",
        );
    }

    // Neither a header that declares more than there is, nor zeros that go on for ever, take memory.
    #[test]
    fn a_gzip_bomb_is_refused() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read_files(("i.gz", bytes), ("l", &labels())).expect_err("hostile");
            assert_eq!(error, expect);
        };
        let lie = gzip(&header(IMAGES_MAGIC, &[2, 60_000, 60_000]));
        check(
            &lie,
            &format!(
                "i.gz: declares 7200000016 bytes, expected at most {} from a gzipped file of {} bytes",
                lie.len() * 1032,
                lie.len()
            ),
        );
        let zeros = [header(IMAGES_MAGIC, &[2, 1, 3]), vec![0; 50_000_000]].concat();
        check(
            &gzip(&zeros),
            "i.gz: expected 22 bytes, found more after them",
        );
        let lie = [
            header(IMAGES_MAGIC, &[2, 50_000, 50_000]),
            vec![0; 50_000_000],
        ]
        .concat();
        let lie = gzip(&lie);
        check(
            &lie,
            &format!(
                "i.gz: declares 5000000016 bytes, expected at most {} from a gzipped file of {} bytes",
                lie.len() * 1032,
                lie.len()
            ),
        );
    }
}
