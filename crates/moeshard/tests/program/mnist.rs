//! A small data set in the form of MNIST's files.

use std::fs;
use std::path::Path;

/// Side of an image.
const SIDE: usize = 28;

/// 600 images to train on and 100 to test: each class has its own bright rows, with some noise.
pub(crate) fn write(dir: &Path) {
    for (part, n_images) in [("train", 600), ("t10k", 100)] {
        let labels: Vec<u8> = (0..n_images).map(|i| (i * 7 % 10) as u8).collect();
        let pixels = labels.iter().enumerate();
        let pixels: Vec<u8> = pixels.flat_map(|(i, &label)| image(i, label)).collect();
        let images = [header(&[0x803, n_images, SIDE, SIDE]), pixels].concat();
        fs::write(dir.join(format!("{part}-images-idx3-ubyte")), images).expect("images");
        let labels = [header(&[0x801, n_images]), labels].concat();
        fs::write(dir.join(format!("{part}-labels-idx1-ubyte")), labels).expect("labels");
    }
}

fn header(numbers: &[usize]) -> Vec<u8> {
    let numbers = numbers.iter().map(|&n| u32::try_from(n).expect("small"));
    numbers.flat_map(u32::to_be_bytes).collect()
}

fn image(idx: usize, label: u8) -> Vec<u8> {
    let mut noise = idx as u32 ^ 0x9e37_79b9;
    (0..SIDE * SIDE)
        .map(|pixel| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let is_bright = pixel / SIDE / 2 == usize::from(label) + 2;
            (noise >> 25) as u8 + if is_bright { 100 } else { 0 }
        })
        .collect()
}
