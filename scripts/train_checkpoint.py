#!/usr/bin/env python3
"""Train a UFO-ViT on Fashion-MNIST and write the checkpoint that the toolkit ships.

    apt-get install dataset-fashion-mnist
    data=/usr/share/datasets/fashion-mnist
    python scripts/train_checkpoint.py --data $data --out build/train --bf16 --compile --cuda-graph   # minutes on a GPU
    python scripts/train_checkpoint.py --data $data --out build/train-64 --bf16 --compile --image-size 64 --epochs 5
    python scripts/train_checkpoint.py --data $data --out build/train-112 --bf16 --compile \
        --init build/train-64/ufovit_t.safetensors --epochs 9 --lr 6e-4                             # hours on two CPU cores

AdamW, linear warm-up and cosine decay, label smoothing; random shift, horizontal flip and erasing. The checkpoint contains the
exponential moving average of the weights. `--bf16` and `--compile` are faster on a GPU and on a CPU with AMX: together 1.5 to
2 times. `--depth`, `--dim` and `--heads` train another shape than those of `--model`, `--image-size HEIGHTxWIDTH` one for
other images than squares, to which they are stretched. `--cuda-graph` is three times faster on a GPU than single launches.
`--init` starts from a checkpoint of another image size and resizes its position embedding: on a CPU most epochs are cheaper at
a small size. The state is saved every `--save-every` steps; the same command resumes from it, other options are refused. The
order of batches depends on the seed and the data only. The last 1,024 training images are held out: they only show progress,
and become the calibration split. The test images are only copied to the test split.

Exit codes: 1 the loss became NaN or infinite, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib.errors import ArtifactError, DataError, UfovitError, VerdictError
from calib.files import atomic_path
from edge.images.idx import read_labelled_idx
from edge.images.placement import Fit
from edge.images.preprocess import Preprocess, Uint8
from edge.images.resampling import resample_matrix
from edge.model.checkpoint import load_checkpoint, random_network, save_checkpoint
from edge.model.metadata import CheckpointInfo
from edge.model.sizes import SIZES, UfoVitConfig, name_shape, parse_image_size, read_config
from edge.model.ufo_vit import UfoVit
from scripts.training_images import MEAN, STD, augment, draw_batch, network_input, write_splits

LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
HELD_OUT = 1024
AVERAGE_EVERY = 4  # steps: on a GPU an update of the average takes as long as a quarter of a step
PRINT_EVERY = 50  # steps: reading the losses waits for the device
SIDE = 28  # of an image, pixels
RESUME_MAY_CHANGE = ("out", "threads", "save_every", "compile", "cuda_graph")  # options that may differ when a training resumes


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = read_training_set(args.data, args.batch)
    cfg = network_shape(args)
    preprocess = whole_image(cfg)
    model = new_model(cfg, args).to(device)
    averaged = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr, fused=True)

    train_images, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    total = args.epochs * (len(train_images) // args.batch)
    state_file = args.out / "state.pt"
    options = {name: str(value) for name, value in vars(args).items() if name not in RESUME_MAY_CHANGE}
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer}
    step = resume(state_file, options, parts) if state_file.exists() else 0
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{cfg.name}: {parameters:,} parameters, {device}, step {step} of {total}", flush=True)

    if args.compile:
        compile_blocks(model)
    if args.cuda_graph:
        record_graphs(model, args)
    rows, columns = (torch.tensor(resample_matrix(SIDE, side), device=device) for side in (cfg.height, cfg.width))
    started, losses = time.monotonic(), []
    while step < total:
        chosen, rng = draw_batch(step, len(train_images), args.batch, args.seed)
        x = network_input(torch.from_numpy(augment(train_images[chosen], rng)).to(device), (rows, columns))
        y = torch.from_numpy(train_labels[chosen]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(step, args.warmup, total)
        losses.append(train_step(model, optimizer, x, y, args))
        step += 1
        if step % AVERAGE_EVERY == 0:
            longest = decay(step // AVERAGE_EVERY - 1, args.ema)
            averaged.multi_avg_fn = get_ema_multi_avg_fn(longest)  # type: ignore[no-untyped-call]  # torch states no type
            averaged.update_parameters(model)
        if len(losses) == PRINT_EVERY:
            loss, rate = mean_loss(losses, step), PRINT_EVERY * args.batch / (time.monotonic() - started)
            print(f"step {step}/{total} loss {loss:.4f} {rate:.1f} images/s", flush=True)
            started, losses = time.monotonic(), []
        if step % args.save_every == 0 or step == total:
            paused = time.monotonic()
            mean_loss(losses, step)
            save_state(state_file, options, parts, step)
            accuracy = top1(cast(UfoVit, averaged.module), preprocess, images[-HELD_OUT:], labels[-HELD_OUT:], device)
            print(f"step {step}/{total} held-out top-1 {accuracy:.4f}", flush=True)
            started += time.monotonic() - paused

    training = {
        "data": f"Fashion-MNIST, first {len(train_images):,} training images (MIT licence)",
        "command": " ".join(["scripts/train_checkpoint.py", *sys.argv[1:]]),
        "epochs": args.epochs,
        "torch": torch.__version__,
    }
    model = cast(UfoVit, averaged.module).to("cpu")
    save_checkpoint(model, CheckpointInfo(cfg, LABELS, preprocess, training=training), args.out / f"{cfg.name}.safetensors")
    write_splits(args.data, args.out, images[-HELD_OUT:], labels[-HELD_OUT:])
    print(f"wrote {args.out / cfg.name}.safetensors and the two splits", flush=True)


def network_shape(args: argparse.Namespace) -> UfoVitConfig:
    """That of `--model`, changed by the other options. Raises UsageError for an impossible one."""
    fields = {name: getattr(args, name) for name in ("depth", "dim", "heads")}
    fields = {name: getattr(SIZES[args.model], name) if value is None else value for name, value in fields.items()}
    fields |= {"image_size": args.image_size, "classes": len(LABELS)}
    return read_config(name_shape(fields), fields)


def whole_image(cfg: UfoVitConfig) -> Preprocess:
    """Preprocessing that cuts nothing off a square image."""
    fit: Fit = "crop" if cfg.height == cfg.width else "stretch"
    return Preprocess(cfg.image_size, min(cfg.height, cfg.width), (MEAN,) * 3, (STD,) * 3, fit=fit)


def new_model(cfg: UfoVitConfig, args: argparse.Namespace) -> UfoVit:
    """Random weights by seed, or those of `--init`. Raises DataError for a checkpoint with other classes."""
    if not args.init:
        return random_network(cfg, args.seed)
    model, info = load_checkpoint(args.init, model=cfg.name, image_size=cfg.image_size)
    if info.labels != LABELS:
        raise DataError(
            "the checkpoint has other classes", where=args.init, found=", ".join(info.labels), allowed=", ".join(LABELS)
        )
    return model


def read_training_set(folder: Path, batch: int) -> tuple[Uint8, NDArray[Any]]:
    """Images (N, 28, 28) and labels (N,), int64. Raises DataError unless they match and are sufficient for a batch."""
    images_file, labels_file = (folder / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_labelled_idx(images_file, labels_file, LABELS)
    least = HELD_OUT + batch
    if images.shape[1:] != (SIDE, SIDE) or len(images) < least:
        allowed = f"({least} or more, {SIDE}, {SIDE}): {HELD_OUT} are held out"
        raise DataError("unsupported training set", where=images_file, found=images.shape, allowed=allowed)
    return images, labels


def train_step(model: UfoVit, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, args: argparse.Namespace) -> Tensor:
    """Train one step on images x (B, 3, H, W) and classes y (B,), int64; returns the detached loss."""
    model.train()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.bf16, cache_enabled=not args.cuda_graph):
        loss = cross_entropy(model(x).float(), y, label_smoothing=args.smoothing)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch states no type
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a UFO-ViT on Fashion-MNIST.")
    parser.add_argument("--model", default="ufovit_t", choices=list(SIZES))
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="output folder of the state and the checkpoint")
    parser.add_argument("--init", type=Path, help="checkpoint to start from, of any image size")
    parser.add_argument("--depth", type=int, help="self-attention blocks, in place of those of --model")
    parser.add_argument("--dim", type=int, help="channels")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--image-size", type=parse_image_size, default=112, metavar="PIXELS|HEIGHTxWIDTH")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    parser.add_argument("--ema", type=float, default=0.996, help="largest decay of the averaged weights per update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="BF16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile: needs a C++ compiler")
    parser.add_argument("--cuda-graph", action="store_true", help="replay both passes as CUDA graphs, to save kernel launches")
    args = parser.parse_args()
    if args.cuda_graph and not torch.cuda.is_available():
        parser.error("--cuda-graph requires a CUDA device")
    return args


def parameter_groups(model: UfoVit, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only: not for biases, norms, gammas, LayerScale and embeddings."""
    decayed: list[torch.Tensor] = []
    plain: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and name.endswith("weight")
        (decayed if matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def compile_blocks(model: UfoVit) -> None:
    """Compile stem and blocks in place. Blocks share their code, so that one of each kind is compiled."""
    for part in (model.stem, *model.blocks, *model.cls_blocks):
        part.compile(dynamic=False)


def record_graphs(model: UfoVit, args: argparse.Namespace) -> None:
    """Record forward and backward pass as CUDA graphs, in place; weights and statistics do not change."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.zeros(args.batch, 3, model.cfg.height, model.cfg.width, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=args.bf16, cache_enabled=False):
        torch.cuda.make_graphed_callables(model.train(), (images,))
    model.load_state_dict(state)


def schedule(step: int, warmup: int, total: int) -> float:
    """Factor of the peak learning rate: linear warm-up, then cosine decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def decay(updates: int, longest: float) -> float:
    """Decay of the average after a number of updates: small at first, so that a short training forgets its initial weights.

    The same ramp as TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(longest, (1 + updates) / (10 + updates))


def mean_loss(losses: list[Tensor], step: int) -> float:
    """Mean of the steps' losses. Raises VerdictError if it is NaN or infinite, so that such weights are not saved."""
    loss = torch.stack(losses).mean().item() if losses else 0.0
    if not math.isfinite(loss):
        raise VerdictError(
            "the training diverged", where=f"before step {step}", found=f"loss {loss}", next_command="a lower --lr"
        )
    return loss


def save_state(state_file: Path, options: dict[str, str], parts: dict[str, Any], step: int) -> None:
    """Write the state that `resume` reads."""
    with atomic_path(state_file) as temporary:
        torch.save({"asked": options, "step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)


def resume(state_file: Path, options: dict[str, str], parts: dict[str, Any]) -> int:
    """Load the parts' states in place; returns the number of completed steps.

    Raises ArtifactError for a file that is not a training state, or the state of a training with other options.
    """
    restart = f"rm {state_file}, or another --out"
    try:
        state = torch.load(state_file, weights_only=True, map_location="cpu")
        saved = state["asked"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArtifactError("not a training state", where=state_file, found=reason, next_command=restart) from error
    others = sorted(name for name in saved.keys() | options.keys() if saved.get(name) != options.get(name))
    if others:
        found = ", ".join(f"{name} {saved.get(name)}, now {options.get(name)}" for name in others)
        raise ArtifactError(
            "the folder contains a training with other options", where=state_file, found=found, next_command=restart
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


@torch.inference_mode()
def top1(model: UfoVit, preprocess: Preprocess, images: Uint8, labels: NDArray[Any], device: torch.device) -> float:
    """Top-1 accuracy in [0, 1]."""
    model.eval()
    hits = 0
    for start in range(0, len(images), 128):
        part = slice(start, start + 128)
        logits: Tensor = model(torch.from_numpy(preprocess.batch(images[part, :, :, None])).to(device))
        hits += int((logits.argmax(1).cpu().numpy() == labels[part]).sum())
    return hits / len(images)


if __name__ == "__main__":
    try:
        main()
    except UfovitError as error:
        print(f"train_checkpoint: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
