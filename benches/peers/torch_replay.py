"""Replays allocation traces through PyTorch's caching allocator on a real GPU: time an event, and what it reserves.

    python torch_replay.py [--expandable] [--events N] TRACE.gz...

Prints one JSON object a trace. Events that use a block on a second stream are left out of the timing, as all blocks are asked for on
the current stream. Needs torch with CUDA; says so and ends with status 3 otherwise.
"""

import argparse
import gzip
import json
import os
import sys
import time


def events(path, most):
    """(id, bytes) for an allocation, (id, None) for a free, in order."""
    found = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            words = line.split()
            if words and words[0] == "a":
                found.append((int(words[1]), int(words[2])))
            elif words and words[0] == "f":
                found.append((int(words[1]), None))
            if len(found) == most:
                break
    return found


def replay(torch, program):
    """Seconds of one pass; everything is dropped at its end."""
    live = {}
    empty, device, kind = torch.empty, torch.device("cuda"), torch.uint8
    began = time.perf_counter()
    for number, size in program:
        if size is None:
            del live[number]
        else:
            live[number] = empty(size, dtype=kind, device=device)
    return time.perf_counter() - began


def loop_alone(program):
    """Seconds of the same loop with a bytes object for each block: what Python itself takes."""
    live = {}
    began = time.perf_counter()
    for number, size in program:
        if size is None:
            del live[number]
        else:
            live[number] = object()
    return time.perf_counter() - began


def raw_pass(torch, program):
    """As replay, below the tensors: the allocator's own entry points, for the cost of the allocator without that of a tensor."""
    live = {}
    alloc, delete = torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete
    began = time.perf_counter()
    for number, size in program:
        if size is None:
            delete(live.pop(number))
        else:
            live[number] = alloc(size)
    seconds = time.perf_counter() - began
    for address in live.values():
        delete(address)
    return seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--expandable", action="store_true")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("traces", nargs="+")
    options = parser.parse_args()
    if options.expandable:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    try:
        import torch
    except ImportError:
        print("torch is not installed", file=sys.stderr)
        return 3
    if not torch.cuda.is_available():
        print("torch finds no CUDA device", file=sys.stderr)
        return 3
    torch.cuda.init()
    for path in options.traces:
        program = events(path, options.events)
        live, peak = {}, 0
        now = 0
        for number, size in program:
            now += size if size is not None else -live.pop(number)
            if size is not None:
                live[number] = size
            peak = max(peak, now)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        cold = replay(torch, program)
        reserved = torch.cuda.max_memory_reserved()
        warm = sorted(replay(torch, program) for _ in range(5))[2]
        raw = sorted(raw_pass(torch, program) for _ in range(5))[2]
        alone = sorted(loop_alone(program) for _ in range(5))[2]
        per_event = 1e9 / len(program)
        print(json.dumps({
            "trace": os.path.basename(path),
            "torch": torch.__version__,
            "expandable": options.expandable,
            "events": len(program),
            "cold_ns_per_event": cold * per_event,
            "tensor_ns_per_event": warm * per_event,
            "allocator_ns_per_event": raw * per_event,
            "python_loop_ns_per_event": alone * per_event,
            "peak_requested": peak,
            "peak_reserved": reserved,
            "ratio": reserved / peak,
        }))
    return 0


if __name__ == "__main__":
    sys.exit(main())
