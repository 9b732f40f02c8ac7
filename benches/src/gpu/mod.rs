//! The hardware suite: everything that only a GPU can show, in parts in the order of their worth.
//!
//! The program `gpu` asks for parts and a budget. Each part runs in a process of its own, so that a
//! kernel that hangs or faults ends that part alone; the first process writes what a part found, as one
//! line, when the part ends. With `--device emulated` every part runs without a GPU, at tiny sizes.

/// What the command line asks for.
pub mod arguments;

/// The parts, and what each does.
pub mod part;

/// The lines of results: written, read, and which parts need not run again.
pub mod line;

/// Runs parts one after another within a budget.
pub mod conductor;

/// A part in its own process, from the outside.
pub mod child;

/// The device that parts run on, and what machine it is in.
pub mod machine;

/// Golden checkpoints of each family on the device.
mod goldens;

/// The built-in model on the device, against the CPU.
mod demo;

/// The engine at the shapes of published models.
mod engine;

/// The engine taken in several ways.
mod ways;

/// What taking a device costs.
mod opening;

/// NVIDIA's checker over small shapes.
mod sanitizer;

/// Other programs on the same card.
mod peers;
