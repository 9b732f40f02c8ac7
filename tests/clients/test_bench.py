"""`pagoda-bench serve` against `pagoda serve`: every figure worked out again from what each request saw.

benches/tests/serve.rs does the same with servers that fail.
"""

import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import time

from server import BINARY, Server

BENCH = BINARY.with_name("pagoda-bench")
DEMO = pathlib.Path(__file__).parents[2] / "engine/demo/model"
METRICS = "ttft,tpot,itl,e2el"


def start(server, *flags, folder):
    flags = ["--result-dir", folder, "--result-filename", "result.json", *flags]
    flags = ["--base-url", server.url, "--save-result", "--save-detailed", *flags]
    return subprocess.Popen(
        [str(BENCH), "serve", *map(str, flags)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"},
    )


def run(server, *flags, folder):
    process = start(server, *flags, folder=folder)
    output, _ = process.communicate(timeout=120)
    lines = (folder / "result.json").read_text().splitlines()
    return process.returncode, output, [json.loads(line) for line in lines]


def percentile(values, percent):
    """As numpy does: between the two nearest."""
    values = sorted(values)
    place = percent / 100 * (len(values) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def near(found, wanted):
    assert math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9), (found, wanted)


def check_figures(result, percentiles=(99,)):
    """Works the figures out from the lists of a detailed result."""
    good = [index for index, error in enumerate(result["errors"]) if not error]

    def of(name):
        return [result[name][index] for index in good]

    ttfts, latencies, outputs = of("ttfts"), of("latencies"), of("output_lens")
    assert result["completed"] == len(good)
    assert result["failed"] == len(result["errors"]) - len(good)
    assert result["total_input_tokens"] == sum(of("input_lens"))
    assert result["total_output_tokens"] == sum(outputs)
    values = {
        "ttft": ttfts,
        "e2el": latencies,
        "itl": [gap for gaps in of("itls") for gap in gaps],
        "tpot": [
            (latency - ttft) / (output - 1)
            for latency, ttft, output in zip(latencies, ttfts, outputs)
            if output > 1
        ],
    }
    for name, seconds in values.items():
        near(result[f"mean_{name}_ms"], statistics.fmean(seconds) * 1e3)
        near(result[f"median_{name}_ms"], statistics.median(seconds) * 1e3)
        near(result[f"std_{name}_ms"], statistics.pstdev(seconds) * 1e3)
        for percent in percentiles:
            near(result[f"p{percent}_{name}_ms"], percentile(seconds, percent) * 1e3)
    duration = result["duration"]
    near(result["request_throughput"], len(good) / duration)
    near(result["output_throughput"], sum(outputs) / duration)
    near(
        result["total_token_throughput"],
        (sum(outputs) + result["total_input_tokens"]) / duration,
    )
    assert max(start + latency for start, latency in zip(of("start_times"), latencies)) <= duration
    return values


def test_random_prompts_with_a_rate_and_a_range(server, tmp_path):
    status, output, [result] = run(
        server,
        *("--tokenizer", DEMO, "--random-input-len", 40, "--random-output-len", 10),
        *("--random-range-ratio", 0.5, "--num-prompts", 24, "--request-rate", 60),
        *("--max-concurrency", 6, "--percentile-metrics", METRICS, "--metric-percentiles", "50,99.9"),
        *("--goodput", "ttft:60000", "tpot:60000", "--metadata", "tag=a=b", "--label", "us"),
        folder=tmp_path,
    )
    assert status == 0, output
    values = check_figures(result, (50, 99.9))
    assert result["failed"] == 0 and result["num_prompts"] == 24
    # Random prompts go on past the end of an answer, to the drawn length.
    assert all(5 <= length <= 15 for length in result["output_lens"])
    assert len(set(result["output_lens"])) > 3
    # The server counts the prompts as we made them.
    assert all(20 <= length <= 60 for length in result["input_lens"])
    assert result["dataset"]["input_len"] == [20, 60]
    assert result["output_tokens_counted_by"] == {"usage": 24, "tokenizer": 0, "nothing": 0}
    # Pagoda sends the head with the first token, and a token an event.
    assert result["first_events_without_text"] <= 2
    assert len(values["itl"]) >= sum(result["output_lens"]) // 2
    assert 1 <= result["max_concurrent_requests"] <= 6
    near(result["request_goodput"], 24 / result["duration"])
    assert (result["tag"], result["label"], result["request_rate"]) == ("a=b", "us", 60.0)
    assert "Serving Benchmark Result" in output and "P99.9 TTFT (ms):" in output


def test_chats_of_a_file_and_token_ids(server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "What is 17 + 25?"}, {"messages": [{"role": "user", "content": "Hello"}]}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    chat = ("--backend", "openai-chat", "--temperature", 0, "--percentile-metrics", METRICS)
    status, output, [result] = run(
        server,
        *chat,
        *("--dataset-name", "custom", "--dataset-path", prompts, "--disable-shuffle"),
        *("--num-prompts", 5, "--custom-output-len", 32),
        folder=tmp_path,
    )
    assert status == 0, output
    check_figures(result)
    assert result["completed"] == 5 and result["generated_texts"][0] == "42"
    # Two lines, five requests.
    assert len(set(result["generated_texts"])) == 2
    # The same text as a completion, rendered here by the same template.
    status, output, [rendered] = run(
        server,
        *("--tokenizer", DEMO, "--temperature", 0, "--percentile-metrics", METRICS),
        *("--dataset-name", "custom", "--dataset-path", prompts, "--disable-shuffle"),
        *("--num-prompts", 2, "--custom-output-len", 32),
        folder=tmp_path,
    )
    assert rendered["generated_texts"][0] == "42", output
    assert rendered["input_lens"] == result["input_lens"][:2]
    status, output, [ids] = run(
        server,
        *("--tokenizer", DEMO, "--prompt-token-ids", "--random-input-len", 33),
        *("--random-prefix-len", 20, "--random-output-len", 2, "--num-prompts", 8),
        *("--percentile-metrics", METRICS),
        folder=tmp_path,
    )
    assert status == 0, output
    assert ids["input_lens"] == [53] * 8 and ids["output_lens"] == [2] * 8


def test_repeated_prefixes_come_out_of_the_cache(tmp_path):
    with Server() as server:
        status, output, _ = run(
            server,
            *("--tokenizer", DEMO, "--dataset-name", "prefix_repetition", "--num-prompts", 12),
            *("--prefix-repetition-prefix-len", 256, "--prefix-repetition-suffix-len", 8),
            *("--prefix-repetition-num-prefixes", 2, "--prefix-repetition-output-len", 2),
            *("--max-concurrency", 1),
            folder=tmp_path,
        )
        assert status == 0, output
        # Ten of twelve prompts find their prefix; its last tokens may be part of another block.
        assert server.metrics()["pagoda_prefix_cache_hits_total"] >= 10 * 192


def test_a_sweep_is_drawn(server, tmp_path):
    plot = tmp_path / "load.svg"
    status, output, results = run(
        server,
        *("--tokenizer", DEMO, "--random-input-len", 12, "--random-output-len", 4),
        *("--sweep-max-concurrency", "1,4", "--sweep-num-prompts-factor", 4, "--plot", plot),
        *("--percentile-metrics", METRICS),
        folder=tmp_path,
    )
    assert status == 0, output
    assert [result["max_concurrency"] for result in results] == [1, 4]
    assert [result["completed"] for result in results] == [4, 16]
    for result in results:
        check_figures(result)
    assert plot.read_text().count("<polyline") == 7


def test_refusals_are_counted_beside_answers(tmp_path):
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "2") as server:
        status, output, [result] = run(
            server,
            *("--tokenizer", DEMO, "--random-input-len", 12, "--random-output-len", 60),
            *("--num-prompts", 24, "--percentile-metrics", METRICS),
            folder=tmp_path,
        )
        assert status == 0, output
        check_figures(result)
        assert result["completed"] >= 1 and result["failed"] >= 1
        assert set(result["failures"]) <= {"http 503", "http 429"}
        refused = [error for error in result["errors"] if error]
        assert all("retry after" in error for error in refused), refused


def test_a_server_that_dies_ends_the_run(tmp_path):
    with Server("--max-num-seqs", "1") as server:
        process = start(
            server,
            *("--tokenizer", DEMO, "--random-input-len", 12, "--random-output-len", 400),
            *("--num-prompts", 40, "--percentile-metrics", METRICS, "--max-concurrency", 4),
            folder=tmp_path,
        )
        deadline = time.monotonic() + 60
        while server.metrics()["pagoda_requests_running"] == 0:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        server.stop(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failed"] >= 36, output
    assert set(result["failures"]) <= {"cut", "connect"}, output
