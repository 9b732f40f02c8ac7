"""What the scripts of peers share: the lines that they say, and the time of work in a graph.

A line is one of those that the suite's parts say (benches/src/gpu/child.rs). Figures have the names of
ours, so that they can be drawn side by side.
"""

import importlib.metadata
import json
import sys
import time

GRAPH_S, BATCH_S, ROUNDS, RECORDED_MAX = 0.004, 0.02, 5, 512


class Peer:
    """A script at work: what it was asked for, and how much time is left.

    Called as: SCRIPT TASKS SECONDS, where TASKS is a file of what the suite measured itself.
    """

    def __init__(self):
        self.began = time.monotonic()
        with open(sys.argv[1], encoding="utf-8") as file:
            self.tasks = json.load(file)
        self.seconds = float(sys.argv[2])

    def of(self, kind):
        return [task[kind] for task in self.tasks if kind in task]

    def keeps_going(self, needed=5.0):
        return time.monotonic() - self.began + needed < self.seconds

    def run(self, name, packages, work):
        """Runs `work` if the packages are there; says their versions, and why it was not measured."""
        try:
            for package in packages:
                __import__(package)
            import torch
            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch sees no GPU")
        except Exception as error:
            note(name, f"not measured: {error}")
            return end(True)
        versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
        versions.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        note(f"{name}: versions", ", ".join(versions))
        return end(work(self))


def say(message):
    print(json.dumps(message), flush=True)


def note(what, text):
    say({"finding": {"what": {"note": {"what": what, "text": str(text)[:500]}}, "right": True}})


def figure(what, unit, samples):
    samples = sorted(samples)
    number = {
        "what": what, "unit": unit, "median": samples[len(samples) // 2], "min": samples[0],
        "max": samples[-1], "rounds": len(samples),
    }
    say({"finding": {"what": {"figure": number}, "right": number["median"] > 0}})


def end(all_of_it):
    say({"end": {"all": bool(all_of_it)}})


def seconds_of(call, rounds=ROUNDS, batch_s=BATCH_S):
    """Seconds of one `call`, which gets the call's number, in each of some rounds: in a graph."""
    import torch

    def timed(work, count):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for index in range(count):
            work(index)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        timed(call, 3)
        one = timed(call, 4)
        calls = int(min(max(GRAPH_S / one, 2), RECORDED_MAX))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for index in range(calls):
                call(index)
        replay = lambda _: graph.replay()
        timed(replay, 1)
        count = int(max(batch_s / timed(replay, 1), 1))
        return [timed(replay, count) / calls for _ in range(rounds)]
