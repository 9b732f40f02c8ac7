//! Damaged headers, one by one and by chance.

use proptest::prelude::*;

use super::*;

/// A file of this header and as many zero bytes.
fn file(header: &str, elements: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + elements, 0);
    file
}

fn tensor(name: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn refusal(header: &str, elements: usize) -> String {
    let (name, reason) = parse(&file(header, elements)).unwrap_err();
    format!("{}: {reason}", name.unwrap_or_default())
}

#[test]
fn a_sound_header_gives_places_within_the_file() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{}}}"#,
        tensor("b", "[2,3]", 8, 32),
        tensor("a", "[2]", 0, 8)
    );
    let entries = parse(&file(&header, 32)).unwrap();
    let start = 8 + header.len();
    assert_eq!(entries["a"].bytes, start..start + 8);
    assert_eq!(entries["b"].bytes, start + 8..start + 32);
    assert_eq!((entries["b"].dtype.as_str(), &entries["b"].shape[..]), ("F32", &[2, 3][..]));
}

#[test]
fn each_damage_has_its_own_refusal() {
    let one = |t: String| format!("{{{t}}}");
    let a = tensor("a", "[2]", 0, 8);
    for (header, elements, expected) in [
        (one(tensor("a", "[2]", 0, 8)), 7, "a: is truncated"),
        (one(tensor("a", "[3]", 0, 8)), 8, "a: has 8 bytes, which are not [3] of F32"),
        (one(tensor("a", "[2]", 8, 0)), 8, "a: is truncated"),
        (one(tensor("a", "[4294967296,4294967296,4]", 0, 8)), 8, "a: has 8 bytes"),
        (one(tensor("a", "[1,1,1,1,1,1,1,1,2]", 0, 8)), 8, "a: has 9 dimensions"),
        (one(tensor("a", "[-2]", 0, 8)), 8, ": has a damaged header"),
        (one(format!("{a},{}", tensor("a", "[2]", 8, 16))), 16, "comes twice"),
        (one(format!("{a},{}", tensor("b", "[2]", 4, 12))), 12, "b: overlaps"),
        (one(format!("{a},{}", tensor("b", "[2]", 12, 20))), 20, "b: leaves a gap"),
        (one(a.clone()), 12, ": has 4 bytes that belong to no tensor"),
        (one(a.replace("F32", "Q4")), 8, "a: has type \"Q4\""),
        (one(a.replace("F32", "F6_E2M3")), 8, "a: has 8 bytes"),
        ("[]".to_owned(), 0, ": has a damaged header"),
        (one(a.replace("shape", "shade")), 8, ": has a damaged header"),
    ] {
        let said = refusal(&header, elements);
        assert!(said.contains(expected), "{header}: {said}");
    }
    assert!(parse(b"1234567").is_err());
    let mut huge = file("{}", 0);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(parse(&huge).unwrap_err().1.contains("more than any checkpoint"));
    huge[..8].copy_from_slice(&1000u64.to_le_bytes());
    assert!(parse(&huge).unwrap_err().1.contains("truncated"));
}

#[test]
fn every_prefix_of_a_sound_file_is_refused() {
    let whole = file(&format!("{{{}}}", tensor("a", "[4]", 0, 16)), 16);
    for len in 0..whole.len() {
        assert!(parse(&whole[..len]).is_err(), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    /// A sound file with a few bytes changed either fails or stays within itself.
    #[test]
    fn changed_bytes_never_point_outside(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let header = format!("{{{},{}}}", tensor("a", "[2,2]", 0, 16), tensor("b", "[2]", 16, 24));
        let mut bytes = file(&header, 24);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(entries) = parse(&bytes) {
            for entry in entries.values() {
                prop_assert!(bytes.get(entry.bytes.clone()).is_some());
            }
        }
    }

    /// JSON-shaped numbers at every extreme.
    #[test]
    fn extreme_numbers_never_panic(begin: u64, end: u64, dims: [u64; 3]) {
        let header = format!(
            r#"{{"a":{{"dtype":"BF16","shape":[{},{},{}],"data_offsets":[{begin},{end}]}}}}"#,
            dims[0], dims[1], dims[2],
        );
        let _ = parse(&file(&header, 64));
    }
}
