//! Telling encoders, and anything made with them, apart.

use std::fmt;

use crate::model::Model;
use crate::model_error::ModelError;
use crate::spec::EncoderSpec;

/// A hash of bytes that stays the same from version to version (FNV-1a of 128 bits): against mix-ups,
/// not against forgers.
///
/// # Source
/// RFC 9923, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fingerprint {
    /// Adds a part; where parts end makes a difference.
    pub fn add(&mut self, part: &[u8]) {
        self.bytes(&(part.len() as u64).to_le_bytes());
        self.bytes(part);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
}

impl Fingerprint {
    /// Half of its bits.
    #[must_use]
    pub fn short(self) -> u64 {
        (self.0 >> 64) as u64 ^ self.0 as u64
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.short())
    }
}

impl Model {
    /// Tells this encoder from others: a hash of its tokenizer, of what its config says of it without its
    /// head, and of the name, the shape and a row of each tensor. Reading all rows would take as long as
    /// loading the model.
    ///
    /// Two models that differ in pooling or length limit alone have the same one.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, ModelError> {
        let spec = EncoderSpec {
            head: None,
            ..self.spec.clone()
        };
        let mut names: Vec<String> = spec.tensors().into_iter().map(|t| t.name).collect();
        // Not in the order of the spec, which may change with the program.
        names.sort_unstable();
        names.dedup();
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(format!("{spec:?}").as_bytes());
        fingerprint.add(self.tokenizer_json.as_deref().unwrap_or_default());
        for name in names {
            let shape = self.checkpoint.info(&name).map(|info| info.shape.clone());
            let shape = shape.unwrap_or_default();
            fingerprint.add(name.as_bytes());
            for n in &shape {
                fingerprint.add(&(*n as u64).to_le_bytes());
            }
            let mut ranges: Vec<_> = shape.iter().map(|&n| 0..n).collect();
            if let [rows, _, ..] = &mut ranges[..] {
                let middle = rows.end / 2;
                *rows = middle..(middle + 1).min(rows.end);
            }
            fingerprint.add(&self.checkpoint.read(&name, &ranges)?.data);
        }
        Ok(fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The test vectors of FNV-1a, 128 bits.
        let hash = |text: &str| {
            let mut fingerprint = Fingerprint::default();
            fingerprint.bytes(text.as_bytes());
            fingerprint.0
        };
        assert_eq!(hash("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn where_parts_end_makes_a_difference() {
        let of = |parts: &[&str]| {
            let mut fingerprint = Fingerprint::default();
            parts
                .iter()
                .for_each(|part| fingerprint.add(part.as_bytes()));
            fingerprint.to_string()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
        assert_eq!(of(&["ab"]).len(), 16);
    }
}
