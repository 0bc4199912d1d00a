"""Train an encoder by Deep InfoMax: python train.py [--config FILE] [--group.key value ...] [--dry-run]

Without --config the embedded default, configs/digits.yaml. The same command continues an unfinished run.
"""

import errno
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from dim import build, checkpoint, distributed, gaussian, grid, machine, memory, metrics, monitor, signals
from dim.average import Average
from dim.batches import Walk, walk
from dim.build import TermFacts
from dim.config import Config, UserError
from dim.data import Dataset
from dim.evals.linear import quick_probe
from dim.guard import DivergedError, Guard
from dim.journal import Journal
from dim.model import Model
from dim.reading import check_folder, one_line, open_axes, prepare, read
from dim.state import Run
from dim.summary import summary

HERE = Path(__file__).resolve().parent


def train(config: Config, data: Dataset, folder: Path, dry_run: bool = False) -> None:
    """One run, from its first step or from its last checkpoint to the end."""
    device = machine.device(config)
    model, terms = build.model(config, data.shape)
    model = model.to(device).to(memory_format=torch.channels_last)
    batches = walk(config, data, build.views(config, data), device)
    if config.run.probe_every:
        data.with_labels()
    epoch_steps = len(data.pretraining) // config.train.batch_size
    steps = config.train.steps or config.train.epochs * epoch_steps
    print(summary(config, data, model.encoder, model.objective, terms, device, steps))
    check_length(config, terms, steps, epoch_steps)
    if dry_run:
        print(memory.line(model, data.shape, distributed.share(config.train.batch_size, "train.batch_size")))
        return
    first = distributed.rank() == 0
    with checkpoint.locked(folder) if first else nullcontext(), signals.noted() as asked:
        if first:
            prepare(config, folder)
        run = state_of(config, model, device)
        journal = Journal(run, config, data.facts, folder, device, steps, epoch_steps, warn)
        if run.step == steps:
            print(f"{folder} is finished: {steps} steps. {whats_next(folder, data)}")
            return
        if run.step:
            print(f"{folder} continues at step {run.step} of {steps}")
        loop(config, data, model, terms, run, journal, batches, asked)
        journal.finish()
    print(f"{folder}: {steps} steps done. {whats_next(folder, data)}")


def state_of(config: Config, model: Model, device: torch.device) -> Run:
    """A run before its first step: one optimizer for encoder and critics, one for the prior's adversary."""
    c, prior = config.train, model.objective.prior
    run = Run(model.encoder, model.objective, build.optimizer(config, model.owned_by_encoder()), Guard(device, c.skip_bad))
    if prior is not None:
        run.prior_optimizer = torch.optim.Adam(prior.parameters(), config.objective.prior.lr, c.betas, fused=True)
    run.average = Average(model.encoder, c.average) if c.average else None
    return run


def loop(
    config: Config,
    data: Dataset,
    model: Model,
    terms: list[TermFacts],
    run: Run,
    journal: Journal,
    batches: Walk,
    asked: list[int],
) -> None:
    """The steps of a run from where it stands; StopRequest, once saved, when a signal asked for it."""
    c, views, objective = config.train, config.views.number, model.objective
    steps, epoch_steps = journal.steps, journal.epoch_steps
    schedule, rates = build.schedule(config), {"optimizer": c.lr, "prior_optimizer": config.objective.prior.lr}
    if not run.step:  # a queue begins with the last images of an epoch before the first, so that K is the same at every step
        with torch.no_grad():
            for step, index, pictures in batches(-(max(t.queue for t in terms) // c.batch_size), 0):
                objective.remember(model.embed(pictures), index, step, views)
    device = next(model.parameters()).device
    together = distributed.wrapped(model, device, unused=config.encoder.name.startswith("resnet"))
    start, clock, clock_step, warned, left_out = run.step, time.perf_counter(), run.step, False, int(run.guard.left_out)
    silent = True if distributed.rank() else None
    bar = tqdm(batches(start, steps), initial=start, total=steps, disable=silent, unit="step", dynamic_ncols=True)
    for step, index, pictures in bar:
        done = step + 1
        epoch, epoch_ends = step // epoch_steps, done % epoch_steps == 0
        logs = done % config.run.log_every == 0 or done == steps
        statistics = model.statistics() if c.skip_bad else None

        for name, opt in run.optimizers().items():
            opt.zero_grad()
            for group in opt.param_groups:
                group["lr"] = rates[name] * schedule(step, steps)

        with machine.coarse_products(model.bf16):
            # views -> maps and codes -> scores -> estimates -> the two losses
            losses, at = together(pictures, index, step, keep_scores=logs)

            # each loss to its owner: one backward pass, since no gradient crosses
            (losses.encoder if losses.discriminator is None else losses.encoder + losses.discriminator).backward()
        watched = {**losses.parts, "loss": losses.encoder}
        for name, opt in run.optimizers().items():
            watched[name.replace("optimizer", "gradient_norm")] = metrics.gradient_norm(opt)
        if c.clip:
            torch.nn.utils.clip_grads_with_norm_(model.owned_by_encoder(), c.clip, watched["gradient_norm"])
        run.guard.watch(step, watched)
        for opt in run.optimizers().values():
            run.guard.withhold(opt)
            opt.step()
        objective.constrain()
        model.restore(statistics, run.guard.bad)
        objective.remember(at, index, step, views, unless=run.guard.bad if c.skip_bad else None)
        if run.average is not None:
            run.average.update(model.encoder)
        run.step = done
        run.add(watched)

        # what happened: summed on the device, read when it is written down
        stop = distributed.highest(asked[0] if asked else 0)  # the exit code, 0: nobody asked
        saves = done % config.run.save_every == 0 or done == steps or journal.keeps() or stop > 0
        probes = config.run.probe_every and epoch_ends and (epoch + 1) % config.run.probe_every == 0
        if logs or saves or probes or device.type == "cpu":
            stop_if_bad(run.guard, journal)
        if logs or probes:
            row = {"step": done, "epoch": round(done / epoch_steps, 4)}
            row |= metrics.means(run.sums, terms) | monitor.log_row(losses.scores, terms) | objective.ages(done)
            row |= metrics.code_statistics(distributed.gathered(at.y[: len(index)].detach()))
            row |= {"skipped_steps": int(run.guard.left_out)} if c.skip_bad else {}
            if row.get("skipped_steps", 0) > left_out:
                left_out = row["skipped_steps"]
                warn(f"step {done}: {left_out} of {c.skip_bad} steps that train.skip_bad may leave out were not finite")
            row |= {"learning_rate": run.optimizer.param_groups[0]["lr"]}
            row |= {"images_per_second": (done - clock_step) * c.batch_size / (time.perf_counter() - clock)}
            if probes:
                distributed.as_first(model.encoder)
                row |= quick_probe(model.encoder, data, config.data.split_seed)
            journal.write(row)
            bar.set_description(f"epoch {epoch + 1}/{math.ceil(steps / epoch_steps)}")
            bar.set_postfix_str(metrics.bar_text(row, terms))
            if (rank := row["code/effective_rank"]) is not None and rank < 2 and not warned:
                warned = True
                cure = "train.lr" + ", objective.prior.lr or objective.prior.weight" * (objective.prior is not None)
                warn(f"step {done}: the code collapses, effective rank {rank:.1f} of {at.y.shape[1]}; lower {cure}")
            run.sums, clock, clock_step = {}, time.perf_counter(), done
            if probes:
                journal.keep_best(row)
        if saves:
            journal.save(last=stop > 0)
        if stop and done < steps:
            raise signals.StopRequest(f"stopped at step {done:,} of {steps:,}, saved; the same command continues there", stop)


def check_length(config: Config, terms: list[TermFacts], steps: int, epoch_steps: int) -> None:
    """What only the number of images decides: UserError where a queue is too long, warnings where settings do not fit."""
    for term in terms:
        if term.warning:
            warn(term.warning)
        if term.queue >= (images := epoch_steps * config.train.batch_size):
            raise UserError(
                f"objective.{'glob' if term.name == 'global' else 'local'}.queue is {term.queue}: it must hold less than an "
                f"epoch, which has {images:,} images"
            )
    if config.train.warmup >= steps:
        warn(f"train.warmup is {config.train.warmup} steps of {steps}: the learning rates never reach their values; lower it")


def whats_next(folder: Path, data: Dataset) -> str:
    """What can be done with a trained run: its probes, or where there are no labels its features."""
    if data.classes:
        return f"Evaluate it with: python evaluate.py {folder}"
    return f"Use it with: python evaluate.py {folder} --features features.npz --export encoder.safetensors"


def stop_if_bad(guard: Guard, journal: Journal) -> None:
    """Raise DivergedError once there were more non-finite steps than allowed; what was saved last is from before them."""
    if verdict := guard.verdict():
        raise DivergedError(f"{verdict}; no update was made from there on; {journal.kept()}")


def warn(message: str) -> None:
    """One line on stderr, above the progress bar where there is one; of several processes the first one's."""
    if not distributed.rank():
        tqdm.write(f"warning: {message}", file=sys.stderr)


def main(argv: list[str]) -> int:
    who = "error"
    try:
        if distributed.asked_for() > 1:
            who = f"error: process {(place := distributed.place())} of {distributed.asked_for()}"
            sys.stdout = sys.stdout if place == 0 else open(os.devnull, "w")  # noqa: SIM115, the process ends with it
        machine.tune_process()
        machine.tune_products()
        flags, default = (
            {"dry-run": "print shapes, sizes, negatives and the memory it would take, then stop"},
            HERE / "configs" / "digits.yaml",
        )
        if axes := open_axes(argv, default, flags):
            if distributed.asked_for() > 1:
                raise UserError("the runs of a grid are processes of their own: start it without torchrun, and with --run.jobs")
            return grid.train(argv, default, flags, axes)
        config, chosen = read(argv, default, flags)
        config = machine.settled(config)
        folder = Path(config.run.dir or Path("runs") / chosen.config.stem)
        if not chosen.dry_run:
            check_folder(config, folder)
        print(f"run        {folder}, from {chosen.config.name} and the command line")
        if config.data.name == "gaussian":
            if distributed.asked_for() > 1:
                raise UserError("a run on data.name gaussian takes seconds and one process: start it without torchrun")
            gaussian.train(config, folder, chosen.dry_run)
            return 0
        with distributed.joined(machine.device(config), config.run.timeout):
            data = distributed.first_then_others(lambda: build.dataset(config))
            if (images := len(data.pretraining)) < config.train.batch_size:
                raise UserError(f"train.batch_size is {config.train.batch_size}, but {data.name} has {images} images: lower it")
            train(config, data, folder, chosen.dry_run)
    except UserError as error:
        print(f"{who}: {one_line(str(error), 400)}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 3
    except distributed.LostError as error:
        print(f"{who}: lost the other processes: {one_line(str(error))}; the same command continues", file=sys.stderr)
        return 4
    except (MemoryError, torch.OutOfMemoryError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a fault of dim's own, with its traceback
        cure = "" if isinstance(error, OSError) else "; lower train.batch_size or units"
        cure = "; free the disk" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else cure
        print(f"{who}: the machine: {one_line(str(error)) or 'out of memory'}{cure}", file=sys.stderr)
        return 4
    except signals.StopRequest as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from the last checkpoint, if any", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
