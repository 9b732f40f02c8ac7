//! How several matrices of a checkpoint become one, the same for every device.

use crate::dtype::HostTensor;
use crate::error::KernelError;
use crate::ops::Stacking;

/// Which part, and which of its rows, is row `n` of the stacked matrix.
pub(crate) fn source_row(
    parts: &[HostTensor<'_>],
    stacking: Stacking,
    mut n: usize,
) -> (usize, usize) {
    if stacking == Stacking::InterleavePairs {
        return (n % parts.len(), n / parts.len());
    }
    let mut part = 0;
    while n >= parts[part].rows {
        n -= parts[part].rows;
        part += 1;
    }
    (part, n)
}

/// An error that says why.
pub(crate) fn refused(reason: impl Into<String>) -> KernelError {
    KernelError::Shape { op: "pack", reason: reason.into() }
}

/// Rows and columns of the stacked parts, if they fit each other.
pub(crate) fn stacked_shape(
    parts: &[HostTensor<'_>],
    stacking: Stacking,
) -> Result<(usize, usize), KernelError> {
    let Some(first) = parts.first() else {
        return Err(refused("no parts"));
    };
    let mut n = 0usize;
    for part in parts {
        if part.cols != first.cols {
            return Err(refused(format!("parts of {} and {} columns", first.cols, part.cols)));
        }
        if stacking == Stacking::InterleavePairs && part.rows != first.rows {
            return Err(refused(format!("parts of {} and {} rows", first.rows, part.rows)));
        }
        n = n.checked_add(part.rows).ok_or_else(|| refused("too many rows"))?;
    }
    if stacking == Stacking::InterleavePairs && parts.len() != 2 {
        return Err(refused(format!("{} parts to interleave in pairs", parts.len())));
    }
    if n == 0 || first.cols == 0 {
        return Err(refused("an empty matrix"));
    }
    Ok((n, first.cols))
}
