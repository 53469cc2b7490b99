#!/usr/bin/env python3
"""Measures llama.cpp beside secateur: the same weights, the same adapter, the same lengths, in turns.

    benches/rivals.py MODEL.gguf [--llama-bench PROGRAM] [--secateur PROGRAM] [--device NAME] [--rounds N]

Each round measures secateur and then llama.cpp, so that a machine that becomes slower slows both. A ratio is taken
within a round and is secateur's speed over llama.cpp's: above 1, secateur is faster. Of all rounds, the table gives
the median with the smallest and the largest value.

What is compared: a prompt of --prompt tokens, and --decode tokens that follow it, in one sequence, greedily, with a
cache in f16. llama-bench decodes at this depth (`-d`), which it fills again in each round and does not count. Both
measure a second run, after one that compiles the shaders.

Needs
  - a GGUF file whose types both programs compute;
  - `secateur`, built in the profile release: `cargo build --release --bin secateur`;
  - `llama-bench` of llama.cpp, with the backend for the adapter. Archives of llama.cpp's releases have it; from its
    sources it is built by `cmake -B build -DGGML_VULKAN=ON && cmake --build build --target llama-bench`.

The adapters must be the same: the script stops if neither of the two names contains the other. llama.cpp leaves out
software adapters unless GGML_VK_VISIBLE_DEVICES names them by number. To measure llama.cpp's CPU backend beside
secateur on a software adapter, which computes on the same processor, give `--other-adapter --llama-args "-ngl 0"`.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys

HOW = """\
rivals.py: llama-bench was not found: {program}
  expected: the program llama-bench of llama.cpp, in PATH or named by --llama-bench
  help: take it from an archive of llama.cpp's releases, or build it from llama.cpp's sources:
        cmake -B build -DGGML_VULKAN=ON && cmake --build build --target llama-bench"""


def fail(what: str) -> None:
    sys.exit(f"rivals.py: {what}")


def output_of(command: list[str]) -> object:
    """The JSON that a command prints to stdout."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        fail(f"{command[0]} could not be started: {error}")
    if ran.returncode != 0:
        end = "\n".join(ran.stderr.splitlines()[-10:])
        fail(f"{shlex.join(command)} ended with status {ran.returncode}:\n{end}")
    try:
        return json.loads(ran.stdout)
    except ValueError as error:
        fail(f"{shlex.join(command)} printed no JSON: {error}")


class Secateur:
    name = "secateur"

    def __init__(self, args: argparse.Namespace):
        bench = [args.secateur, "bench", "--quiet", "--json", "--repeat", "1", "--device", args.device]
        self.command = [*bench, "--model", args.model, "--prompt", str(args.prompt), "--decode", str(args.decode)]
        self.adapter = self.version = ""

    def commands(self) -> list[list[str]]:
        return [self.command]

    def measure(self) -> tuple[float, float]:
        """Tokens a second of prefill and of decoding."""
        found = output_of(self.command)
        device = found["device"]
        self.version = found["secateur"]
        self.adapter = device["name"]
        run = found["runs"][0]
        return run["prefill_tokens_per_second"]["median"], run["decode_tokens_per_second"]["median"]


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, args: argparse.Namespace):
        bench = [args.llama_bench, "-m", args.model, "-r", "1", "-o", "json", *shlex.split(args.llama_args)]
        self.prefill = [*bench, "-p", str(args.prompt), "-n", "0"]
        self.decode = [*bench, "-p", "0", "-n", str(args.decode), "-d", str(args.prompt)]
        self.adapter = self.version = ""

    def commands(self) -> list[list[str]]:
        return [self.prefill, self.decode]

    def measure(self) -> tuple[float, float]:
        """Tokens a second of prefill and of decoding."""
        speeds = []
        for command in self.commands():
            found = output_of(command)[0]
            on_gpu = found["gpu_info"] and found["n_gpu_layers"] != 0
            self.adapter = found["gpu_info"] if on_gpu else found["cpu_info"]
            self.version = f"{found['build_commit']}, backend {found['backends'] if on_gpu else 'CPU'}"
            speeds.append(found["avg_ts"])
        return speeds[0], speeds[1]


def same_adapter(one: str, other: str) -> bool:
    one, other = one.lower().strip(), other.lower().strip()
    return bool(one and other) and (one in other or other in one)


def spread(values: list[float]) -> str:
    digits = 3 if statistics.median(values) < 1 else 2 if statistics.median(values) < 100 else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--llama-bench", default="llama-bench", metavar="PROGRAM", help="a path, or a name in PATH")
    built = "target/release/secateur"
    parser.add_argument("--secateur", default=built, metavar="PROGRAM", help="a path, or a name in PATH")
    parser.add_argument("--device", default="auto", help="as `secateur devices` lists it")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode after it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-args", default="", metavar="ARGS", help="more for llama-bench, in one word")
    parser.add_argument("--other-adapter", action="store_true", help="compare although the adapters differ")
    args = parser.parse_args()
    if min(args.prompt, args.decode, args.rounds) < 1:
        fail("--prompt, --decode and --rounds are at least 1")
    if shutil.which(args.llama_bench) is None:
        sys.exit(HOW.format(program=args.llama_bench))
    if shutil.which(args.secateur) is None:
        how = "cargo build --release --bin secateur, or name it by --secateur"
        fail(f"secateur was not found: {args.secateur}\n  help: {how}")

    rivals = [Secateur(args), LlamaCpp(args)]
    rounds: list[list[tuple[float, float]]] = []
    for number in range(1, args.rounds + 1):
        rounds.append([rival.measure() for rival in rivals])
        ours, theirs = rivals
        if not args.other_adapter and not same_adapter(ours.adapter, theirs.adapter):
            how = "choose the same by --device and GGML_VK_VISIBLE_DEVICES, or compare these with --other-adapter"
            names = f"  secateur: {ours.adapter}\n  llama.cpp: {theirs.adapter or 'none'}"
            fail(f"the adapters differ\n{names}\n  help: {how}")
        texts = [f"{rival.name} {speeds[0]:.2f} and {speeds[1]:.2f}" for rival, speeds in zip(rivals, rounds[-1])]
        print(f"round {number} of {args.rounds}, tok/s of prefill and decode: {'; '.join(texts)}", file=sys.stderr)

    for rival in rivals:
        print(f"{rival.name} {rival.version} on {rival.adapter}")
        for command in rival.commands():
            print(f"    {shlex.join(command)}")
    print(f"\n{args.rounds} rounds in turns; median (smallest - largest), tok/s\n")
    print(f"| | prompt of {args.prompt} | {args.decode} decoded after it |\n|---|---|---|")
    for index, rival in enumerate(rivals):
        cells = [spread([speeds[index][part] for speeds in rounds]) for part in range(2)]
        print(f"| {rival.name} | {cells[0]} | {cells[1]} |")
    ratios = [spread([ours[part] / theirs[part] for ours, theirs in rounds]) for part in range(2)]
    print(f"| secateur / llama.cpp, within a round | {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
