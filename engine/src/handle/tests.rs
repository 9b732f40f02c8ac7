//! The handle and its streams: admission, order of events, cancel by drop.

use super::*;
use crate::model::info::{KvGroupInfo, KvGroupKind};
use crate::request::{Event, SamplerParams, Segment, StepError, StopParams, Tenant};
use pagoda_kernels::dtype::DType;

fn info() -> InstanceInfo {
    let group =
        |kind, num_blocks| KvGroupInfo { kind, num_layers: 1, num_blocks, bytes_per_block: 1 };
    InstanceInfo {
        max_model_len: 200,
        vocab: 100,
        block_size: 16,
        groups: vec![group(KvGroupKind::Full, 10), group(KvGroupKind::Window(20), 4)],
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_logits_rows: 16,
        max_logprobs: 5,
        numerics: "test".into(),
        eos_token_ids: vec![],
        default_sampling: Default::default(),
        dtype: DType::F32,
        quantization: None,
        kv_dtype: DType::F32.into(),
        weight_bytes: 0,
        depth: 1,
        device: "none".into(),
    }
}

fn request(prompt: usize, max_tokens: u32) -> Request {
    Request {
        id: "r".into(),
        input: vec![Segment::Tokens(vec![1; prompt])],
        sampler: SamplerParams::default(),
        stop: StopParams {
            max_tokens,
            min_tokens: 0,
            eos_token_ids: vec![],
            stop_token_ids: vec![],
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant::default(),
        priority: 0,
    }
}

fn small_queue() -> SchedulerSettings {
    SchedulerSettings { max_queued_requests: 3, max_queued_tokens: 50, ..Default::default() }
}

#[test]
fn client_errors_are_typed() {
    let (handle, _inbox) = border(info(), small_queue());
    let refuse = |request| handle.submit(request).unwrap_err();
    assert!(matches!(refuse(request(0, 1)), SubmitError::Invalid(_)));
    let mut unknown = request(2, 1);
    unknown.input.push(Segment::Tokens(vec![100]));
    assert!(matches!(refuse(unknown), SubmitError::Invalid(_)));
    assert_eq!(
        refuse(request(150, 51)),
        SubmitError::ContextLength { max_model_len: 200, prompt_tokens: 150, max_tokens: 51 }
    );
    assert_eq!(refuse(request(150, 11)), SubmitError::NeverFits { needed: 11, total: 10 });
    let mut many = request(2, 1);
    many.n = 4;
    assert!(matches!(refuse(many), SubmitError::Invalid(_)), "more choices than places");
    let mut top = request(2, 1);
    top.prompt_logprobs = Some(6);
    assert!(matches!(refuse(top), SubmitError::Invalid(_)));
}

#[test]
fn the_queue_is_bounded_by_sequences_and_by_tokens() {
    let (handle, inbox) = border(info(), small_queue());
    let _long = handle.submit(request(100, 1)).expect("a lone request may be long");
    assert!(matches!(handle.submit(request(1, 1)), Err(SubmitError::Busy { queued: 1, .. })));
    let Ok(Message::Submit(long)) = inbox.messages.try_recv() else { panic!() };
    long.places.give_back(&inbox.shared.stats, 1, 100);
    let mut two = request(20, 1);
    two.n = 2;
    let _two = handle.submit(two).unwrap();
    let _one = handle.submit(request(30, 1)).unwrap();
    assert!(matches!(handle.submit(request(1, 1)), Err(SubmitError::Busy { queued: 3, .. })));
    let stats = handle.stats();
    assert_eq!((stats.waiting, stats.waiting_tokens, stats.refused), (3, 50, 2));
}

fn small_room() -> SchedulerSettings {
    SchedulerSettings { max_answer_items: 200, ..SchedulerSettings::default() }
}

#[test]
fn answers_of_all_requests_share_one_budget() {
    let (handle, inbox) = border(info(), small_room());
    let alone = handle.submit(request(10, 49)).unwrap_err();
    assert!(matches!(alone, SubmitError::AnswerTooLarge { .. }), "more than a quarter: {alone:?}");
    let open: Vec<EventStream> = (0..3).map(|_| handle.submit(request(10, 48)).unwrap()).collect();
    let busy = handle.submit(request(10, 30)).unwrap_err();
    assert!(matches!(busy, SubmitError::Busy { retry_after_s: 1.., .. }), "{busy:?}");
    assert_eq!(handle.stats().waiting, 3, "who was refused waits for nothing");
    drop(open);
    assert!(handle.submit(request(10, 30)).is_err(), "the engine still holds its end");
    drop(inbox.messages.try_recv());
    assert!(handle.submit(request(10, 30)).is_ok());
}

/// However many models a process serves, their answers are bounded as those of one.
#[test]
fn instances_of_a_process_share_one_budget() {
    let answers = AnswerBudget::new(200);
    let instance = || border_beside(info(), SchedulerSettings::default(), answers.clone());
    let ((first, _first_inbox), (second, inbox)) = (instance(), instance());
    let open: Vec<EventStream> = (0..3).map(|_| second.submit(request(10, 48)).unwrap()).collect();
    assert!(matches!(first.submit(request(10, 30)), Err(SubmitError::Busy { .. })));
    drop(open);
    while inbox.messages.try_recv().is_ok() {}
    assert!(first.submit(request(10, 30)).is_ok());
}

#[test]
fn what_an_answer_takes_is_held_beside_its_ring_until_it_is_gone() {
    let (handle, inbox) = border(info(), small_room());
    let submit = |bytes| handle.submit_for(request(10, 8), bytes);
    let refused = submit(41 * 16).unwrap_err();
    assert!(matches!(refused, SubmitError::AnswerTooLarge { .. }), "{refused:?}");
    assert!(submit(u64::MAX).is_err());
    let (streams, rooms): (Vec<_>, Vec<_>) = (0..3).map(|_| submit(40 * 16).unwrap()).unzip();
    assert!(rooms.iter().all(|room| room.items() == 40));
    assert!(matches!(submit(40 * 16), Err(SubmitError::Busy { .. })));
    drop(streams);
    while inbox.messages.try_recv().is_ok() {}
    let (_stream, _room) = submit(40 * 16).unwrap();
    assert!(submit(5 * 16).is_err(), "three answers are still being sent");
    drop(rooms);
    assert!(submit(40 * 16).is_ok());
}

#[test]
fn choices_with_log_probabilities_over_a_long_context_are_admitted() {
    let mut info = InstanceInfo { max_model_len: 131_072, max_logprobs: 20, ..info() };
    info.groups.truncate(1);
    info.groups[0].num_blocks = 10_000;
    let (handle, _inbox) = border(info, SchedulerSettings::default());
    let ask = |n| {
        let mut large = request(1_000, 130_000);
        (large.n, large.sampler.num_logprobs) = (n, Some(20));
        handle.submit(large)
    };
    assert!(ask(3).is_ok());
    let refused = ask(4).unwrap_err();
    assert_eq!(refused, SubmitError::AnswerTooLarge { mib: 166, mib_max: 128 });
}

#[test]
fn several_requests_are_admitted_together_or_not_at_all() {
    let settings = SchedulerSettings { max_queued_requests: 3, ..Default::default() };
    let (handle, inbox) = border(info(), settings);
    let all = |prompts: &[usize]| prompts.iter().map(|len| (request(*len, 1), 0)).collect();
    let first = handle.submit(request(10, 1)).unwrap();
    let busy = handle.submit_all(all(&[10, 10, 10])).unwrap_err();
    assert!(matches!(busy, SubmitError::Busy { .. }), "{busy:?}");
    assert_eq!(handle.stats().waiting, 1, "none of them waits");
    assert_eq!(inbox.messages.try_iter().count(), 1);
    let never = handle.submit_all(all(&[1, 1, 1, 1])).unwrap_err();
    assert!(matches!(never, SubmitError::Invalid(_)), "more than places: {never:?}");
    let wrong = handle.submit_all(all(&[1, 0])).unwrap_err();
    assert!(matches!(wrong, SubmitError::Invalid(_)));
    assert_eq!(handle.submit_all(all(&[10, 20])).unwrap().len(), 2);
    let stats = handle.stats();
    assert_eq!((stats.waiting, stats.waiting_tokens), (3, 40));
    drop(first);

    let (handle, _inbox) = border(info(), small_queue());
    let never = handle.submit_all(all(&[30, 30])).unwrap_err();
    assert!(matches!(never, SubmitError::Invalid(_)), "more than tokens: {never:?}");
}

#[test]
fn a_tenant_that_fills_the_queue_leaves_room_for_others() {
    let settings = SchedulerSettings { max_queued_requests: 64, ..Default::default() };
    let (handle, _inbox) = border(info(), settings);
    let ask = |tenant: &str| {
        let mut request = request(1, 1);
        request.tenant.id = tenant.into();
        handle.submit(request)
    };
    let all: Vec<_> = std::iter::from_fn(|| ask("a").ok()).collect();
    assert_eq!(all.len(), 64);
    assert!(ask("b").is_ok() && ask("c").is_ok());
    assert!(matches!(ask("a"), Err(SubmitError::Busy { .. })));
}

#[test]
fn what_is_left_in_the_inbox_is_told_whose_fault_it_is() {
    let last = |drains: bool| {
        let (handle, inbox) = border(info(), small_queue());
        let mut stream = handle.submit(request(1, 1)).unwrap();
        if drains {
            handle.drain(Duration::ZERO);
        }
        drop(inbox);
        stream.try_next()
    };
    assert_eq!(last(true), Some(Event::Failed(StepError::ShuttingDown)));
    assert_eq!(last(false), Some(Event::Failed(StepError::Ended)));
}

#[test]
fn a_request_that_is_dropped_unseen_while_the_engine_drains_was_shut_down() {
    let (handle, inbox) = border(info(), small_queue());
    let mut stream = handle.submit(request(1, 1)).unwrap();
    let message = inbox.messages.try_recv().unwrap();
    handle.drain(Duration::ZERO);
    drop(message);
    assert_eq!(stream.try_next(), Some(Event::Failed(StepError::ShuttingDown)));
}

#[test]
fn a_draining_or_dead_engine_admits_nothing() {
    let (handle, inbox) = border(info(), small_queue());
    handle.drain(Duration::from_secs(3));
    assert!(matches!(inbox.messages.try_recv(), Ok(Message::Wake)));
    assert!(inbox.shared.drain_left().is_some_and(|left| left <= Duration::from_secs(3)));
    assert_eq!(handle.submit(request(1, 1)).unwrap_err(), SubmitError::Draining);
    let (handle, inbox) = border(info(), small_queue());
    drop(inbox);
    assert_eq!(handle.submit(request(1, 1)).unwrap_err(), SubmitError::Stopped);
}

#[test]
fn choices_differ_in_nothing_but_their_number() {
    let (handle, inbox) = border(info(), small_queue());
    let mut two = request(20, 3);
    two.n = 2;
    two.prompt_logprobs = Some(1);
    let _stream = handle.submit(two).unwrap();
    let Ok(Message::Submit(group)) = inbox.messages.try_recv() else { panic!() };
    assert_eq!(group.num_unfinished, 2);
    let [first, second] = &group.sequences[..] else { panic!() };
    assert_eq!((first.sampler.choice, second.sampler.choice), (0, 1));
    assert_eq!((first.prompt_top, second.prompt_top), (Some(1), None));
    assert_eq!(first.chain.keys(), second.chain.keys());
    assert_eq!(first.chain.keys().len(), 1);
    assert!(first.output.capacity() >= 3);
}
