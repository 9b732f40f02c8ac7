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
from cases import MAX_LEN, build_cases, fill

HERE = Path(__file__).parent
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 300, 2000]
FAULT_FLOOR = 0.05  # a planted fault moves some value by at least this
PREFIX_LIMIT = 5e-5  # a prefix run and the full run differ by less
FLOAT64_LIMIT = 2e-4  # float32 and float64 differ by less
ROUTER_GAP = 3e-4  # the least distance between the last expert chosen and the next one, in router logits
SHARDED = {"qwen3_moe_sharded": "150KB"}


def write_checkpoint(folder, config):
    shutil.rmtree(folder, ignore_errors=True)
    config.architectures = None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, config)
    model = model.bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    model.save_pretrained(folder, max_shard_size=SHARDED.get(folder.name, "1GB"))


def load_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    pin_rope(model)
    return model


def pin_rope(model):
    """Resolves a scaling that depends on the length once, at MAX_LEN, where transformers follows the input."""
    rotary = model.model.rotary_emb
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


def golden(model, tokens):
    """(the golden, the largest distance between prefix runs and the full run)."""
    full, tops, worst = run_model(model, tokens), [], 0.0
    for length in LENGTHS:
        prefix = run_model(model, tokens[:length])
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
    settings.has_bias = any(name.endswith("q_proj.bias") for name in weights)
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
    rope = config.pop("rope_parameters")
    config["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    key = "type" if kind in ("linear", "dynamic") else "rope_type"
    config["rope_scaling"] = None if kind == "default" else {key: kind} | rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if config.get("use_sliding_window") is False:
        config["sliding_window"], config["max_window_layers"] = 50, 1  # present, and of no effect
    if config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        config.pop("head_dim")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    config["transformers_version"] = "4.51.0"
    path = folder / "config_v4.json"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    check_older_config(folder, path)


def check_older_config(folder, path):
    """transformers itself reads both as the same model."""
    new, old = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(path)
    same = ["rope_parameters", "head_dim", "layer_types", "sliding_window", "num_experts", "dtype"]
    old.rope_parameters.pop("type", None)
    for field in same:
        left, right = getattr(new, field, None), getattr(old, field, None)
        assert left == right, (folder.name, field, left, right)


def make_case(name, config):
    folder = HERE / name
    write_checkpoint(folder, config)
    write_older_config(folder)
    values, prefix = golden(load_model(folder), draw_prompt(folder, config.vocab_size))
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
    assert row["router_gap"] is None or row["router_gap"] > ROUTER_GAP, name
    assert not weak, (name, weak)


def write_table(path, table):
    """One line per fault, three significant digits."""
    def short(value):
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        return float(f"{value:.3g}") if isinstance(value, float) else value

    path.write_text(json.dumps(short(table), indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    table_path = HERE / "faults.json"
    table = json.loads(table_path.read_text()) if table_path.exists() else {}
    cases = build_cases()
    for name in sys.argv[1:] or cases:
        table[name] = make_case(name, cases[name])
        report(name, table[name])
        write_table(table_path, {n: table[n] for n in cases if n in table})


if __name__ == "__main__":
    main()
