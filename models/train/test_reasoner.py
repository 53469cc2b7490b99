"""Tests of the network, its training and its evaluation: `python -m pytest models/train`. Without torch they are
skipped."""

import multiprocessing
import tempfile
from pathlib import Path

import pytest

import task

for needed in ("tokenizers", "torch"):
    pytest.importorskip(needed)

import torch

import train
from evaluate import Cache, Runner
from model import Config, Qwen2


def tiny():
    torch.manual_seed(1)
    return Qwen2(Config(vocab_size=416)).eval()


def test_the_training_stream_is_a_function_of_its_index_and_skips_held_out_problems():
    pools = train.Pools()
    late = 40 * train.M // (train.POOL * 2048)
    first, again = pools.draw(late, 2048), train.Pools().draw(late, 2048)
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    assert not any((a[0][0, :60] == b[0][0, :60]).all() for a, b in zip(first, pools.draw(late + 1, 2048)))
    for ids, weights, count in first:
        assert ids.shape == weights.shape and ids.size <= 2048 + 33 * len(ids) and 0 < count <= ids.size
    # Were every problem held out, only drills would be left; thoughts begin with "Okay".
    okay = pools.encode("Okay")
    assert any((ids == okay).any() for ids, _, _ in first)

    class Everything:
        def __contains__(self, _):
            return True

    pools.held_out = Everything()
    assert not any((ids == okay).any() for ids, _, _ in pools.draw(late, 256))


def test_threads_are_the_workers_affair():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    next(train.stream(0, 256, 0))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_killed_process_ends_the_training():
    stream = train.stream(0, 256, 1)
    next(stream)
    for process in multiprocessing.active_children():
        process.kill()
    try:
        while True:
            next(stream)
    except SystemExit as e:
        assert "one was killed" in str(e)


def test_only_the_same_training_is_resumed_and_the_log_has_each_row_once():
    a = dict(out="x", tokens=5e7, batch_tokens=1024, lr=1e-3, muon_lr=0.02, device="cpu", workers=0, minutes=1.0, save_every=60)
    assert train.changed(a, a | dict(out="y", device="cuda:0", workers=3, minutes=2.0, save_every=9)) == []
    assert train.changed(a, a | dict(batch_tokens=2048, lr=2e-3)) == [
        "--batch-tokens was 1024, is 2048",
        "--lr was 0.001, is 0.002",
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        row = ",1,1,1,1,1,1"
        for text, step, left in [
            (None, 0, []),
            (f"{train.HEADER}\n50{row}\n100{row}\n150{row}\n20", 100, ["50", "100"]),
            (f"{train.HEADER}\n50{row}\n{train.HEADER}\n50{row}\n", 0, []),
        ]:
            if text is not None:
                log.write_text(text)
            train.cut_log(log, step)
            assert log.read_text().splitlines() == [train.HEADER] + [n + row for n in left]


def test_cached_forward_equals_plain_forward_and_mask_equals_removal():
    m = tiny()
    with torch.no_grad():
        ids = torch.randint(0, 380, (1, 40))
        plain = m(ids)
        c = Cache(m, [ids[0, :25].tolist()], 40)
        worst = (c.forward(c.first) - plain[:, 24]).abs().max()
        for t in range(25, 40):
            worst = max(worst, (c.forward(ids[:, t : t + 1]) - plain[:, t]).abs().max())
        assert worst <= 1e-4
        # ragged batch: a padded row gives the same logits
        c2 = Cache(m, [ids[0, :25].tolist(), ids[0, :10].tolist()], 40)
        l2 = c2.forward(c2.first)
        assert (l2[0] - plain[0, 24]).abs().max() <= 1e-4 and (l2[1] - plain[0, 9]).abs().max() <= 1e-4
        # the probe leaves no trace, and reads a row that sums to one
        rows = []
        before = c.k.clone()
        c.forward(torch.randint(0, 380, (1, 30)), store=False, rows=rows)
        assert torch.equal(before, c.k) and len(rows) == m.config.num_hidden_layers
        assert all((r.sum(-1) - 1).abs().max() <= 1e-5 for r in rows)
        # masking slots equals removing them, at the original positions
        c.alive[:, :, :, 5:20] = False
        masked = c.forward(ids[:, :1])
        c.len = 40
        keep = [i for i in range(40) if not 5 <= i < 20]
        c.k[:, :, :, 5:20], c.v[:, :, :, 5:20] = 1e3, 1e3  # poison: must not be seen
        assert torch.equal(masked, c.forward(ids[:, :1]))
        assert len(keep) == 25


def test_keeping_all_changes_nothing():
    r = Runner(tiny(), max_tokens=90)
    problems = task.split("normal", 3)
    full = r.run(problems)
    for policy in ("think-clearly", "h2o", "random"):
        assert [x["ids"] for x in r.run(problems, policy, 1.0)] == [x["ids"] for x in full]
    half = r.run(problems, "think-clearly", 0.5)
    assert [x["kept"] for x in half] == [[20, 40]] * 3 or all(k[1] >= 40 for k in [x["kept"] for x in half])
