//! Every dataset over the demo model's own tokenizer and template, and without any.

use std::collections::BTreeSet;
use std::path::Path;

use rand::SeedableRng;

use super::*;

fn demo() -> TextModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo/model");
    TextModel::from_folder(&folder, &[]).unwrap()
}

fn samples(dataset: &Dataset, count: usize, text: Option<&TextModel>, seed: u64) -> Vec<Sample> {
    dataset.samples(count, text, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
}

fn fault(dataset: &Dataset, count: usize, text: Option<&TextModel>) -> String {
    let error = dataset.samples(count, text, &mut ChaCha8Rng::seed_from_u64(0)).unwrap_err();
    format!("{error:#}")
}

fn text_of(sample: &Sample) -> &str {
    match &sample.prompt {
        Prompt::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

fn random(input_len: u32, output_len: u32, range_ratio: f64) -> Random {
    Random { input_len, output_len, range_ratio, prefix_len: 0, as_ids: false }
}

#[test]
fn random_prompts_have_the_wanted_tokens_and_nothing_in_common() {
    let text = demo();
    let made = samples(&Dataset::Random(random(40, 7, 0.0)), 50, Some(&text), 1);
    let mut beginnings = BTreeSet::new();
    let mut exact = 0;
    for sample in &made {
        let ids = text.tokenizer.encode(text_of(sample), true).unwrap();
        assert_eq!(ids.len(), sample.prompt_tokens as usize);
        exact += usize::from(ids.len() == 40);
        assert_eq!(sample.output_tokens, 7);
        beginnings.insert(ids[..8].to_vec());
    }
    assert!(exact >= 40, "{exact} of 50 have 40 tokens");
    assert_eq!(beginnings.len(), 50);
    assert_eq!(made, samples(&Dataset::Random(random(40, 7, 0.0)), 50, Some(&text), 1));
    assert_ne!(made, samples(&Dataset::Random(random(40, 7, 0.0)), 50, Some(&text), 2));
}

#[test]
fn ranges_reach_as_far_above_as_below() {
    let dataset = random(100, 10, 0.25);
    let (input, output) = dataset.ranges(None).unwrap();
    assert_eq!((input, output), (75..=125, 7..=13));
    // An answer has a token, whatever the ratio.
    assert_eq!(random(10, 1, 0.5).ranges(None).unwrap(), (5..=15, 1..=2));
    let made = samples(&Dataset::Random(dataset), 400, None, 0);
    let of = |len: fn(&Sample) -> u32| {
        let lens: Vec<u32> = made.iter().map(len).collect();
        (*lens.iter().min().unwrap(), *lens.iter().max().unwrap())
    };
    assert_eq!(of(|sample| sample.output_tokens), (7, 13));
    let (least, most) = of(|sample| sample.prompt_tokens);
    assert!((75..80).contains(&least) && (120..=125).contains(&most), "{least} {most}");
    assert!(random(10, 1, 1.0).ranges(None).is_err());
    assert!(fault(&Dataset::Random(random(0, 5, 0.0)), 1, None).contains("--random-input-len"));
}

#[test]
fn a_random_prefix_is_shared_by_all() {
    let text = demo();
    let dataset = Random { prefix_len: 12, as_ids: true, ..random(5, 3, 0.0) };
    let made = samples(&Dataset::Random(dataset), 20, Some(&text), 0);
    let all: Vec<&[u32]> = made
        .iter()
        .map(|sample| match &sample.prompt {
            Prompt::Tokens(ids) => ids.as_slice(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(all.iter().all(|ids| ids.len() == 17 && ids[..12] == all[0][..12]));
    assert!(all.iter().any(|ids| ids[12..] != all[0][12..]));
    assert!(all.iter().copied().flatten().all(|&id| !text.tokenizer.is_special(id)));
}

#[test]
fn without_a_tokenizer_tokens_are_words() {
    let made = samples(&Dataset::Random(random(30, 4, 0.0)), 3, None, 0);
    assert!(made.iter().all(|sample| text_of(sample).split_whitespace().count() == 30));
    assert_ne!(made[0].prompt, made[1].prompt);
    let ids = Random { as_ids: true, ..random(30, 4, 0.0) };
    assert!(fault(&Dataset::Random(ids), 1, None).contains("--tokenizer"));
}

#[test]
fn prefixes_are_repeated_equally_often() {
    let dataset = PrefixRepetition {
        prefix_len: 16,
        suffix_len: 8,
        num_prefixes: 3,
        output_len: 5,
        shuffle: true,
    };
    for text in [Some(&demo()), None] {
        let made = samples(&Dataset::PrefixRepetition(dataset.clone()), 14, text, 0);
        assert_eq!(made.len(), 12, "14 prompts of 3 prefixes");
        let head = |sample: &Sample| text_of(sample).chars().take(6).collect::<String>();
        let mut heads: Vec<String> = made.iter().map(head).collect();
        let shuffled = heads.clone();
        heads.sort_unstable();
        assert_ne!(heads, shuffled);
        for four in heads.chunks(4) {
            assert!(four.iter().all(|head| head == &four[0]));
        }
        heads.dedup();
        assert_eq!(heads.len(), 3);
    }
    assert!(fault(&Dataset::PrefixRepetition(dataset), 2, None).contains("num-prefixes"));
}

fn file(folder: &tempfile::TempDir, text: &str, shuffle: bool, oversample: bool) -> File {
    let path = folder.path().join("data");
    std::fs::write(&path, text).unwrap();
    File { path, shuffle, oversample }
}

#[test]
fn conversations_are_filtered_by_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let words = |count: usize| "12 ".repeat(count);
    let turn = |count: usize| json!({ "from": "human", "value": words(count) });
    let conversation = |first, second| json!({ "conversations": [turn(first), turn(second)] });
    let entries = json!([
        conversation(20, 30),
        { "id": "nothing" },
        { "conversations": [turn(20)] },
        conversation(1, 30),
        conversation(20, 1),
        conversation(600, 30),
        conversation(300, 600),
        conversation(25, 35),
    ]);
    let text = demo();
    let tokens = |count| text.tokenizer.encode(&words(count), true).unwrap().len() as u32;
    assert!(tokens(600) > 1024 && tokens(300) <= 1024 && tokens(300) + tokens(600) > 2048);
    assert!(tokens(1) < 4);
    let file = file(&folder, &entries.to_string(), false, false);
    let dataset = Dataset::Sharegpt(Sharegpt { file: file.clone(), output_len: None });
    let lens = |dataset: &Dataset, count| -> Vec<(u32, u32)> {
        let made = samples(dataset, count, Some(&text), 0);
        made.iter().map(|sample| (sample.prompt_tokens, sample.output_tokens)).collect()
    };
    assert_eq!(lens(&dataset, 9), [(tokens(20), tokens(30)), (tokens(25), tokens(35))]);
    assert_eq!(lens(&dataset, 1), [(tokens(20), tokens(30))]);
    // A wanted length lets short answers in, and long ones.
    let wanted = Dataset::Sharegpt(Sharegpt { file: file.clone(), output_len: Some(3) });
    let kept = lens(&wanted, 9);
    assert_eq!(kept.len(), 4);
    assert!(kept.iter().all(|&(_, output)| output == 3));
    let again = File { oversample: true, ..file };
    let dataset = Dataset::Sharegpt(Sharegpt { file: again, output_len: None });
    assert_eq!(samples(&dataset, 9, Some(&text), 0).len(), 9);
    assert!(fault(&dataset, 9, None).contains("--tokenizer"));
}

#[test]
fn custom_prompts_go_through_the_template_once_or_never() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"prompt\": \"Hi\"}\n\n\
                 {\"messages\": [{\"role\": \"user\", \"content\": \"Hey\"}], \"output_tokens\": 9}\n";
    let custom = |is_chat, skip_chat_template| {
        let file = file(&folder, lines, false, false);
        Dataset::Custom(Custom { file, output_len: 5, is_chat, skip_chat_template })
    };
    let text = demo();
    let made = samples(&custom(false, false), 9, Some(&text), 0);
    assert_eq!(text_of(&made[0]), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert!(text_of(&made[1]).contains("user\nHey<|im_end|>"));
    assert_eq!((made[0].output_tokens, made[1].output_tokens), (5, 9));
    assert!(made[0].prompt_tokens > 5);
    let made = samples(&custom(true, false), 9, Some(&text), 0);
    assert_eq!(text_of(&made[0]), "Hi");
    assert_eq!(made[1].prompt, Prompt::Messages(json!([{ "role": "user", "content": "Hey" }])));
    // A chat without a template cannot be a completion.
    for (dataset, text) in [(custom(false, true), Some(&text)), (custom(false, false), None)] {
        let fault = fault(&dataset, 9, text);
        assert!(fault.contains("line 3") && fault.contains("openai-chat"), "{fault}");
    }
}

#[test]
fn a_damaged_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (line, what) in [
        ("{\"prompt\": 1}", "line 2"),
        ("{}", "either"),
        ("{\"prompt\":\"a\",\"output_tokens\":0}", "one token"),
    ] {
        let file = file(&folder, &format!("{{\"prompt\":\"a\"}}\n{line}\n"), true, true);
        let custom = Custom { file, output_len: 5, is_chat: true, skip_chat_template: false };
        let fault = fault(&Dataset::Custom(custom), 1, None);
        assert!(fault.contains(what), "{fault}");
    }
    let file = file(&folder, "\n", true, true);
    let custom = Custom { file, output_len: 5, is_chat: true, skip_chat_template: false };
    assert!(fault(&Dataset::Custom(custom), 1, None).contains("no prompt"));
}
