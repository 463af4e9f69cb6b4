//! PyTorch's `.bin`: both containers, sound, lying, and mutated.

use std::path::Path;

use moeshard_tensor::checkpoint::Checkpoint;

const ZIP: &[u8] = include_bytes!("data/tiny.bin");
const LEGACY: &[u8] = include_bytes!("data/tiny_legacy.bin");

fn open(bytes: &[u8], dir: &Path) -> Result<Checkpoint, String> {
    std::fs::write(dir.join("pytorch_model.bin"), bytes).unwrap();
    Checkpoint::open(dir).map_err(|e| e.to_string())
}

fn err_of(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    open(bytes, dir.path()).err().expect("must be refused")
}

#[test]
fn both_containers_hold_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [ZIP, LEGACY] {
        let checkpoint = open(bytes, dir.path()).unwrap();
        let names: Vec<&str> = checkpoint.names().collect();
        let want = "bfloat double empty half plain position_ids scalar transposed window";
        assert_eq!(names.join(" "), want);
        let read = |name: &str| checkpoint.read(name, &[]).unwrap();
        let upto = |n: u8| (0..n).map(f32::from).collect::<Vec<_>>();
        assert_eq!(read("plain").to_f32(), upto(12));
        assert_eq!(read("half").to_f32(), upto(8));
        assert_eq!(read("bfloat").to_f32(), upto(12)[4..]);
        assert_eq!(read("scalar").to_f32(), [0.5]);
        assert_eq!(read("empty").shape, [0, 4]);
        assert_eq!(read("window").to_f32(), [5.0, 6.0, 9.0, 10.0]);
        assert_eq!(read("transposed").shape, [4, 3]);
        assert_eq!(
            read("transposed").to_f32()[..6],
            [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]
        );
        let slice = checkpoint.read("transposed", &[2..4, 1..3]).unwrap();
        assert_eq!(slice.to_f32(), [6.0, 10.0, 7.0, 11.0]);
        for name in ["position_ids", "double"] {
            let err = checkpoint.read(name, &[]).unwrap_err().to_string();
            assert!(
                err.contains("expected float32, float16 or bfloat16"),
                "{err}"
            );
        }
    }
}

#[test]
fn candle_reads_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let ours = open(ZIP, dir.path()).unwrap();
    let path = dir.path().join("pytorch_model.bin");
    let theirs = candle_core::pickle::PthTensors::new(path, None).unwrap();
    for name in ["plain", "half", "scalar", "transposed"] {
        let want = theirs
            .get(name)
            .unwrap()
            .unwrap()
            .to_dtype(candle_core::DType::F32)
            .unwrap();
        let got = ours.read(name, &[]).unwrap();
        assert_eq!(got.shape, want.dims());
        assert_eq!(
            got.to_f32(),
            want.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            "{name}"
        );
    }
}

#[test]
fn an_index_gathers_pytorch_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m-1.bin"), ZIP).unwrap();
    std::fs::write(dir.path().join("m-2.bin"), LEGACY).unwrap();
    let index = r#"{"weight_map":{"plain":"m-1.bin","half":"m-2.bin"}}"#;
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["half", "plain"]);
    assert_eq!(
        checkpoint.read("half", &[1..2, 0..4]).unwrap().to_f32(),
        [4.0, 5.0, 6.0, 7.0]
    );
}

#[test]
fn what_is_no_pytorch_file_is_refused() {
    for (bytes, want) in [
        (&b""[..], "expected the first bytes of a PyTorch"),
        (b"<html>", "expected the first bytes of a PyTorch"),
        (&ZIP[..ZIP.len() - 30], "no directory at its end: truncated"),
        (&LEGACY[..200], "a pickled state dict"),
        (&LEGACY[..LEGACY.len() - 5], "storage"),
    ] {
        let err = err_of(bytes);
        assert!(
            err.contains("pytorch_model.bin: expected") && err.contains(want),
            "{err}"
        );
    }
}

/// Replaces one pattern of equal length in the file.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|w| w == from)
        .expect("the pattern is there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn a_view_that_leaves_its_storage_is_refused() {
    // plain: shape (3, 4), strides (4, 1).
    let shape = b"K\x03K\x04\x86";
    for bytes in [ZIP, LEGACY] {
        for lie in [b"K\x04K\x04\x86", b"K\xffK\x04\x86"] {
            let err = err_of(&replaced(bytes, shape, lie));
            let want = "tensor \"plain\": expected a view within the 12 elements of storage";
            assert!(err.contains(want), "{err}");
        }
    }
}

/// Every byte of both files, replaced in three ways, and every truncation: no panic.
#[test]
fn a_mutated_file_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let try_out = |bytes: &[u8]| {
        if let Ok(checkpoint) = open(bytes, dir.path()) {
            for name in checkpoint.names() {
                let _ = checkpoint.read(name, &[]).map(|t| t.to_f32());
            }
        }
    };
    for sound in [ZIP, LEGACY] {
        for at in 0..sound.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = sound.to_vec();
                bytes[at] ^= change;
                try_out(&bytes);
            }
            try_out(&sound[..at]);
        }
    }
}
