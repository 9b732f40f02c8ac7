"""transformers' continuous batching at Llama-3.1-8B's shape with random weights: a weak peer, and named so.

The same requests as the suite's: 512 tokens in, 128 out, greedy, all at once.
"""

import time

import peer

SHAPE = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
    rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
)
PROMPT, OUTPUT = 512, 128
SETS = (1, 16, 64)
ATTENTIONS = ("paged|flash_attention_2", "paged|sdpa")


def model_of(torch, transformers, attention):
    config = transformers.LlamaConfig(**SHAPE)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


def prompts(count, seed):
    token = lambda index: (seed * 7919 + index * 104_729 + 13) % 128_000
    return [[token(number * 1000 + index) for index in range(PROMPT)] for number in range(count)]


def work(asked):
    import torch
    import transformers
    model = None
    for attention in ATTENTIONS:
        try:
            model = model_of(torch, transformers, attention)
            break
        except Exception as error:
            peer.note(f"transformers with {attention}", f"not measured: {error}")
    if model is None:
        return True
    peer.note("transformers: attention", attention)
    settings = transformers.GenerationConfig(
        max_new_tokens=OUTPUT, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def seconds(count, seed):
        began = time.perf_counter()
        # Kept, so that memory and graphs of the first call serve the others.
        answers = model.generate_batch(
            prompts(count, seed), generation_config=settings, progress_bar=False, persistent_manager=True)
        took = time.perf_counter() - began
        tokens = sum(len(answer.generated_tokens) for answer in answers.values())
        if tokens != count * OUTPUT:
            raise RuntimeError(f"{tokens} tokens instead of {count * OUTPUT}")
        return took

    for count in SETS:
        if not asked.keeps_going(30):
            return False
        what = f"{count} requests of {PROMPT} + {OUTPUT}: output"
        try:
            seconds(count, 1)
            samples = [count * OUTPUT / seconds(count, seed) for seed in (2, 3)]
            peer.figure(what, "tokens/s", samples)
        except Exception as error:
            peer.note(what, f"not measured: {type(error).__name__}: {error}")
    return True


if __name__ == "__main__":
    peer.Peer().run("transformers' continuous batching", ["torch", "transformers"], work)
