//! A model of the hub against a server that cuts, corrupts, stalls, redirects, refuses and lies.

mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use self::server::{COMMIT, Files, Hub, Reply};
use super::error::HubError;
use super::patience::Patience;
use super::snapshot::{Wish, resolve_patiently};
use crate::config::hub::HubSettings;

const WEIGHTS: &str = "model.safetensors";
const TOKEN: &str = "hf_AbCdEf0123456789";

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        pauses: vec![Duration::from_millis(1); 3],
        pause_max: Duration::from_millis(2),
    }
}

/// A cache of its own, and who asks.
struct Client {
    home: TempDir,
    settings: HubSettings,
}

impl Client {
    fn of(endpoint: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let settings = HubSettings {
            endpoint: endpoint.to_owned(),
            cache: Some(home.path().join("hub")),
            ..HubSettings::default()
        };
        Client { home, settings }
    }

    fn with_token(mut self) -> Self {
        self.settings.token = Some(TOKEN.to_owned());
        self
    }

    fn resolve(&self) -> Result<PathBuf, HubError> {
        self.resolve_as("org/name", None)
    }

    fn resolve_as(&self, model: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
        let wish = Wish { model: Path::new(model), revision, weights: true };
        resolve_patiently(&wish, &self.settings, &patience())
    }

    fn refusal(&self) -> String {
        let error = self.resolve().unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(TOKEN), "{text}");
        error.to_string()
    }

    fn model(&self) -> PathBuf {
        self.home.path().join("hub/models--org--name")
    }

    fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.model().join("blobs")).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
    }

    /// What an earlier start is to have left of a file.
    fn plant(&self, files: &Files, file: &str, bytes: &[u8]) -> PathBuf {
        let path = self.model().join("blobs").join(format!("{}.incomplete", files.digest(file)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn files() -> Files {
    Files::of_golden("qwen3").with("pytorch_model.bin", "a pickle").with("modeling_x.py", "code")
}

/// Holds that a folder has a model's files, whole, and nothing of it that is not read.
fn assert_whole(folder: &Path, files: &Files) {
    for name in ["config.json", "generation_config.json", WEIGHTS] {
        assert!(fs::read(folder.join(name)).unwrap() == files.0[name], "{name} differs");
    }
    assert!(!folder.join("pytorch_model.bin").exists() && !folder.join("modeling_x.py").exists());
}

/// The weights are answered by `spoil`, of the honest answer; the model must be whole in the end.
fn survives(
    spoil: impl Fn(&server::Seen, Reply) -> Reply + Send + Sync + 'static,
    prepare: impl FnOnce(&Client, &Files),
) -> (Hub, Client) {
    let files = files();
    let honest = files.clone();
    let hub = Hub::new(move |seen| match seen.file() {
        WEIGHTS => spoil(seen, honest.answer(seen)),
        _ => honest.answer(seen),
    });
    let client = Client::of(&hub.endpoint);
    prepare(&client, &files);
    assert_whole(&client.resolve().unwrap(), &files);
    assert!(client.blobs().keys().all(|name| !name.ends_with(".incomplete")));
    (hub, client)
}

fn nothing(_: &Client, _: &Files) {}

#[test]
fn a_model_is_downloaded_once_into_the_layout_of_all_tools() {
    let files = files();
    let hub = Hub::of(&files);
    let mut client = Client::of(&hub.endpoint);
    let folder = client.resolve().unwrap();
    assert_eq!(folder, client.model().join("snapshots").join(COMMIT));
    assert_whole(&folder, &files);
    assert_eq!(fs::read_to_string(client.model().join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(folder.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(files.digest(WEIGHTS).to_string()));
    for (name, bytes) in client.blobs() {
        let wanted = files.0.iter().find(|(file, _)| files.digest(file).to_string() == name);
        assert!(*wanted.unwrap().1 == bytes, "{name}");
    }
    let asked = hub.seen().len();
    assert_eq!(client.resolve().unwrap(), folder);
    assert_eq!(hub.seen().len(), asked + 1, "only whether the branch moved");
    assert_eq!(client.resolve_as("org/name", Some(COMMIT)).unwrap(), folder);
    client.settings.offline = true;
    assert_eq!(client.resolve().unwrap(), folder);
    assert_eq!(hub.seen().len(), asked + 1, "a commit, and a cache without a network");
}

#[test]
fn shards_are_those_of_the_index() {
    let files = Files::of_golden("qwen3_moe_sharded");
    let hub = Hub::of(&files.clone().with("model-of-before.safetensors", "old"));
    Client::of(&hub.endpoint).resolve().unwrap();
    let shards = files.0.keys().filter(|name| name.ends_with(".safetensors"));
    assert!(shards.clone().count() > 2);
    shards.for_each(|shard| assert_eq!(hub.seen_of(shard).len(), 1, "{shard}"));
    assert!(hub.seen_of("model-of-before.safetensors").is_empty());
}

#[test]
fn random_weights_need_no_weights() {
    let hub = Hub::of(&files());
    let client = Client::of(&hub.endpoint);
    let wish = Wish { model: Path::new("org/name"), revision: None, weights: false };
    let folder = resolve_patiently(&wish, &client.settings, &patience()).unwrap();
    assert!(folder.join("config.json").exists() && hub.seen_of(WEIGHTS).is_empty());
}

#[test]
fn a_cut_is_resumed_where_it_was() {
    let at = 10_000;
    let (hub, _) =
        survives(move |seen, reply| if seen.before == 0 { reply.cut(at) } else { reply }, nothing);
    let starts: Vec<_> = hub.seen_of(WEIGHTS).iter().map(server::Seen::range_start).collect();
    assert_eq!(starts[0], None);
    // A reset may take the last bytes along.
    assert!(starts[1].is_some_and(|start| start > 0 && start <= at), "{starts:?}");
}

#[test]
fn many_cuts_are_no_reason_to_give_up_while_bytes_arrive() {
    let len = files().0[WEIGHTS].len();
    let (hub, _) = survives(move |_, reply| reply.cut(len / 20 + 1), nothing);
    assert!(hub.seen_of(WEIGHTS).len() > 2 * patience().pauses.len());
}

#[test]
fn what_was_downloaded_is_kept_for_the_next_start() {
    let files = files();
    let honest = files.clone();
    let half = files.0[WEIGHTS].len() / 2;
    let hub = Hub::new(move |seen| match (seen.file(), seen.before) {
        (WEIGHTS, 0) => honest.answer(seen).cut(half),
        (WEIGHTS, 1..=4) => honest.answer(seen).cut(0),
        _ => honest.answer(seen),
    });
    let client = Client::of(&hub.endpoint);
    let said = client.refusal();
    assert!(said.contains("model.safetensors of org/name cannot be fetched"), "{said}");
    assert!(!client.model().join("refs/main").exists(), "what is not whole has no name");
    let tries = hub.seen_of(WEIGHTS).len();
    assert_whole(&client.resolve().unwrap(), &files);
    let later = &hub.seen_of(WEIGHTS)[tries..];
    assert!(later[0].range_start().is_some_and(|start| start > half / 2), "{later:?}");
}

#[test]
fn a_stall_is_a_cut() {
    let files = files();
    let honest = files.clone();
    let hub = Hub::new(move |seen| match (seen.file(), seen.before) {
        (WEIGHTS, 0) => Reply { stalls: true, ..honest.answer(seen).cut(10_000) },
        (WEIGHTS, 1) => Reply { stalls: true, ..honest.answer(seen).cut(0) },
        _ => honest.answer(seen),
    });
    let client = Client::of(&hub.endpoint);
    let patience = Patience { stall: Duration::from_secs(1), ..patience() };
    let wish = Wish { model: Path::new("org/name"), revision: None, weights: true };
    let folder = resolve_patiently(&wish, &client.settings, &patience).unwrap();
    assert_whole(&folder, &files);
    assert_eq!(hub.seen_of(WEIGHTS)[2].range_start(), Some(10_000));
}

#[test]
fn a_flipped_bit_is_noticed_and_fetched_anew_once() {
    let flip = |mut reply: Reply| {
        let middle = reply.body.len() / 2;
        reply.body[middle] ^= 1;
        reply
    };
    let (hub, _) =
        survives(move |seen, reply| if seen.before == 0 { flip(reply) } else { reply }, nothing);
    assert_eq!(hub.seen_of(WEIGHTS).len(), 2);
    for spoiled in [WEIGHTS, "config.json"] {
        let files = files();
        let hub = Hub::new(move |seen| {
            let reply = files.answer(seen);
            if seen.file() == spoiled { flip(reply) } else { reply }
        });
        let client = Client::of(&hub.endpoint);
        let said = client.refusal();
        assert!(said.starts_with(&format!("{spoiled} of org/name does not have")), "{said}");
        assert_eq!(hub.seen_of(spoiled).len(), 2);
        let digest = self::files().digest(spoiled).to_string();
        assert!(client.blobs().keys().all(|name| !name.starts_with(&digest)), "deleted");
    }
}

#[test]
fn a_damaged_part_of_an_earlier_start_is_thrown_away() {
    let spoiled = |client: &Client, files: &Files| {
        let mut part = files.0[WEIGHTS][..20_000].to_vec();
        part[777] ^= 0x80;
        client.plant(files, WEIGHTS, &part);
    };
    let (hub, _) = survives(|_, reply| reply, spoiled);
    let starts: Vec<_> = hub.seen_of(WEIGHTS).iter().map(server::Seen::range_start).collect();
    assert_eq!(starts, [Some(20_000), None]);
    let sound = |client: &Client, files: &Files| {
        client.plant(files, WEIGHTS, &files.0[WEIGHTS][..20_000]);
    };
    assert_eq!(survives(|_, reply| reply, sound).0.seen_of(WEIGHTS).len(), 1);
    let whole = |client: &Client, files: &Files| {
        client.plant(files, WEIGHTS, &files.0[WEIGHTS]);
    };
    assert_eq!(survives(|_, reply| reply, whole).0.seen_of(WEIGHTS).len(), 0);
    let too_long = |client: &Client, files: &Files| {
        client.plant(files, WEIGHTS, &[&files.0[WEIGHTS][..], b"more"].concat());
    };
    let (hub, _) = survives(|_, reply| reply, too_long);
    assert_eq!(hub.seen_of(WEIGHTS)[0].range_start(), None);
}

#[test]
fn a_blob_of_another_size_is_none() {
    survives(
        |_, reply| reply,
        |client, files| {
            let path = client.plant(files, WEIGHTS, b"");
            fs::write(path.with_extension(""), b"cut short by another tool").unwrap();
        },
    );
}

#[test]
fn a_link_among_parts_is_not_written_through() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    let target = victim.clone();
    survives(
        |_, reply| reply,
        move |client, files| {
            let path = client.plant(files, WEIGHTS, b"");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&target, &path).unwrap();
        },
    );
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn lengths_and_ranges_that_lie_cost_a_try_at_most() {
    let half = files().0[WEIGHTS].len() / 2;
    let part = move |client: &Client, files: &Files| {
        client.plant(files, WEIGHTS, &files.0[WEIGHTS][..half]);
    };
    // Longer than what comes, and shorter.
    survives(
        |_, reply| {
            let len = reply.body.len() + 5;
            reply.with("content-length", len)
        },
        nothing,
    );
    survives(
        move |seen, reply| {
            if seen.before == 0 { reply.with("content-length", half) } else { reply }
        },
        nothing,
    );
    // More bytes than the file has.
    survives(
        |_, mut reply| {
            reply.body.extend(b"more");
            let len = reply.body.len();
            reply.with("content-length", len)
        },
        nothing,
    );
    // The whole file, though a part was asked for.
    let whole = files();
    survives(move |_, _| Reply::of(200, whole.0[WEIGHTS].clone()), part);
    // Another part than the one that was asked for.
    let (hub, _) = survives(
        move |seen, reply| match seen.before {
            0 => reply.with("content-range", format!("bytes {}-9/10", half + 3)),
            _ => reply,
        },
        part,
    );
    assert_eq!(hub.seen_of(WEIGHTS)[1].range_start(), Some(half));
    // No such part: it is begun anew.
    let (hub, _) = survives(
        |seen, reply| if seen.range_start().is_some() { Reply::of(416, "no") } else { reply },
        part,
    );
    assert_eq!(hub.seen_of(WEIGHTS)[1].range_start(), None);
}

#[test]
fn parts_of_two_contents_are_never_joined() {
    let (hub, _) = survives(
        |seen, mut reply| {
            if seen.before == 0 {
                reply.body.iter_mut().for_each(|byte| *byte = !*byte);
                return reply.with("etag", "\"another\"").cut(30_000);
            }
            reply
        },
        nothing,
    );
    // First part, second part of another file, and all of it anew.
    assert_eq!(hub.seen_of(WEIGHTS).len(), 3);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let files = files();
    let store = Hub::of(&files);
    let (honest, elsewhere) = (files.clone(), store.endpoint.clone());
    let hub = Hub::new(move |seen| match (seen.file(), seen.path.strip_prefix("/moved")) {
        (WEIGHTS, _) => {
            Reply::of(302, "").with("location", format!("{elsewhere}{}?sig=SECRET", seen.path))
        }
        ("config.json", None) => {
            Reply::of(307, "").with("location", format!("/moved{}", seen.path))
        }
        (_, Some(path)) => honest.answer(&server::Seen { path: path.to_owned(), ..seen.clone() }),
        _ => honest.answer(seen),
    });
    let client = Client::of(&hub.endpoint).with_token();
    assert_whole(&client.resolve().unwrap(), &files);
    let bearer = format!("Bearer {TOKEN}");
    assert!(hub.seen().iter().all(|seen| seen.header("authorization") == Some(&bearer)));
    assert!(hub.seen().iter().any(|seen| seen.path.starts_with("/moved")));
    assert_eq!(store.seen().len(), 1);
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[test]
fn a_signed_address_whose_time_is_over_is_asked_for_again_and_never_told() {
    let files = files();
    let honest = files.clone();
    let store = Hub::new(move |seen| match seen.before {
        0 => Reply::of(403, "expired"),
        _ => honest.answer(seen),
    });
    let (honest, elsewhere) = (files.clone(), store.endpoint.clone());
    let hub = Hub::new(move |seen| match seen.file() {
        WEIGHTS => {
            Reply::of(302, "").with("location", format!("{elsewhere}{}?sig=SECRET", seen.path))
        }
        _ => honest.answer(seen),
    });
    assert_whole(&Client::of(&hub.endpoint).resolve().unwrap(), &files);
    assert_eq!(hub.seen_of(WEIGHTS).len(), 2);
    for place in ["http://127.0.0.1:1/x?sig=SECRET", "nowhere?sig=SECRET", "http://[::?sig=SECRET"]
    {
        let honest = files.clone();
        let hub = Hub::new(move |seen| match seen.file() {
            WEIGHTS => Reply::of(302, "").with("location", place),
            _ => honest.answer(seen),
        });
        let said = Client::of(&hub.endpoint).refusal();
        assert!(!said.contains("SECRET") && said.contains(WEIGHTS), "{said}");
    }
}

#[test]
fn redirects_end() {
    let files = files();
    let hub = Hub::new(move |seen| match seen.file() {
        WEIGHTS => Reply::of(302, "").with("location", seen.path.clone()),
        _ => files.answer(seen),
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("from one address to the next"), "{said}");
}

#[test]
fn a_refusal_says_what_to_do() {
    type Case = (&'static str, u16, &'static str, bool, &'static [&'static str]);
    let cases: [Case; 11] = [
        ("main", 403, "", false, &["refuses org/name", "HF_TOKEN"]),
        (WEIGHTS, 403, "Forbidden", true, &["refuses org/name", "the token that is set"]),
        ("main", 401, "", false, &["shows no model of that name", "set HF_TOKEN"]),
        ("main", 401, "", true, &["does not accept the token"]),
        ("main", 401, "RepoNotFound", true, &["shows no model of that name", "may read it"]),
        ("main", 404, "RepoNotFound", false, &["org/name is no folder here", "check the name"]),
        ("main", 404, "RevisionNotFound", false, &["no revision main", "refs lists"]),
        ("main", 400, "", false, &["it answers 400"]),
        (WEIGHTS, 401, "GatedRepo", false, &["gated", "ask for access", "set HF_TOKEN"]),
        (WEIGHTS, 403, "GatedRepo", true, &["gated", "account of the token"]),
        (WEIGHTS, 404, "EntryNotFound", false, &["has no file model.safetensors"]),
    ];
    for (file, status, code, has_token, wanted) in cases {
        let files = files();
        let hub = Hub::new(move |seen| match seen.file() == file {
            true => Reply::of(status, "<html>").with("x-error-code", code),
            false => files.answer(seen),
        });
        let client = Client::of(&hub.endpoint);
        let client = if has_token { client.with_token() } else { client };
        let said = client.refusal();
        wanted.iter().for_each(|part| assert!(said.contains(part), "{status} {code}: {said}"));
        assert_eq!(hub.seen_of(file).len(), 1, "{status} {code}: no use in a second try");
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    for status in [429, 500, 502, 503, 408] {
        for file in ["main", WEIGHTS] {
            let files = files();
            let honest = files.clone();
            let hub = Hub::new(move |seen| match (seen.file() == file, seen.before) {
                (true, 0..2) => Reply::of(status, "").with("retry-after", 3600),
                _ => honest.answer(seen),
            });
            assert_whole(&Client::of(&hub.endpoint).resolve().unwrap(), &files);
            assert_eq!(hub.seen_of(file).len(), 3, "{status} {file}");
        }
    }
    let hub = Hub::new(|_| Reply::of(500, ""));
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("org/name cannot be fetched: 127.0.0.1 answers 500"), "{said}");
    assert_eq!(hub.seen().len(), 1 + patience().pauses.len());
}

#[test]
fn a_pause_ends_with_the_download() {
    let files = Files::of_golden("qwen3_moe_sharded");
    let shards: Vec<_> = files.0.keys().filter(|name| name.ends_with(".safetensors")).collect();
    let (busy, gone) = (shards[0].clone(), shards[1].clone());
    let (asks_to_wait, has_asked) = std::sync::mpsc::sync_channel(1);
    let has_asked = std::sync::Mutex::new(has_asked);
    let honest = files.clone();
    let hub = Hub::new(move |seen| match seen.file() {
        file if file == busy => {
            let _ = asks_to_wait.try_send(());
            Reply::of(503, "").with("retry-after", 3600)
        }
        file if file == gone => {
            has_asked.lock().unwrap().recv().unwrap();
            Reply::of(404, "").with("x-error-code", "EntryNotFound")
        }
        _ => honest.answer(seen),
    });
    let client = Client::of(&hub.endpoint);
    let hours = Patience { pause_max: Duration::from_secs(3600), ..patience() };
    let wish = Wish { model: Path::new("org/name"), revision: None, weights: true };
    let said = resolve_patiently(&wish, &client.settings, &hours).unwrap_err().to_string();
    assert!(said.contains("has no file"), "{said}");
}

#[test]
fn a_list_without_checksums_is_asked_for_file_by_file() {
    let files = files();
    let honest = files.clone();
    let bare = move |seen: &server::Seen| {
        let reply = honest.answer(seen);
        if seen.file() != "main" {
            return reply;
        }
        let names = honest.0.keys().map(|name| json!({"rfilename": name}));
        let list = json!({"sha": COMMIT, "siblings": names.collect::<Vec<_>>()});
        Reply::of(200, list.to_string())
    };
    let answer = bare.clone();
    let hub = Hub::new(move |seen| match (seen.file(), seen.method.as_str()) {
        // Of a large file the hub tells it before it sends us elsewhere.
        (WEIGHTS, "HEAD") => {
            let reply = answer(seen);
            let tag = reply.headers.iter().find(|(name, _)| name == "etag").unwrap().1.clone();
            let away = Reply::of(302, "").with("location", "http://127.0.0.1:1/x");
            away.with("x-linked-etag", tag).with("x-linked-size", reply.body.len())
        }
        _ => answer(seen),
    });
    assert_whole(&Client::of(&hub.endpoint).resolve().unwrap(), &files);
    let hub = Hub::new(move |seen| match seen.file() {
        "config.json" => bare(seen).with("etag", "\"5f3-1a2b\""),
        _ => bare(seen),
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("config.json of org/name: it tells no size and checksum"), "{said}");
}

#[test]
fn names_of_files_never_leave_the_folder() {
    for bad in ["../../../../escaped.safetensors", "/tmp/escaped.safetensors", "a/b.safetensors"] {
        let index = json!({"weight_map": {"a": bad}}).to_string();
        let files = files().without(WEIGHTS).with("model.safetensors.index.json", index);
        let hub = Hub::of(&files.with(bad, "x"));
        let said = Client::of(&hub.endpoint).refusal();
        assert!(said.contains("expected a .safetensors file beside itself"), "{said}");
    }
    let index = json!({"weight_map": {"a": "absent.safetensors"}}).to_string();
    let files = files().without(WEIGHTS).with("model.safetensors.index.json", index);
    let said = Client::of(&Hub::of(&files).endpoint).refusal();
    assert!(said.contains("org/name has no file absent.safetensors"), "{said}");
}

#[test]
fn what_cannot_be_served_is_told_before_its_weights_are_fetched() {
    let hub = Hub::of(&files().with("config.json", r#"{"architectures": ["FalconForCausalLM"]}"#));
    let said = Client::of(&hub.endpoint).refusal();
    assert_eq!(said, "org/name cannot be served, its weights are not fetched");
    assert!(hub.seen_of(WEIGHTS).is_empty());
    let hub = Hub::of(&files().without(WEIGHTS));
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("no safetensors") && said.contains("end in .bin"), "{said}");
    let hub = Hub::of(&files().without("config.json"));
    let said = Client::of(&hub.endpoint).refusal();
    assert_eq!(said, "org/name has no file config.json");
}

#[test]
fn a_disk_that_is_too_small_is_told_before_it_is_full() {
    let files = files();
    let hub = Hub::new(move |seen| match seen.file() {
        "main" => {
            let mut list = files.listing();
            let siblings = list["siblings"].as_array_mut().unwrap();
            let weights = siblings.iter_mut().find(|one| one["rfilename"] == WEIGHTS).unwrap();
            weights["lfs"]["size"] = (1_u64 << 60).into();
            Reply::of(200, list.to_string())
        }
        _ => files.answer(seen),
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("do not fit") && said.contains("HF_HOME"), "{said}");
    assert!(hub.seen_of(WEIGHTS).is_empty());
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    // The sum of any two of them is more than a number holds.
    let hub = spoiled_list(|name, one| {
        if name.ends_with(".safetensors") {
            one["lfs"]["size"] = (u64::MAX - 1).into();
        }
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("do not fit"), "{said}");
    assert!(hub.seen().iter().all(|seen| !seen.file().ends_with(".safetensors")));
    let hub = spoiled_list(|name, one| {
        if name == "config.json" {
            one["size"] = (300_u64 << 20).into();
        }
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("config.json of org/name: it has 314572800 bytes"), "{said}");
    assert!(hub.seen_of("config.json").is_empty());
}

/// An honest hub of a model in shards, but for its list.
fn spoiled_list(spoil: impl Fn(&str, &mut serde_json::Value) + Send + Sync + 'static) -> Hub {
    let files = Files::of_golden("qwen3_moe_sharded");
    Hub::new(move |seen| {
        if seen.file() != "main" {
            return files.answer(seen);
        }
        let mut list = files.listing();
        for one in list["siblings"].as_array_mut().unwrap() {
            let name = one["rfilename"].as_str().unwrap().to_owned();
            spoil(&name, one);
        }
        Reply::of(200, list.to_string())
    })
}

#[test]
fn a_commit_is_the_one_that_was_asked_for() {
    let hub = Hub::of(&files());
    let client = Client::of(&hub.endpoint);
    let other = "f".repeat(40);
    let said = client.resolve_as("org/name", Some(&other)).unwrap_err().to_string();
    assert!(said.contains("its list is that of another commit"), "{said}");
    assert!(client.resolve_as("org/name", Some(COMMIT)).is_ok());
}

#[test]
fn compressed_and_endless_answers_are_none() {
    // Nobody asked for compression, so its bytes are not those of the file.
    let hub = Hub::new(|seen| match seen.file() {
        WEIGHTS => Reply::of(200, [0x1f; 9000]).with("content-encoding", "gzip"),
        _ => files().answer(seen),
    });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains(WEIGHTS), "{said}");
    let hub =
        Hub::new(|_| Reply::of(200, vec![b' '; 33 << 20]).with("content-length", 1_u64 << 40));
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("its list of files is too long"), "{said}");
    // Nobody waits for what a refusal says.
    let hub =
        Hub::new(|_| Reply { stalls: true, ..Reply::of(404, "no").with("content-length", 9) });
    let said = Client::of(&hub.endpoint).refusal();
    assert!(said.contains("shows no model of that name"), "{said}");
}

#[test]
fn a_token_comes_from_a_small_file_or_not_at_all() {
    let (files, home) = (files(), tempfile::tempdir().unwrap());
    let path = home.path().join("token");
    for (bytes, has_token) in [(TOKEN.to_owned(), true), ("x".repeat(1 << 20), false)] {
        fs::write(&path, bytes).unwrap();
        let hub = Hub::of(&files);
        let mut client = Client::of(&hub.endpoint);
        client.settings.token_file = Some(path.clone());
        client.resolve().unwrap();
        assert!(hub.seen().iter().all(|seen| seen.header("authorization").is_some() == has_token));
    }
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let mut client = Client::of(&Hub::of(&files).endpoint);
    client.settings.token_file = Some(path);
    client.resolve().unwrap();
}

#[test]
fn a_whole_cache_that_cannot_be_written_serves() {
    let files = files();
    let hub = Hub::of(&files);
    let mut client = Client::of(&hub.endpoint);
    let folder = client.resolve().unwrap();
    // There is no place for a lock, and so for nothing new; root may write anywhere else.
    fs::remove_dir_all(client.home.path().join("hub/.locks")).unwrap();
    fs::write(client.home.path().join("hub/.locks"), "no folder").unwrap();
    assert_eq!(client.resolve().unwrap(), folder);
    // A branch that moved cannot be kept: what is there is served.
    let newer = files.with("generation_config.json", "{\"top_k\": 7}");
    let moved = Hub::of(&newer);
    client.settings.endpoint.clone_from(&moved.endpoint);
    assert_eq!(client.resolve().unwrap(), folder);
    assert_eq!(moved.seen().len(), 1, "nothing was fetched for which there is no place");
}

#[test]
fn two_starts_download_a_file_once() {
    let files = files();
    let hub = Hub::of(&files);
    let client = Client::of(&hub.endpoint);
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| client.resolve().unwrap())).collect();
        starts.into_iter().for_each(|start| assert_whole(&start.join().unwrap(), &files));
    });
    assert_eq!((hub.seen_of(WEIGHTS).len(), hub.seen_of("config.json").len()), (1, 1));
}

#[test]
fn a_cache_serves_without_a_network_if_it_is_whole() {
    let files = files();
    let mut client = Client::of(&Hub::of(&files).endpoint);
    let folder = client.resolve().unwrap();
    // Nobody listens there.
    client.settings.endpoint = "http://127.0.0.1:1".to_owned();
    assert_eq!(client.resolve().unwrap(), folder);
    let other = client.resolve_as("org/name", Some("v2")).unwrap_err().to_string();
    assert!(other.starts_with("org/name cannot be fetched: 127.0.0.1: "), "{other}");
    client.settings.offline = true;
    let other = client.resolve_as("org/name", Some("v2")).unwrap_err().to_string();
    assert!(other.contains("the whole of it is missing, and HF_HUB_OFFLINE forbids"), "{other}");
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    let said = client.refusal();
    assert!(said.contains("model.safetensors is missing, and HF_HUB_OFFLINE"), "{said}");
    client.settings.offline = false;
    assert!(client.refusal().contains("cannot be fetched"));
}

#[test]
fn a_branch_that_moved_is_followed() {
    let (files, later) = (files(), "f".repeat(40));
    let hub = Hub::of(&files);
    let mut client = Client::of(&hub.endpoint);
    let before = client.resolve().unwrap();
    let newer = files.clone().with("generation_config.json", "{\"top_k\": 7}");
    let (answers, moved) = (newer.clone(), later.clone());
    let hub = Hub::new(move |seen| {
        if seen.file() == "main" {
            return Reply::of(200, answers.listing().to_string().replace(COMMIT, &moved));
        }
        let path = seen.path.replace(&moved, COMMIT);
        answers.answer(&server::Seen { path, ..seen.clone() })
    });
    client.settings.endpoint.clone_from(&hub.endpoint);
    let after = client.resolve().unwrap();
    assert_ne!(before, after);
    assert_whole(&after, &newer);
    assert_whole(&before, &files);
    assert!(hub.seen_of(WEIGHTS).is_empty(), "what both share is not fetched again");
}

#[test]
fn a_folder_is_taken_before_a_model_of_the_hub() {
    let client = Client::of("http://127.0.0.1:1");
    let folder = client.home.path().to_str().unwrap();
    assert_eq!(client.resolve_as(folder, None).unwrap(), client.home.path());
    let said = client.resolve_as(folder, Some("v1")).unwrap_err().to_string();
    assert!(said.starts_with("revision: is for models of the hub"), "{said}");
    for path in ["/no/such/folder", "./no/such", "name"] {
        assert_eq!(client.resolve_as(path, None).unwrap(), Path::new(path));
    }
    let said = client.resolve_as("org/name", Some("../x")).unwrap_err().to_string();
    assert!(said.starts_with("revision: \"../x\" is no branch"), "{said}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    for endpoint in ["", "huggingface.co", "ftp://a", "http://me:secret@hub", "http://hub?x=1"] {
        let said = Client::of(endpoint).refusal();
        assert!(said.starts_with("HF_ENDPOINT: ") && !said.contains("secret"), "{said}");
    }
    let mut client = Client::of("http://127.0.0.1:1");
    client.settings.token = Some("two\nlines".to_owned());
    assert!(client.refusal().starts_with("HF_TOKEN: "));
    client.settings.cache = None;
    assert!(client.refusal().contains("set HF_HOME"));
}
