"""Several processes: the answer of one, whatever estimator, negatives and critic; and an end when one of them is lost."""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, same, tiny
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train
from dim import build, checkpoint, distributed
from dim.config import Config, UserError, built, flat
from dim.encoders import Encoding
from dim.estimators import ESTIMATORS
from dim.guard import Guard
from dim.journal import Journal
from dim.model import Model
from dim.objective import Objective

FORK = multiprocessing.get_context("fork")
BATCH, SIDE = 12, 2  # images, and the side of a map
CODE, CHANNELS = 5, 6

BASE = {
    "precision": "float64",
    "norm": "layer",
    "encoder.code_size": CODE,
    "train.batch_size": BATCH,
    "objective.local.units": 8,
}
LOCAL = "objective.local."
CASES = [
    *(
        {LOCAL + "estimator": name}
        for name in ("jsd", "dv", "dv_per_anchor", "infonce", "nwj", "nce", "rkl", "chi2", "hellinger")
    ),
    {LOCAL + "estimator": "tv"},
    {LOCAL + "estimator": "wasserstein"},
    {LOCAL + "estimator": "wasserstein", LOCAL + "weight_clip": 0.05},
    *(
        {LOCAL + "critic": critic, LOCAL + "estimator": estimator, LOCAL + "negatives": negatives, LOCAL + "k": k}
        for critic, estimator, (negatives, k) in itertools.product(
            ("dot", "cosine", "bilinear", "concat"), ("infonce", "dv"), (("sampled", 7), ("shifted", 2))
        )
    ),
    {LOCAL + "symmetric": True},
    {LOCAL + "symmetric": True, LOCAL + "estimator": "dv", "views.number": 2, "views.kind": "affine"},
    {LOCAL + "queue": 24},
    {LOCAL + "queue": 24, LOCAL + "negatives": "sampled", LOCAL + "k": 9, "views.number": 2, "views.kind": "affine"},
    {"objective.glob.weight": 0.5, "objective.glob.units": 8, "objective.glob.estimator": "dv"},
    {"objective.prior.weight": 0.3, "objective.prior.penalty": 0.5, "views.number": 2, "views.kind": "affine"},
    {"objective.prior.weight": 0.3, "objective.prior.kind": "normal"},
    {"train.chunk": 2},
    {"train.chunk": 2, LOCAL + "estimator": "dv", "views.number": 2, "views.kind": "affine"},
]


class Net(torch.nn.Module):
    """Pictures [N, CHANNELS, SIDE, SIDE] -> the codes and maps that an objective takes, by weights of its own."""

    def __init__(self):
        super().__init__()
        self.local = torch.nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.code = torch.nn.Linear(CHANNELS * SIDE**2, CODE)

    def forward(self, pictures):
        found = self.local(pictures).tanh()
        return Encoding(found, found, found.flatten(1), self.code(found.flatten(1)))


def model_of(case: dict) -> Model:
    config = built(flat(Config()) | BASE | case)
    torch.manual_seed(0)
    net = Net().double()
    objective, facts = Objective(), []
    c = config.objective
    if c.local.weight:
        objective.local, about = build.term(config, c.local, "local", torch.zeros(1, CHANNELS, SIDE**2, dtype=torch.float64))
        facts.append(about)
    if c.glob.weight:
        m = torch.zeros(1, CHANNELS * SIDE**2, 1, dtype=torch.float64)
        objective.glob, _ = build.term(config, c.glob, "global", m)
    if c.prior.weight:
        objective.prior = build.Prior(CODE, c.prior.kind, c.prior.penalty).double()
    objective.alpha, objective.beta, objective.gamma = c.glob.weight, c.local.weight, c.prior.weight
    return Model(net, objective, config.views.number, config.train.chunk, False, seed=3)


def answer(case: dict) -> dict[str, torch.Tensor]:
    """Losses and gradients of three steps' third, the queue filled by the two before; of all ranks together."""
    model = model_of(case)
    views = model.views
    together = distributed.wrapped(model, torch.device("cpu"), unused=False)
    draws = torch.Generator().manual_seed(1)
    for step in range(3):
        whole = torch.randn(views, BATCH, CHANNELS, SIDE, SIDE, generator=draws, dtype=torch.float64)
        pictures = distributed.mine(whole, dim=1).flatten(0, 1)
        index = distributed.mine(torch.arange(BATCH) + 5 * step)  # some images of a step are those of the one before
        model.zero_grad()
        losses, at = together(pictures, index, step)
        (losses.encoder if losses.discriminator is None else losses.encoder + losses.discriminator).backward()
        model.objective.remember(at, index, step, views)
    found = {name: distributed.mean(value.detach()) for name, value in losses.parts.items()}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": b.double() for name, b in model.named_buffers()}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def known_as(rank: int, number: int, port: int) -> None:
    """This process as one that torchrun has started."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}


def on_ranks(number: int, act, *words, timeout: float = 120) -> list:
    """act(*words) in processes that know each other; what each returns, or how it ended where it returned nothing."""
    results, port = FORK.Queue(), free_port()

    def target(rank: int) -> None:
        known_as(rank, number, port)
        try:
            results.put((rank, act(*words)))
            results.close()
            results.join_thread()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    processes = [FORK.Process(target=target, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    found: list = [None] * number
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and (any(p.is_alive() for p in processes) or not results.empty()):
        while not results.empty():
            rank, value = results.get()
            found[rank] = value
        time.sleep(0.01)
    alive = [p.is_alive() for p in processes]
    for process in processes:
        process.kill()
        process.join()
    assert not any(alive), f"ranks {alive} were alive after {timeout} s"
    return [processes[i].exitcode if value is None else value for i, value in enumerate(found)]


def table(cases: list[dict], expected: list[dict[str, torch.Tensor]]) -> list[float]:
    """The largest relative difference of each case to what one process has."""
    with distributed.joined(torch.device("cpu"), 60):
        return [difference(answer(case), of_one) for case, of_one in zip(cases, expected, strict=True)]


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    each = [(found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1) for key in expected]
    return max(each).item()


@pytest.fixture(scope="module")
def of_one_process() -> list[dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return [answer(case) for case in CASES]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_have_the_losses_and_gradients_of_one_process(of_one_process, ranks):
    found = of_ranks(ranks, CASES, of_one_process)
    print(f"{ranks} ranks, {len(CASES)} cases: largest difference {max(found):.1e}")


def reductions(case: dict) -> int:
    """How often this rank's gradients meet those of the others in one step."""
    with distributed.joined(torch.device("cpu"), 60):
        model, calls = model_of(case), []
        together = distributed.wrapped(model, torch.device("cpu"), unused=False)

        def counted(group, bucket):
            calls.append(bucket.index())
            return allreduce_hook(group, bucket)

        together.register_comm_hook(distributed.GROUPS["device"], counted)
        pictures = torch.randn(BATCH // 2 * model.views, CHANNELS, SIDE, SIDE, dtype=torch.float64)
        losses, _ = together(pictures, distributed.mine(torch.arange(BATCH)), 0)
        losses.encoder.backward()
        return len(calls)


def test_chunks_do_not_reduce_gradients_more_often():
    """Once for each of DDP's buckets, after the last chunk, not once for each chunk."""
    whole, chunked = on_ranks(2, reductions, {}), on_ranks(2, reductions, {"train.chunk": 2})
    assert whole == chunked
    assert whole[0] >= 1


def of_ranks(ranks: int, cases: list[dict], expected: list[dict[str, torch.Tensor]]) -> list[float]:
    """The largest relative difference of each case over all ranks, none above what a reduction in another order makes."""
    found = on_ranks(ranks, table, cases, expected)
    for rank in found:
        assert isinstance(rank, list), f"a rank ended with {rank}"
        for case, value in zip(cases, rank, strict=True):
            assert value <= (1e-12 if ranks > 1 else 0), (case, value)
    return list(map(max, zip(*found, strict=True)))


@pytest.mark.slow
def test_every_estimator_with_every_critic_and_every_kind_of_negatives():
    """The whole table: estimator x negatives x critic at 1, 2 and 3 ranks."""
    torch.set_num_threads(1)
    kinds = {"all": {}, "sampled": {"negatives": "sampled", "k": 7}, "shifted": {"negatives": "shifted", "k": 2}}
    kinds["queue"] = {"negatives": "sampled", "k": 9, "queue": 24}
    critics = ("dot", "cosine", "bilinear", "concat")
    names = [f"{kind}, {critic}" for kind in kinds for critic in critics]
    print(f"\n| largest difference at 1 / 2 / 3 ranks | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for estimator in ESTIMATORS:
        cases = [
            {LOCAL + "estimator": estimator, LOCAL + "critic": critic} | {LOCAL + key: value for key, value in kind.items()}
            for kind in kinds.values()
            for critic in critics
        ]
        expected = [answer(case) for case in cases]
        columns = [of_ranks(ranks, cases, expected) for ranks in (1, 2, 3)]
        cells = [" / ".join(f"{value:.0e}" if value else "0" for value in each) for each in zip(*columns, strict=True)]
        print(f"| {estimator} | {' | '.join(cells)} |")


# ---- whole runs

WORDS = [
    "--norm",
    "layer",
    "--precision",
    "float64",
    "--train.batch_size",
    "120",
    "--train.steps",
    "6",
    "--run.save_every",
    "2",
]
WORDS += ["--objective.local.negatives", "sampled", "--objective.local.k", "40", "--objective.prior.weight", "0.1"]
WORDS += [
    "--views.number",
    "2",
    "--views.kind",
    "affine",
    "--objective.local.queue",
    "240",
    "--run.timeout",
    "60",
    "--run.save_every",
    "2",
]


def run(folder: Path, *words: str) -> int:
    return train.main(tiny(folder, *WORDS, *words))


def test_a_run_on_two_ranks_is_the_run_of_one(tmp_path):
    assert run(tmp_path / "one") == 0
    assert on_ranks(2, run, tmp_path / "two") == [0, 0]
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    for part in ("encoder", "objective"):
        for name, value in one[part].items():
            assert torch.allclose(two[part][name].double(), value.double(), rtol=1e-9, atol=1e-11), name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key in ("loss", "local/bound_nats", "gradient_norm", "prior/encoder_loss_nats", "code/effective_rank"):
            assert a[key] == pytest.approx(b[key], rel=1e-5)
    assert two["versions"]["ranks"] == 2


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_two_ranks_stopped_by_a_signal_to_one_continue_to_the_same_bits(tmp_path, monkeypatch, step):
    assert on_ranks(2, run, tmp_path / "whole") == [0, 0]
    watch = Guard.watch

    def signalling(self, at, values):
        watch(self, at, values)
        if at == step - 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Guard, "watch", signalling)
    assert on_ranks(2, run, tmp_path / "parts") == [143, 143]
    assert checkpoint.load(tmp_path / "parts")["step"] == step
    monkeypatch.undo()
    assert on_ranks(2, run, tmp_path / "parts") == [0, 0]
    assert same(checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "parts"))


@pytest.mark.slow
def test_two_ranks_stopped_after_any_step_continue_to_the_same_bits(tmp_path, monkeypatch):
    words, save = ["--train.steps", "12"], checkpoint.save

    def copying(folder, state):
        save(folder, state)
        checkpoint.keep(folder, tmp_path / f"at-{state['step']}")

    monkeypatch.setattr(checkpoint, "save", copying)
    assert on_ranks(2, run, tmp_path / "whole", *words, "--run.save_every", "1") == [0, 0]
    monkeypatch.undo()
    for step in range(12):
        assert checkpoint.load(tmp_path / f"at-{step}")["step"] == step
        assert on_ranks(2, run, tmp_path / f"at-{step}", *words) == [0, 0]
        assert same(checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / f"at-{step}"))
    print("12 of 12 stops on 2 ranks, after each step from 0 on: equal at atol 0")


def test_one_ranks_bad_number_stops_both_with_the_same_step(tmp_path, monkeypatch, capfd):
    forward = train.Model.forward

    def poison(self, pictures, image, step, keep_scores=False):
        bad = step == 2 and distributed.rank() == 1
        return forward(self, pictures * (float("nan") if bad else 1), image, step, keep_scores)

    monkeypatch.setattr(train.Model, "forward", poison)
    assert on_ranks(2, run, tmp_path / "r") == [3, 3]
    assert checkpoint.load(tmp_path / "r")["step"] == 2
    err = capfd.readouterr().err
    assert "error: process 0 of 2: step 2: " in err
    assert "error: process 1 of 2: step 2: " in err
    assert on_ranks(2, run, tmp_path / "s", "--train.skip_bad", "1") == [0, 0]
    state = checkpoint.load(tmp_path / "s")
    assert state["guard"]["left_out"] == 1
    assert all(t.isfinite().all() for part in ("encoder", "objective") for t in state[part].values())


def test_a_bad_value_of_one_rank_that_no_gradient_shows_stops_both(tmp_path, monkeypatch, capfd):
    """Gradients are averaged, so a bad one is every rank's; a value is its own, until the ranks agree."""
    losses = Objective.losses

    def poison(self, embedded, image, seed=0, step=0, *more):
        found = losses(self, embedded, image, seed, step, *more)
        bad = step == 2 and distributed.rank() == 1
        return found._replace(parts=found.parts | {"local": found.parts["local"] * (float("nan") if bad else 1)})

    monkeypatch.setattr(Objective, "losses", poison)
    assert on_ranks(2, run, tmp_path / "r", "--run.timeout", "10") == [3, 3]
    assert capfd.readouterr().err.count(" of 2: step 2: local not finite") == 2
    assert on_ranks(2, run, tmp_path / "s", "--train.skip_bad", "1", "--run.timeout", "10") == [0, 0]
    assert checkpoint.load(tmp_path / "s")["guard"]["left_out"] == 1


PLACES = {"start": (Journal, "__init__", 0), "step": (Guard, "watch", 2), "save": (checkpoint, "save", 1)}  # calls that go well
SHORT = {("start", "raise"), ("step", "kill"), ("step", "hang")}
NINE = [
    pytest.param(place, way, marks=[] if (place, way) in SHORT else pytest.mark.slow)
    for place, way in itertools.product(PLACES, ("raise", "kill", "hang"))
]


@pytest.mark.parametrize(("place", "way"), NINE)
def test_a_lost_rank_ends_the_others_in_time(tmp_path, monkeypatch, capfd, place, way):
    home, name, well = PLACES[place]
    whole, calls = getattr(home, name), []
    lost = 0 if place == "save" else 1  # only the first saves

    def failing(*given, **more):
        calls.append(1)
        if distributed.rank() == lost and len(calls) > well:
            if way == "raise":
                raise OSError(5, "Input/output error")
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return whole(*given, **more)

    monkeypatch.setattr(home, name, failing)
    codes = as_torchrun_does(2, lambda: run(tmp_path / "r", "--run.timeout", "4"), timeout=4 + 10)
    assert codes[1 - lost] == 4
    assert codes[lost] == {"raise": 4, "kill": -signal.SIGKILL, "hang": -signal.SIGKILL}[way]
    err = capfd.readouterr().err
    assert err.count(f"error: process {1 - lost} of 2: lost the other processes: ") == 1
    assert "Traceback" not in err
    monkeypatch.undo()
    assert on_ranks(2, run, tmp_path / "r") == [0, 0]


def as_torchrun_does(number: int, act, timeout: float) -> list[int | None]:
    """act() in processes that know each other; once one has failed, the others get `timeout` seconds before they are killed."""
    port = free_port()

    def target(rank: int) -> None:
        known_as(rank, number, port)
        os._exit(act())

    processes = [FORK.Process(target=target, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    while all(process.exitcode is None for process in processes):
        time.sleep(0.05)
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_torchrun_itself(tmp_path):
    """Two processes by the command of the README; and where one of them is killed, both end."""
    words = ["--standalone", "--nproc-per-node", "2", str(ROOT / "train.py"), *tiny(tmp_path / "r", *WORDS)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert on_ranks(2, run, tmp_path / "here") == [0, 0]
    assert same(checkpoint.load(tmp_path / "r"), checkpoint.load(tmp_path / "here"))
    long = [word if word != str(tmp_path / "r") else str(tmp_path / "long") for word in torchrun]
    long[long.index("--train.steps") + 1] = "100000"
    begun = subprocess.Popen(long, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while begun.poll() is None and not (tmp_path / "long" / checkpoint.BEFORE).exists():
        time.sleep(0.1)
    children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    begun.communicate(timeout=60)
    assert begun.returncode == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert checkpoint.load(tmp_path / "long")["step"] > 0


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, capfd):
    assert on_ranks(2, run, tmp_path / "r", "--train.batch_size", "121", "--objective.local.queue", "0") == [2, 2]
    assert "train.batch_size is 121: it must be a multiple of the 2 processes that share it" in capfd.readouterr().err


def probes_of(number: int):
    """Features as an array: a tensor in a queue would live in the process that sent it."""
    from conftest import made_data

    from dim.encoders import Encoder
    from dim.evals.features import features

    torch.manual_seed(0)
    encoder, data = Encoder("small8x8", channels=1), made_data()
    if number == 1:
        return features(encoder, data, data.train, batch=70)["y"].numpy()
    with distributed.joined(torch.device("cpu"), 60):
        return features(encoder, data, data.train, batch=70)["y"].numpy()


def test_features_are_shared_out_and_the_same_to_the_bit():
    expected = probes_of(1)
    for number in (2, 3):
        for found in on_ranks(number, probes_of, number):
            assert (found == expected).all()


def handed_out(content: dict | Exception) -> tuple:
    """On each rank: what `from_first` gives of the first one's content, and the statistics that `as_first` leaves."""
    with distributed.joined(torch.device("cpu"), 60):
        norm = torch.nn.BatchNorm1d(2)
        norm.running_mean.fill_(distributed.rank())
        distributed.as_first(norm)

        def make():
            assert distributed.rank() == 0
            if isinstance(content, Exception):
                raise content
            return content

        try:
            found = distributed.from_first(make)
            given = "as text" if found == content else "another"
        except Exception as error:
            given = f"{type(error).__name__}: {error}"
        return norm.running_mean.tolist(), given


def test_what_the_first_process_read_and_its_statistics_reach_all(tmp_path):
    assert on_ranks(2, handed_out, {"step": 3, "name": "x"}) == [([0.0, 0.0], "as text")] * 2
    refused = on_ranks(2, handed_out, UserError("no such file"))
    assert refused == [([0.0, 0.0], "UserError: no such file"), ([0.0, 0.0], "UserError: the first process says why")]
    (_, first), (_, second) = on_ranks(2, handed_out, {"path": tmp_path})  # no class of any kind is built
    assert first == second
    assert first.startswith("UnpicklingError: Weights only load failed")


def test_without_a_group_every_function_gives_back_what_it_got():
    rows = torch.randn(6, 3)
    assert not dist.is_initialized()
    for found in (distributed.gathered(rows), distributed.mine(rows), distributed.mean(rows), distributed.any_of(rows > 0)):
        assert found is rows or torch.equal(found, rows > 0)
    assert distributed.highest(7) == 7
    assert torch.equal(distributed.logmeanexp(rows), rows.flatten().logsumexp(0) - torch.tensor(18.0).log())


def test_a_number_of_processes_without_torchrun_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert run(tmp_path / "r") == 2
    assert capsys.readouterr().err == "error: WORLD_SIZE is 2 but RANK is '': start several processes with torchrun\n"
