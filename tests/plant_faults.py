"""Test the tests: plant each fault in a copy of the project and see which test turns red.

python tests/plant_faults.py [WORDS ..]     prints a Markdown table; exit code 1 if a fault goes unnoticed

WORDS: only faults whose description or file has one of them, as in "evals/mine" or "own pairs". Each fault is a line of
results/faults.jsonl as soon as it was tried; one is not tried again while its file and its tests are the same.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "faults.jsonl"


class Fault(NamedTuple):
    """A mistake someone could make: in `file`, `right` becomes `wrong`; tests/test_<tests>.py should notice."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = (
    Fault("InfoNCE without the positive in its sum", "estimators", "torch.logaddexp(pos, others)", "others", "estimators"),
    Fault("InfoNCE's ceiling log K instead of log(K + 1)", "estimators", "math.log(k + 1)", "math.log(k)", "estimators"),
    Fault("JSD with positives and negatives exchanged", "estimators", "softplus(-pos).mean()", "softplus(pos).mean()", "estimators"),
    Fault("DV averages over anchors for the log", "estimators", "math.log(scores.numel())", "math.log(len(scores))", "estimators"),
    Fault(
        "a constant under the log, as in the official DV",
        "estimators",
        "logsumexp(scores.flatten(), 0) -",
        "(logsumexp(scores.flatten(), 0).exp() + 1e-6).log() -",
        "estimators",
    ),
    Fault("half-precision scores stay half", "estimators", "return scores.float() if", "return scores if", "estimators"),
    Fault("the own image among all negatives", "pool", "(place >= first[:, None])", "(place > first[:, None])", "critics"),
    Fault("scores of a table without their scale", "critics", "raised(a) * self.factor(), b", "raised(a), b", "critics"),
    Fault("scores of a bf16 step in bf16", "critics", "return a @ b.to(a.dtype).T", "return (a.to(b.dtype) @ b.T).to(a.dtype)", "critics"),
    Fault("a bf16 table whose anchors learn nothing", "critics", "return (rounded @ b).to(a.dtype).addcmul_(lost[:, None], mean), ", "return torch.zeros_like(a), ", "critics"),
    Fault("negatives that count lifted to the largest", "estimators", ".tiny) + 40", ".tiny) + 80", "estimators"),
    Fault("a largest score of 1e30 that all others reach", "estimators", ".nextafter(largest.new_tensor(-math.inf))  #", "  #", "estimators"),
    Fault("what rounding takes from an anchor's gradient lost", "critics", ".addcmul_(lost[:, None], mean)", "", "critics"),
    Fault("a table whose temperature learns nothing", "critics", "raised(a) * self.factor(), b", "raised(a) * float(self.factor()), b", "critics"),
    Fault("cosines of rows in bf16", "critics", "F.normalize(raised(self.anchor_head(y)), dim=-1)", "F.normalize(self.anchor_head(y), dim=-1)", "critics"),
    Fault("a divergence called nats", "estimators", 'Estimator(rkl, "rkl"', 'Estimator(rkl, "nats"', "estimators"),
    Fault("dv joined as a mean over anchors", "estimators", 'Estimator(dv, "nats", pooled=True)', 'Estimator(dv, "nats")', "estimators"),
    Fault("the same fresh draws for every seed", "gaussian", "config.seed, \"fresh\"", "0, \"fresh\"", "gaussian"),
    Fault("a bias's gradient of the first row alone", "critics", "(gradient.new_ones(1, len(gradient)) @ gradient)[0]", "gradient[0]", "critics"),
    Fault("many rows without their bias", "critics", "return torch.mm(x, w.T, out=out).add_(bias)", "return torch.mm(x, w.T, out=out)", "critics"),
    Fault("own maps are the pool's first", "critics", "rows_of(own[:, None], b.shape[1])", "rows_of(torch.arange(len(own))[:, None], b.shape[1])", "critics"),
    Fault("anchors with the gradient of their last tile", "critics", "of_a[anchors] += ", "of_a[anchors] = ", "critics"),
    Fault("weights with the gradient of the last tile", "critics", "of_w += of_second.T", "of_w = of_second.T", "critics"),
    Fault("gradients of tiles added up in bf16", "critics", "(torch.zeros_like(raised(x)) for x in (a, b, w))", "(*(torch.zeros_like(raised(x)) for x in (a, b)), torch.zeros_like(w))", "critics"),
    Fault("a last layer that learns nothing from the hidden bias", "critics", "(of_w * w).sum(1) + of_bias * bias", "(of_w * w).sum(1)", "critics"),
    Fault("a tile's gradient made in what is kept", "critics", "threshold_backward(rounded[pairs].expand_as(second), second, 0)", "threshold_backward.grad_input(rounded[pairs].expand_as(second), second, 0, grad_input=second)", "critics"),
    Fault("the last layer's gradient from rounded ones", "critics", "if not exact:", "if False:", "critics"),
    Fault("a hidden layer kept that nobody asks for", "critics", "rows.numel() if keep else 0", "rows.numel()", "critics"),
    Fault("concat past autocast", "critics", "a.to(dtype), b.flatten(0, 1).to(dtype)", "a, b.flatten(0, 1)", "critics"),
    Fault("an anchor's gradient added up in bf16", "critics", "(torch.zeros_like(raised(x)) for x in (a, b, w))", "(torch.zeros_like(a), *(torch.zeros_like(raised(x)) for x in (b, w)))", "critics"),
    Fault("pairs that meet without a ReLU's gradient", "critics", "torch.ops.aten.threshold_backward.grad_input(of_first, first, 0, grad_input=of_first)", "pass", "critics"),
    Fault("the last layer's weights left out of a hidden gradient", "critics", "of_w * last.T, ", "of_w, ", "critics"),
    Fault("the mean row of a bf16 table over too few", "critics", "1 / len(b))", "2 / len(b))", "critics"),
    Fault("a flattened map's gradient lies otherwise", "encoders", "if ctx.last else gradient", "if not ctx.last else gradient", "encoders"),
    Fault("overlapping pairs of rows written, not added", "winograd", "last.add_(x[2])", "last.copy_(x[2])", "winograd"),
    Fault("a middle pair without the block's last", "winograd", "out=middle).sub_(x[2])", "out=middle)", "winograd"),
    Fault("rows and columns of a kernel exchanged", "winograd", "w.permute(0, 2, 3, 1)", "w.permute(0, 3, 2, 1)", "winograd"),
    Fault("a kernel with the gradient of its last tile", "winograd", "torch.baddbmm(of_w,", "torch.baddbmm(of_w * 0,", "winograd"),
    Fault("convolutions of bf16 steps by differences of bf16", "winograd", "and not torch.is_autocast_enabled(\"cpu\")", "", "winograd"),
    Fault("the last, smaller tile of images left out", "winograd", "range(0, len(x), images)", "range(0, max(1, len(x) - len(x) % images), images)", "winograd"),
    Fault("an exported convolution of one number of images", "winograd", "not torch.compiler.is_compiling()\n        and ", "", "winograd"),
    Fault("fewer products where they are slow", "winograd", "if not (self.fewer_products and ", "if not (", "winograd"),
    Fault("fewer products never taken", "machine", "Convolution.fewer_products = True", "pass", "machine"),
    Fault("a convolution's gradient within autocast in bf16", "winograd", "with torch.autocast(gradient.device.type, enabled=False):", "with torch.autocast(gradient.device.type, enabled=torch.is_autocast_enabled(\"cpu\")):", "winograd"),
    Fault("a convolution whose bias learns nothing", "winograd", "y + self.bias[:, None, None]", "y + self.bias.detach()[:, None, None]", "winograd"),
    Fault("a gradient that cannot be differentiated", "winograd", "if torch.is_grad_enabled():", "if False:", "winograd"),
    Fault("images whose sides leave a block unfinished", "winograd", "x.shape[2] % 4 == x.shape[3] % 4 == 0", "x.shape[2] % 4 == 0", "winograd"),
    Fault("a lost tracker is waited for", "tracking", "thread.join(PATIENCE)", "thread.join()", "tracking"),
    Fault("a crop of images less wide than it", "views", "if min(height, width) < self.size:  # the strides", "if height < self.size:  # the strides", "views"),
    Fault("a flip that gives back its images where none is flipped", "views", "        both = torch.cat", "        if not chosen(draws[:, 0], self.probability).any():\n            return images\n        both = torch.cat", "views"),
    Fault("a lock on a file that is gone", "checkpoint", "if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):", "if not path.exists():", "checkpoint"),
    Fault("what the first process sent may build classes", "distributed", 'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)', "distributed"),
    Fault("running statistics of each process's own at the end", "distributed", "dist.broadcast(buffer, 0", "dist.broadcast(buffer.clone(), 0", "distributed"),
    Fault("a lost tracker is kept to the end", "tracking", "            let_go()\n\n\ndef start", "\n\ndef start", "tracking"),
    Fault("a ReLU in the shortcut", "critics", ".add_(of_rows(self.shortcut, x))", ".add_(of_rows(self.shortcut, x).relu())", "critics"),
    Fault("the own image among sampled negatives", "negatives", "skipping(row, pool.out * locations,", "skipping(row, pool.out,", "negatives"),
    Fault("sampled negatives with replacement", "negatives", "torch.randperm(others,", "torch.randint(others, (others,),", "negatives"),
    Fault("the same negatives at every step", "negatives", '"negatives", step,', '"negatives",', "negatives"),
    Fault("a shift of 0", "negatives", "place = (pool.own[:, None] +", "place = (pool.own[:, None] - 1 +", "negatives"),
    Fault("the encoder helps the prior's adversary", "prior", "softplus(-functional_call", "softplus(functional_call", "prior"),
    Fault("the adversary's loss reaches the encoder", "prior", "self.squash(y.detach())", "self.squash(y)", "prior"),
    Fault("the encoder's loss reaches the adversary", "prior", "weight.detach() for", "weight for", "prior"),
    Fault("the penalty of the last sample only", "prior", ".square().sum(1).mean()", ".square().sum(1)[-1] / len(inputs)", "prior"),
    Fault("codes enter the uniform prior unsquashed", "prior", ".sigmoid() if", " if", "prior"),
    Fault("the estimate is minimised", "objective", "loss - weight *", "loss + weight *", "objective"),
    Fault("a view meets itself", "objective", "[Pair(a1, b2), Pair(a2, b1)]", "[Pair(a1, b1), Pair(a2, b2)]", "objective"),
    Fault("a slope that is rewarded", "objective", "+ weight * term.lipschitz", "- weight * term.lipschitz", "objective"),
    Fault("a gentle critic is made steeper", "objective", "norm.clamp_min(1).sqrt()", "norm.clamp_min(1e-12).sqrt()", "objective"),
    Fault("the second view goes into the queue", "objective", "pair.b.chunk(views)[0]", "pair.b.chunk(views)[-1]", "pool"),
    Fault("the copy of the own image stays in the queue", "pool", "== self.image  #", "== self.image + 1  #", "pool"),
    Fault("the newest entry is left out for the oldest", "pool", "argmax(1), self.next)", "argmax(1), (self.next - 1) % len(self.image))", "pool"),
    Fault("a queue whose pointer stands still", "pool", "self.next.add_(moved)", "self.next.add_(0)", "pool"),
    Fault("a queue that is empty at the start", "../train", "if not run.step:  # a queue", "if False:  # a queue", "pool"),
    Fault("ages a step too young", "../train", "objective.ages(done)", "objective.ages(step)", "pool"),
    Fault("the second pass of a chunk counts its statistics again", "chunks", "as_before(buffers, [buffer.clone() for buffer in buffers])", "nullcontext()", "chunks"),
    Fault("the second pass finds later statistics", "chunks", "    set_to(buffers, before)\n", "", "chunks"),
    Fault("chunks that part the views of an image", "chunks", ".view(views, images).split(chunk, dim=1)", ".split(chunk)", "chunks"),
    Fault("embedded chunks in the wrong order", "chunks", "for place in places]).argsort()", "for place in places])", "chunks"),
    Fault("other dropout in the second pass", "chunks", "preserve_rng_state=True", "preserve_rng_state=False", "chunks"),
    Fault("share of negatives below for above", "monitor", "return 1 - below", "return below", "monitor"),
    Fault("saturation against log K", "monitor", "top = math.log(k + 1)", "top = math.log(k)", "monitor"),
    Fault("scores kept at every step", "../train", "keep_scores=logs", "keep_scores=True", "monitor"),
    Fault("own pairs of too much noise", "gaussian", "math.sqrt(1 - rho**2) * z[", "math.sqrt(1 - rho) * z[", "gaussian"),
    Fault("own vectors among the fresh negatives", "gaussian", "a, b[anchors:]", "a, b[:-anchors]", "gaussian"),
    Fault("held-out values of training draws", "gaussian", '"held out"', '"pairs"', "gaussian"),
    Fault("an interval of 90 %", "figures/negatives", "t.ppf(0.975,", "t.ppf(0.95,", "negatives_figure"),
    Fault("a difference to another seed", "figures/negatives", "rival[seed].values[name] for", "rival[both[0]].values[name] for", "negatives_figure"),
    Fault("LayerNorm over the whole map", "norms", "return ChannelNorm(channels) if", "return nn.GroupNorm(1, channels) if", "encoders"),
    Fault("one draw for all images of a batch", "views", "draws = draws.to(images.dtype)", "draws = draws[:1].to(images.dtype).expand_as(draws)", "views"),
    Fault("a mirror image upside down", "views", "pixels.flip(2)", "pixels.flip(1)", "views"),
    Fault("a crop that never takes the last window", "views", "- self.size + 1)", "- self.size)", "views"),
    Fault("windows that begin a row below", "views", "* height + top)", "* height + top + 1)", "views"),
    Fault("a jitter of every image", "views", "(draws * chosen(draws[:, :1], self.probability)).to", "(draws * 1).to", "views"),
    Fault("contrast about each pixel's own luma", "views", "luma(images).mean((1, 2, 3), keepdim=True)", "luma(images)", "views"),
    Fault("hues turned backwards", "views", "(angle + sixth + 6 * share)", "(angle + sixth - 6 * share)", "views"),
    Fault("grey as the mean of the three channels", "views", "0.2989 * red + 0.587 * green + 0.114 * blue", "(red + green + blue) / 3", "views"),
    Fault("all views of a chain read the same draws", "views", "images = view(images, columns)", "images = view(images, draws[:, : view.draws])", "views"),
    Fault("boxes uniform in the ratio, not in its log", "views", "between(draws[:, 1], math.log(self.ratio[0]), math.log(self.ratio[1])).exp()", "between(draws[:, 1], *self.ratio)", "views"),
    Fault("a brightness that changes the images given", "views", "images = (images * brightness).clamp(0, 1)", "images = images.mul_(brightness).clamp_(0, 1)", "views"),
    Fault("a warm-up that starts at a rate of 0", "schedule", "(step + 1) / max", "step / max", "schedule"),
    Fault("C chosen with the test split", "evals/protocol", "train[fitting], labels[fitting], train[validation], labels[validation], kind", "train[fitting], labels[fitting], test, test_labels, kind", "protocol"),
    Fault("the probe standardised by all features", "evals/protocol", "    mean = train.mean(0)", "    mean = torch.cat([train, test]).mean(0)", "protocol"),
    Fault("no refit on the whole training split", "evals/protocol", '{"all": [None]}', '{"all": [data.validation(0)[0]]}', "protocol"),
    Fault("a search that equal accuracies end", "evals/protocol", "score < tried[best]", "score <= tried[best]", "protocol"),
    Fault("the same resample five times", "evals/protocol", 'generator(draw, "resample")', 'generator(0, "resample")', "protocol"),
    Fault("few labels with the C of all", "evals/protocol", "elif column.isdigit():", "elif False:", "protocol"),
    Fault("features that are not finite are probed", "evals/protocol", "if not (torch.isfinite(train).all() and torch.isfinite(test).all()):", "if False:", "protocol"),
    Fault("hinge without its square", "evals/svm", "slope = back(sign * margin.clamp_min(0) * (-2 / n), weight)", "slope = back(sign * (margin > 0) * (-2 / n), weight)", "svm"),
    Fault("a bias that is penalised", "evals/svm", "error.sum(1)[None]])", "error.sum(1)[None] + decay])", "svm"),
    Fault("a full Newton step without a line search", "evals/svm", "weight[:, left] += length * direction[:-1]", "weight[:, left] += direction[:-1]", "svm"),
    Fault("a vote without weights", "evals/knn", "((similarity - similarity[:, :1]) / TEMPERATURE).exp()", "torch.ones_like(similarity)", "knn"),
    Fault("neighbours by inner product", "evals/knn", "F.normalize(chunk, dim=1) @ columns", "chunk @ columns", "knn"),
    Fault("neighbours outside the subset", "evals/knn", " if subset is None else subset.to(x.device) for subset", " for subset", "knn"),
    Fault("dropout while predicting", "evals/mlp", "yield net.eval()", "yield net.train()", "mlp"),
    Fault("the best epochs of the test split", "evals/mlp", "torch.stack(scores[-PAPER_LAST:])", "torch.stack(scores).sort().values[-PAPER_LAST:]", "mlp"),
    Fault("rates that do not fall", "evals/mlp", "if epoch in recipe.drops:", "if False:", "mlp"),
    Fault("a critic read out on the rows that trained it", "evals/ratio", "reported = score(trained.critic, data, reporting,", "reported = score(trained.critic, data, training,", "ratio"),
    Fault("a scale chosen on the reporting rows", "evals/ratio", "best_scale(*chosen)", "best_scale(*reported)", "ratio"),
    Fault("a moving average that starts at 0", "evals/ratio", " + math.log1p(-(self.decay**self.steps))", "", "ratio"),
    Fault("own pairs among the shifted ones", "evals/mine", "1 + torch.randperm(len(rows) - 1,", "torch.randperm(len(rows),", "mine"),
    Fault("columns that stay together", "evals/ndm", "torch.randperm(rows, generator=draws)[:columns]", "torch.randint(rows, (columns,), generator=draws)", "ndm"),
    Fault("rows shuffled as a whole", "evals/ndm", "draws)[:, self.of]) for", "draws)[:, self.of * 0]) for", "ndm"),
    Fault("columns standardised by all rows", "evals/columns", "known = columns[:, train]", "known = columns", "columns"),
    Fault("ties at the end of their places", "evals/columns", "torch.searchsorted(ordered, columns) +", "torch.searchsorted(ordered, columns, right=True) +", "columns"),
    Fault("twice the Jensen-Shannon divergence", "information", "expected(q, q.log() - middle)) / 2 /", "expected(q, q.log() - middle)) /", "information"),
    Fault("the entropy of X given Y", "information", "joint.sum(1, keepdim=True).log() - joint.log()", "joint.sum(0, keepdim=True).log() - joint.log()", "information"),
    Fault("diversity that is punished", "evals/unlabelled", "- diversity * entropy(log_mean)", "+ diversity * entropy(log_mean)", "unlabelled"),
    Fault("targets of consistency with a gradient", "evals/unlabelled", "checked(logits).detach(), checked(augmented)", "checked(logits), checked(augmented)", "unlabelled"),
    Fault("a mean over the images that are not confident too", "evals/unlabelled", "chosen.sum().clamp_min(1)", "len(chosen)", "unlabelled"),
    Fault("the same labels for every seed of fine-tuning", "evals/finetune", "label_draws(labels, per_class, seed + 1)[seed]", "label_draws(labels, per_class, seed + 1)[0]", "finetune"),
    Fault("an encoder that fine-tuning leaves frozen", "evals/finetune", "copy.deepcopy(encoder).requires_grad_()", "copy.deepcopy(encoder).requires_grad_(False)", "finetune"),
    Fault("fine-tuning of the encoder given", "evals/finetune", "copy.deepcopy(encoder).requires_grad_()", "encoder.requires_grad_()", "finetune"),
    Fault("unequal classes among the training images alone", "evals/adapt", 'part(data.train, "train"), part(data.test, "test")\n    return', 'part(data.train, "train"), data.test\n    return', "adapt"),
    Fault("a decoder judged on images that trained it", "evals/reconstruction", '"": judged(decoder, x_test, test_images)', '"": judged(decoder, x[: len(x_test)], train_images[: len(x_test)])', "reconstruction"),
    Fault("weights of scales that do not sum to 1", "evals/reconstruction", "tuple(w / sum(weights) for w in weights)", "weights", "reconstruction"),
    Fault("the farthest by L1", "evals/neighbours", "largest=False", "largest=True", "neighbours"),
    Fault("a blind draw that knows no class sizes", "evals/neighbours", "frequency[query_labels].mean()", "frequency.mean()", "neighbours"),
    Fault("the first map before the vector for the last", "backbones", "order.index(name) < order.index(glob)][-1]", "order.index(name) < order.index(glob)][0]", "backbones"),
    Fault("hooks that stay on the network", "backbones", "handle.remove()", "pass", "backbones"),
    Fault("first weights that stay in the average", "average", "(1 - (1 + self.updates) / (10 + self.updates)).clamp_min(1 - self.decay)", "torch.tensor(1 - self.decay)", "average"),
    Fault("an average that keeps the share it should take", "average", "mine.lerp_(theirs, share", "mine.lerp_(theirs, 1 - share", "average"),
    Fault("MINE on the test images", "evals/sections", "mine(features.of(a)[0], features.of(b)[0], seed)", "mine(features.of(a)[1], features.of(b)[1], seed)", "sections"),
    Fault("three seeds of fine-tuning that are one", "evals/sections", "layer=layer, losses=losses, seed=seed)", "layer=layer, losses=losses, seed=0)", "sections"),
    Fault("raw pixels, unscaled, that are standardised", "evals/sections", "features.of(layer) if name == protocol.UNSCALED else", "features.standardised(layer) if name == protocol.UNSCALED else", "sections"),
    Fault("a random encoder without statistics", "../evaluate", "set_statistics(first_encoder(config, data.shape), data, data.train)", "first_encoder(config, data.shape).eval()", "evaluate"),
    Fault("a trained row of first weights", "../evaluate", '    checkpoint.fill(encoder, state["encoder"], folder)\n', "", "evaluate"),
    Fault("another data set under the run's own name", "../evaluate", 'if same and trained["name"] == now["name"]:', "if True:", "evaluate"),
    Fault("a budget of memory for each split", "folder", "room -= size * fits", "room -= 0", "folder"),
    Fault("images in [-1, 1] taken for images in [0, 1]", "export", "low >= LOWEST and high", "high", "export"),
    Fault("a report of other weights is continued", "report", '    "weights_sha256": "weights",\n', '', "report"),
    Fault("few labels scored on training images", "evals/finetune", "images = data.test.batches(", "images = data.train.batches(", "finetune"),
    Fault("features of an encoder in training mode", "evals/features", "    encoder.eval()\n", "", "linear"),
    Fault("columns fitted on the rows that report", "evals/mine", "(values, split[0])[0], split[0], ranks)", "(values, split[0])[0], split[2], ranks)", "mine"),
    Fault("a critic trained by jsd whatever is asked for", "evals/ratio", "batch = objective(estimator)", 'batch = objective("jsd")', "ratio"),
    Fault("the scale chosen on the training rows", "evals/ratio", "scale = best_scale(*chosen)", "scale = best_scale(*own)", "ratio"),
    Fault("a report read without its scale", "evals/ratio", "read(*reported, scale), read(*reported)", "read(*reported), read(*reported)", "ratio"),
    Fault("runs of other length in one mean", "report", '("config", "steps",', '("config",', "report"),
    Fault("resamples with each other's neighbours", "evals/knn", "each[torch.cat([part.indices", "rows[0][torch.cat([part.indices", "knn"),
    Fault("the best probe forgotten by a resumed run", "state", ', float(state["best"])', ", 0.0", "survive"),
    Fault("a damaged newest state stays in its place", "journal", "checkpoint.make_newest(folder, run.step)", "pass", "survive"),
    Fault("a stop that the disk refused called saved", "../train", "journal.save(last=stop > 0)", "journal.save()", "survive"),
    Fault("seeds of different configurations in one mean", "report", '("config", "steps",', '("steps",', "report"),
    Fault("an exported encoder whose digest is not compared", "export", 'if header.pop("sha256") != digest(header, tensors):', 'header.pop("sha256")\n        if False:', "export"),
    Fault("an exported encoder in training mode", "export", "self.requires_grad_(False).eval()", "self.requires_grad_(False).train()", "export"),
    Fault("uint8 images not divided", "export", "images.to(weight) / self.levels if", "images.to(weight) if", "export"),
    Fault("a new id for each tracked process", "tracking", "id = id or secrets.token_hex(4)", "id = secrets.token_hex(4)", "tracking"),
    Fault("a failure of wandb ends the run", "tracking", "except Exception as error:  # wandb raises many kinds, and none is worth the training", "except ZeroDivisionError as error:", "tracking"),
    Fault("rows that wandb does not get", "tracking", "lambda run: run.log(row, step=row[\"step\"], commit=True)", "lambda run: None", "tracking"),
    Fault("kept copies of another step", "journal", "self.run.step % every == 0", "(self.run.step + 1) % every == 0", "train"),
    Fault("a probe that always says it converged", "evals/linear", "return self.gradient <= TOLERANCE", "return True", "linear"),
    Fault("STL-10's rows and columns not exchanged", "datasets", ".transpose(0, 1, 3, 2)", "", "datasets"),
    Fault("STL-10's labels counted from 1", "datasets", ".astype(np.int64) - 1", ".astype(np.int64) % 10", "datasets"),
    Fault("unlabelled images in a probe", "evals/linear", "features(encoder, data, data.train, used,", "features(encoder, data, data.pretraining, used,", "datasets"),
    Fault("labels beside the images that pretrain", "datasets", "torch.full((len(more) + len(train),), -1)", "torch.cat([torch.full((len(more),), -1), train.labels])", "datasets"),
    Fault("a checksum that is not compared", "datasets", "if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:", "if False:", "datasets"),
    Fault("an archive's checksum that is not compared", "datasets", "if md5_of(root / archive) != MD5[archive]:", "if False:", "datasets"),
    Fault("an archive unpacked wherever it says", "datasets", 'filter="data"', 'filter="fully_trusted"', "datasets"),
    Fault("a link's target not looked at", "folder", "if outside is not None:", "if False:", "damaged_data"),
    Fault("the held-out fifth also pretrains", "folder", "for part in (~test, test)]", "for part in (~test | test, test)]", "folder"),
    Fault("alpha dropped", "folder", "if image.has_transparency_data:", "if False:", "folder"),
    Fault("a picture as the camera was held", "folder", "image = ImageOps.exif_transpose(stored)", "image = stored.copy()", "folder"),
    Fault("streamed images in the order of their files", "folder", "[chunk.tolist() for chunk in index.split(size)]", "[chunk.tolist() for chunk in index.sort()[0].split(size)]", "folder"),
    Fault("damage passed over in a streamed run", "folder", "raise UserError(f\"{self.names[chunk", "print(f\"{self.names[chunk", "folder"),
    Fault("folds that are given every label", "evals/protocol", 'found["folds"] = list(data.folds)', 'found["folds"] = [torch.arange(len(data.train))] * len(data.folds)', "protocol"),
    Fault("raw pixels standardised where they are said not to be", "evals/sections", "features.of(layer) if name == protocol.UNSCALED else", "features.standardised(layer) if name == protocol.UNSCALED else", "sections"),
    Fault("fine-tuning on other images than the official folds", "evals/sections", 'columns["folds"] = data.folds', 'columns["folds"] = [None] * 10', "sections"),
    Fault("a comparison that shows nats as per cent", "report", '"percent": title not in MEASURES', '"percent": True', "report"),
    Fault("measures left out of report.md", "report", "    for title, part in measured(content).items():\n        keys", "    for title, part in ():\n        keys", "report"),
    Fault("a caption that calls the shown data the training data", "figures/captions", "{trained['name']}", "{data.name}", "embedding"),
    Fault("a picture of other data over the run's own", "figures/samples", "[name, *[other] * bool(other)]", "[name]", "embedding"),
    Fault("a second decoder for the picture of the first", "figures/reconstruction", "if decoded is not None and", "if False and", "reconstruction"),
    Fault("damaged critics with a traceback", "figures/curves", 'checkpoint.fill(objective, state["objective"], folder)', 'objective.load_state_dict(state["objective"])', "figures"),
    Fault("the averaged weights replaced by the last", "../evaluate", "state, chosen.weights, folder)\n    found", 'state, "last", folder)\n    found', "evaluate"),
    Fault("resamples although once is asked for", "../evaluate", "resampled=not chosen.once", "resampled=True", "evaluate"),
    Fault("an update with a gradient that is not finite", "guard", "optimizer.found_inf, ", "optimizer.found_, ", "train"),
    Fault("a resumed run draws the first batches again", "batches", "epoch, place = divmod(step, epoch_steps)", "epoch, place = divmod(step - first, epoch_steps)", "train"),
    Fault("a key given twice wins last", "reading", "if twice is not None:", "if False:", "config"),
    Fault("a step that waits for the device", "guard", "now = flags.any()", "now = flags.any() & bool(flags.any())", "train"),
    Fault("DV's parts averaged", "estimators", "    if not pooled:\n", "    if True:\n", "objective"),
    Fault("scores of the first part only", "objective", "for first in range(0, size * self.parts, size)]", "for first in range(0, size * self.parts, size)][:1]", "objective"),
    Fault("a checkpoint written in its place", "checkpoint", 'aside = path.with_suffix(".writing")', "aside = path", "checkpoint"),
    Fault("a file renamed before it is on the disk", "checkpoint", "            os.fsync(file.fileno())\n        os.replace(aside, path)", "        os.replace(aside, path)", "checkpoint"),
    Fault("a folder that is not brought to the disk", "checkpoint", "        sync(path.parent)\n", "", "checkpoint"),
    Fault("a checksum that nobody compares", "checkpoint", "or hashlib.sha256(archive).hexdigest().encode() != content[end:]", "", "checkpoint"),
    Fault("a loader that runs code", "checkpoint", "weights_only=True", "weights_only=False", "checkpoint"),
    Fault("no state before the newest", "checkpoint", "os.replace(folder / NEWEST, folder / BEFORE)", "pass", "checkpoint"),
    Fault("a damaged file that pushes out the whole one", "checkpoint", 'os.replace(path, folder / "checkpoint.damaged.pt")', "pass", "checkpoint"),
    Fault("a folder that two processes may have", "checkpoint", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", "checkpoint"),
    Fault("Adam's moments forgotten", "state", "            part.load_state_dict(state[name])\n", '            if "optimizer" not in name:\n                part.load_state_dict(state[name])\n', "survive"),
    Fault("sums of the log forgotten", "state", 'self.sums = {name: value.to(device) for name, value in state["sums"].items()}', "self.sums = {}", "survive"),
    Fault("another run's checkpoint continued", "state", "if old[key] != value]", "if False]", "survive"),
    Fault("order drawn from the global state", "randomness", 'return torch.randperm(n, generator=generator(seed, "order", epoch))', "return torch.randperm(n)", "survive"),
    Fault("SIGTERM kills at once", "signals", "signal.SIGTERM: 143, ", "", "survive"),
    Fault("a full disk ends the run", "journal", "self.refused == PATIENCE or", "True or", "survive"),
    Fault("a summary that a kill has cost stays away", "journal", "        if run.step:\n            self.beside()", "        if run.step:\n            pass", "survive"),
    Fault("a step left out leaves NaN in the statistics", "model", "buffer.copy_(torch.where(where, before, buffer))", "pass", "survive"),
    Fault("a step left out leaves NaN in the queue", "pool", "values = torch.where(unless, kept.index_select(0, places), values)", "pass", "survive"),
    Fault("rows gathered without gradient", "distributed", "return Gathered.apply(own) if ranks() > 1 else own", "return Gathered.apply(own.detach()) if ranks() > 1 else own", "distributed"),
    Fault("gradients of gathered rows not summed", "distributed", '        dist.all_reduce(total, group=GROUPS["device"])\n', "", "distributed"),
    Fault("DV's logarithm of one rank alone", "distributed", "each = gathered(logsumexp(scores.flatten(), 0)[None])", "each = logsumexp(scores.flatten(), 0)[None].repeat(ranks())", "distributed"),
    Fault("every rank's anchors at the first places", "distributed", "device=own.device) + rank() * len(own)", "device=own.device)", "distributed"),
    Fault("prior samples the same on every rank", "objective", "sample = distributed.mine(sample, dim=1)", "sample = sample[:, : sample.shape[1] // distributed.ranks()]", "distributed"),
    Fault("a rank that skips a bad step alone", "guard", "flags = any_of(flags)", "flags = flags", "distributed"),
    Fault("a rank that stops alone", "distributed", 'dist.all_reduce(found, dist.ReduceOp.MAX, group=GROUPS["host"])', "pass", "distributed"),
    Fault("freed memory given back", "machine", "mallopt(M_MMAP_MAX, 0)", "pass", "machine"),
    Fault("bf16 on a processor without it", "machine", "return not BF16.isdisjoint(", "return True or (", "machine"),
    Fault("own pairs' scores of the first image", "critics", "picked(table, own[:, None])", "picked(table, own[:, None] * 0)", "critics"),
    Fault("rounded factors in float32 too", "../train", "coarse_products(model.bf16)", "coarse_products(True)", "machine"),
    Fault("factors stay rounded after the step", "machine", "            place.fp32_precision = kept", "            pass", "machine"),
    Fault("AMD's products taken unseen", "machine", "if exact_products():", "if True:", "machine"),
    Fault("dropout without its scale", "evals/mlp", ".mul_(1 / (1 - self.share))", "", "mlp"),
    Fault("the sharpened side exchanged", "evals/unlabelled", "temperature=1.0, target_temperature=0.4)", "temperature=0.4, target_temperature=1.0)", "unlabelled"),
    Fault("a column that means something else is kept", "report", "before.get(column, words) != words", "False", "report"),
    Fault("columns that are there are measured again", "evals/protocol", "        if column in known:\n            continue\n", "", "protocol"),
    Fault("rows that lack a column count as done", "../evaluate", "or part.columns.keys() - rows", "or set() and rows", "evaluate"),
    Fault("one noise for all seeds", "../benchmarks/few_labels", "corrupted(run.data, kind, seed)", "corrupted(run.data, kind)", "few_labels"),
    Fault("one long tail for all seeds", "../benchmarks/few_labels", "unbalanced(target, seed=seed)", "unbalanced(target)", "few_labels"),
    Fault("points of a shortened protocol count as whole", "../benchmarks/few_labels", 'runs[0].facts | {f"short {key}": value for key, value in short.items()}', "runs[0].facts", "few_labels"),
    Fault("the bias has no part in convergence", "evals/linear", "max(slope.abs().max().item(), slope_bias.abs().max().item())", "slope.abs().max().item()", "linear"),
    Fault("the mean of the smallest numbers is 0", "information", "(p + q).log() - math.log(2)", "((p + q) / 2).log()", "information"),
    Fault("the search for k gives up at once", "evals/knn", "patience=3)", "patience=1)", "protocol"),
    Fault("features of a small unit are dead", "evals/protocol", ".frexp().exponent.clamp(-100, 100)).to(train.dtype)", ".frexp().exponent.clamp(0, 0)).to(train.dtype)", "protocol"),
    Fault("--force drops what was not asked for", "../evaluate", "and column not in part.columns}", "and False}", "evaluate"),
    Fault("a report of another split is overwritten", "../evaluate", "*told_apart(folder, config)])", "])", "evaluate"),
    Fault("a bad number of the discriminator passes", "../train", "watched = {**losses.parts, ", "watched = {", "survive"),
    Fault("a state beyond its end is loaded", "checkpoint", 'if not 0 <= state["step"] <= state["steps"]:', "if False:", "checkpoint"),
)  # fmt: skip


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.what or word in fault.file for word in words)]
    if not chosen:
        print(f"error: no fault has {', '.join(words)} in its description or file", file=sys.stderr)
        return 2
    known = {line["fault"]: line for line in map(json.loads, RECORD.read_text().splitlines())} if RECORD.exists() else {}
    rows = []
    for fault in tqdm(chosen, disable=None, unit="fault"):
        row = known.get(fault.what)
        if row is None or row["of"] != of(fault):
            row = {"fault": fault.what, "file": shown(fault), "red": planted(fault), "of": of(fault)}
            with open(RECORD, "a") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
    print("| fault | file | the first test that turned red |\n|---|---|---|")
    for row in rows:
        red = f"`{row['red']}`" if row["red"] else "**none**"
        print(f"| {row['fault']} | `{row['file']}` | {red} |")
    unnoticed = sum(row["red"] is None for row in rows)
    print(f"\n{len(rows) - unnoticed} of {len(rows)} faults were noticed.")
    return int(unnoticed > 0)


def of(fault: Fault) -> str:
    """Digest of all that a fault's row depends on, other modules apart."""
    parts = [(ROOT / "dim" / f"{fault.file}.py").read_text(), (ROOT / "tests" / f"test_{fault.tests}.py").read_text()]
    return hashlib.sha256("\0".join([*fault, *parts]).encode()).hexdigest()[:12]


def shown(fault: Fault) -> str:
    return f"dim/{fault.file}.py".replace("dim/../", "")


def planted(fault: Fault) -> str | None:
    """The first test that fails with the fault in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dim"
        ignored = shutil.ignore_patterns(".*", "runs", "data", "results", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / "dim" / f"{fault.file}.py"
        text = path.read_text()
        if fault.right not in text:
            raise ValueError(f"{fault.what}: {fault.file}.py no longer holds {fault.right!r}")
        path.write_text(text.replace(fault.right, fault.wrong))
        words = ["-m", "pytest", f"tests/test_{fault.tests}.py", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True)
    red = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) and "::" in line]
    if not red and done.returncode < 0:  # a signal that nothing handled
        return f"the tests' own process, ended by signal {-done.returncode}"
    return red[0].split("::")[1].split(" - ")[0] if red else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
