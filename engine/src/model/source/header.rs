//! The header of a safetensors file: eight bytes of length, then JSON, then the elements.
//!
//! ```text
//! 0        8                 8 + n                              file length
//! | n: u64 | {"name": {...}} | elements, no gap and no overlap  |
//! ```
//! Everything in it is a claim of whoever wrote the file. [`parse`] checks each before anything is
//! sized by it, and never panics on any bytes. The types are the `safetensors` crate's; the walk is
//! ours, because its reader takes a name that comes twice and names no tensor in its refusals.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As the file names it: `BF16`, `F32`, …
    pub(super) dtype: String,
    /// Dimensions.
    pub(super) shape: Vec<usize>,
    /// Bytes within the file.
    pub(super) bytes: Range<usize>,
}

/// A refusal: the tensor to blame, if any, and why.
pub(super) type Refusal = (Option<String>, String);

/// Longest header: thousands of tensors take less than 1 MB, so this is far beyond any real one.
const MAX_HEADER_BYTES: usize = 32 << 20;
const MAX_DIMS: usize = 8;

/// Reads the header of a whole file.
pub(super) fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, Refusal> {
    let refuse = |reason: String| (None, reason);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(refuse(format!("is truncated: {} bytes are no header", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let header_len = usize::try_from(length).unwrap_or(usize::MAX);
    if header_len > MAX_HEADER_BYTES {
        return Err(refuse(format!("has a header of {length} bytes, more than any checkpoint")));
    }
    let Some((header, elements)) = rest.split_at_checked(header_len) else {
        let reason =
            format!("is truncated: a header of {length} bytes in a file of {}", file.len());
        return Err(refuse(reason));
    };
    let claims = parse_claims(header).map_err(|e| refuse(format!("has a damaged header: {e}")))?;
    let mut entries = BTreeMap::new();
    for (name, claim) in claims {
        let entry = check_claim(&claim, 8 + header_len, elements.len())
            .map_err(|reason| (Some(name.clone()), reason))?;
        entries.insert(name, entry);
    }
    check_layout(&entries, 8 + header_len..file.len())?;
    Ok(entries)
}

/// What the JSON says of one tensor.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn parse_claims(header: &[u8]) -> Result<BTreeMap<String, Claim>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(header);
    let claims = json.deserialize_map(ClaimsVisitor)?;
    json.end()?;
    Ok(claims)
}

/// Reads the header's object entry by entry, so that a name that comes twice is seen.
struct ClaimsVisitor;

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = BTreeMap<String, Claim>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut claims = BTreeMap::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<BTreeMap<String, String>>()?;
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("__metadata__ comes twice"));
                }
                continue;
            }
            let claim = map.next_value()?;
            if claims.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor {name:?} comes twice")));
            }
            claims.insert(name, claim);
        }
        Ok(claims)
    }
}

/// One tensor's claim against the elements there are.
fn check_claim(claim: &Claim, start: usize, available: usize) -> Result<Entry, String> {
    let (begin, end) = claim.data_offsets;
    if begin > end || end > available as u64 {
        return Err(format!(
            "is truncated: its bytes {begin}..{end} are not within the file's {available}"
        ));
    }
    if claim.shape.len() > MAX_DIMS {
        return Err(format!("has {} dimensions", claim.shape.len()));
    }
    let elements = claim.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bits = element_bits(&claim.dtype)
        .ok_or_else(|| format!("has type {:?}, which the format does not define", claim.dtype))?;
    // Sub-byte types fill whole bytes over the whole tensor.
    let expected = elements.and_then(|n| n.checked_mul(bits)).filter(|n| n.is_multiple_of(8));
    if expected.map(|n| n / 8) != Some(end - begin) {
        return Err(format!(
            "has {} bytes, which are not {:?} of {}",
            end - begin,
            claim.shape,
            claim.dtype
        ));
    }
    // Both casts are exact: the bounds above are lengths of slices.
    Ok(Entry {
        dtype: claim.dtype.clone(),
        shape: claim.shape.iter().map(|dim| *dim as usize).collect(),
        bytes: start + begin as usize..start + end as usize,
    })
}

/// Bits of an element of a type of the format.
fn element_bits(dtype: &str) -> Option<u64> {
    let name: StrDeserializer<'_, ValueError> = dtype.into_deserializer();
    Some(Dtype::deserialize(name).ok()?.bitsize() as u64)
}

/// Tensors must cover `elements` exactly: no byte twice, none unclaimed.
fn check_layout(entries: &BTreeMap<String, Entry>, elements: Range<usize>) -> Result<(), Refusal> {
    let mut ordered: Vec<_> = entries.iter().collect();
    ordered.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    let mut covered = elements.start;
    for (name, entry) in ordered {
        if entry.bytes.start != covered {
            let what = if entry.bytes.start < covered { "overlaps" } else { "leaves a gap after" };
            return Err((Some(name.clone()), format!("{what} the tensor before it in the file")));
        }
        covered = entry.bytes.end;
    }
    if covered != elements.end {
        let reason = format!("has {} bytes that belong to no tensor", elements.end - covered);
        return Err((None, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
