//! Small files that ask for huge memory: each is refused in a sentence, at once and cheaply.
//!
//! Files are built so that a reader that copies what they share allocates gigabytes, or runs
//! through them. What a thread holds at most is counted, because a machine with enough memory
//! would hide it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use moeshard_tensor::checkpoint::Checkpoint;

thread_local! {
    /// Bytes that this thread holds, and the most that it ever held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(change: isize) {
    HELD.with(|held| {
        let (now, most) = held.get();
        held.set((now + change, most.max(now + change)));
    });
}

// SAFETY: every call goes to `System` unchanged. Counting allocates nothing: the counter is a
// plain cell with a constant start and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const MIB: usize = 1 << 20;

/// Opens a folder with this one file; it must be refused within 20 seconds and so much memory.
#[track_caller]
fn refused(name: &str, bytes: &[u8], max_held: usize) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), bytes).unwrap();
    let (before, _) = HELD.get();
    HELD.set((before, before));
    let start = Instant::now();
    let err = Checkpoint::open(dir.path()).err().expect("must be refused");
    let (_, most) = HELD.get();
    let held = (most - before) as usize;
    assert!(held <= max_held, "held {} MiB: {err}", held / MIB);
    // Minutes for a reader that copies; a busy machine needs some slack.
    assert!(start.elapsed() < Duration::from_secs(20), "slow: {err}");
    let err = err.to_string();
    assert!(err.len() < 30_000, "a message of {} bytes", err.len());
    err
}

/// The message for a legacy `.bin` whose state dict is this pickle.
#[track_caller]
fn pickle_refused(pickle: &[u8], max_held: usize) -> String {
    bin_refused(pickle, b"\x80\x02].", max_held)
}

/// The same with the pickle of the storage keys and what follows.
#[track_caller]
fn bin_refused(pickle: &[u8], rest: &[u8], max_held: usize) -> String {
    let prefix = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    refused(
        "pytorch_model.bin",
        &[prefix, pickle, rest].concat(),
        max_held,
    )
}

/// Instructions: a string of `n` bytes.
fn string(n: usize) -> Vec<u8> {
    [b"X", &(n as u32).to_le_bytes()[..], &vec![b'a'; n]].concat()
}

/// Instructions: a float32 tensor of this storage, shape and strides.
fn tensor(class: &[u8], key: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let storage = [b"(Nctorch\n", class, b"\n", key, b"NNtQ"].concat();
    let args = [b"(", &storage[..], b"K\0", shape, strides, b"t"].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &args[..], b"R"].concat()
}

/// Instructions: a tensor without axes, on a storage of the key `a`.
fn scalar() -> Vec<u8> {
    tensor(b"FloatStorage", &string(1), b")", b")")
}

/// A state dict: memo 0 and 1 are filled first, then `items` are set.
fn dict(memo_0: &[u8], memo_1: &[u8], items: &[u8]) -> Vec<u8> {
    let memo = [memo_0, b"q\x000", memo_1, b"q\x010"].concat();
    [b"\x80\x02", &memo[..], b"}(", items, b"u."].concat()
}

/// Pickles that exhaust the memory or the stack of a naive reader.
#[test]
fn a_hostile_pickle_costs_nothing() {
    let nested = [&b"\x80\x02)"[..], &vec![0x85; 4_000_000], b"."].concat();
    let mut bomb = b"\x80\x02)q\0".to_vec();
    for _ in 0..10_000 {
        bomb.extend_from_slice(b"h\0h\0\x86q\0");
    }
    bomb.push(b'.');
    let huge_string = b"\x80\x02X\xff\xff\xff\xff.".to_vec();
    let itself = b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec();
    let executes = b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.".to_vec();
    for pickle in [nested, bomb, huge_string, itself, executes] {
        let err = pickle_refused(&pickle, 512 * MIB);
        assert!(err.contains("pytorch_model.bin: expected"), "{err}");
    }
}

/// Values, references, marks and memo entries all take memory, so all of them are counted.
#[test]
fn an_endless_pickle_is_cut_off() {
    let n = 5_000_001;
    for instructions in [
        vec![b')'; n],
        [&b")\x94"[..], &vec![0x94; n]].concat(),
        [&b")\x94"[..], &b"h\0".repeat(n)].concat(),
        vec![b'('; n],
    ] {
        let pickle = [b"\x80\x02", &instructions[..], b"."].concat();
        let err = pickle_refused(&pickle, 448 * MIB);
        let want = "found more than 5000000 values, marks and memo entries at byte";
        assert!(err.contains(want), "{err}");
    }
}

#[test]
fn a_class_takes_its_name_from_the_memo_without_a_copy() {
    let classes = |n_bytes, n| {
        let items = b"h\0h\0\x930".repeat(n);
        [b"\x80\x02", &string(n_bytes)[..], b"q\x000", &items, b"}."].concat()
    };
    let err = pickle_refused(&classes(100_000, 20_000), MIB);
    let want = "a name of 100000 bytes where 4096 is the most at byte";
    assert!(err.contains(want), "{err}");
    // 2.4 GB if they were copied.
    let err = pickle_refused(&classes(4_000, 300_000), 32 * MIB);
    assert!(err.contains("found no tensor in it"), "{err}");
    let long_line = [b"\x80\x02c", &vec![b'a'; 100_000][..], b"\nb\n}."].concat();
    let err = pickle_refused(&long_line, MIB);
    assert!(err.contains("a name of 100000 bytes"), "{err}");
}

#[test]
fn entries_of_one_memoised_name_are_refused_at_the_second() {
    for (n_bytes, want) in [
        (
            100_000,
            "found a tensor name of 100000 bytes where 4096 is the most",
        ),
        (4_000, "expected one tensor of this name, found two"),
    ] {
        let pickle = dict(&string(n_bytes), &scalar(), &b"h\0h\x01".repeat(300_000));
        let err = pickle_refused(&pickle, 64 * MIB);
        assert!(err.contains(want), "{err}");
    }
}

/// Instructions: `n` entries with names of their own, all of the value in memo 1.
fn entries(n: u32) -> Vec<u8> {
    let entry = |i| [b"\x8c\x07", format!("{i:07}").as_bytes(), b"h\x01"].concat();
    (0..n).flat_map(entry).collect()
}

#[test]
fn a_memoised_shape_of_many_axes_is_refused() {
    for (n_axes, want) in [
        (
            9,
            "tensor \"0000000\": expected storage, offset, shape and strides in the pickle, found 9 axes where 8 is the most",
        ),
        (500_000, "found 500000 axes where 8 is the most"),
    ] {
        let axes = [&b"("[..], &b"K\x01".repeat(n_axes), b"t"].concat();
        let value = tensor(b"FloatStorage", &string(1), b"h\0", b"h\0");
        let err = pickle_refused(&dict(&axes, &value, &entries(10_000)), 64 * MIB);
        assert!(err.contains(want), "{err}");
    }
}

#[test]
fn a_long_storage_class_or_key_is_refused() {
    let class = tensor(&[b'C'; 4_000], &string(1), b")", b")");
    let key = tensor(b"FloatStorage", &string(100_000), b")", b")");
    for (value, want) in [
        (
            class,
            "found a storage class of 4000 bytes where 64 is the most",
        ),
        (
            key,
            "found a storage key of 100000 bytes where 64 is the most",
        ),
    ] {
        let err = pickle_refused(&dict(b"N", &value, &entries(300_000)), 96 * MIB);
        assert!(err.contains(want), "{err}");
    }
}

#[test]
fn a_storage_listed_twice_is_refused() {
    let state = dict(b"N", &scalar(), &entries(1));
    let keys = |key: &[u8]| [b"\x80\x02](", key, &b"h\0".repeat(1_000)[..], b"e."].concat();
    for (key, want) in [
        (
            string(100_000),
            "found a storage key of 100000 bytes where 64 is the most",
        ),
        (
            string(1),
            "expected one storage \"a\", found two of that key",
        ),
    ] {
        let rest = [keys(&[&key, &b"q\0"[..]].concat()), vec![0; 9_000]].concat();
        let err = bin_refused(&state, &rest, MIB);
        assert!(err.contains(want), "{err}");
    }
}

#[test]
fn more_tensors_than_any_model_has_are_refused() {
    let pickle = dict(b"N", &scalar(), &entries(1_000_001));
    let err = pickle_refused(&pickle, 768 * MIB);
    assert!(err.contains("found more than 1000000 tensors"), "{err}");
    let mut index = r#"{"weight_map":{"#.to_owned();
    for i in 0..1_000_001 {
        index.push_str(&format!("\"{i}\":\"m\","));
    }
    let name = "model.safetensors.index.json";
    let err = refused(name, index.as_bytes(), 256 * MIB);
    assert!(err.contains("more than 1000000 tensors"), "{err}");
}

#[test]
fn a_json_header_of_long_names_or_shapes_is_refused() {
    let long_name = format!(r#"{{"{}":3}}"#, "a".repeat(1_000_000));
    let shape = "1,".repeat(1_000_000);
    let long_shape = format!(r#"{{"w":{{"dtype":"F32","shape":[{shape}1]}}}}"#);
    for (header, want) in [
        (
            long_name,
            "a tensor name of 1000000 bytes where 4096 is the most",
        ),
        (long_shape, "tensor \"w\": more than 8 axes"),
    ] {
        let len = (header.len() as u64).to_le_bytes();
        let file = [&len[..], header.as_bytes()].concat();
        let err = refused("model.safetensors", &file, 4 * MIB);
        assert!(err.contains(want), "{err}");
    }
}

/// One file under many spellings would be parsed for each of them.
#[test]
fn an_index_names_each_file_in_one_way() {
    for shard in ["d//m", "d/./m", "d/m/", "d/m/."] {
        let index = format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#);
        let err = refused("model.safetensors.index.json", index.as_bytes(), MIB);
        let want = format!("expected a file within the folder of the index, found {shard:?}");
        assert!(err.contains(&want), "{err}");
    }
}

#[test]
fn a_zip_directory_has_the_limit_of_a_header() {
    let mut bytes = [&b"PK\x03\x04"[..], &[0; 26]].concat();
    let start = bytes.len() as u32;
    let n_entries = 800u16;
    for i in 0..n_entries {
        let mut entry = [&b"PK\x01\x02"[..], &[0; 42]].concat();
        // The lengths of the name, of the extra fields and of the comment.
        entry[28] = 3;
        entry[30..34].fill(0xff);
        entry.extend_from_slice(format!("{i:03}").as_bytes());
        entry.resize(entry.len() + 2 * 0xffff, 0);
        bytes.extend_from_slice(&entry);
    }
    let mut end = [&b"PK\x05\x06"[..], &[0; 18]].concat();
    end[10..12].copy_from_slice(&n_entries.to_le_bytes());
    end[16..20].copy_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&end);
    let err = refused("pytorch_model.bin", &bytes, 4 * MIB);
    assert!(err.contains("a directory of over 100000000 bytes"), "{err}");
}
