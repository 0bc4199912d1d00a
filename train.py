"""Train an encoder by Deep InfoMax: python train.py [--config FILE] [--group.key value ...] [--dry-run]

Without --config the embedded default, configs/digits.yaml. The same command continues an unfinished run.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from dim import build, checkpoint, gaussian, grid, machine, metrics, monitor, randomness, tracking
from dim.average import Average
from dim.chunks import embedded_in_chunks
from dim.config import Config, UserError
from dim.data import Dataset
from dim.evals.linear import quick_probe
from dim.guard import DivergedError, Guard
from dim.objective import Embedded
from dim.reading import check_folder, one_line, open_axes, prepare, read
from dim.summary import summary
from dim.views import draw_table

HERE = Path(__file__).resolve().parent


def train(config: Config, data: Dataset, folder: Path, dry_run: bool = False) -> None:
    """One run, from its first step or from its last checkpoint to the end."""
    # what is trained
    device = machine.device(config)
    encoder = build.encoder(config, data.shape)
    objective, terms = build.objective(config, encoder, data.shape)
    encoder, objective = encoder.to(device).to(memory_format=torch.channels_last), objective.to(device)
    view, schedule, views = build.views(config, data), build.schedule(config), config.views.number
    c, images = config.train, data.pretraining.to(device)
    if config.run.probe_every:
        data.with_labels()
    epoch_steps = len(images) // c.batch_size
    steps = c.steps or c.epochs * epoch_steps
    print(summary(config, data, encoder, objective, terms, device, steps))
    for term in terms:
        if term.warning:
            warn(term.warning)
    if c.warmup >= steps:
        warn(f"train.warmup is {c.warmup} steps of {steps}: the learning rates never reach their values; lower it")
    for term in terms:
        if term.queue >= epoch_steps * c.batch_size:
            raise UserError(
                f"objective.{'glob' if term.name == 'global' else 'local'}.queue is {term.queue}: it must hold less than an "
                f"epoch, which has {epoch_steps * c.batch_size:,} images"
            )
    if dry_run:
        return
    prepare(config, folder)

    # who updates it: one optimizer for encoder and critics, one for the prior's adversary
    critics = [p for name, p in objective.named_parameters() if not name.startswith("prior.")]
    optimizer = build.optimizer(config, [*encoder.parameters(), *critics])
    optimizers = {"optimizer": (optimizer, c.lr)}
    if objective.prior is not None:
        prior_lr = config.objective.prior.lr
        adversary = torch.optim.Adam(objective.prior.parameters(), prior_lr, c.betas, fused=True)
        optimizers["prior_optimizer"] = (adversary, prior_lr)

    # where it stands
    average = Average(encoder, c.average) if c.average else None
    modules = {"encoder": encoder, "objective": objective} | ({"average": average} if average is not None else {})
    start, sums, log_length, tracking_id = 0, {}, 0, ""
    if (folder / "checkpoint.pt").exists():
        state = checkpoint.load(folder / "checkpoint.pt")
        same_data(state["data"], data.facts, folder)
        start, sums, log_length = state["step"], state["sums"], state["log_length"]
        tracking_id = state.get("tracking_id", "")  # older checkpoints have none
        for name, module in modules.items():
            module.load_state_dict(state[name])
        for name, (opt, _) in optimizers.items():
            opt.load_state_dict(state[name])
        sums = {name: value.to(device) for name, value in sums.items()}
        if start == steps:
            print(f"{folder} is finished: {steps} steps. {whats_next(folder, data)}")
            return
        print(f"{folder} continues at step {start} of {steps}")
    log = metrics.JsonLines(folder / "metrics.jsonl", log_length)
    tracker = tracking.start(config, folder, tracking_id, warn)
    guard = Guard(device)
    warned = False

    def save(step: int) -> None:
        if not finite(modules):
            raise DivergedError(f"step {step - 1}: the update made weights or statistics that are not finite; {kept(folder)}")
        state = {name: part.state_dict() for name, part in modules.items()}
        state |= {name: opt.state_dict() for name, (opt, _) in optimizers.items()}
        versions = {"torch": str(torch.__version__), "device": str(device), "threads": torch.get_num_threads()}
        place = {"step": step, "steps": steps, "sums": sums, "log_length": log.length, "tracking_id": tracker.id}
        checkpoint.save(folder / "checkpoint.pt", {**state, **place, "versions": versions, "data": data.facts})
        so_far = metrics.last_and_best(log.rows(), step, steps)
        checkpoint.save_json(folder / "summary.json", so_far)
        tracker.summarise(so_far)

    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=config.precision == "bf16")
    parts = torch.nn.ModuleList([encoder, objective.critics()])  # what embeds; a queue is not copied for each chunk

    def walk(first: int, last: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Steps with the data-set numbers of their images and their pictures, in an order and in views of each epoch's own."""
        for step in range(first, last):
            epoch, place = divmod(step, epoch_steps)
            if place == 0 or step == first:
                order = randomness.order(config.seed, epoch, len(images)).to(device)
                draws = draw_table(config.seed, epoch, len(images), views, view.draws).to(device)
                batches = images.batches(order[place * c.batch_size : epoch_steps * c.batch_size], c.batch_size)
            index = order[place * c.batch_size : (place + 1) * c.batch_size]
            originals = data.units(next(batches).to(device), torch.float64 if config.precision == "float64" else torch.float32)
            pictures = data.normalised(torch.cat([view(originals, draws[index, v]) for v in range(views)]))
            yield step, index, pictures.contiguous(memory_format=torch.channels_last)

    def embed(pictures: torch.Tensor) -> Embedded:
        with autocast():
            return embedded_in_chunks(lambda some: objective.embed(encoder(some)), parts, pictures, c.chunk, views)

    asked = stop_when_asked()
    if not start:  # a queue begins with the last images of an epoch before the first, so that K is the same at every step
        with torch.no_grad():
            for step, index, pictures in walk(-(max(t.queue for t in terms) // c.batch_size), 0):
                objective.remember(embed(pictures), index, step, views)
    clock, clock_step = time.perf_counter(), start
    bar = tqdm(walk(start, steps), initial=start, total=steps, disable=None, unit="step", dynamic_ncols=True)
    for step, index, pictures in bar:
        done = step + 1
        epoch, epoch_ends = step // epoch_steps, done % epoch_steps == 0
        logs = done % config.run.log_every == 0 or done == steps

        # views -> maps and codes -> scores -> estimates -> the two losses
        at = embed(pictures)
        with autocast():
            losses = objective.losses(at, index, config.seed, step, views, keep_scores=logs)

        # each loss to its owner: one backward pass, since no gradient crosses
        for opt, lr in optimizers.values():
            opt.zero_grad()
            for group in opt.param_groups:
                group["lr"] = lr * schedule(step, steps)
        (losses.encoder if losses.discriminator is None else losses.encoder + losses.discriminator).backward()
        watched = {**losses.parts, "loss": losses.encoder}
        for name, (opt, _) in optimizers.items():
            watched[name.replace("optimizer", "gradient_norm")] = metrics.gradient_norm(opt)
        if c.clip:
            torch.nn.utils.clip_grads_with_norm_([*encoder.parameters(), *critics], c.clip, watched["gradient_norm"])
        guard.watch(step, watched)
        for opt, _ in optimizers.values():
            guard.withhold(opt)
            opt.step()
        objective.constrain()
        objective.remember(at, index, step, views)
        if average is not None:
            average.update(encoder)

        # what happened: summed on the device, read when it is written down
        watched["steps"] = torch.ones_like(losses.encoder)
        sums = {name: value.detach() + sums.get(name, 0) for name, value in watched.items()}
        saves = done % config.run.save_every == 0 or done == steps
        probes = config.run.probe_every and epoch_ends and (epoch + 1) % config.run.probe_every == 0
        keeps = config.run.keep_every and epoch_ends and (epoch + 1) % config.run.keep_every == 0 and done < steps
        if logs or saves or probes or asked or device.type == "cpu":
            stop_if_bad(guard, folder)
        if logs or probes:
            seconds = time.perf_counter() - clock
            row = {"step": done, "epoch": round(done / epoch_steps, 4)}
            row |= metrics.means(sums, terms) | monitor.log_row(losses.scores, terms) | objective.ages(done)
            row |= metrics.code_statistics(at.y[: c.batch_size])
            row |= {"learning_rate": optimizer.param_groups[0]["lr"]}
            row |= {"images_per_second": (done - clock_step) * c.batch_size / seconds}
            if probes:
                row |= quick_probe(encoder, data, config.data.split_seed)
            log.write(row)
            tracker.log(row)
            bar.set_description(f"epoch {epoch + 1}/{math.ceil(steps / epoch_steps)}")
            bar.set_postfix_str(metrics.bar_text(row, terms))
            if row["code/effective_rank"] < 2 and not warned:
                warned = True
                cure = "train.lr" + ", objective.prior.lr or objective.prior.weight" * (objective.prior is not None)
                rank = row["code/effective_rank"]
                warn(f"step {done}: the code collapses, effective rank {rank:.1f} of {at.y.shape[1]}; lower {cure}")
            sums, clock, clock_step = {}, time.perf_counter(), done
        if saves or keeps or asked:
            save(done)
        if keeps:
            checkpoint.keep(folder, folder / f"epoch-{epoch + 1}")
        if asked and done < steps:
            raise KeyboardInterrupt(f"stopped at step {done:,} of {steps:,}, saved; the same command continues there")
    tracker.finish()
    print(f"{folder}: {steps} steps done. {whats_next(folder, data)}")


def whats_next(folder: Path, data: Dataset) -> str:
    """What can be done with a trained run: its probes, or where there are no labels its features."""
    if data.classes:
        return f"Evaluate it with: python evaluate.py {folder}"
    return f"Use it with: python evaluate.py {folder} --features features.npz --export encoder.safetensors"


def same_data(before: dict, now: dict, folder: Path) -> None:
    """UserError where the images are not those that the run was trained on so far."""
    same = torch.equal(before["files"], now["files"]) and before.get("content", now["content"]) == now["content"]
    if before["images"] != now["images"] or not same:
        raise UserError(
            f"{folder} was trained on {before['images']:,} images of {before['name']}, and these are {now['images']:,} or "
            "others: put the same files there, or train in another --run.dir"
        )


def stop_when_asked() -> list[bool]:
    """A list that Ctrl-C makes non-empty, so that a step is finished and saved first; a second Ctrl-C stops at once."""
    asked: list[bool] = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    signal.signal(signal.SIGINT, ask)
    return asked


def stop_if_bad(guard: Guard, folder: Path) -> None:
    """Raise DivergedError at the first non-finite number; the last checkpoint is from before it."""
    if verdict := guard.verdict():
        raise DivergedError(f"{verdict}; no update was made from there on; {kept(folder)}")


def kept(folder: Path) -> str:
    """Where the last good state of a run is."""
    path = folder / "checkpoint.pt"
    return f"last good state: {path if path.exists() else 'none'}"


def finite(modules: dict[str, torch.nn.Module]) -> bool:
    """Whether all parameters and statistics are finite; one read from the device, only before a save."""
    tensors = [t for module in modules.values() for t in module.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all())


def warn(message: str) -> None:
    """One line on stderr, above the progress bar where there is one."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def main(argv: list[str]) -> int:
    try:
        machine.tune_process()
        flags, default = {"dry-run": "print shapes, sizes and negatives, then stop"}, HERE / "configs" / "digits.yaml"
        if axes := open_axes(argv, default, flags):
            return grid.train(argv, default, flags, axes)
        config, chosen = read(argv, default, flags)
        config = machine.settled(config)
        folder = Path(config.run.dir or Path("runs") / chosen.config.stem)
        if not chosen.dry_run:
            check_folder(config, folder)
        print(f"run        {folder}, from {chosen.config.name} and the command line")
        if config.data.name == "gaussian":
            gaussian.train(config, folder, chosen.dry_run)
            return 0
        data = build.dataset(config)
        if (images := len(data.pretraining)) < config.train.batch_size:
            raise UserError(f"train.batch_size is {config.train.batch_size}, but {data.name} has {images} images: lower it")
        train(config, data, folder, chosen.dry_run)
    except UserError as error:
        print(f"error: {one_line(str(error), 400)}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (MemoryError, torch.OutOfMemoryError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a fault of dim's own, with its traceback
        reason = one_line(str(error)) or "out of memory"
        print(f"error: the machine: {reason}; lower train.batch_size or units if it is memory, free the disk", file=sys.stderr)
        return 4
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped at once; the same command continues from the last checkpoint, if any", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
