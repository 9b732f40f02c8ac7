//! Targets for fuzzers: what a stranger writes, handed to what reads it.
//!
//! tests/fuzz calls them with mutated inputs on any toolchain, cargo-fuzz calls them with those that
//! it found by coverage. A target panics where a property does not hold: whatever is wrong with an
//! input must be told as a typed error, and what was read must keep what its reader promises. Else
//! it says in few words what became of the input, so that a driver can tell news from old. Never
//! touches anything but the input, the engine's public functions and a folder of its own.

/// Bodies and connections, through sockets.
mod requests;

/// A server before a runner that computes nothing.
mod server;

/// Configurations, headers, indexes and quantized tensors.
mod checkpoint;

/// Tokenizers in all forms of their files.
mod tokenizers;

/// Chat templates.
mod templates;

/// Chat templates that follow the grammar, and so get further.
mod grammar;

/// What operators write: settings, models by name, bodies of administration.
mod settings;

/// Where mutations begin.
mod seeds;

use std::panic::catch_unwind;
use std::sync::Once;

/// One thing that strangers write.
pub struct Target {
    /// Its name: of the test, of cargo-fuzz's target, of the folder with its corpus.
    pub name: &'static str,
    /// Tries an input, and says what became of it. Panics where a property does not hold.
    pub run: fn(&[u8]) -> String,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that its readers know.
    pub words: &'static [&'static str],
}

/// Stands between the parts of an input that is several files.
pub const CUT: &[u8] = b"\n=====\n";

/// Every target.
pub static TARGETS: [Target; 13] = [
    requests::REQUESTS,
    requests::CONNECTIONS,
    settings::ADMIN,
    settings::SETTINGS,
    settings::HUB,
    checkpoint::CONFIG,
    checkpoint::SAFETENSORS,
    checkpoint::SHARDS,
    checkpoint::QUANTIZED,
    tokenizers::TOKENIZER,
    tokenizers::VOCABULARY,
    templates::TEMPLATE,
    grammar::GRAMMAR,
];

/// The target of that name.
pub fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target's name")
}

/// Tries one input of cargo-fuzz; where a property does not hold, the process ends. Its own hook
/// takes every panic for a finding, also those that the product catches where they arise.
pub fn once(name: &str, input: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| drop(std::panic::take_hook()));
    let run = find(name).run;
    if catch_unwind(|| run(input)).is_err() {
        std::process::abort();
    }
}

/// The first parts of an input; those that are not there are empty, what is too much is left out.
fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = [&[][..]; N];
    let mut rest = Some(input);
    for part in &mut parts {
        let Some(text) = rest else { break };
        let at = text.windows(CUT.len()).position(|window| window == CUT);
        *part = &text[..at.unwrap_or(text.len())];
        rest = at.map(|at| &text[at + CUT.len()..]);
    }
    parts
}

/// What an error says without what is quoted in it and without its numbers: equal for inputs that
/// fail alike.
fn shape(error: impl ToString) -> String {
    let (mut out, mut quote) = (String::new(), None);
    for c in error.to_string().chars() {
        match quote {
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`' | '\'') => quote = Some(c),
            None if c.is_ascii_digit() && out.ends_with('#') => {}
            None => out.push(if c.is_ascii_digit() { '#' } else { c }),
        }
        if out.len() >= 120 {
            break;
        }
    }
    out
}

/// Refusals name what they are about, and end.
fn is_told(error: impl ToString, about: &str) -> String {
    let told = error.to_string();
    assert!(told.contains(about), "an error does not name {about}: {told}");
    assert!(told.len() < 4096, "an error of {} bytes: {told:.200}", told.len());
    shape(told)
}
