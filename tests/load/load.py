"""Puts a load on a running server and reports times and losses.

    secateur serve --sequences 8 --quiet &
    python tests/load/load.py --clients 1,8,32 --requests 8
    python tests/load/load.py --clients 64 --minutes 10 --leave 0.1 --slow 0.05 --broken 0.1

Each client sends one request after the other and reads its stream. For every number of clients there is one line: the
time to the first token and between tokens (median, 99 % and longest), tokens a second of all clients together, and how each
request ended. A request has ended well if it was answered to its end, was refused with a status and a reason, or was
left by this client itself. Anything else (an error of the server, a stream that broke off) is lost, and the exit code is then 1. Only the standard library is needed.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.parse
import urllib.request

EXAMPLE = (
    "We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. #4 r drops by d. #5 c is r minus e. "
    "#6 h is 4. #7 c rises by 2. What is c?"
)
BROKEN = [b"{", b"[]", b'{"messages": []}', b'{"messages": [{"role": "user", "content": "a"}], "n": 0}', b"\xff\xfe"]


class Tally:
    """What happened to the requests of one number of clients."""

    def __init__(self):
        self.first, self.gaps, self.tokens, self.ends = [], [], 0, {}

    def end(self, how):
        self.ends[how] = self.ends.get(how, 0) + 1


async def send(address, options, body):
    """Sends a request. Returns the connection and the status of the response."""
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80)
    key = f"authorization: Bearer {options.key}\r\n" if options.key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"connection: close\r\n{key}content-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    while await reader.readline() not in (b"\r\n", b""):
        pass
    return reader, writer, status


async def read_stream(reader, options, tally, began, leaves, slow):
    """Reads the events of a stream. Returns how it ended."""
    latest, finish, chunks = None, None, 0
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            return finish or "lost: no reason of the end"
        data = json.loads(line[6:])
        if "error" in data:
            return "lost: " + data["error"]["message"].split("\n")[0]
        if data.get("usage"):
            tally.tokens += data["usage"]["completion_tokens"]
        for choice in data["choices"]:
            finish = choice["finish_reason"] or finish
            text = choice["delta"].get("reasoning_content") or choice["delta"].get("content")
            if text:
                now = time.monotonic()
                if latest is None:
                    tally.first.append(now - began)
                else:
                    tally.gaps.append(now - latest)
                latest, chunks = now, chunks + 1
        if leaves and chunks > 2:
            return "left"
        if slow:
            await asyncio.sleep(0.5)
    return "lost: the stream broke off"


async def client(address, options, tally, number, until):
    """One client: requests one after the other."""
    lots = random.Random(options.seed * 10_000 + number)
    for index in range(options.requests) if until is None else iter(int, 1):
        if until is not None and time.monotonic() > until:
            return
        draw = lots.random()
        broken = draw < options.broken
        leaves = not broken and draw < options.broken + options.leave
        slow = not (broken or leaves) and draw < options.broken + options.leave + options.slow
        body = lots.choice(BROKEN) if broken else request(options, number * 1000 + index)
        writer, began = None, time.monotonic()
        try:
            reader, writer, status = await send(address, options, body)
            if status == 200:
                tally.end(await asyncio.wait_for(read_stream(reader, options, tally, began, leaves, slow), 600))
            else:
                refusal = json.loads(await reader.read())["error"]
                lost = "lost: " if status >= 500 and status != 503 else ""
                tally.end(f"{lost}{status}" + ("" if broken else f": {refusal['message'].splitlines()[0]}"))
                if status == 503:
                    await asyncio.sleep(0.5)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            tally.end(f"lost: {type(error).__name__}: {error}")
        finally:
            if writer is not None:
                writer.close()


def request(options, seed):
    body = {
        "messages": [{"role": "user", "content": options.prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.max_tokens,
        "ignore_eos": options.ignore_eos,
        "temperature": options.temperature,
        "seed": seed,
        "secateur": json.loads(options.pruning),
    }
    return json.dumps(body).encode()


def percent(values, share):
    """The value below which `share` of the values lie, in milliseconds."""
    if not values:
        return "-"
    return f"{sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000:.0f} ms"


def metric(address, options, name):
    """The value of a metric of the server."""
    call = urllib.request.Request(f"{options.url}/metrics")
    if options.key:
        call.add_header("authorization", f"Bearer {options.key}")
    with urllib.request.urlopen(call, timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(f"secateur_{name} "):
                return float(line.split()[-1])
    return float("nan")


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", help="the API key")
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients, measured one after the other")
    parser.add_argument("--requests", type=int, default=4, help="requests of each client")
    parser.add_argument("--minutes", type=float, help="go on for this long instead")
    parser.add_argument("--prompt", default=EXAMPLE)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--pruning", default="{}", help='the field `secateur` of requests, such as {"policy": "full"}')
    parser.add_argument("--leave", type=float, default=0.0, help="share of requests that this client leaves")
    parser.add_argument("--slow", type=float, default=0.0, help="share of streams that are read slowly")
    parser.add_argument("--broken", type=float, default=0.0, help="share of requests that are malformed")
    parser.add_argument("--idle", type=int, default=0, help="connections that are opened and say nothing")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    address = urllib.parse.urlparse(options.url)
    lost = 0
    for clients in map(int, options.clients.split(",")):
        tally, began = Tally(), time.monotonic()
        until = None if options.minutes is None else began + options.minutes * 60
        running, used = [], []

        async def watch(running=running, used=used):
            while True:
                running.append(await asyncio.to_thread(metric, address, options, "num_requests_running"))
                used.append(await asyncio.to_thread(metric, address, options, "kv_cache_used_bytes"))
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        idle = [await asyncio.open_connection(address.hostname, address.port or 80) for _ in range(options.idle)]
        await asyncio.gather(*(client(address, options, tally, number, until) for number in range(clients)))
        watching.cancel()
        for _, writer in idle:
            writer.close()
        seconds = time.monotonic() - began
        print(
            f"{clients} clients, {seconds:.1f} s: first token {percent(tally.first, 0.5)} (99 %: "
            f"{percent(tally.first, 0.99)}), between tokens {percent(tally.gaps, 0.5)} (99 %: "
            f"{percent(tally.gaps, 0.99)}, longest: {percent(tally.gaps, 1)}), {tally.tokens / seconds:.1f} tok/s, at most {max(running, default=0):.0f} at "
            f"once, cache at most {max(used, default=0) / 1e6:.2f} MB; ends: {json.dumps(tally.ends, ensure_ascii=False)}"
        )
        lost += sum(count for how, count in tally.ends.items() if how.startswith("lost"))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
