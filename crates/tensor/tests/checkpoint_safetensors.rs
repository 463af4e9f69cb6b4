//! Safetensors files: sound, sharded, lying, and mutated at random.

use std::path::Path;
use std::slice;

use moeshard_tensor::checkpoint::{Checkpoint, StoredDType};
use moeshard_tensor::dtype::DType;
use safetensors::SafeTensors;

/// A file of this header and so many bytes of data.
fn file(header: &str, n_data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + n_data, 0);
    file
}

const SOUND: &str = r#"{"__metadata__":{"format":"pt"},
 "a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
 "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},
 "position_ids":{"dtype":"I64","shape":[1,2],"data_offsets":[32,48]},
 "d":{"dtype":"F64","shape":[],"data_offsets":[48,56]},
 "strange":{"dtype":"Q3_K","shape":[7],"data_offsets":[56,60]},
 "none":{"dtype":"F16","shape":[0,9],"data_offsets":[60,60]}}"#;

/// Bytes with the lifetime that a file compiled into the program has.
fn open_static(file: Vec<u8>) -> Result<Checkpoint, String> {
    Checkpoint::from_static("m.safetensors", file.leak()).map_err(|e| e.to_string())
}

#[test]
fn a_sound_file_is_listed_and_read() {
    let checkpoint = open_static(file(SOUND, 60)).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(
        names,
        ["a.weight", "b", "d", "none", "position_ids", "strange"]
    );
    let info = checkpoint.info("a.weight").unwrap();
    assert_eq!(
        (info.dtype.float(), info.n_elements()),
        (Some(DType::F32), 6)
    );
    assert_eq!(
        checkpoint.info("strange").unwrap().dtype,
        StoredDType::Other("Q3_K".into())
    );
    assert_eq!(checkpoint.n_bytes(), 60);
    assert_eq!(checkpoint.n_bytes_read(), 0);
    assert_eq!(
        checkpoint
            .read("b", slice::from_ref(&(1..3)))
            .unwrap()
            .to_f32(),
        [0.0, 0.0]
    );
    assert_eq!(checkpoint.n_bytes_read(), 4);
    assert_eq!(checkpoint.read("none", &[]).unwrap().shape, [0, 9]);
}

#[test]
fn integers_and_doubles_are_refused_only_when_read() {
    let checkpoint = open_static(file(SOUND, 60)).unwrap();
    for (name, dtype) in [("position_ids", "I64"), ("d", "F64"), ("strange", "Q3_K")] {
        let err = checkpoint.read(name, &[]).unwrap_err().to_string();
        let want = format!("tensor {name:?}: expected float32, float16 or bfloat16, found {dtype}");
        assert!(
            err.starts_with("m.safetensors: ") && err.contains(&want),
            "{err}"
        );
    }
    let err = checkpoint.read("absent", &[]).unwrap_err().to_string();
    assert!(
        err.contains("m.safetensors: expected a tensor \"absent\""),
        "{err}"
    );
}

#[test]
fn the_safetensors_crate_reads_the_same() {
    let header = r#"{"x":{"dtype":"F16","shape":[3,2],"data_offsets":[0,12]},"y":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}"#;
    let mut bytes = file(header, 20);
    let n = bytes.len();
    for (i, byte) in bytes[n - 20..].iter_mut().enumerate() {
        *byte = i as u8 + 1;
    }
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    let ours = open_static(bytes.clone()).unwrap();
    for (name, view) in theirs.tensors() {
        let tensor = ours.read(&name, &[]).unwrap();
        assert_eq!(
            (tensor.shape.as_slice(), &*tensor.data),
            (view.shape(), view.data())
        );
    }
}

/// Everything that a header can lie about, and what the message must say.
#[test]
fn a_lying_header_is_refused_in_one_sentence() {
    let one = |entry: &str| format!(r#"{{"w":{entry}}}"#);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (
            vec![],
            &["expected 8 bytes of header length", "a file of 0 bytes"],
        ),
        (vec![1, 2, 3], &["expected 8 bytes", "3 bytes"]),
        (
            file(SOUND, 60)[..50].to_vec(),
            &["only 42 bytes after the header length: truncated"],
        ),
        (
            u64::MAX.to_le_bytes().to_vec(),
            &["at most 100000000", "18446744073709551615"],
        ),
        (
            100_000_001u64.to_le_bytes().to_vec(),
            &["at most 100000000", "100000001"],
        ),
        (file("", 0), &["JSON header"]),
        (file("[]", 0), &["JSON header", "an object"]),
        (file("{\"w\":", 0), &["JSON header", "EOF"]),
        (file(&"[".repeat(100_000), 0), &["JSON header"]),
        (file(&one("3"), 0), &["tensor \"w\"", "integer `3`"]),
        (
            file(&one(r#"{"dtype":"F32","data_offsets":[0,4]}"#), 4),
            &["tensor \"w\"", "missing field `shape`"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#),
                4,
            ),
            &["tensor \"w\"", "integer `-1`"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}"#),
                4,
            ),
            &["tensor \"w\"", "1.5"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
                4,
            ),
            &["tensor \"w\"", "within the 4 bytes", "[0, 8]"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
                8,
            ),
            &["tensor \"w\"", "in order", "[8, 0]"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
                8,
            ),
            &[
                "tensor \"w\"",
                "expected 12 bytes for float32 [3]",
                "span 8",
            ],
        ),
        (
            file(
                &one(r#"{"dtype":"I8","shape":[3],"data_offsets":[0,8]}"#),
                8,
            ),
            &["expected 3 bytes for I8 [3]", "span 8"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#),
                0,
            ),
            &["tensor \"w\"", "overflows"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}"#),
                0,
            ),
            &["tensor \"w\"", "overflows"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#),
                8,
            ),
            &["tensor \"w\"", "a hole"],
        ),
        (
            file(
                &one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#),
                8,
            ),
            &["expected 4 bytes of data", "found 8"],
        ),
        (
            file(
                r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            &["tensor \"w\"", "an overlap"],
        ),
        (
            file(
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            &[
                "tensor \"w\"",
                "expected one tensor of this name, found two",
            ],
        ),
    ];
    for (bytes, wants) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let err = open_static(bytes)
            .err()
            .unwrap_or_else(|| panic!("accepted {shown}"));
        assert!(
            err.starts_with("m.safetensors: ") && !err.contains('\n'),
            "{err}"
        );
        for want in wants {
            assert!(
                err.contains(want),
                "{shown}\n  wants {want:?}\n  says  {err}"
            );
        }
    }
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn a_sharded_index_gathers_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let one = |name: &str| {
        file(
            &format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#),
            4,
        )
    };
    write(dir.path(), "m-1.safetensors", one("a"));
    write(dir.path(), "m-2.safetensors", one("b"));
    let open = |index: &str| {
        write(dir.path(), "model.safetensors.index.json", index);
        Checkpoint::open(dir.path()).map_err(|e| e.to_string())
    };
    let sound =
        open(r#"{"metadata":{},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#)
            .unwrap();
    assert_eq!(sound.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(sound.read("b", &[]).unwrap().to_f32(), [0.0]);
    for (index, want) in [
        (
            r#"{"weight_map":{"a":"m-3.safetensors"}}"#,
            "m-3.safetensors for tensor \"a\" and others, found no such file",
        ),
        (
            r#"{"weight_map":{"c":"m-1.safetensors"}}"#,
            "m-1.safetensors: expected a tensor \"c\"",
        ),
        (
            r#"{"weight_map":{"a":"../m-1.safetensors"}}"#,
            "within the folder of the index, found \"../m-1.safetensors\"",
        ),
        (
            r#"{"weight_map":{"a":"/etc/passwd"}}"#,
            "within the folder of the index, found \"/etc/passwd\"",
        ),
        (r#"{"weight_map":{"a":"x/../../m"}}"#, "within the folder"),
        (r#"{"weight_map":{"a":""}}"#, "within the folder"),
        (
            r#"{"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}}"#,
            "expected one entry in weight_map, found two",
        ),
        (r#"{"weight_map":["a"]}"#, "expected JSON with a weight_map"),
        (r"{}", "missing field `weight_map`"),
    ] {
        let err = open(index).err().unwrap();
        assert!(err.contains(want), "{index}\n  says {err}");
    }
}

#[test]
fn a_folder_without_weights_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let err = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(
        err.contains("model.safetensors") && err.contains("pytorch_model.bin"),
        "{err}"
    );
    let err = Checkpoint::open(&dir.path().join("absent"))
        .err()
        .unwrap()
        .to_string();
    assert!(err.contains("absent: cannot be read"), "{err}");
}

/// xorshift64*: seeded, and the same on every machine.
fn next(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

/// 20,000 mutations of the header: opening, and reading whatever opened, never panics.
#[test]
fn a_mutated_header_never_panics() {
    let sound = file(SOUND, 60);
    let n_header = sound.len() - 60;
    let mut seed = 0x6d6f_6573_6861_7264;
    let mut n_opened = 0;
    for _ in 0..20_000 {
        let mut bytes = sound.clone();
        for _ in 0..1 + next(&mut seed) % 4 {
            let at = next(&mut seed) % n_header;
            match next(&mut seed) % 4 {
                0 => bytes[at] = next(&mut seed) as u8,
                1 => bytes[at] = b"0123456789[]{},:\""[next(&mut seed) % 17],
                2 => bytes[at] ^= 1 << (next(&mut seed) % 8),
                _ => bytes.truncate(bytes.len() - next(&mut seed) % 8),
            }
        }
        if let Ok(checkpoint) = open_static(bytes) {
            n_opened += 1;
            for name in checkpoint.names() {
                let _ = checkpoint.read(name, &[]).map(|t| t.to_f32());
            }
        }
    }
    // Some mutations only rename a tensor: the loop above has read as well as refused.
    assert!((100..19_900).contains(&n_opened), "{n_opened} opened");
}
