"""Makes the golden checkpoints: Hugging Face folders with random weights, and what transformers computes from them.

Run by hand when a case is added; tests never run it, they read the files. README.md has the formats. Every case is
checked while it is made: against a float64 decoder of our own (reference.py), prefix runs against the full run, and
every planted fault must move a compared value. The measured table goes to faults.json.

    python make.py [case ...]
"""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import reference
from cases import MAX_LEN, build_cases, fill, text_of

HERE = Path(__file__).parent
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 300, 2000]
FAULT_FLOOR = 0.05  # a planted fault moves some value by at least this
PREFIX_LIMIT = 5e-5  # a prefix run and the full run differ by less
FLOAT64_LIMIT = 4e-4  # float32 and float64 differ by less
SAME_ANGLES_LIMIT = 2e-4  # and by less than this where both round angles alike
ROUTER_GAP = 3e-4  # the least distance between the last expert chosen and the next one, in router logits
SHARDED = {"qwen3_moe_sharded": "150KB"}


def write_checkpoint(folder, config):
    shutil.rmtree(folder, ignore_errors=True)
    config.architectures = None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model.named_parameters(), config)
    model = model.bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=text_of(config).bos_token_id, eos_token_id=config.eos_token_id,
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    model.save_pretrained(folder, max_shard_size=SHARDED.get(folder.name, "1GB"))


def load_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    pin_rope(model)
    return model


def pin_rope(model):
    """Resolves a scaling that depends on the length once, at MAX_LEN, where transformers follows the input."""
    rotary = getattr(model.model, "language_model", model.model).rotary_emb
    if rotary.rope_type in ("dynamic", "longrope"):
        rotary.inv_freq, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[rotary.rope_type](
            model.config, seq_len=MAX_LEN)
        rotary.rope_type = "pinned"  # a name that transformers does not update


@torch.no_grad()
def run_model(model, tokens):
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)


def targets(logprobs, tokens):
    return logprobs[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]


def draw_prompt(folder, vocab):
    """The first seed's prompt on which no router's choice hangs on rounding."""
    settings, weights = settings_of(folder, torch.float32)
    for seed in itertools.count(1):
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, vocab, (LENGTHS[-1],), generator=draw).tolist()
        if not any(settings.moe):
            return tokens
        settings.seen.router_gap.clear()
        reference.log_probs(settings, weights, tokens)
        if min(settings.seen.router_gap) > 1.1 * ROUTER_GAP:
            return tokens


def rounded(values):
    return [float(f"{value:.7g}") for value in values.tolist()]


def golden(run, tokens):
    """(the golden, the largest distance between prefix runs and the full run)."""
    full, tops, worst = run(tokens), [], 0.0
    for length in LENGTHS:
        prefix = run(tokens[:length])
        worst = max(worst, (prefix - full[:length]).abs().max().item())
        values, ids = prefix[-1].topk(20)
        tops.append(dict(length=length, ids=ids.tolist(), logprobs=rounded(values)))
    return dict(max_model_len=MAX_LEN, tokens=tokens, target_logprobs=rounded(targets(full, tokens)),
                top20=tops), worst


def largest_move(golden, logprobs):
    """The largest difference between a golden's values and those of another run over the full prompt."""
    wanted = torch.tensor(golden["target_logprobs"], dtype=logprobs.dtype)
    moves = (targets(logprobs, golden["tokens"]) - wanted).abs()
    tops = [(logprobs[top["length"] - 1, top["ids"]] - torch.tensor(top["logprobs"])).abs().max()
            for top in golden["top20"]]
    largest = max(moves.max().item(), max(tops).item())
    assert math.isfinite(largest)
    return largest


def check_truth(folder, golden):
    """Compares with float64, and returns what that run saw of the model's conditions.

    transformers rounds position x frequency to float32; the first distance is to angles in float64, as a table made
    with care has them, the second to those rounded angles.
    """
    settings, weights = settings_of(folder, torch.float64)
    logprobs = reference.log_probs(settings, weights, golden["tokens"])
    rounded_angles = reference.SimpleNamespace(**vars(settings) | dict(angle=torch.float32))
    same_angles = reference.log_probs(rounded_angles, weights, golden["tokens"])
    return dict(
        float64=largest_move(golden, logprobs), float64_same_angles=largest_move(golden, same_angles),
        logprob_std=logprobs.std().item(),
        attention_std=max(settings.seen.logit_std),
        router_gap=min(settings.seen.router_gap, default=None))


def settings_of(folder, dtype):
    settings, weights = reference.load_settings(folder, MAX_LEN), reference.load_weights(folder, dtype)
    settings.has_bias = "model.layers.0.self_attn.q_proj.bias" in weights
    settings.has_post_norms = "model.layers.0.attn_post_norm.weight" in weights
    return settings, weights


def plant_faults(folder, golden):
    settings, weights = settings_of(folder, torch.float32)
    moved = {}
    for name, fault in reference.FAULTS.items():
        if (changed := fault(settings)) is not None:
            moved[name] = largest_move(golden, reference.log_probs(changed, weights, golden["tokens"]))
    return moved


def write_older_config(folder):
    """config_v4.json: the same model in the words of transformers 4, as most published checkpoints have it."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    older_rope(text, text.pop("rope_parameters"))
    config["torch_dtype"] = config.pop("dtype")
    text.pop("layer_types", None)
    if text.get("use_sliding_window") is False:
        text["sliding_window"], text["max_window_layers"] = 50, 1  # present, and of no effect
    kind = text["model_type"]
    if kind.startswith(("llama", "qwen")) and text.get("head_dim") == text["hidden_size"] // text["num_attention_heads"]:
        text.pop("head_dim")
    if kind == "qwen3_moe":
        text["num_experts"] = text.pop("num_local_experts")
    if kind.startswith("gemma"):
        older_gemma(config, text, kind)
    config["transformers_version"] = "4.51.0"
    path = folder / "config_v4.json"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    check_older_config(folder, path)


def older_rope(text, rope):
    """Base and scaling beside each other, and all that was not the scaling's."""
    by_kind = "full_attention" in rope
    if by_kind:
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    text["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    key = "type" if kind in ("linear", "dynamic") and not by_kind or text["model_type"] == "phi3" else "rope_type"
    if text["model_type"] in ("phi3", "glm", "glm4"):
        text["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    if text["model_type"] == "phi3":
        rope.pop("original_max_position_embeddings", None)
    text["rope_scaling"] = None if kind == "default" else {key: kind} | rope


def older_gemma(config, text, kind):
    """What Google's files leave out."""
    config.pop("tie_word_embeddings", None)
    text.pop("tie_word_embeddings", None)
    if kind == "gemma":
        text["hidden_act"], text["hidden_activation"] = "gelu", None  # and tanh is meant
    if kind == "gemma3_text":
        text["sliding_window_pattern"] = text.pop("_sliding_window_pattern")
    if text is not config:
        kept = ["hidden_size", "intermediate_size", "num_hidden_layers", "rope_scaling", "sliding_window", "model_type",
                "vocab_size", "head_dim"]  # the last two are other than the default here
        config["text_config"] = {name: text[name] for name in kept}


def check_older_config(folder, path):
    """transformers itself reads both as the same model."""
    new, old = (AutoConfig.from_pretrained(from_) for from_ in (folder, path))
    assert new.dtype == old.dtype, folder.name
    new, old = text_of(new), text_of(old)
    same = ["rope_parameters", "head_dim", "layer_types", "sliding_window", "num_experts", "hidden_act",
            "hidden_activation", "tie_word_embeddings", "num_attention_heads", "rms_norm_eps", "vocab_size",
            "num_key_value_heads", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"]
    old.rope_parameters.pop("type", None)
    for field in same:
        left, right = getattr(new, field, None), getattr(old, field, None)
        assert left == right, (folder.name, field, left, right)


def make_case(name, config):
    folder = HERE / name
    write_checkpoint(folder, config)
    write_older_config(folder)
    model = load_model(folder)
    return measure(folder, lambda tokens: run_model(model, tokens), text_of(config).vocab_size)


def measure(folder, run, vocab):
    """Writes golden.json from what `run` computes, and returns what its checks measured."""
    values, prefix = golden(run, draw_prompt(folder, vocab))
    row = dict(prefix=prefix) | check_truth(folder, values)
    row["faults"] = plant_faults(folder, values)
    (folder / "golden.json").write_text(json.dumps(values, separators=(",", ":")) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    return row


def report(name, row):
    weak = {fault: moved for fault, moved in row["faults"].items() if moved < FAULT_FLOOR}
    print(name, json.dumps({k: v for k, v in row.items() if k != "faults"}))
    print("   ", {fault: float(f"{moved:.3g}") for fault, moved in row["faults"].items()}, flush=True)
    assert row["prefix"] < PREFIX_LIMIT and row["float64"] < FLOAT64_LIMIT, name
    assert row["float64_same_angles"] < SAME_ANGLES_LIMIT, name
    assert row["router_gap"] is None or row["router_gap"] > ROUTER_GAP, name
    assert not weak, (name, weak)


def write_table(path, table):
    """One line per fault, three significant digits."""
    def short(value):
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        return float(f"{value:.3g}") if isinstance(value, float) else value

    path.write_text(json.dumps(short(table), indent=1) + "\n")


def write_readme(path, table):
    """What every fault moves where it moves least, and how far sound runs lie apart, between the marks of README.md."""
    begin, end = "<!-- faults: begin -->\n", "<!-- faults: end -->"
    least = {}
    for row in table.values():
        for fault, moved in row["faults"].items():
            cases, low = least.get(fault, (0, math.inf))
            least[fault] = cases + 1, min(low, moved)
    known = [fault for fault in reference.FAULTS if fault in least]
    lines = [f"| {fault} | {least[fault][0]} | {least[fault][1]:.2g} |" for fault in known]

    def most(field):
        return max(row[field] for row in table.values())

    gaps = [row["router_gap"] for row in table.values() if row["router_gap"] is not None]
    sound = (f"And what they forgive: the float64 decoder is within {most('float64'):.1g} of every value "
             f"({most('float64_same_angles'):.1g} when it too\nrounds position × frequency to float32, as transformers "
             f"does), runs over a prefix are within {most('prefix'):.1g} of the full\nrun, and no router's choice is "
             f"closer than {min(gaps):.1g} in logits.\n")
    before, rest = path.read_text().split(begin)
    parts = [before, begin, "| fault | cases | least |\n|---|---|---|\n", "\n".join(lines), "\n\n", sound, end]
    path.write_text("".join(parts) + rest.split(end)[1])


def make_all(cases, make):
    """Makes the cases that were asked for, and their lines of the table."""
    torch.set_num_threads(1)
    table_path = HERE / "faults.json"
    for name in sys.argv[1:] or cases:
        row = make(name, cases[name])
        table = json.loads(table_path.read_text()) if table_path.exists() else {}
        table = dict(sorted((table | {name: row}).items()))
        write_table(table_path, table)
        write_readme(HERE / "README.md", table)
        report(name, row)


if __name__ == "__main__":
    make_all(build_cases(), make_case)
