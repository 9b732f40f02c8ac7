//! Names of what code is compiled for: `sm_80`, `sm_90a`.

use std::fmt;
use std::str::FromStr;

/// An architecture. Ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    major: u32,
    minor: u32,
    /// Uses instructions that no other architecture has.
    is_specific: bool,
}

/// The oldest card whose instructions the kernels need.
pub(super) const CAPABILITY_MIN: (u32, u32) = (8, 0);

impl Arch {
    /// What to compile for a card of this compute capability.
    pub fn of((major, minor): (u32, u32)) -> Self {
        Arch { major, minor, is_specific: (major, minor) == (9, 0) }
    }

    /// Whether a card of this compute capability runs the code: its own, and that of older cards of
    /// the same generation.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        let Arch { major, minor, is_specific } = self;
        (major, minor) == capability
            || (!is_specific && major == capability.0 && minor < capability.1)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}{}", self.major, self.minor, if self.is_specific { "a" } else { "" })
    }
}

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an architecture from sm_80 on, such as sm_80, sm_89 or sm_90a, not {0}")]
pub struct NoArch(String);

impl FromStr for Arch {
    type Err = NoArch;

    fn from_str(name: &str) -> Result<Self, NoArch> {
        let wrong = || NoArch(name.to_owned());
        let number = name.strip_prefix("sm_").ok_or_else(wrong)?;
        let (number, is_specific) = match number.strip_suffix('a') {
            Some(number) => (number, true),
            None => (number, false),
        };
        let is_plain = (2..=3).contains(&number.len())
            && !number.starts_with('0')
            && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u32 = if is_plain { number.parse().map_err(|_| wrong())? } else { 0 };
        let arch = Arch { major: number / 10, minor: number % 10, is_specific };
        if (arch.major, arch.minor) < CAPABILITY_MIN || (is_specific && number < 90) {
            return Err(wrong());
        }
        Ok(arch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120a"] {
            assert_eq!(name.parse::<Arch>().map(|arch| arch.to_string()), Ok(name.to_owned()));
        }
        for name in ["", "sm_", "90a", "sm_75", "sm_80a", "sm_9x", "sm_+90", "sm_1000", "sm_90aa"] {
            assert!(name.parse::<Arch>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_card_runs_its_own_code_and_plain_code_of_its_generation() {
        let runs = |name: &str, capability| name.parse::<Arch>().unwrap().runs_on(capability);
        assert!(runs("sm_90a", (9, 0)) && runs("sm_90", (9, 0)));
        assert!(runs("sm_80", (8, 9)) && runs("sm_89", (8, 9)) && !runs("sm_89", (8, 6)));
        assert!(!runs("sm_80", (9, 0)) && !runs("sm_90a", (10, 0)) && !runs("sm_100a", (10, 3)));
        assert_eq!(Arch::of((9, 0)).to_string(), "sm_90a");
        assert_eq!(Arch::of((8, 9)).to_string(), "sm_89");
    }
}
