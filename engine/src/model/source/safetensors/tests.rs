//! Folders with one file, with shards, and with every way an index can lie.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A file with one f32 vector of two elements for each name.
fn file(names: &[&str]) -> Vec<u8> {
    let tensors: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let (begin, end) = (8 * i, 8 * i + 8);
            format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", tensors.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    for i in 0..names.len() {
        bytes.extend_from_slice(&(i as f32).to_le_bytes());
        bytes.extend_from_slice(&(i as f32 + 0.5).to_le_bytes());
    }
    bytes
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn index(pairs: &[(&str, &str)]) -> Vec<u8> {
    let map: Vec<String> = pairs.iter().map(|(t, f)| format!("{t:?}:{f:?}")).collect();
    format!(r#"{{"metadata":{{}},"weight_map":{{{}}}}}"#, map.join(",")).into_bytes()
}

#[test]
fn one_file_gives_its_tensors_and_takes_pages_back() {
    let folder = folder(&[(SINGLE, file(&["a", "b"]))]);
    let source = Safetensors::open(folder.path()).unwrap();
    assert_eq!(source.names(), ["a", "b"]);
    let read = || source.tensor("b", &[2]).unwrap().as_host().map(|t| (t.at(0, 0), t.at(0, 1)));
    assert_eq!(read(), Some((1.0, 1.5)));
    source.release("b").unwrap();
    assert_eq!(read(), Some((1.0, 1.5)));
    assert_eq!((source.stored_dtype("a"), source.stored_dtype("c")), (Some(DType::F32), None));
}

#[test]
fn refusals_name_file_tensor_and_reason() {
    let folder = folder(&[(SINGLE, file(&["a"]))]);
    let source = Safetensors::open(folder.path()).unwrap();
    let missing = source.tensor("b", &[2]).unwrap_err().to_string();
    assert!(missing.ends_with("model.safetensors: tensor b: is missing"), "{missing}");
    let shape = source.tensor("a", &[3]).unwrap_err().to_string();
    assert!(shape.ends_with("tensor a: has shape [2], config.json asks for [3]"), "{shape}");
    let bytes = fs::read(folder.path().join(SINGLE)).unwrap();
    let text =
        String::from_utf8_lossy(&bytes[8..]).replace("F32\",\"shape\":[2]", "I32\",\"shape\":[2]");
    let mut other = bytes[..8].to_vec();
    other.extend_from_slice(text.as_bytes());
    fs::write(folder.path().join(SINGLE), other).unwrap();
    let source = Safetensors::open(folder.path()).unwrap();
    let dtype = source.tensor("a", &[2]).unwrap_err().to_string();
    assert!(dtype.ends_with("has type I32, only F32, BF16 and F16 are supported"), "{dtype}");
}

#[test]
fn shards_are_one_source() {
    let folder = folder(&[
        ("x-1.safetensors", file(&["a"])),
        ("x-2.safetensors", file(&["b", "c"])),
        (INDEX, index(&[("a", "x-1.safetensors"), ("b", "x-2.safetensors")])),
    ]);
    let source = Safetensors::open(folder.path()).unwrap();
    assert_eq!(source.names(), ["a", "b", "c"]);
    assert!(source.tensor("c", &[2]).is_ok());
}

#[test]
fn an_index_that_lies_is_refused() {
    let (one, two) = ("x-1.safetensors", "x-2.safetensors");
    let long = format!("{}.safetensors", "x".repeat(5000));
    for (pairs, expected) in [
        (vec![("a", "../x.safetensors")], "expected a .safetensors file beside itself"),
        (vec![("a", "/etc/x.safetensors")], "beside itself"),
        (vec![("a", "..")], "beside itself"),
        (vec![("a", "x.bin")], "beside itself"),
        (vec![("a", ".hidden.safetensors")], "beside itself"),
        (vec![("a", long.as_str())], "names \"xxx"),
        (vec![], "names 0 files"),
        (vec![("a", one), ("b", one)], "b: is listed in x-1.safetensors, which does not hold it"),
        (vec![("a", one), ("b", "x-3.safetensors")], "x-3.safetensors: cannot be read"),
        (vec![("a", one), ("d", two)], "d: is listed"),
        (vec![("a", one), ("b", "x-4.safetensors")], "x-4.safetensors: tensor a: is also in"),
    ] {
        let folder = folder(&[
            (one, file(&["a"])),
            (two, file(&["b"])),
            ("x-4.safetensors", file(&["b", "a"])),
            (INDEX, index(&pairs)),
        ]);
        let said = Safetensors::open(folder.path()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    let empty = folder(&[]);
    let said = Safetensors::open(empty.path()).unwrap_err().to_string();
    assert!(said.contains("has no model.safetensors"), "{said}");
}

proptest! {
    #[test]
    fn an_arbitrary_index_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(parse_index(&bytes).is_err());
    }
}

#[test]
fn a_file_that_is_cut_while_it_loads_is_told_by_tensor() {
    let folder = folder(&[(SINGLE, file(&["a", "b"]))]);
    let source = Safetensors::open(folder.path()).unwrap();
    source.release("a").unwrap();
    let path = folder.path().join(SINGLE);
    let len = fs::metadata(&path).unwrap().len();
    for left in [len - 1, 0] {
        fs::File::options().write(true).open(&path).unwrap().set_len(left).unwrap();
        let read = source.tensor("b", &[2]).unwrap().as_host().map(|tensor| tensor.at(0, 0));
        let said = source.release("b").unwrap_err().to_string();
        let told = format!("tensor b: was cut from {len} to {left} bytes while it was read");
        assert!(read.is_some() && said.ends_with(&told), "{said}");
    }
}
