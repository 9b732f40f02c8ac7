//! The process over a runner that misbehaves: real engine thread, real sockets, planted faults.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagoda_kernels::error::KernelError;

use super::load::Loaded;
use super::*;
use crate::api::instance::Instance;
use crate::api::test_support::info;
use crate::config::ModelConfig;
use crate::config::flags::Written;
use crate::memory::{Beside, ModelMemory};
use crate::request::StepError;
use crate::runner::{NullRunner, Plan, Runner, Ticket};
use crate::scheduler::settings::SchedulerSettings;
use crate::step;
use crate::text::TextModel;

/// What happens in the third step.
enum Plant {
    Fault,
    Panic,
    /// Waits for a word or for the sender's end.
    Hang(Receiver<()>),
}

struct Planted {
    runner: NullRunner,
    finished: u32,
    plant: Plant,
}

impl Runner for Planted {
    fn depth(&self) -> usize {
        self.runner.depth()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        self.runner.launch(plan)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        self.finished += 1;
        match &self.plant {
            _ if self.finished != 3 => {}
            Plant::Fault => return Err(KernelError::Fault("planted, with a secret".into())),
            Plant::Panic => panic!("planted, with a secret"),
            Plant::Hang(released) => _ = released.recv(),
        }
        self.runner.finish(ticket)
    }
}

/// Loads one model, which misbehaves.
struct LoadsPlant(Mutex<Option<Plant>>);

impl Load for LoadsPlant {
    type Opened = Plant;

    fn open(&self, _: &ModelConfig, _: &Shared) -> Result<Plant, StartError> {
        Ok(self.0.lock().unwrap().take().unwrap())
    }

    fn least_bytes(&self, _: &Plant, _: &ModelConfig) -> Result<u64, StartError> {
        Ok(0)
    }

    fn load(
        &self,
        plant: Plant,
        (_, shared): (&ModelConfig, &Shared),
        _: Beside,
    ) -> Result<Loaded, StartError> {
        let runner = Planted { runner: NullRunner::new(1, 65), finished: 0, plant };
        let (engine, thread) =
            step::start(Box::new(runner), info(), SchedulerSettings::default()).unwrap();
        let text = TextModel::dummy(300).unwrap();
        let names = vec!["m".into()];
        let instance = Instance::new(names, engine, text, shared.texts.clone(), &shared.metrics);
        let (instance, memory) = (Arc::new(instance), ModelMemory::default());
        let (summary, source) = (String::new(), "planted".into());
        Ok(Loaded { instance, thread, summary, memory, source, on_gpu: None })
    }
}

/// A process in a thread.
struct Process {
    address: SocketAddr,
    ended: JoinHandle<Result<Stop, ServeError>>,
}

impl Process {
    fn start(plant: Plant) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut config = Written::default().resolve().unwrap();
        config.network.listen = address;
        config.step_time_max = Duration::from_millis(50);
        let load = LoadsPlant(Mutex::new(Some(plant)));
        let ended = std::thread::spawn(move || serve_what(config, load));
        let process = Process { address, ended };
        process.until("/ready", "200");
        process
    }

    /// Sends a request and reads all of the answer; nothing if nobody listens.
    fn send(&self, method: &str, path: &str, body: &str) -> String {
        let Ok(mut socket) = TcpStream::connect(self.address) else { return String::new() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut answer = Vec::new();
        let sent = socket.write_all((head + body).as_bytes());
        let _ = sent.and_then(|()| socket.read_to_end(&mut answer));
        String::from_utf8(answer).unwrap()
    }

    /// Asks until the answer has this status; a test that waits in vain is ended by its runner.
    fn until(&self, path: &str, status: &str) {
        while self.send("GET", path, "").split(' ').nth(1) != Some(status) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn complete(&self, stream: bool) -> String {
        let body = format!(
            r#"{{"prompt": [11, 12], "max_tokens": 30, "ignore_eos": true, "stream": {stream}}}"#
        );
        self.send("POST", "/v1/completions", &body)
    }
}

#[test]
fn a_device_fault_reaches_its_clients_and_ends_the_process_with_a_code_of_its_own() {
    for stream in [true, false] {
        let process = Process::start(Plant::Fault);
        let said = process.complete(stream);
        assert!(said.contains("\"error\"") && !said.contains("secret"), "{said}");
        assert_eq!(said.starts_with("HTTP/1.1 200"), stream, "{said}");
        let error = process.ended.join().unwrap().unwrap_err();
        assert!(matches!(&error, ServeError::Engine(EngineEnd::Device(StepError::Device(_)))));
        assert_eq!(error.exit_code(), 71);
        assert!(error.to_string().contains("device fault: planted"), "{error}");
    }
}

#[test]
fn a_panic_of_the_engine_is_told_by_its_place_and_never_by_its_words() {
    let process = Process::start(Plant::Panic);
    let said = process.complete(true);
    assert!(said.contains("\"error\"") && !said.contains("secret"), "{said}");
    let error = process.ended.join().unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 70);
    let said = error.to_string();
    assert!(said.contains("engine/src/serve/tests.rs:") && !said.contains("secret"), "{said}");
}

#[test]
fn a_step_that_hangs_is_bad_health_until_it_ends() {
    let (release, released) = sync_channel(0);
    let process = Process::start(Plant::Hang(released));
    process.until("/health", "200");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| process.complete(false));
        process.until("/health", "503");
        process.until("/ready", "503");
        drop(release);
        let said = answer.join().unwrap();
        assert!(said.starts_with("HTTP/1.1 200") && said.contains("\"length\""), "{said}");
        process.until("/health", "200");
    });
}

#[test]
fn a_stop_waits_for_the_engine_and_tells_what_became_of_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let end = |work: Box<dyn FnOnce() -> Result<(), StepError> + Send>| {
        runtime.block_on(end_of(std::thread::spawn(work), &Panics::default()))
    };
    let (release, released) = sync_channel::<()>(0);
    let hangs = end(Box::new(move || {
        let _ = released.recv();
        Ok(())
    }));
    assert_eq!(hangs.unwrap(), Stop::Busy);
    drop(release);
    assert_eq!(end(Box::new(|| Ok(()))).unwrap(), Stop::Clean);
    let fault = end(Box::new(|| Err(StepError::Device("planted".into())))).unwrap_err();
    assert_eq!(fault.exit_code(), 71);
    assert_eq!(end(Box::new(|| panic!("planted"))).unwrap_err().exit_code(), 70);
}

#[test]
fn what_an_error_tells_is_no_order_to_a_terminal() {
    let told =
        chain(&StartError::Setting { setting: "model", reason: "a\u{1b}[2J\nb\u{9b}é".into() });
    assert_eq!(told, "model: a\\u{1b}[2J\\nb\\u{9b}é");
}
