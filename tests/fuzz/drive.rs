//! Tries a fixed number of inputs of a target: the same ones each time, from a seed.
//!
//! An input of which something new is told joins those that are changed further. Each is in a file
//! before it is tried, so whatever ends the process (an abort, a full stack, no memory) leaves it
//! there. An input has a bound of time, that of a hang, and one of memory in proportion to itself.

use std::alloc::System;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cap::Cap;
use pagoda_tests::fuzz::Target;
use pagoda_tests::simulation::closed_form::Random;

use crate::mutate::mutated;

/// Memory that an input may take in any case, and for each of its bytes.
const MEMORY: usize = 64 << 20;
const MEMORY_PER_BYTE: usize = 64;

/// An input that takes longer hangs.
const HANG: Duration = Duration::from_secs(20);

/// Inputs of which something new was told, at most.
const POOL_MAX: usize = 2000;

/// Names a file: then it alone is tried.
const ONE_INPUT: &str = "PAGODA_FUZZ_INPUT";

/// Names a folder: seeds, and inputs of which something new was told, are left there.
const KEEP: &str = "PAGODA_FUZZ_KEEP";

/// One target in the memory of this process.
pub(crate) struct Drive {
    /// What is tried.
    pub(crate) target: &'static Target,
    /// What all memory comes from.
    pub(crate) memory: &'static Cap<System>,
    /// Where the random numbers begin.
    pub(crate) seed: u64,
}

/// Tests of one process take turns: what is allocated is counted for all threads together.
static TURN: Mutex<()> = Mutex::new(());

/// Where and why the last panic was.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

impl Drive {
    /// Tries `count` inputs beside the seeds; panics with the first that breaks a property.
    pub(crate) fn run(&self, count: u32) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file();
        let name = self.target.name;
        if let Some(one) = std::env::var_os(ONE_INPUT) {
            let input = fs::read(one).expect("the file of one input");
            println!("{name}: {}", self.attempt(&input));
            return;
        }
        println!(
            "{name}: {count} inputs of seed {}; the one at hand is in\n  {}\nand is tried again by\n  \
             {ONE_INPUT}=<file> cargo nextest run -p pagoda-tests --test fuzz --no-capture -E \
             'test(={name})'",
            self.seed,
            file.display()
        );
        let kept = fs::File::create(&file).expect("the folder takes files");
        let watched = Watched::start(file.clone());
        let (mut pool, mut known) = ((self.target.seeds)(), BTreeSet::new());
        let num_seeds = pool.len();
        assert!(num_seeds > 0, "{name} has no seeds");
        let mut slowest = Duration::ZERO;
        // The product catches some panics where they arise: only those that get here are told.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|panic| {
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string()
        }));
        for number in 0..num_seeds as u32 + count {
            let mut random = Random::new(self.seed ^ u64::from(number) << 8);
            let input = match pool.get(number as usize).filter(|_| (number as usize) < num_seeds) {
                Some(seed) => seed.clone(),
                None => mutated(&mut random, self.target, &pool),
            };
            // Never cut to nothing first, which file systems take for a reason to write at once.
            kept.write_all_at(&input, 0)
                .and_then(|()| kept.set_len(input.len() as u64))
                .expect("a file");
            let begun = Instant::now();
            watched.begin();
            let told = self.attempt(&input);
            watched.end();
            slowest = slowest.max(begun.elapsed());
            let is_new = known.insert(told) && number as usize >= num_seeds;
            if is_new && pool.len() < POOL_MAX {
                pool.push(input);
            }
        }
        std::panic::set_hook(hook);
        println!("{} kinds of outcome, the slowest input took {slowest:.1?}", known.len());
        if let Some(folder) = std::env::var_os(KEEP) {
            keep(&Path::new(&folder).join(name), &pool);
        }
        let _ = fs::remove_file(file);
    }

    /// Tries an input within its memory.
    fn attempt(&self, input: &[u8]) -> String {
        let room = MEMORY + MEMORY_PER_BYTE * input.len();
        self.memory.set_limit(self.memory.allocated() + room).expect("a limit above what is held");
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        self.memory.set_limit(usize::MAX).expect("no limit");
        match outcome {
            Ok(told) => told,
            Err(panic) => {
                eprintln!("{}", LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner));
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Where the input at hand is.
    pub(crate) fn file(&self) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
        fs::create_dir_all(&folder).expect("a folder for inputs");
        folder.join(self.target.name)
    }
}

fn keep(folder: &Path, pool: &[Vec<u8>]) {
    fs::create_dir_all(folder).expect("a folder for what is kept");
    for (number, input) in pool.iter().enumerate() {
        fs::write(folder.join(format!("{number:05}")), input).expect("the folder takes files");
    }
}

/// A thread that ends the process when one input takes too long.
struct Watched {
    base: Instant,
    /// Milliseconds since `base` at which the input began, plus one; 0 between inputs.
    begun: Arc<AtomicU64>,
}

impl Watched {
    fn start(file: PathBuf) -> Self {
        let (base, begun) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let seen = Arc::downgrade(&begun);
        std::thread::spawn(move || {
            while let Some(begun) = seen.upgrade().map(|begun| begun.load(SeqCst)) {
                let now = base.elapsed().as_millis() as u64;
                if begun > 0 && now.saturating_sub(begun) > HANG.as_millis() as u64 {
                    eprintln!("no end after {HANG:?}: {}", file.display());
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Watched { base, begun }
    }

    fn begin(&self) {
        self.begun.store(self.base.elapsed().as_millis() as u64 + 1, SeqCst);
    }

    fn end(&self) {
        self.begun.store(0, SeqCst);
    }
}
